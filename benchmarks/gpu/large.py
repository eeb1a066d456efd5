"""Calls past 2^31 elements, where a 32-bit offset wraps around.

A block of rows stands many times over in the arguments, so every element of the large result is
known from the small one. The blocks have an odd number of rows: no power of two is a whole number
of them, so an address that wrapped lands in the wrong row of a block and not in its own again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from bitdance_kernels import denoise_schedule, noise_keys
from bitdance_kernels.testing import Call, Case, compare, poisoned_memory

_BF16 = torch.bfloat16
_CHUNK = 2**27  # elements compared at a time


@dataclass(frozen=True)
class Shape:
    """A block of rows, and how it becomes a large call.

    Attributes:
        make: the call on one block.
        shared: positions of the tensors among the call's tensors that all rows share; the first
            dimension of the others is rows.
        summed: the results are sums over rows.
        divided: how a row's sum is divided among programs depends on how many rows there are, so
            it is rounded otherwise than in the block, and is held by the rule of its case.
    """

    make: Callable[[torch.device], Call]
    shared: tuple[int, ...] = ()
    summed: bool = False
    divided: bool = False


@dataclass(frozen=True)
class Built:
    """A block and the same block many times over.

    Attributes:
        block: the call on one block.
        large: the call on `times` blocks.
        times: blocks.
        shape: what they were made from.
    """

    block: Call
    large: Call
    times: int
    shape: Shape = field(repr=False)


def _randn(*shape: int, device: torch.device, dtype: torch.dtype = _BF16) -> torch.Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _rows(count: int, device: torch.device) -> int:
    """Rows of a block: few where the interpreter runs them."""
    return count if device.type == "cuda" else 3


def _floats(name: str, *shapes: tuple[int, ...], **kwargs: Any) -> Callable[..., Call]:
    def make(device: torch.device) -> Call:
        sizes = [(_rows(shape[0], device), *shape[1:]) for shape in shapes]
        return Call(name, tuple(_randn(*size, device=device) for size in sizes), kwargs)

    return make


def _bytes(name: str, shape: tuple[int, ...], *rest: Any, **kwargs: Any) -> Callable[..., Call]:
    def make(device: torch.device) -> Call:
        size = (_rows(shape[0], device), *shape[1:])
        packed = torch.randint(256, size, dtype=torch.uint8, device=device)
        return Call(name, (packed, *rest), kwargs)

    return make


def _flip(name: str, packed: bool) -> Callable[[torch.device], Call]:
    def make(device: torch.device) -> Call:
        rows, bits = _rows(4097, device), 64
        drawn = tuple(torch.rand(rows, bits, device=device).to(_BF16) for _ in range(2))
        if packed:
            x = torch.randint(256, (rows, bits // 8), dtype=torch.uint8, device=device)
        else:
            x = _randn(rows, bits, device=device)
        return Call(name, (x, 0.5), {"uniforms": drawn})

    return make


def _hamming(device: torch.device) -> Call:
    a, b = (
        torch.randint(256, (_rows(rows, device), 4), dtype=torch.uint8, device=device)
        for rows in (4657, 46_573)
    )
    return Call("[N, 46573] distances", (a, b))


def _packed_linear(device: torch.device) -> Call:
    packed = torch.randint(256, (_rows(4097, device), 4), dtype=torch.uint8, device=device)
    return Call("[N, 2304] features", (packed, _randn(2304, 32, device=device)))


def _denoise_step(device: torch.device) -> Call:
    rows, table = _rows(257, device), denoise_schedule(10)[0].to(device)
    x = torch.randn(rows, 16, 32, device=device)
    step = torch.full((), 4, dtype=torch.int64, device=device)
    keys = noise_keys(7, range(rows), device=device)
    args = (x, _randn(rows, 16, 32, device=device), table, step)
    return Call("[R, 16, 32] float32", args, {"keys": keys})


def _decode(device: torch.device) -> Call:
    q, cache = (5, 4, 8, 64), (5, 319, 8, 64)
    lengths = torch.tensor([319, 1, 128, 300, 65], dtype=torch.int32, device=device)
    k, v = (_randn(*cache, device=device) for _ in range(2))
    return Call("caches [B, 319, 8, 64]", (_randn(*q, device=device), k, v, lengths))


SHAPES: dict[str, Shape] = {
    "adaln_norm": Shape(_floats("[R, 768]", *[(1025, 768)] * 3)),
    "bit_counts": Shape(_bytes("[R, 3]", (4097, 3)), summed=True),
    "block_decode_attention": Shape(_decode, divided=True),
    "denoise_step": Shape(_denoise_step, shared=(2, 3)),
    "finalize_bits": Shape(_floats("[R, 16, 32]", (1025, 16, 32), cfg=None)),
    "flip_bits": Shape(_flip("[R, 64] bits", packed=True)),
    "flip_signs": Shape(_flip("[R, 64]", packed=False)),
    "gated_residual": Shape(_floats("[R, 768]", *[(1025, 768)] * 3)),
    "gated_residual_adaln": Shape(_floats("[R, 768]", *[(1025, 768)] * 5)),
    "group_norm_silu": Shape(
        _floats("[B, 64, 31, 33]", (3, 64, 31, 33), num_groups=32, eps=1e-6), divided=True
    ),
    "hamming_distance": Shape(_hamming, shared=(1,)),
    "lfq_quantize": Shape(_floats("[R, 256]", (1025, 256))),
    "pack_signs": Shape(_floats("[R, 40]", (4097, 40))),
    "packed_linear": Shape(_packed_linear, shared=(1,)),
    "patch_attention": Shape(_floats("[R, 4, 3 x 128]", (257, 4, 384), num_heads=2)),
    "swiglu": Shape(_floats("[R, 2 x 1152]", (513, 2304))),
    "unpack_signs": Shape(_bytes("[R, 5]", (4097, 5), dtype=_BF16)),
}
"""By op. The others have results that depend on all rows, or none of that size."""


def build(name: str, device: torch.device, elements: int) -> Built | str:
    """The call with more than `elements` elements in an argument or result, or why there is none.

    The memory that it needs is twice that of its arguments and results, for what is compared.
    """
    shape = SHAPES[name]
    block = shape.make(device)
    tensors = block.tensors()
    tiled = [t for i, t in enumerate(tensors) if i not in shape.shared]
    outputs = _outputs_of(name, block)
    largest = max(t.numel() for t in (*tiled, *([] if shape.summed else outputs)))
    times = elements // largest + 1
    need = times * sum(t.numel() * t.element_size() for t in (*tiled, *outputs))
    need += 4 * _CHUNK * 4
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if need > free:
            return f"needs {need / 2**30:.0f} GiB, {free / 2**30:.0f} are free"
    shared = {id(t) for i, t in enumerate(tensors) if i in shape.shared}

    def tile(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if id(tensor) in shared else tensor.repeat(times, *[1] * (tensor.dim() - 1))

    return Built(block, block.map(tile), times, shape)


def check(case: Case, built: Built, backend: str) -> None:
    """Run the large call and hold every element against the block's.

    Raises:
        AssertionError: how many elements differ, or how far off they are.
    """
    small = _leaves(case.op(*built.block.args, **built.block.kwargs, backend=backend))
    with poisoned_memory():
        wide = _leaves(case.op(*built.large.args, **built.large.kwargs, backend=backend))
    if built.shape.divided:
        _by_rule(case, built, wide, f"{case.name} [{built.block.name}] {backend}, many times over")
        return
    for i, (expected, actual) in enumerate(zip(small, wide, strict=True)):
        if built.shape.summed:
            wrong = int((actual != expected * built.times).sum())
        else:
            wrong = _differing(expected, actual, built.times)
        if wrong:
            raise AssertionError(
                f"output {i} of {list(actual.shape)}: {wrong} elements are not those of the same "
                "rows alone"
            )


def _differing(expected: torch.Tensor, actual: torch.Tensor, times: int) -> int:
    blocks = actual.view(times, *expected.shape)
    step = max(1, _CHUNK // max(expected.numel(), 1))
    return sum(int((part != expected).sum()) for part in blocks.split(step))


def _by_rule(case: Case, built: Built, wide: Sequence[torch.Tensor], where: str) -> None:
    """Hold every block of `wide` by the rule of the case.

    Raises:
        AssertionError: with `where` and the figures.
    """
    exact = built.block.map(lambda t: t.double() if t.is_floating_point() else t)
    eager, truth = (
        _leaves(case.op(*call.args, **call.kwargs, backend="reference"))
        for call in (built.block, exact)
    )
    for usual, true, actual in zip(eager, truth, wide, strict=True):
        step = max(1, _CHUNK // 16 // max(usual.numel(), 1))  # float64, several times over
        for part in actual.view(built.times, *usual.shape).split(step):
            compare(case.rule, part, usual.expand_as(part), true.expand_as(part), where)


def _leaves(results: Any) -> Sequence[torch.Tensor]:
    return [t for t in pytree.tree_leaves(results) if isinstance(t, torch.Tensor)]


def _outputs_of(name: str, block: Call) -> Sequence[torch.Tensor]:
    import bitdance_kernels

    return _leaves(getattr(bitdance_kernels, name)(*block.args, **block.kwargs))
