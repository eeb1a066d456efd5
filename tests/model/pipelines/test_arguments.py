"""What ``generate`` and ``decode`` take: numbers of any library, and refusals in words."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.model.helpers.tiny import AUTOENCODER, tiny_pipeline


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


def _noisy():
    """A pipeline whose decoder takes noise."""
    noisy = dataclasses.replace(AUTOENCODER, gan_decoder=True)
    return tiny_pipeline(autoencoder=noisy)


def test_the_noise_of_a_decoder_belongs_to_the_picture():
    """Whatever the batch, PyTorch's own generator, and what was drawn before."""
    pipeline, options = _noisy(), {"num_inference_steps": 2, "output_type": "uint8"}
    together = pipeline([0, 1, 1], seed=[5, 6, 7], **options).images
    torch.manual_seed(9)
    for i, (label, seed) in enumerate([(0, 5), (1, 6), (1, 7)]):
        assert torch.equal(pipeline([label], seed=[seed], **options).images[0], together[i])
    assert torch.equal(
        pipeline([0, 1, 1], seed=[5, 6, 7], batch_size=2, **options).images, together
    )
    packed = pipeline([0, 1, 1], seed=[5, 6, 7], **options | {"output_type": "latent"}).images
    assert torch.equal(pipeline.decode(packed, seed=[5, 6, 7], output_type="uint8"), together)
    other = pipeline.decode(packed, seed=[5, 6, 8], output_type="uint8")
    assert torch.equal(other[:2], together[:2])
    assert not torch.equal(other[2], together[2])
    same = packed[:1].expand(2, -1, -1)
    first, second = pipeline.decode(same, output_type="uint8")
    assert not torch.equal(first, second)  # pictures of one seed differ by their ids
    assert torch.equal(pipeline.decode(same, sample_ids=[0, 0], output_type="uint8")[1], first)


@pytest.mark.parametrize(
    ("labels", "same"),
    [
        ("sneaker", [4]), (4, [4]), (np.int64(2), [2]), (torch.tensor(3), [3]), (2.0, [2]),
        (torch.tensor([0, 4]), [0, 4]), (np.array([1, 2]), [1, 2]), ((0, "bag"), [0, 1]),
        (range(2), [0, 1]), (["4"], [4]), ((i for i in (1, 2)), [1, 2]), ([], []),
    ],
)  # fmt: skip
def test_labels_are_one_or_several_names_or_integers(pipeline, labels, same):
    assert torch.equal(_latent(pipeline, labels), _latent(pipeline, same))


def _latent(pipeline, labels, **options):
    return pipeline(labels, **{"num_inference_steps": 1, "output_type": "latent"} | options).images


INTEGERS = [2.5, float("nan"), float("inf"), True, np.True_, "5", None, b"5", 1j, [[1]]]


@pytest.mark.parametrize("label", [*INTEGERS, "²", "", " ", "--1", "9" * 5000, -1, 5, "ab"])
def test_labels_of_another_kind_are_refused(pipeline, label):
    with pytest.raises((TypeError, ValueError), match=r"label: class must be .*got") as error:
        pipeline([0, label])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("name", ["seed", "sample_ids", "num_inference_steps", "batch_size"])
@pytest.mark.parametrize("value", INTEGERS)
def test_numbers_that_are_no_integers_are_refused(pipeline, name, value):
    if value is None:
        value = "none"  # since None is the default
    several = [value] if name == "sample_ids" else value
    with pytest.raises((TypeError, ValueError), match=rf"BitDancePipeline: {name} must be .*, got"):
        _latent(pipeline, [0], **{name: several})


@pytest.mark.parametrize("value", [np.int64(2), 2.0, torch.tensor(2), np.float32(2)])
def test_numbers_that_are_exactly_integers_are_taken(pipeline, value):
    wanted = _latent(pipeline, [0, 1], seed=2, num_inference_steps=2, sample_ids=[2, 0])
    for name in ("seed", "num_inference_steps", "batch_size"):
        changes = {"seed": 2, "num_inference_steps": 2, "sample_ids": [2, 0]} | {name: value}
        assert torch.equal(_latent(pipeline, [0, 1], **changes), wanted)
    changes = {"seed": 2, "num_inference_steps": 2, "sample_ids": [value, 0]}
    assert torch.equal(_latent(pipeline, [0, 1], **changes), wanted)
    for seeds in ([value, 2], np.array([2, 2]), torch.tensor([2, 2])):
        changes = {"seed": seeds, "num_inference_steps": 2, "sample_ids": [2, 0]}
        assert torch.equal(_latent(pipeline, [0, 1], **changes), wanted)


@pytest.mark.parametrize("value", ["3", True, [2.0], 1j, float("-inf"), 10**400])
def test_guidance_must_be_a_finite_number(pipeline, value):
    with pytest.raises(
        (TypeError, ValueError), match=r"BitDancePipeline: guidance_scale must be .*, got"
    ):
        _latent(pipeline, [0], guidance_scale=value)


@pytest.mark.parametrize("value", [np.float32(3), torch.tensor(3.0), 3])
def test_guidance_may_be_a_number_of_any_library(pipeline, value):
    wanted = _latent(pipeline, [0], guidance_scale=3.0)
    assert torch.equal(_latent(pipeline, [0], guidance_scale=value), wanted)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p([0], callback_on_step_end=3).images, "callback_on_step_end must be a func"),
        (lambda p: p(torch.zeros(1, 1).int()).images, "labels must be a sequence, got"),
        (lambda p: p([0], seed={}).images, r"seed must be one per image \(1\), got 0"),
        (
            lambda p: p.decode(np.zeros((1, 16, 1), np.uint8)),
            "packed_latents must be uint8 .*, got array",
        ),
        (lambda p: p.decode(torch.tensor(1)), "packed_latents must be uint8 .* got torch.int64"),
        (lambda p: p.decode(_bits(1), batch_size=-1), "decode: batch_size must be an integer of"),
        (lambda p: p.decode(_bits(1), output_type="latent"), "'pt' or 'uint8', got 'latent'"),
        (lambda p: p.decode(_bits(2), seed=[1]), r"decode: seed must be one per image \(2\)"),
    ],
)
def test_arguments_of_another_kind_are_refused(pipeline, call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(pipeline)


def _bits(count):
    return torch.zeros(count, 16, 1, dtype=torch.uint8)
