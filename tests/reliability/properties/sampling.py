"""Properties of noise, guidance, the schedule of the sampler and slots."""

from __future__ import annotations

import functools
import random

import torch
from hypothesis import strategies as st

from bitdance import BitDancePipeline
from bitdance.sampling.ar_sampler import guidance_at
from bitdance.sampling.slot_sequences import ClassSlots
from bitdance.sampling.slots import SlotDecoder, SlotImage
from bitdance_kernels import (
    denoise_schedule,
    denoise_step,
    finalize_bits,
    noise,
    noise_keys,
    noise_words,
)
from bitdance_kernels.testing import cpu_threads
from tests.model.helpers.tiny import tiny_pipeline
from tests.reliability.properties._for_all import PLACES, SEEDS, Place, for_all, rng

__all__ = ["PROPERTIES"]

_PLACE = st.sampled_from(PLACES)
_ID = st.integers(0, 2**32 - 1)
_ROW = st.tuples(st.integers(0, 2**64 - 1), _ID)


@for_all(
    rows=st.lists(_ROW, min_size=1, max_size=9), step=st.integers(0, 2**32 - 1),
    ar_step=st.integers(0, 2**31 - 1), elements=st.integers(0, 300), fewer=st.integers(0, 300),
    order=st.randoms(use_true_random=False), place=_PLACE, threads=st.integers(1, 3),
)  # fmt: skip
def noise_belongs_to_its_sample(
    rows: list[tuple[int, int]],
    step: int,
    ar_step: int,
    elements: int,
    fewer: int,
    order: random.Random,
    place: Place,
    threads: int,
) -> None:
    """Whatever the batch, its order, the number of elements that are asked for and of threads."""
    backend = "auto" if place.backend == "cpu" else "reference"

    def keys(some: list[tuple[int, int]]) -> torch.Tensor:
        return noise_keys([seed for seed, _ in some], [i for _, i in some], ar_step=ar_step)

    with place.limit():
        together = noise(keys(rows), step, elements, backend=backend)
        mixed = list(range(len(rows)))
        order.shuffle(mixed)
        with cpu_threads(threads):
            moved = noise(keys([rows[i] for i in mixed]), step, elements, backend=backend)
        fewer = min(fewer, elements)
        prefix = noise(keys(rows[-1:]), step, fewer, backend=backend)
    assert torch.equal(moved, together[mixed])
    words = noise_words(keys(rows), step, elements)
    assert torch.equal(noise_words(keys(rows[-1:]), step, fewer), words[-1:, :fewer])
    if place.backend == "cpu":  # PyTorch's vectors round otherwise than its tails
        assert torch.equal(prefix, together[-1:, :fewer])
    else:
        torch.testing.assert_close(prefix, together[-1:, :fewer])
    assert bool((together.abs() < 5.9).all())


@for_all(
    seed=SEEDS, rows=st.integers(1, 4), width=st.integers(1, 9), cfg=st.integers(-9, 9),
    dtype=st.sampled_from((torch.float32, torch.float16, torch.bfloat16)), place=_PLACE,
    scale=st.floats(-20, 20, width=32), step=st.integers(0, 3),
)  # fmt: skip
def guidance_is_linear_in_its_scale(
    seed: int,
    rows: int,
    width: int,
    cfg: int,
    dtype: torch.dtype,
    place: Place,
    scale: float,
    step: int,
) -> None:
    """Exact for integers; 0 is the unconditional half, and equal halves need no scale."""
    c, u = torch.randint(
        -9, 10, (2, rows, 8 * width), generator=rng(seed), dtype=torch.int64, device="cpu"
    )
    both = torch.cat((c, u)).to(dtype)
    table, _ = denoise_schedule(3)
    x = c.float()
    still = torch.zeros_like(x)
    with place.limit():
        signs, _ = finalize_bits(both, cfg=float(cfg), backend=place.backend)
        assert torch.equal(signs, torch.where(u + cfg * (c - u) > 0, 1, -1).to(dtype))
        none, _ = finalize_bits(both, cfg=0.0, backend=place.backend)
        assert torch.equal(none, torch.where(u > 0, 1, -1).to(dtype))
        same, _ = finalize_bits(torch.cat((both[:rows], both[:rows])), cfg=scale,
                                backend=place.backend)  # fmt: skip
        assert torch.equal(same, torch.where(c > 0, 1, -1).to(dtype))
        guided = denoise_step(
            x, both, table, step, cfg=float(cfg), noise=still, backend=place.backend
        )
        alone = denoise_step(
            x, (u + cfg * (c - u)).float(), table, step, noise=still, backend=place.backend
        )
    assert torch.equal(guided, alone)


@for_all(steps=st.integers(1, 60), shift=st.floats(1, 20), wider=st.floats(1, 4))
def times_of_the_sampler_ascend(steps: int, shift: float, wider: float) -> None:
    """From 0 to 0.95; a larger shift is earlier, and each row is the official step."""
    table, times = denoise_schedule(steps, time_shift=shift)
    _, later = denoise_schedule(steps, time_shift=shift * wider)
    assert float(times[0]) == 0
    assert torch.equal(times[-1], times.new_tensor(0.95))
    assert bool((times.diff() > 0).all())
    assert bool((later <= times + 1e-6).all())
    a, b, s = table.double().unbind(1)
    assert table[-1].tolist() == [0, 1, 0]
    assert bool((b > 0).all() and (s >= 0).all() and (a <= 1).all())
    t = times[:-1].double()
    dt = 1 - a[:-1] - b[:-1]
    assert bool((dt > -1e-6).all())
    torch.testing.assert_close(b[:-1], (1 + t) * dt / (1 - t), rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(s[:-1].square(), 2 * (1 - t) * dt, rtol=1e-2, atol=1e-5)


@for_all(steps=st.integers(1, 300), scale=st.floats(-50, 50))
def guidance_over_the_patches_is_monotone(steps: int, scale: float) -> None:
    """The linear schedule begins at exactly 1 and goes to the scale, which it does not reach."""
    found = [guidance_at(i, steps, scale, "linear") for i in range(steps)]
    assert found[0] == 1
    low, high = min(1.0, scale), max(1.0, scale)
    assert all(low <= g <= high for g in found)
    assert found == sorted(found, reverse=scale < 1)
    assert {guidance_at(i, steps, scale, "constant") for i in range(steps)} == {scale}


_IMAGES = 24
_STEPS = 4  # of AR
_SCALE = 3.0


@functools.cache
def _pipeline() -> BitDancePipeline:
    return tiny_pipeline()


@functools.cache
def _decoder(slots: int) -> SlotDecoder[int]:
    sequence = ClassSlots(_pipeline().model)
    return SlotDecoder(sequence, guided=True, num_inference_steps=1, slots=slots)


@functools.cache
def _alone(number: int) -> torch.Tensor:
    latents: torch.Tensor = _pipeline()(
        [number % 5], num_inference_steps=1, guidance_scale=_SCALE, guidance_schedule="linear",
        seed=number, sample_ids=[number], output_type="latent",
    ).images  # fmt: skip
    return latents[0]


@for_all(
    slots=st.integers(1, 3), images=st.lists(st.integers(0, _IMAGES - 1), min_size=1, max_size=4),
    waits=st.lists(st.integers(0, 2), min_size=4, max_size=4), leaves=st.integers(0, 12),
)  # fmt: skip
def images_in_slots_are_the_images_alone(
    slots: int, images: list[int], waits: list[int], leaves: int
) -> None:
    """Whenever they enter, whoever is beside them or leaves early."""
    decoder = _decoder(slots)
    waiting = list(zip(images, waits, strict=False))
    guidance = tuple(guidance_at(i, _STEPS, _SCALE, "linear") for i in range(_STEPS))
    try:
        turn = 0
        while waiting or decoder.active:
            while waiting and decoder.free and turn >= waiting[0][1]:
                number, _ = waiting.pop(0)
                decoder.add(SlotImage(number % 5, guidance, seed=number, sample_id=number))
            if turn == leaves and decoder.active:
                decoder.remove(decoder.active[0])
            for slot in decoder.advance():
                if slot.finished:
                    assert torch.equal(slot.packed, _alone(slot.image.sample_id))
            turn += 1
    finally:
        for slot in decoder.active:
            decoder.remove(slot)


PROPERTIES = (
    noise_belongs_to_its_sample,
    guidance_is_linear_in_its_scale,
    times_of_the_sampler_ascend,
    guidance_over_the_patches_is_monotone,
    images_in_slots_are_the_images_alone,
)
