"""CUDA graphs without CUDA: the rules of streams, captures and buffers that the runners keep."""

import contextlib
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder, to_uint8
from bitdance.models.config import AutoencoderConfig
from bitdance.sampling import graphs, image_decoder
from bitdance.sampling.image_decoder import ImageDecoder

CARD = torch.device("cuda", 0)
SHAPE = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 8, "num_codebooks": 1}


class Stream:
    """A stream that tells what it waits for."""

    def __init__(self, card, name):
        self.card, self.name = card, name

    def wait_stream(self, other):
        self.card.log.append(f"{self.name} waits for {other.name}")


class Recording(TorchDispatchMode):
    """The operators of a step, to be called again on the same memory."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a capture reads no value"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class Graph:
    """What is recorded inside ``Card.graph``; a replay computes it again."""

    def __init__(self):
        self.calls = []

    def replay(self):
        self.card.log.append("replay")
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Card:
    """As much of ``torch.cuda`` as graphs need, on the CPU, with a log of what was asked for."""

    def __init__(self):
        self.log, self.graphs, self.now = [], [], Stream(self, "main")

    def current_stream(self):
        return self.now

    def make_stream(self):
        return Stream(self, "side")

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before

    @contextlib.contextmanager
    def graph(self, graph, *, capture_error_mode):
        assert graphs._CAPTURE.locked(), "one thread captures at a time"
        assert not torch.is_autocast_cache_enabled()
        self.log.append(f"capture {capture_error_mode}")
        graph.card = self
        self.graphs.append(graph)
        with Recording() as recording:
            yield
        graph.calls = recording.calls


@pytest.fixture
def card(monkeypatch):
    """A card in place of ``torch.cuda``; tensors stay on the CPU."""
    made = Card()
    for name, value in {
        "device": lambda device: contextlib.nullcontext(),
        "current_stream": made.current_stream,
        "Stream": made.make_stream,
        "stream": made.stream,
        "CUDAGraph": Graph,
        "graph": made.graph,
    }.items():
        monkeypatch.setattr(graphs.torch.cuda, name, value)
    recorded = []
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda tensor, stream: recorded.append(stream.name)
    )
    made.recorded = recorded
    return made


def _tensors(result):
    return [t for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]


def _sum(x, y):
    return (x + y,) if y is not None else (x + 1,)


def test_the_first_call_runs_on_a_side_stream_and_the_second_is_captured(card):
    run = graphs.make_call_runner(CARD)
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(run(_sum, x, y)[0], x + y)
    assert card.log == ["side waits for main", "main waits for side"]
    assert card.recorded == ["main"], "the allocator waits for the stream that reads the result"
    card.log.clear()
    for _ in range(3):
        x, y = torch.randn(2, 3), torch.randn(2, 3)
        assert torch.equal(run(_sum, x, y)[0], x + y)
    assert card.log == ["capture thread_local", "replay", "replay", "replay"]
    assert not graphs._CAPTURE.locked()


def test_every_kind_of_inputs_has_a_graph_of_its_own_and_the_oldest_goes_first(card):
    run, x = graphs.make_call_runner(CARD), torch.randn(2, 3)
    kinds = [(x, None), (x, x), (x.double(), None), (torch.randn(4), None)]
    for inputs in kinds:
        for _ in range(3):
            assert torch.equal(run(_sum, *inputs)[0], _sum(*inputs)[0])
    assert len(card.graphs) == len(kinds)
    assert len(run._kinds) == graphs.MAX_KINDS
    run(_sum, *kinds[-1])
    assert len(card.graphs) == len(kinds), "that of the last kind is still there"
    run(_sum, *kinds[0])
    run(_sum, *kinds[0])
    assert len(card.graphs) == len(kinds) + 1


def test_buffers_are_written_in_and_outside_of_inference_mode(card):
    run = graphs.make_call_runner(CARD)
    for mode in (True, False, True):
        x = torch.randn(3)
        with torch.inference_mode(mode), torch.no_grad():
            assert torch.equal(run(_sum, x, None)[0], x + 1)


def test_a_capture_happens_in_the_thread_that_has_warmed_up(card):
    """Handles of cuBLAS and cuDNN, and the algorithms that were timed, are a thread's own."""
    run, x = graphs.make_call_runner(CARD), torch.randn(3)
    found = []

    def call():
        found.append(run(_sum, x, None)[0].clone())

    call()
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert card.graphs == [], "the other thread had to warm up first"
    call()  # and now this one again
    call()
    assert len(card.graphs) == 1
    assert all(torch.equal(y, x + 1) for y in found)


def test_a_step_that_fails_is_warmed_up_again_and_leaves_no_capture_behind(card):
    x, state = torch.randn(3), {"fails": True}

    def step(x):
        if state["fails"]:
            raise ValueError("no such kernel")
        return (x + 1,)

    run, cache = graphs.make_call_runner(CARD), torch.is_autocast_cache_enabled()
    for fails in (True, True, False, True):  # the last one in the capture
        state["fails"] = fails
        with pytest.raises(ValueError, match="no such kernel") if fails else nullcontext():
            run(step, x)
    assert card.log[-1] == "capture thread_local"
    assert not graphs._CAPTURE.locked()
    assert torch.is_autocast_cache_enabled() is cache
    state["fails"] = False
    assert torch.equal(run(step, x)[0], x + 1)
    assert card.log[-1] == "replay"


def test_calls_within_a_captured_step_are_plain(card):
    assert graphs.make_call_runner(CARD, nested=True) is graphs.run_eager


def _autoencoder(**more):
    torch.manual_seed(0)
    return BinaryAutoencoder(AutoencoderConfig(**SHAPE, **more)).eval().requires_grad_(False)


def _codes(batch=1, size=4):
    return torch.where(torch.randn(batch, 8, size, size) > 0, 1.0, -1.0)


@pytest.fixture
def decoding(card, monkeypatch):
    """Decoders take the CPU's tensors for a card's."""
    monkeypatch.setattr(graphs, "make_call_runner", lambda device: graphs.CudaCallRunner(device))
    monkeypatch.setattr(image_decoder, "can_pack", lambda decoder: False)
    return card


@pytest.mark.parametrize("noisy", [False, True])
def test_a_decoding_of_a_known_shape_is_replayed_with_new_codes_and_noise(noisy, decoding):
    model = _autoencoder(gan_decoder=noisy)
    decode = ImageDecoder(model)
    for _ in range(4):
        codes = _codes()
        noise = torch.randn_like(codes) if noisy else None
        pixels = decode(codes, noise=noise)
        assert torch.equal(pixels, to_uint8(model.decode(codes, noise=noise)))
        pixels.add_(1)  # memory of its own, no inference tensor
    assert decoding.log.count("replay") == 3
    assert len(decoding.graphs) == 1


def test_a_graph_goes_when_the_decoders_weights_change(decoding):
    model = _autoencoder()
    decode, codes = ImageDecoder(model), _codes()
    for _ in range(2):
        decode(codes)
    for change in (
        lambda: model.decoder.conv_out.weight.mul_(-1.5),  # written to
        lambda: setattr(model.decoder, "conv_out", _autoencoder().decoder.conv_out),  # replaced
    ):
        change()
        for _ in range(3):
            assert torch.equal(decode(codes), to_uint8(model.decode(codes)))
    assert len(decoding.graphs) == 3


def test_large_images_and_autocast_are_not_captured(decoding, monkeypatch):
    model = _autoencoder()
    decode = ImageDecoder(model)
    monkeypatch.setitem(image_decoder.MAX_CAPTURED_PIXELS, "cpu", 2 * 8 * 8)
    for _ in range(3):
        decode(_codes(size=8))
        with torch.autocast("cpu", torch.bfloat16):
            decode(_codes(batch=1))
    assert decoding.graphs == []
    for _ in range(3):
        decode(_codes(batch=2))
    assert len(decoding.graphs) == 1


@torch.no_grad()
def test_a_large_batch_is_decoded_in_slices_on_the_cpu(decoding, monkeypatch):
    model = _autoencoder(gan_decoder=True)
    decode, codes = ImageDecoder(model), _codes(batch=5)
    noise = torch.randn_like(codes)
    expected = to_uint8(model.decode(codes, noise=noise))
    monkeypatch.setitem(image_decoder.MAX_CAPTURED_PIXELS, "cpu", 2 * 8 * 8)
    for _ in range(3):
        difference = decode(codes, noise=noise).int() - expected.int()
        assert difference.abs().max() <= 1, "PyTorch's sums depend on the batch"
    assert len(decoding.graphs) == 2, "one of two images, one of the last"


def test_the_limits_are_those_of_the_device(monkeypatch):
    """A card's is larger than the CPU's, and a device without graphs has none."""
    limits = image_decoder.MAX_CAPTURED_PIXELS
    assert limits["cuda"] > limits["cpu"] > 0
    assert set(limits) == {"cpu", "cuda"}
    model = _autoencoder()
    asked = []
    monkeypatch.setattr(
        graphs, "make_call_runner", lambda device: asked.append(device) or graphs.run_eager
    )
    decode = ImageDecoder(model)
    for device, size, captured in (
        ("cuda", 4, True), ("cuda", 362, True), ("cuda", 363, False), ("cpu", 4, True),
        ("meta", 4, False),
    ):  # fmt: skip
        asked.clear()
        with decode._graphs.lease() as kept:
            latents = SimpleNamespace(
                device=torch.device(device), shape=torch.Size((1, 8, size, size))
            )
            decode._decoding(kept, latents)
        assert bool(asked) is captured, (device, size)


def test_pixels_are_copied_before_the_host_waits(monkeypatch):
    """Once it has waited, a call on another stream may replay the graph over them."""
    model, written = _autoencoder(), torch.full((1, 3, 2, 2), 7, dtype=torch.uint8)

    class Peaks:
        is_meta = False

        def tolist(self):
            written.zero_()  # the next replay
            return [1.0]

    decode = ImageDecoder(model)
    monkeypatch.setattr(decode, "_decoding", lambda kept, latents: lambda *_: (written, Peaks()))
    assert decode(_codes()).unique().tolist() == [7]
