"""Device code of CUDA kernels, emulated, in memory of exact size and random orders of threads.

Calls of ragged shapes, and samples of the ops whose kernels run in clusters, go to the emulated
device code of ``tests/emulated``: once as they are, then with every tensor of a launch between
guard pages (at the alignment to 16 bytes that the kernel was promised) while blocks and threads run
in a random order; in clusters with late stores, sleeping blocks and late inputs too. All runs give
the same bits. Not covered: kernels without an emulation (pack_signs, unpack_signs,
finalize_bits, denoise_step, hamming_distance and the row ops), and shared memory beyond its end.
"""

from __future__ import annotations

import ctypes
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import torch

from bitdance_kernels import BackendError
from bitdance_kernels._shared import native
from tests.cases import all_cases
from tests.emulated import build, drivers
from tests.emulated.backends import LIBRARIES, OPS, emulated_card
from tests.reliability.calls import Outcome, compare_outcomes, outcome, samples
from tests.reliability.guarded import GuardPages, Memory, Placed
from tests.reliability.isolated import Note, run_isolated
from tests.reliability.promise import Promise
from tests.reliability.ragged import Draw

__all__ = ["KERNELS", "PROMISES", "check_orders", "guarded_launches", "measure", "run_kernels"]

PROMISES = (
    Promise(
        "launches of emulated CUDA kernels",
        "Emulated CUDA kernels touch nothing beside their tensors and give the same bits in every "
        "order of their threads",
        2500,
        "launches",
        "nightly",
    ),
)
ORDERS = 4
"""Orders of a call."""
_ALIGNMENT = 16

Library = Any
Run = Callable[[int], Outcome]
"""A call, by the seed of its order; 0 is the order that the launch names."""


@contextmanager
def guarded_launches(memory: Memory, random: Random) -> Iterator[None]:
    """A context in which every emulated launch has its tensors in guarded memory."""

    @contextmanager
    def addresses(tensors: Sequence[torch.Tensor | None]) -> Iterator[Any]:
        given = [t for t in tensors if t is not None]
        placed = Placed(memory, given, random, unit=_ALIGNMENT)
        found = iter(placed.tensors)
        pointers = [0 if t is None else next(found).data_ptr() for t in tensors]
        try:
            yield (ctypes.c_void_p * len(pointers))(*pointers)
        finally:
            placed.restore()

    with mock.patch.object(drivers, "addresses", addresses):
        yield


def _seeded(library: Library, seed: int) -> Library:
    """The library, whose launches without clusters run in the order of a seed from now on."""
    library.set_order(ctypes.c_uint32(seed))
    return library


def _flip_bits(library: Library, draw: Draw) -> Run:
    packed = draw.bytes(draw.size(3000)).contiguous()
    key, threshold = draw.integers(0, 2**40, 2, dtype=torch.int64), draw.random.randrange(2**15)
    blocks, x = draw.size(3), draw.normal(8 * draw.size(300), dtype=torch.float32)
    x = x.to(draw.random.choice((torch.float32, torch.float16)))

    def run(seed: int) -> Outcome:
        flips = _seeded(library, seed)
        return {
            "bits": drivers.flip_bits(flips, packed, key, threshold, blocks),
            "signs": drivers.flip_signs(flips, x, key, threshold, blocks),
        }

    return run


def _patch_attention(library: Library, draw: Draw) -> Run:
    heads = draw.size(3)
    width = 3 * heads * 4 * draw.size(16)
    qkv = draw.normal(draw.size(4), draw.size(64), width + 8, dtype=torch.float32)[..., 4:-4]
    return lambda seed: {"out": drivers.patch_attention(_seeded(library, seed), qkv, heads)}


def _rope_append(library: Library, draw: Draw) -> Run:
    B, P, room, D = draw.size(3), draw.size(5), draw.size(12, 5), 8 * draw.size(8)
    Hkv = draw.size(2)
    H = Hkv * draw.size(3)
    qkv = native.aligned_rows(draw.normal(B, P, (H + 2 * Hkv) * D))  # as for the kernel
    k, v = (draw.normal(B, room, Hkv, D + pad)[..., :D] for pad in (8, 16))
    position = draw.integers(0, room - P, B, dtype=torch.int32)
    freqs = draw.normal(room, D // 2, 2, dtype=torch.float32).contiguous()
    options: dict[str, Any] = {"num_heads": H, "num_kv_heads": Hkv}
    options["interleaved"] = draw.chance(0.5)
    if draw.chance(0.5):
        options |= {name: draw.normal(D, dtype=torch.float32) for name in ("q_norm", "k_norm")}

    def run(seed: int) -> Outcome:
        caches = [torch.full_like(cache, 7) for cache in (k, v)]
        q = drivers.rope_append(_seeded(library, seed), qkv, *caches, position, freqs, **options)
        return {"q": q, "k": caches[0], "v": caches[1]}

    return run


def _decode_call(draw: Draw) -> tuple[torch.Tensor, ...]:
    """q, k, v and lengths; what the caches do not hold is NaN."""
    B, P, room, D = draw.size(2), draw.size(20), draw.size(90), 8 * draw.size(16)
    Hkv, dtype = draw.size(2), draw.random.choice((torch.float16, torch.bfloat16))
    q = draw.normal(B, P, Hkv * draw.size(3), D, dtype=dtype).contiguous()
    k, v = (draw.normal(B, room, Hkv, D, dtype=dtype).contiguous() for _ in range(2))
    lengths = draw.integers(-1, room + 2, B, dtype=torch.int32)
    for b, length in enumerate(lengths.tolist()):
        k[b, max(length, 0) :] = float("nan")
        v[b, max(length, 0) :] = float("nan")
    return q, k, v, lengths


def _decode(library: Library, draw: Draw) -> Run:
    call, splits = _decode_call(draw), draw.size(8)
    return lambda seed: {"out": drivers.decode(_seeded(library, seed), *call, 0.2, splits)}


def _decode_sm90(library: Library, draw: Draw) -> Run:
    call, splits = _decode_call(draw), draw.size(8)
    library.decode.restype = ctypes.c_char_p

    def run(seed: int) -> Outcome:
        out, message = drivers.decode_sm90(library, *call, 0.2, splits, seed)
        assert message is None, message
        return {"out": out}

    return run


def _group_norm_silu(library: Library, draw: Draw) -> Run:
    groups = draw.size(4)
    shape = (draw.size(2), groups * draw.size(5), draw.size(7), draw.size(7))
    x, grad = (draw.normal(*shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
    vectors = [draw.maybe(lambda: draw.normal(shape[1], dtype=torch.float32)) for _ in range(2)]
    rows = [draw.maybe(lambda: draw.normal(*shape[:2])) for _ in range(2)]

    def run(seed: int) -> Outcome:
        arguments = (x, groups, *vectors, *rows, True, 1e-6)
        norm = functools.partial(drivers.group_norm_silu, _seeded(library, seed))
        gradients = norm(grad, *arguments)
        found = {f"gradient {i}": g for i, g in enumerate(gradients) if g is not None}
        return {"y": norm(None, *arguments), **found}

    return run


KERNELS: dict[str, Callable[[Library, Draw], Run]] = {
    "block_decode_attention": _decode,
    "block_decode_attention_sm90": _decode_sm90,
    "flip_bits": _flip_bits,
    "group_norm_silu": _group_norm_silu,
    "patch_attention": _patch_attention,
    "rope_append": _rope_append,
}
"""By the name of a program of ``tests/emulated``, what draws a call of its kernels."""


def check_orders(run: Run, memory: Memory, random: Random, where: str) -> int:
    """Make a call as it is, then in guarded memory in some orders; the number of orders.

    Raises:
        AssertionError: an order gives other bits, or memory beside a tensor was written.
    """
    expected = run(0)
    for _ in range(ORDERS):
        seed = random.randrange(1, 2**31)
        with guarded_launches(memory, random):
            compare_outcomes(run(seed), expected, f"{where}, order {seed}")
    return ORDERS


def run_kernels(note: Note, names: Sequence[str], calls: int, folder: str) -> int:
    """Check `calls` calls of each kernel, compiled into `folder`; the number of orders.

    Raises:
        AssertionError: with the case.
    """
    memory, orders = GuardPages(), 0
    for name in names:
        note(f"emulated_orders, {name} does not compile")
        library = build(name, Path(folder))
        for number in range(calls):
            note(f"emulated_orders, {name}, case {number}")
            random = Random(number)
            run = KERNELS[name](library, Draw(random))
            orders += check_orders(run, memory, random, f"{name}, case {number}")
    return orders


def run_ops(note: Note, step: int, folder: str) -> int:
    """Check every `step`-th sample of the ops whose kernels run in clusters.

    Raises:
        AssertionError: with the sample.
    """
    memory, orders = GuardPages(), 0
    libraries = {name: build(name, Path(folder)) for name in LIBRARIES}
    for name, library in libraries.items():
        getattr(library, name).restype = ctypes.c_char_p
    known = [sample for op in OPS if op in all_cases() for sample in samples(op)]
    for number in range(0, len(known), step):
        name, call = known[number]
        note(f"emulated_orders, sample {number}, {name}")

        def run(seed: int, call: Any = call) -> Outcome:
            with emulated_card(libraries, seed):
                return outcome(call, False, backend="cuda")

        try:
            orders += check_orders(run, memory, Random(number), f"sample {number}, {name}")
        except BackendError:
            continue
    return orders


def measure(scale: float) -> dict[str, float]:
    """Launches in orders of their own, in guarded memory; see ``Measure``."""
    calls = max(1, round(100 * scale))
    with tempfile.TemporaryDirectory() as folder:
        orders = run_isolated(run_kernels, tuple(KERNELS), calls, folder)
        orders += run_isolated(run_ops, max(1, round(1 / scale)), folder)
    return {PROMISES[0].name: orders}
