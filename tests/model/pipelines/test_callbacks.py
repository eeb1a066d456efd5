"""Callbacks of a pipeline have the contract of diffusers: what they see, change and stop."""

import pytest
import torch

from bitdance import GenerationCancelled
from bitdance_kernels import pack_signs, unpack_signs
from tests.model.helpers.tiny import tiny_pipeline

LATENT = {"num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


def _latent(pipeline, labels=(1, 3), **options):
    return pipeline(labels, **LATENT, **options).images


def test_callback_has_the_contract_of_diffusers(pipeline):
    """f(pipeline, step, timestep, callback_kwargs) returns the tensors, which it may change."""
    steps = []

    def record(pipe, step, timestep, callback_kwargs):
        assert pipe is pipeline
        shapes = {name: tuple(tensor.shape) for name, tensor in callback_kwargs.items()}
        steps.append((step, timestep, shapes))
        return callback_kwargs

    wanted = _latent(pipeline, guidance_scale=1.0)
    found = _latent(pipeline, callback_on_step_end=record, guidance_scale=1.0)
    assert torch.equal(found, wanted)
    assert steps == [(i, 3 - i, {"latents": (2, 4, 8)}) for i in range(4)]
    names = ["packed_latents", "latents"]
    options = {"callback_on_step_end": record, "callback_on_step_end_tensor_inputs": names}
    _latent(pipeline, **options)
    assert steps[-1] == (3, 0, {"packed_latents": (4, 4, 1), "latents": (4, 4, 8)})
    with pytest.raises(ValueError, match="of latents, packed_latents, generated_latents, got"):
        _latent(pipeline, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    for returned, message in (
        (False, "must return its callback_kwargs"),
        ({"latents": 3}, "got 3"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            _latent(pipeline, callback_on_step_end=lambda *_, value=returned: value)


def test_a_callback_may_be_one_of_diffusers(pipeline):
    """A PipelineCallback names its tensors itself. Inference mode changes nothing."""

    class PipelineCallback:
        tensor_inputs = ("packed_latents",)
        seen = ()

        def __call__(self, pipe, step, timestep, callback_kwargs):
            self.seen = (*self.seen, *callback_kwargs)
            return callback_kwargs

    callback, wanted = PipelineCallback(), _latent(pipeline)
    with torch.inference_mode():
        found = _latent(pipeline, callback_on_step_end=callback)
    assert torch.equal(found, wanted)
    assert callback.seen == ("packed_latents",) * 4


@pytest.mark.parametrize("name", ["latents", "packed_latents"])
@pytest.mark.parametrize("rows", [2, 4])
def test_halves_of_guidance_may_be_changed_together(pipeline, name, rows):
    bits = torch.arange(8) % 3 == 0
    signs = torch.where(bits, 1.0, -1.0).expand(rows, 4, 8)

    def replace(pipe, step, timestep, callback_kwargs):
        if step != 1:
            return None
        return {name: signs if name == "latents" else pack_signs(signs.contiguous())}

    names = ["latents", "packed_latents"]
    options = {"callback_on_step_end_tensor_inputs": names, "guidance_scale": 3.0}
    changed = unpack_signs(_latent(pipeline, callback_on_step_end=replace, **options))
    assert torch.equal(changed[:, 4:8], signs[:2])

    def replace_both(pipe, step, timestep, callback_kwargs):
        return {"latents": signs[:2].repeat(2, 1, 1)} if step == 1 else None

    expected = _latent(pipeline, callback_on_step_end=replace_both, **options)
    assert torch.equal(changed, unpack_signs(expected))
    with pytest.raises(ValueError, match=r"return latents of shape \[4, 4, 8\], got \[3, 4, 8\]"):
        _latent(
            pipeline,
            callback_on_step_end=lambda *_: {"latents": torch.ones(3, 4, 8)},
            guidance_scale=3.0,
        )
    with pytest.raises(ValueError, match="latents without NaN"):
        _latent(pipeline, callback_on_step_end=lambda *_: {"latents": torch.ones(2, 4, 8) / 0 * 0})


def test_interrupt_stops_decoding_too(pipeline, monkeypatch):
    decode = pipeline._decode_images

    def interrupt(latents, noise=None):
        pipeline.interrupt = True
        return decode(latents, noise=noise)

    interrupt.autoencoder = decode.autoencoder
    monkeypatch.setattr(pipeline, "_decode_images", interrupt)
    with pytest.raises(GenerationCancelled, match="stopped after decoding image 1 of 2"):
        pipeline([0, 1], num_inference_steps=1, batch_size=1)


@pytest.mark.parametrize("in_place", [False, True])
def test_latents_that_a_callback_changes_are_gone_on_with(pipeline, in_place):
    chosen = torch.where(torch.arange(8) % 3 == 0, 1.0, -1.0)

    def replace(pipe, step, timestep, callback_kwargs):
        if step == 1 and in_place:
            callback_kwargs["latents"].copy_(chosen.expand(2, 4, 8))
        elif step == 1:
            callback_kwargs["latents"] = chosen.expand(2, 4, 8) * 0.5
        return callback_kwargs

    def same(pipe, step, timestep, callback_kwargs):
        return {"latents": callback_kwargs["latents"].clone()}

    plain = unpack_signs(_latent(pipeline, guidance_scale=1.0))
    changed = _latent(pipeline, callback_on_step_end=replace, guidance_scale=1.0)
    changed = unpack_signs(changed)
    assert torch.equal(changed[:, :4], plain[:, :4])
    assert torch.equal(changed[:, 4:8], chosen.expand(2, 4, 8))
    assert not torch.equal(changed[:, 8:], plain[:, 8:])
    cloned = _latent(pipeline, callback_on_step_end=same, guidance_scale=1.0)
    assert torch.equal(unpack_signs(cloned), plain)


@pytest.mark.parametrize("name", ["interrupt", "_interrupt"])
def test_a_callback_can_stop_the_call(pipeline, name):
    def interrupt(pipe, *_):
        setattr(pipe, name, True)

    with pytest.raises(GenerationCancelled, match="stopped after AR step 1 of 4"):
        _latent(pipeline, callback_on_step_end=interrupt)
    assert len(_latent(pipeline)) == 2  # and goes on as before
