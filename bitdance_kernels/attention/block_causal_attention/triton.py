"""block_causal_attention in Triton: FlashAttention-2 (Dao 2023) over intervals.

Both ends of a query's interval never decrease. So a tile of queries sees one stretch of keys, from
the start of its first row to the end of its last, and all its rows see the keys from the start of
the last to the end of the first: tiles of keys in there are not compared with the intervals, and
those outside the stretch are never visited. A loop of its own takes the tiles that all rows see,
without masks and branches, so that loads and products overlap.

The backward pass needs no atomic operation, so it gives the same bits each time: one kernel keeps a
tile of queries and sums over keys, the other keeps a tile of keys and sums over the queries of its
group of heads.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from bitdance_kernels._shared import triton_support
from bitdance_kernels.attention.block_causal_attention import config
from bitdance_kernels.attention.block_causal_attention._backward_triton import (
    block_causal_of_keys_kernel,
    block_causal_of_queries_kernel,
    block_causal_transpose_kernel,
)
from bitdance_kernels.attention.block_causal_attention._forward_triton import (
    block_causal_forward_kernel,
)

_SEARCHES = 128  # keys per program of the transposition
_BYTES = 16  # that TMA aligns addresses and strides to


def unsupported(q: torch.Tensor, *inputs: Any) -> str | None:
    scale = inputs[-1]
    if q.shape[-1] > config.MAX_WIDTH:
        return f"it handles D up to {config.MAX_WIDTH}, got {q.shape[-1]}"
    if not scale > 0:
        return f"it needs a scale over 0, got {scale}"
    return triton_support.unsupported(q)


def run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    B, T, H, D = q.shape
    Tk, Hkv = k.shape[1:3]
    q, k, v = _adjacent(q), _adjacent(k), _adjacent(v)
    start, end = _by_row(start, B), _by_row(end, B)
    out = q.new_empty(q.shape)
    lse = torch.empty((B, H, T), dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    with triton_support.on_device(q):
        tile = config.forward(_shape(k, q, v))
        of_queries, of_keys = _ways(tile)
        block_causal_forward_kernel[(triton.cdiv(T, tile.queries) * B * H,)](
            of_queries(q), of_keys(k), of_keys(v), start, end, out, lse, T, Tk, H,
            H // Hkv, _factor(scale, q), *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            start.stride(0), end.stride(0), **_options(tile, D),
        )  # fmt: skip
    return out, lse


def unsupported_backward(grad: torch.Tensor, *inputs: Any) -> str | None:
    return unsupported(*inputs)


def run_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    B, T, H, D = q.shape
    Tk, Hkv = k.shape[1:3]
    shared = start.dim() == 1 and end.dim() == 1
    grad, q, k, v = _adjacent(grad), _adjacent(q), _adjacent(k), _adjacent(v)
    start, end = _by_row(start, B), _by_row(end, B)
    out, lse = out.contiguous(), lse.contiguous()
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    delta = torch.empty_like(lse)
    numbers = (
        T, Tk, H, H // Hkv, _factor(scale, q), scale, *grad.stride()[:3], *q.stride()[:3],
        *k.stride()[:3], *v.stride()[:3],
    )  # fmt: skip
    with triton_support.on_device(q):
        shape = _shape(k, grad, q, v, out, dk, dv)
        if dq.numel():
            tile = config.query_tile(shape)
            of_queries, of_keys = _ways(tile)
            block_causal_of_queries_kernel[(triton.cdiv(T, tile.queries) * B * H,)](
                of_queries(grad), of_queries(q), of_keys(k), of_keys(v), of_queries(out), lse,
                start, end, dq, delta, *numbers, start.stride(0), end.stride(0),
                **_options(tile, D),
            )  # fmt: skip
        if dk.numel():
            tile = config.key_tile(shape)
            of_queries, of_keys = _ways(tile)
            first, past = start.new_empty((2, 1 if shared else B, Tk))
            block_causal_transpose_kernel[(triton.cdiv(Tk, _SEARCHES), len(first))](
                start, end, first, past, T, Tk, start.stride(0), end.stride(0),
                TRIPS=T.bit_length(), KEYS=_SEARCHES,
            )  # fmt: skip
            step = 0 if shared else Tk
            block_causal_of_keys_kernel[(triton.cdiv(Tk, tile.keys) * B * Hkv,)](
                of_queries(grad), of_queries(q), of_keys(k), of_keys(v), lse, delta, first, past,
                of_keys(dk), of_keys(dv), *numbers, step, step,
                **_options(tile, D),
            )  # fmt: skip
    return dq, dk, dv


def _shape(k: torch.Tensor, *others: torch.Tensor) -> config.Shape:
    """Shape of a call with keys `k` and these other tensors [B, T, H, D]."""
    capability = triton_support.capability(k.device)
    describable = capability >= 90 and all(map(_describable, (k, *others)))
    keys, card = k.shape[1], _card_name(k.device)
    return config.Shape(_width(k.shape[3]), k.element_size(), keys, capability, describable, card)


@functools.cache
def _card_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def _options(tile: config.Tile, D: int) -> dict[str, Any]:
    """Constants and options that all kernels with tiles take."""
    return {
        "D": D, "WIDTH": _width(D), "QUERIES": tile.queries, "KEYS": tile.keys,
        "PRECISION": tile.precision, "DESCRIBED": tile.described,
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip


def _describable(x: torch.Tensor) -> bool:
    """Whether the layout of `x` [B, T, H, D] allows a descriptor, and its values gain by it.

    Those of float32 are split in registers, so tiles in shared memory are of no use to them.
    """
    return (
        x.element_size() == 2
        and x.numel() > 0
        and x.data_ptr() % _BYTES == 0
        and all(
            size == 1 or (stride > 0 and stride * x.element_size() % _BYTES == 0)
            for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)
        )
    )


def _ways(tile: config.Tile) -> tuple[Any, Any]:
    """What turns a tensor of queries and one of keys into the argument of a kernel."""
    if not tile.described:
        return (lambda x: x), (lambda x: x)
    return (lambda x: _descriptor(x, tile.queries)), (lambda x: _descriptor(x, tile.keys))


def _descriptor(x: torch.Tensor, rows: int) -> TensorDescriptor:
    """Descriptor of `x` [B, T, H, D] as [B, H, T, D], read `rows` rows of a head at a time.

    Rows and channels outside of a head are 0, and not those of its neighbour.
    """
    B, T, H, D = x.shape
    aligned = _BYTES // x.element_size()
    # The stride of a dimension of 1 is of no use, but it has to be one that can be.
    sizes, strides = x.shape[:3], x.stride()[:3]
    b, t, h = (s if n > 1 else aligned for n, s in zip(sizes, strides, strict=True))
    return TensorDescriptor(x, [B, H, T, D], [b, h, t, 1], [1, 1, rows, _width(D)])


def _adjacent(x: torch.Tensor) -> torch.Tensor:
    """`x` [B, T, H, D] with contiguous heads; copied if they are not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _by_row(x: torch.Tensor, B: int) -> torch.Tensor:
    """[T] or [B, T] as [B, T] with contiguous rows."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x.expand(B, x.shape[-1])


def _factor(scale: float, q: torch.Tensor) -> float:
    """Factor that turns scores into exponents of `_exp`, which saves an operation over e^x."""
    return scale if q.dtype == torch.float32 else scale * math.log2(math.e)


def _width(D: int) -> int:
    """Columns of a tile: a power of two, at least the 16 that a product needs."""
    return max(triton.next_power_of_2(D), 16)
