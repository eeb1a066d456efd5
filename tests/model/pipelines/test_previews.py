"""Previews: what a running call has generated so far, as images."""

import dataclasses

import numpy as np
import pytest
import torch

from bitdance import BitDanceT2IPipeline
from tests.model.helpers.tiny import AUTOENCODER, tiny_pipeline
from tests.model.models.test_text_to_image import CONFIG, tiny
from tests.model.pipelines.test_text_to_image import SIZE, Words

GENERATED = "generated_latents"


def text_pipeline(**changes):
    autoencoder = dataclasses.replace(CONFIG.autoencoder, **changes)
    pipeline = BitDanceT2IPipeline(tiny(autoencoder=autoencoder), Words())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# A pipeline, the subjects of two images, and what its decoding takes.
CASES = {
    "classes": lambda: (tiny_pipeline(), [1, 3], {}),
    "several cells a token": lambda: (
        tiny_pipeline(resolution=16, patch_size=2, latent_dim=8), [1, 3], {}
    ),
    "noise": lambda: (
        tiny_pipeline(autoencoder=dataclasses.replace(AUTOENCODER, gan_decoder=True)), [1, 3], {}
    ),
    "text": lambda: (text_pipeline(), ["a dog", "snow"], SIZE),
    "text, noise": lambda: (text_pipeline(gan_decoder=True), ["a dog", "snow"], SIZE),
}  # fmt: skip


def run(pipeline, subjects, size, **options):
    """Images of a call, and the latents and the previews of each of its steps."""
    latents, previews = [], []

    def preview(pipe, step, timestep, kwargs):
        latents.append(kwargs[GENERATED])
        previews.append(pipe.preview(kwargs[GENERATED], seed=7, output_type="uint8", **size))
        return kwargs

    images = pipeline(
        subjects, num_inference_steps=2, seed=7, output_type="uint8", guidance_scale=3.0,
        callback_on_step_end=preview, callback_on_step_end_tensor_inputs=[GENERATED],
        **size, **options,
    ).images  # fmt: skip
    return images, latents, previews


@pytest.mark.parametrize("case", list(CASES))
def test_patches_appear_one_by_one_and_the_last_preview_is_the_image(case):
    pipeline, subjects, size = CASES[case]()
    images, latents, previews = run(pipeline, subjects, size)
    expected = pipeline(
        subjects, num_inference_steps=2, seed=7, output_type="latent", guidance_scale=3.0, **size
    ).images
    steps = len(previews)
    assert torch.equal(previews[-1], images)
    gray = [(preview == 128).all(1) for preview in previews]
    of_patch = gray[0][0].numel() // steps
    for i, (found, preview) in enumerate(zip(latents, previews, strict=True)):
        assert torch.equal(found, expected[:, : expected.shape[1] * (i + 1) // steps])
        assert preview.shape == images.shape
        # Images are noise, where few pixels are gray by chance.
        hidden = gray[i].sum((1, 2)) - (steps - 1 - i) * of_patch
        assert (hidden >= 0).all()
        assert (hidden <= 3).all()
        if i:
            assert not (gray[i] & ~gray[i - 1]).any()
    nothing = pipeline.preview(expected[:, :0], output_type="np", **size)
    assert np.unique(nothing).tolist() == [np.float32(128 / 255)]


def test_a_preview_shows_the_images_of_its_batch():
    pipeline = tiny_pipeline()
    images, latents, previews = run(pipeline, [0, 1, 2], {}, batch_size=2)
    assert [len(found) for found in latents] == [2] * 4 + [1] * 4
    assert torch.equal(torch.cat([previews[3], previews[7]]), images)


def test_latents_that_a_callback_replaced_are_shown():
    pipeline, seen = tiny_pipeline(), []

    def replace(pipe, step, timestep, kwargs):
        seen.append(kwargs[GENERATED])
        return {"latents": torch.ones(2, 4, 8)} if step == 1 else None

    pipeline(
        [0], num_inference_steps=1, callback_on_step_end=replace, guidance_scale=3.0,
        callback_on_step_end_tensor_inputs=[GENERATED],
    )  # fmt: skip
    assert (seen[2][:, 4:8] == 255).all()
    assert torch.equal(seen[2][:, :4], seen[0])


@pytest.mark.parametrize("returned", [0, torch.zeros(1, 4, 1, dtype=torch.uint8, device="cpu")])
def test_generated_latents_must_not_be_changed(returned):
    with pytest.raises(ValueError, match="must leave generated_latents unchanged, got"):
        tiny_pipeline()(
            [0], num_inference_steps=1, seed=1,
            callback_on_step_end=lambda *_: {GENERATED: returned},
            callback_on_step_end_tensor_inputs=[GENERATED],
        )  # fmt: skip


BYTES = torch.zeros(1, 16, 1, dtype=torch.uint8, device="cpu")


@pytest.mark.parametrize(
    ("latents", "options", "message"),
    [
        ([1], {}, "preview: generated_latents must be uint8 ['n', 16, 1] or fewer tokens, got"),
        (BYTES.float(), {}, "or fewer tokens, got torch.float32 [1, 16, 1]"),
        (torch.cat([BYTES, BYTES], 1), {}, "or fewer tokens, got torch.uint8 [1, 32, 1]"),
        (torch.cat([BYTES, BYTES], 2), {}, "or fewer tokens, got torch.uint8 [1, 16, 2]"),
        (BYTES[0], {}, "or fewer tokens, got torch.uint8 [16, 1]"),
        (BYTES, {"output_type": "latent"}, "preview: output_type must be 'pil', 'np', 'pt' or"),
        (BYTES, {"seed": [1, 2]}, "preview: seed must be one per image (1), got 2"),
    ],
    ids=["list", "floats", "many tokens", "many bits", "one image", "output", "seeds"],
)
def test_other_arguments_are_refused(latents, options, message):
    with pytest.raises((TypeError, ValueError)) as error:
        tiny_pipeline().preview(latents, **options)
    assert message in str(error.value)
