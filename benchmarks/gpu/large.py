"""Calls past 2^31 elements, where a 32-bit offset wraps around.

A block of rows stands many times over in the arguments, so every element of the large result is
known from the small one. The blocks have an odd number of rows: no power of two is a whole number
of them, so an address that wrapped lands in the wrong row of a block and not in its own again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.shapes import Make, call_of
from bitdance_kernels import denoise_schedule, noise_keys
from bitdance_kernels.testing import Call, Case, compare, poisoned_memory

_CHUNK = 2**27  # elements compared at a time


class Shape(NamedTuple):
    """A block of rows, and how it becomes a large call.

    Attributes:
        make: arguments of the call on one block; a dictionary at their end has those with names.
        shared: positions of the tensors among the call's tensors that all rows share; the first
            dimension of the others is rows.
        summed: the results are sums over rows.
        divided: how a row's sum is divided among programs depends on how many rows there are, so
            it is rounded otherwise than in the block, and is held by the rule of its case.
    """

    make: Callable[[_Make], Sequence[Any]]
    shared: tuple[int, ...] = ()
    summed: bool = False
    divided: bool = False


class Built(NamedTuple):
    """A block, and the same block many times over, in one call each."""

    block: Call
    large: Call
    times: int
    shape: Shape


class _Make(Make):
    """bfloat16 and bytes, in few rows where the interpreter runs them."""

    def rows(self, count: int) -> int:
        return count if self.device.type == "cuda" else 3

    def half(self, rows: int, *shape: int) -> Tensor:
        return self.randn(self.rows(rows), *shape, dtype=torch.bfloat16)

    def streams(self, count: int) -> Sequence[Tensor]:
        return [self.half(1025, 768) for _ in range(count)]

    def packed(self, rows: int, *shape: int) -> Tensor:
        return self.bytes(self.rows(rows), *shape)


def _flip(x: Tensor) -> Sequence[Any]:
    drawn = (torch.rand(len(x), 64, device=x.device).bfloat16() for _ in range(2))
    return [x, 0.5, {"uniforms": tuple(drawn)}]


def _denoise_step(make: _Make) -> Sequence[Any]:
    rows, table = make.rows(257), denoise_schedule(10)[0].to(make.device)
    keys = noise_keys(7, range(rows), device=make.device)
    step = make.full(4, torch.int64)
    return [make.randn(rows, 16, 32), make.half(257, 16, 32), table, step, {"keys": keys}]


def _decode(make: _Make) -> Sequence[Any]:
    lengths = torch.tensor([319, 1, 128, 300, 65], dtype=torch.int32, device=make.device)
    q, k, v = (make.randn(5, tokens, 8, 64, dtype=torch.bfloat16) for tokens in (4, 319, 319))
    return [q, k, v, lengths]


SHAPES: dict[str, Shape] = {
    "adaln_norm": Shape(lambda make: make.streams(3)),
    "bit_counts": Shape(lambda make: [make.packed(4097, 3)], summed=True),
    "block_decode_attention": Shape(_decode, divided=True),
    "denoise_step": Shape(_denoise_step, shared=(2, 3)),
    "finalize_bits": Shape(lambda make: [make.half(1025, 16, 32), {"cfg": None}]),
    "flip_bits": Shape(lambda make: _flip(make.packed(4097, 8))),
    "flip_signs": Shape(lambda make: _flip(make.half(4097, 64))),
    "gated_residual": Shape(lambda make: make.streams(3)),
    "gated_residual_adaln": Shape(lambda make: make.streams(5)),
    "group_norm_silu": Shape(
        lambda make: [make.half(3, 64, 31, 33), {"num_groups": 32, "eps": 1e-6}], divided=True
    ),
    "hamming_distance": Shape(lambda make: [make.packed(4657, 4), make.packed(46_573, 4)], (1,)),
    "lfq_quantize": Shape(lambda make: [make.half(1025, 256)]),
    "pack_signs": Shape(lambda make: [make.half(4097, 40)]),
    "packed_linear": Shape(
        lambda make: [make.packed(4097, 4), make.randn(2304, 32, dtype=torch.bfloat16)], shared=(1,)
    ),
    "patch_attention": Shape(lambda make: [make.half(257, 4, 384), {"num_heads": 2}]),
    "swiglu": Shape(lambda make: [make.half(513, 2304)]),
    "unpack_signs": Shape(lambda make: [make.packed(4097, 5), {"dtype": torch.bfloat16}]),
}
"""By op. The others have results that depend on all rows, or none of that size."""


def build(case: Case, device: torch.device, elements: int) -> Built | str:
    """The call with more than `elements` elements in an argument or result, or why there is none.

    The memory that it needs is twice that of its arguments and results, for what is compared.
    """
    shape = SHAPES[case.name]
    block = call_of("many times over", shape.make(_Make(device)))
    tensors = block.tensors()
    shared = {id(tensors[i]) for i in shape.shared}
    tiled = [t for t in tensors if id(t) not in shared]
    outputs = _outputs(case, block, "auto")
    largest = max(t.numel() for t in (*tiled, *([] if shape.summed else outputs)))
    times = elements // largest + 1
    need = times * sum(t.nbytes for t in (*tiled, *outputs)) + 4 * _CHUNK * 4
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if need > free:
            return f"needs {need / 2**30:.0f} GiB, {free / 2**30:.0f} are free"

    def tile(tensor: Tensor) -> Tensor:
        return tensor if id(tensor) in shared else tensor.repeat(times, *[1] * (tensor.dim() - 1))

    return Built(block, block.map(tile), times, shape)


def check(case: Case, built: Built, backend: str) -> None:
    """Run the large call and hold every element against the block's.

    Raises:
        AssertionError: how many elements differ, or how far off they are.
    """
    small = _outputs(case, built.block, backend)
    with poisoned_memory():
        wide = _outputs(case, built.large, backend)
    if built.shape.divided:
        _by_rule(case, built, wide, f"{case.name} {backend}, many times over")
        return
    for i, (expected, actual) in enumerate(zip(small, wide, strict=True)):
        if built.shape.summed:
            wrong = int((actual != expected * built.times).sum())
        else:
            parts = _parts(actual, expected, built.times, _CHUNK)
            wrong = sum(int((part != expected).sum()) for part in parts)
        if wrong:
            raise AssertionError(
                f"output {i} of {list(actual.shape)}: {wrong} elements are not those of the same "
                "rows alone"
            )


def _parts(wide: Tensor, block: Tensor, times: int, elements: int) -> Sequence[Tensor]:
    """Blocks of `wide`, about so many elements at a time."""
    return wide.view(times, *block.shape).split(max(1, elements // max(block.numel(), 1)))


def _by_rule(case: Case, built: Built, wide: Sequence[Tensor], where: str) -> None:
    """Hold every block of `wide` by the rule of the case.

    Raises:
        AssertionError: with `where` and the figures.
    """
    exact = built.block.map(lambda t: t.double() if t.is_floating_point() else t)
    eager, truth = (_outputs(case, call, "reference") for call in (built.block, exact))
    for usual, true, actual in zip(eager, truth, wide, strict=True):
        # float64, several times over
        for part in _parts(actual, usual, built.times, _CHUNK // 16):
            compare(case.rule, part, usual.expand_as(part), true.expand_as(part), where)


def _outputs(case: Case, call: Call, backend: str) -> Sequence[Tensor]:
    results = case.op(*call.args, **call.kwargs, backend=backend)
    return [t for t in pytree.tree_leaves(results) if isinstance(t, Tensor)]
