"""Slots: images that enter and leave between AR steps have the bits that they have alone."""

import random

import pytest
import torch

from bitdance import BitDanceT2IPipeline
from bitdance.models.projectors import position_embedding_2d
from bitdance.models.token_order import generation_order
from bitdance.sampling import graphs
from bitdance.sampling.ar_sampler import guidance_at
from bitdance.sampling.finite import NotFiniteError
from bitdance.sampling.slot_sequences import ClassSlots, Prompt, TextSlots
from bitdance.sampling.slots import SlotDecoder, SlotImage, bucket_sizes
from tests.model.helpers.tiny import tiny_pipeline
from tests.model.helpers.words import SizedWords
from tests.model.models.test_text_to_image import tiny as tiny_text_to_image

GRIDS = ((4, 4), (2, 2), (4, 2), (2, 6), (2, 4))
GUIDANCE = {
    "linear": (3.0, "linear"),
    "constant": (2.0, "constant"),
    "none": (1.0, "linear"),
}  # fmt: skip
EACH_GUIDANCE = pytest.mark.parametrize(("scale", "schedule"), GUIDANCE.values(), ids=GUIDANCE)


@pytest.fixture(autouse=True)
def _captured_at_once(monkeypatch):
    monkeypatch.setattr(graphs, "CALLS_BEFORE_CAPTURE", 0)


def class_image(number, ar_steps, scale, schedule):
    guidance = tuple(guidance_at(i, ar_steps, scale, schedule) for i in range(ar_steps))
    return SlotImage(number % 5, guidance, seed=2**63 + number, sample_id=number)


def decoder_of(pipeline, scale=3.0, slots=3, steps=2):
    return SlotDecoder(
        ClassSlots(pipeline.model), guided=scale > 1, num_inference_steps=steps, slots=slots
    )


def run(decoder, images, seed=0, removed=()):
    """Bits of images that enter at random steps; those in `removed` leave at a random one."""
    draw, waiting, packed = random.Random(seed), list(images), {}
    while waiting or decoder.active:
        while waiting and decoder.free and draw.random() < 0.6:
            decoder.add(waiting.pop(0))
        for slot in decoder.active:
            if slot.image.sample_id in removed and slot.step and draw.random() < 0.5:
                decoder.remove(slot)
        for slot in decoder.advance():
            assert slot.error is None
            if slot.finished:
                packed[slot.image.sample_id] = slot.packed
    assert decoder.free == len(decoder._slots)
    return packed


@EACH_GUIDANCE
@pytest.mark.parametrize("parallel_num", [1, 4, 16])
def test_classes_have_the_bits_that_they_have_alone(parallel_num, scale, schedule):
    pipeline = tiny_pipeline(parallel_num=parallel_num)  # 16, 4 and 1 AR steps
    ar_steps = pipeline.config.ar_steps
    scales = [scale + i / 4 if scale > 1 else scale for i in range(8)]
    images = [class_image(i, ar_steps, scales[i], schedule) for i in range(8)]
    decoder = decoder_of(pipeline, scale)
    packed = run(decoder, images, removed=(1, 4) if ar_steps > 1 else ())
    assert {0, 2, 3, 5, 6, 7} <= packed.keys()
    for number, bits in packed.items():
        alone = pipeline(
            [number % 5], num_inference_steps=2, guidance_scale=scales[number],
            guidance_schedule=schedule, seed=2**63 + number, sample_ids=[number],
            output_type="latent",
        ).images  # fmt: skip
        assert torch.equal(bits, alone[0]), number


@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_texts_of_all_sizes_have_the_bits_that_they_have_alone(scale):
    pipeline = BitDanceT2IPipeline(tiny_text_to_image(), SizedWords())
    pipeline.set_progress_bar_config(disable=True)
    P, factor = pipeline.config.parallel_num, pipeline.config.autoencoder.downsampling
    texts = ["abcde"[i % 5] * (1 + i) for i in range(8)]
    grids = [GRIDS[i % len(GRIDS)] for i in range(8)]

    def image(number):
        grid = grids[number]
        prefix, prompts, negatives = pipeline.token_ids([texts[number]], ["no"], grid)
        rows = pipeline.sampler.token_rows(
            prompts, prefix, grid=grid, negative_prompts=negatives, guided=scale > 1
        )
        guidance = (scale,) * (grid[0] * grid[1] // P)
        return SlotImage(Prompt(tuple(rows), grid), guidance, seed=number, sample_id=number)

    sequence = TextSlots(pipeline.model, max_prompt_tokens=64, max_image_tokens=16)
    decoder = SlotDecoder(sequence, guided=scale > 1, num_inference_steps=2, slots=3)
    packed = run(decoder, [image(i) for i in range(8)], removed=(2,))
    assert packed.keys() >= {0, 1, 3, 4, 5, 6, 7}
    for number, bits in packed.items():
        height, width = (side * factor for side in grids[number])
        alone = pipeline(
            texts[number], negative_prompt="no", height=height, width=width, num_inference_steps=2,
            guidance_scale=scale, seed=number, sample_ids=[number], output_type="latent",
        ).images  # fmt: skip
        assert torch.equal(bits, alone[0]), number


@pytest.mark.parametrize("grid", [(2, 2), (4, 6), (2, 12), (12, 2)])
def test_positions_are_those_of_the_model(grid):
    model = tiny_text_to_image()
    sequence = TextSlots(model, max_prompt_tokens=10, max_image_tokens=24)
    steps = torch.arange(grid[0] * grid[1] // 4, dtype=torch.int64)
    positions = sequence.positions(steps, torch.full_like(steps, grid[1] // 2))
    order = generation_order(grid, 4, "patch")
    expected = position_embedding_2d(order, grid[1], model.config.llm.hidden_size)
    assert torch.equal(positions.flatten(0, 1), expected)


def test_there_are_two_graphs_for_each_bucket_and_they_are_replayed():
    pipeline = tiny_pipeline()
    decoder = decoder_of(pipeline, slots=5)
    images = [class_image(i, pipeline.config.ar_steps, 3.0, "linear") for i in range(24)]
    assert len(run(decoder, images)) == 24
    assert bucket_sizes(5) == [1, 2, 4, 5]
    assert set(decoder.buckets) <= {1, 2, 4, 5}
    assert decoder.buckets[-1] == 5
    runners = [runner for bucket in decoder._buckets.values() for runner in bucket.runners]
    if all(isinstance(runner, graphs.CpuGraphRunner) for runner in runners):
        # A capture fails if the step reads a value on the host, as it would on CUDA.
        kinds = [kind for runner in runners for kind in runner._kinds.values()]
        assert len(kinds) == len(runners)
        assert all(kind.captured is not None for kind in kinds)


def test_an_image_that_is_not_finite_does_not_harm_the_others():
    pipeline = tiny_pipeline()
    ar_steps = pipeline.config.ar_steps
    with torch.no_grad():
        pipeline.model.cls_embedding.weight[3] = float("nan")
    decoder = decoder_of(pipeline)
    slots = [decoder.add(class_image(i, ar_steps, 3.0, "linear")) for i in (2, 3, 4)]
    decoder.advance()
    assert isinstance(slots[1].error, NotFiniteError)
    assert slots[1].error.images == {0: 0}
    assert slots[1].finished
    assert decoder.free == 1
    while decoder.active:
        decoder.advance()
    for slot in (slots[0], slots[2]):
        alone = pipeline(
            [slot.image.start], num_inference_steps=2, guidance_scale=3.0, seed=slot.image.seed,
            sample_ids=[slot.image.sample_id], output_type="latent",
        ).images  # fmt: skip
        assert torch.equal(slot.packed, alone[0])


def test_slots_that_are_refused():
    pipeline = tiny_pipeline()
    decoder, ar_steps = decoder_of(pipeline, slots=1), pipeline.config.ar_steps
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        decoder_of(pipeline, slots=0)
    with pytest.raises(ValueError, match="guidance must be of 4 AR steps, got 3"):
        decoder.add(class_image(0, 3, 2.0, "constant"))
    with pytest.raises(ValueError, match="label must be 0 to 4, got 5"):
        decoder.add(SlotImage(5, (1.0,) * ar_steps, seed=0))
    with pytest.raises(ValueError, match="seed"):
        decoder.add(SlotImage(0, (1.0,) * ar_steps, seed=-1))
    assert (decoder.free, decoder.active, decoder.advance()) == (1, [], [])
    slot = decoder.add(class_image(0, ar_steps, 2.0, "constant"))
    with pytest.raises(RuntimeError, match="all 1 slots are taken"):
        decoder.add(class_image(1, ar_steps, 2.0, "constant"))
    decoder.remove(slot)
    decoder.remove(slot)
    assert decoder.free == 1

    text = TextSlots(tiny_text_to_image(), max_prompt_tokens=8, max_image_tokens=16)
    with pytest.raises(ValueError, match="prompts must have at most 8 tokens"):
        text.ar_steps(Prompt(((1,) * 9,), (4, 4)))
    with pytest.raises(ValueError, match="images must have at most 16 tokens, got 4 x 6"):
        text.ar_steps(Prompt(((1,),), (4, 6)))
