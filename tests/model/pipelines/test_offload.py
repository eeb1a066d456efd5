"""Parts of a model that are on a device in turns.

The device is the CPU here: weights there are copies of those at home, as on a card.
"""

import copy
import threading
import weakref
from functools import partial

import pytest
import torch

from bitdance import BitDanceT2IPipeline
from bitdance.pipelines.base import BasePipeline
from tests.model.helpers.tiny import PACKABLE, tiny_pipeline
from tests.model.models.test_text_to_image import tiny
from tests.model.pipelines.test_text_to_image import SIZE, Words


def text_pipeline():
    pipeline = BitDanceT2IPipeline(tiny(), Words())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, partial(pipeline, ["a fox", "an owl"], **SIZE)


def class_pipeline(**changes):
    pipeline = tiny_pipeline(**changes)
    return pipeline, partial(pipeline, [1, 4])


EVERY = pytest.mark.parametrize(
    "make", [text_pipeline, class_pipeline, partial(class_pipeline, parallel_num=1)]
)
SETTINGS = {"num_inference_steps": 1, "seed": 3, "output_type": "uint8"}


def state(pipeline):
    return {id(t): t.data_ptr() for t in (*pipeline.model.parameters(), *pipeline.model.buffers())}


def away(pipeline, homes):
    """Which parts are not at home: a bool for the autoencoder, and one for the rest."""
    own = {id(tensor) for tensor in pipeline._autoencoder.parameters()}
    moved = {True: set(), False: set()}
    for key, address in state(pipeline).items():
        moved[key in own].add(address != homes[key])
    return tuple(moved[which] == {True} for which in (True, False))


@EVERY
def test_images_are_the_same_and_each_part_has_its_turn(make, monkeypatch):
    pipeline, call = make()
    expected = call(**SETTINGS).images
    assert pipeline.enable_model_cpu_offload("cpu") is pipeline
    assert pipeline.device == torch.device("cpu")
    homes, seen = state(pipeline), []
    pixels = BasePipeline._pixels

    def look(self, *args):
        seen.append(away(pipeline, homes))
        return pixels(self, *args)

    def callback(_, step, timestep, tensors):
        seen.append(away(pipeline, homes))
        return tensors

    monkeypatch.setattr(BasePipeline, "_pixels", look)
    assert torch.equal(call(**SETTINGS, callback_on_step_end=callback).images, expected)
    assert seen == [(False, True)] * (len(seen) - 1) + [(True, False)]
    assert len(seen) > 1
    assert state(pipeline) == homes
    pipeline.disable_model_cpu_offload()
    assert torch.equal(call(**SETTINGS).images, expected)
    assert seen[-1] == (False, False)


@EVERY
def test_nothing_on_the_device_outlives_its_turn(make):
    """Neither copies of weights nor what a sampler or decoder keeps for the next call."""
    pipeline, call = make()
    call(**SETTINGS)
    pipeline.enable_model_cpu_offload("cpu")
    there = []

    def callback(_, step, timestep, tensors):
        there.extend(weakref.ref(t.untyped_storage()) for t in pipeline.model.parameters())
        return tensors

    for _ in range(3):
        call(**SETTINGS, callback_on_step_end=callback)
    homes = {t.untyped_storage()._cdata for t in pipeline.model.parameters()}
    alive = [ref() for ref in there if ref() is not None]
    assert {storage._cdata for storage in alive} <= homes
    assert not pipeline.sampler.workspaces.idle
    assert not pipeline._decode_images._graphs.idle


@EVERY
def test_a_preview_in_a_callback_brings_the_autoencoder_beside_the_rest(make, monkeypatch):
    pipeline, call = make()
    size = {key: value for key, value in SIZE.items() if isinstance(pipeline, BitDanceT2IPipeline)}
    expected = call(**SETTINGS).images
    pipeline.enable_model_cpu_offload("cpu")
    homes, seen = state(pipeline), []
    pixels = BasePipeline._pixels

    def look(self, *args):
        seen.append(away(pipeline, homes))
        return pixels(self, *args)

    previews = []

    def callback(_, step, timestep, tensors):
        drawn = tensors["generated_latents"]
        previews.append(pipeline.preview(drawn, **size, seed=3, output_type="uint8"))
        seen.append(away(pipeline, homes))
        return tensors

    monkeypatch.setattr(BasePipeline, "_pixels", look)
    found = call(
        **SETTINGS, callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["generated_latents"],
    )  # fmt: skip
    assert torch.equal(found.images, expected)
    assert torch.equal(previews[-1], expected)
    assert seen[:2] == [(True, True), (False, True)]
    assert state(pipeline) == homes


@EVERY
def test_encoding_brings_the_autoencoder(make, monkeypatch):
    pipeline, call = make()
    images = call(**SETTINGS | {"output_type": "pt"}).images
    expected = pipeline.encode(images)
    pipeline.enable_model_cpu_offload("cpu")
    homes, seen, encode = state(pipeline), [], type(pipeline._autoencoder).encode

    def look(self, *args, **options):
        seen.append(away(pipeline, homes))
        return encode(self, *args, **options)

    monkeypatch.setattr(type(pipeline._autoencoder), "encode", look)
    assert torch.equal(pipeline.encode(images), expected)
    assert seen == [(True, False)]
    assert state(pipeline) == homes


def test_calls_of_threads_take_turns():
    pipeline, call = class_pipeline()
    expected = [call(**SETTINGS | {"seed": seed}).images for seed in range(4)]
    pipeline.enable_model_cpu_offload("cpu")
    found = {}

    def run(seed):
        found[seed] = call(**SETTINGS | {"seed": seed}).images

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[seed], expected[seed]) for seed in range(4))


def test_a_call_that_fails_leaves_the_weights_at_home():
    pipeline, call = class_pipeline()
    pipeline.enable_model_cpu_offload("cpu")
    homes = state(pipeline)

    def fail(*_):
        raise KeyError("no")

    with pytest.raises(KeyError):
        call(**SETTINGS, callback_on_step_end=fail)
    assert state(pipeline) == homes


def test_quantized_weights_are_offloaded_too():
    pipeline, call = class_pipeline(**PACKABLE)
    pipeline.quantize("int8_weight_only")
    expected = call(**SETTINGS).images
    pipeline.enable_model_cpu_offload("cpu")
    assert torch.equal(call(**SETTINGS).images, expected)


def test_what_an_offloaded_pipeline_refuses():
    pipeline, call = class_pipeline()
    pipeline.enable_model_cpu_offload("cpu")
    for function, refused in (
        ("to", lambda: pipeline.to(torch.float16)),
        ("quantize", lambda: pipeline.quantize("fp8")),
        ("enable_model_cpu_offload", pipeline.enable_model_cpu_offload),
    ):
        with pytest.raises(RuntimeError, match=f"^{function}: pipeline must not be offloaded"):
            refused()
    messages = []

    def callback(*_):
        with pytest.raises(RuntimeError, match="no call must run") as caught:
            pipeline.disable_model_cpu_offload()
        messages.append(str(caught.value))

    call(**SETTINGS, callback_on_step_end=callback)
    assert messages
    other = copy.deepcopy(pipeline)
    assert other.to(torch.float64).dtype == torch.float64
    assert pipeline.dtype == torch.float32
    pipeline.disable_model_cpu_offload().to(torch.float64)


def test_saved_weights_are_those_at_home(tmp_path):
    pipeline, call = class_pipeline()
    expected = {name: tensor.clone() for name, tensor in pipeline.model.state_dict().items()}
    pipeline.enable_model_cpu_offload("cpu")
    call(**SETTINGS)
    pipeline.save_pretrained(tmp_path)
    found = type(pipeline).from_pretrained(tmp_path).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
