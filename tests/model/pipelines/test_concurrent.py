"""One pipeline in several calls at a time: threads, callbacks that generate, and ``interrupt``."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bitdance import BitDanceT2IPipeline, GenerationCancelled
from bitdance.sampling import graphs
from bitdance.sampling.workspace import MAX_IDLE, Pool
from tests.model.helpers.tiny import tiny_pipeline
from tests.model.models.test_text_to_image import tiny as tiny_text_to_image
from tests.model.pipelines.test_text_to_image import SIZE, Words

THREADS = 8


class ByText(BitDanceT2IPipeline):
    """Draws a prompt a label, so that both pipelines are called alike."""

    def __call__(self, labels, **options):
        return super().__call__(["abcde"[i] * (1 + i) for i in labels], **SIZE, **options)


PIPELINES = {"classes": tiny_pipeline, "texts": lambda: ByText(tiny_text_to_image(), Words())}
BOTH = pytest.mark.parametrize("make", PIPELINES.values(), ids=PIPELINES)


@pytest.fixture(autouse=True)
def _captured_at_once(monkeypatch):
    """Graphs from the second call on, so that they are what is shared or not."""
    monkeypatch.setattr(graphs, "CALLS_BEFORE_CAPTURE", 0)


def draw(pipeline, call, **options):
    """Bits of call number `call`, with labels, guidance and a seed of its own."""
    labels = [(call + i) % 5 for i in range(1 + call % 3)]
    cfg = 1.0 if call % 4 == 3 else 2.0
    return pipeline(
        labels, seed=100 + call, num_inference_steps=2, guidance_scale=cfg, output_type="latent",
        **options,
    ).images  # fmt: skip


def in_threads(function, count=THREADS):
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(function, range(count)))


@pytest.mark.parametrize(
    "make",
    [PIPELINES["classes"], pytest.param(PIPELINES["texts"], marks=pytest.mark.nightly)],
    ids=PIPELINES,
)
def test_calls_in_threads_draw_what_each_draws_alone(make):
    pipeline, start = make(), threading.Barrier(THREADS, timeout=60)
    alone = [draw(pipeline, call) for call in range(12)]

    def work(thread):
        # All are in the middle of their first picture at the same time.
        first = draw(
            pipeline, thread,
            callback_on_step_end=lambda _, step, *__: (step == 0 and start.wait() < 0) or None,
        )  # fmt: skip
        calls = [(thread * 5 + i) % len(alone) for i in range(7)]
        return [(thread, first), *((call, draw(pipeline, call)) for call in calls)]

    results = [pair for pairs in in_threads(work) for pair in pairs]
    assert len(results) == 8 * THREADS
    wrong = [call for call, bits in results if not torch.equal(bits, alone[call])]
    assert wrong == []
    assert 1 <= len(pipeline.sampler.workspaces.idle) <= MAX_IDLE


@BOTH
def test_pictures_are_decoded_in_threads_as_alone(make):
    pipeline, start = make(), threading.Barrier(THREADS, timeout=60)
    size = SIZE if isinstance(pipeline, BitDanceT2IPipeline) else {}
    bits = [draw(pipeline, call) for call in range(THREADS)]
    alone = [pipeline.decode(b, output_type="uint8", **size) for b in bits]

    def work(thread):
        start.wait()
        order = [(thread + i) % THREADS for i in range(THREADS)]
        return [
            torch.equal(pipeline.decode(bits[i], output_type="uint8", **size), alone[i])
            for i in order
        ]

    assert all(equal for found in in_threads(work) for equal in found)


def test_a_decoder_in_use_is_not_touched_by_another_call():
    pipeline = tiny_pipeline()
    bits = draw(pipeline, 0)
    pipeline.decode(bits)
    with pipeline._decode_images._graphs.lease() as held:
        kept = held.values()
        assert len(kept) == 1
        pipeline.decode(draw(pipeline, 1))
        assert held.values() == kept


@BOTH
def test_a_callback_may_generate_with_its_pipeline(make):
    pipeline, previews = make(), []
    alone = [draw(pipeline, call) for call in range(3)]

    def preview(pipe, step, steps, tensors):
        # Of the same kind as the picture that is being drawn, and of another one.
        previews.append([draw(pipe, call) for call in (2, 1)])

    assert torch.equal(draw(pipeline, 2, callback_on_step_end=preview), alone[2])
    assert len(previews) > 1
    for same, other in previews:
        assert torch.equal(same, alone[2])
        assert torch.equal(other, alone[1])


@BOTH
def test_a_failed_callback_leaves_the_pipeline_as_it_was(make):
    pipeline = make()
    alone = draw(pipeline, 1)

    def fail(*_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        draw(pipeline, 1, callback_on_step_end=fail)
    assert torch.equal(draw(pipeline, 1), alone)
    assert len(pipeline.sampler.workspaces.idle) == 1


@BOTH
def test_interrupt_stops_the_calls_that_run_and_no_later_one(make):
    pipeline, meet = make(), threading.Barrier(3, timeout=60)
    alone = draw(pipeline, 0)

    def work(thread):
        def wait(_, step, *__):
            if step == 0:
                meet.wait()  # both run
                meet.wait()  # they are told to stop
                meet.wait()  # another call has begun and ended

        with pytest.raises(GenerationCancelled, match="stopped after AR step 1 of"):
            draw(pipeline, thread, callback_on_step_end=wait)
        return True

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(work, thread) for thread in range(2)]
        meet.wait()
        assert not pipeline.interrupt
        pipeline.interrupt = True
        assert pipeline.interrupt
        meet.wait()
        # It is not stopped, nor does its beginning take the others' order back.
        assert torch.equal(draw(pipeline, 0), alone)
        meet.wait()
        assert [future.result() for future in running] == [True, True]
    assert not pipeline.interrupt
    pipeline.interrupt = True  # of no call
    assert torch.equal(draw(pipeline, 0), alone)


def test_a_text_tokenizer_serves_one_call_at_a_time():
    class Unsafe(Words):
        def __init__(self):
            self.users, self.most, self.wait = 0, 0, threading.Event()

        def encode(self, text):
            self.users += 1
            self.most = max(self.most, self.users)
            self.wait.wait(0.002)  # lets other threads in, if anything does
            self.users -= 1
            return super().encode(text)

    pipeline = ByText(tiny_text_to_image(), Unsafe())
    in_threads(lambda thread: draw(pipeline, thread), 3)
    assert pipeline.tokenizer.most == 1


@BOTH
def test_pipelines_in_use_can_be_copied(make):
    pipeline, copies = make(), []
    alone = draw(pipeline, 1)
    draw(pipeline, 1, callback_on_step_end=lambda pipe, *_: copies.append(copy.deepcopy(pipe)))
    for other in copies[:2]:
        assert not other.interrupt
        assert other.sampler.workspaces.idle == []
        assert torch.equal(draw(other, 1), alone)


def test_a_pool_lends_an_object_to_one_caller():
    pool = Pool(list)
    with pool.lease() as first:
        first.append("used")
        with pool.lease() as second:
            assert second is not first
            assert second == []
    with pool.lease() as again:
        assert again is first  # what was returned last
    for other in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):
        assert other.idle == []
        with other.lease() as item:
            assert item == []


def test_a_pool_keeps_few_objects():
    pool, leases = Pool(list), []
    for _ in range(MAX_IDLE + 3):
        leases.append(pool.lease())
        leases[-1].__enter__()
    for lease in leases:
        lease.__exit__(None, None, None)
    assert len(pool.idle) == MAX_IDLE
