"""The formulas of ``reference`` on the CPU by PyTorch's fused attention kernel, for speed.

The kernel (the one behind ``scaled_dot_product_attention`` on the CPU) takes a dense mask. It gets
128 queries at a time with only the keys that these can see, so the mask stays small and about half
of the work of a causal mask is not done. Values of the ranges are read here to choose the keys:
they are in CPU memory, so nothing waits for that.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels.attention import _intervals

# Queries at a time: the fastest of 32 to 1024 on two AVX2 cores at T = 319 and 2048, D = 64.
_QUERIES = 128
# Elements of a mask, which may make that fewer: 64 MB.
_MASK = 2**24

# Elements to which rows are aligned that are read in place.
_VECTOR = 16

_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def applies(q: torch.Tensor) -> bool:
    """Whether `q` is on the CPU and its scores are to be computed in float32."""
    return q.device.type == "cpu" and q.dtype != torch.float64


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp."""
    B, T, H, _ = q.shape
    start, end = torch.atleast_2d(start), torch.atleast_2d(end)
    q32 = _float(q)
    k32, v32 = _without_unseen(start, end, _float(k), _float(v))
    chunks = _chunks(start, end, k.shape[1])
    if _at_once(chunks, q, k):
        out, lse = _attend(q32, k32, v32, _mask(start, end, *chunks[0]), scale)
    else:
        out = q32.new_zeros(q.shape)
        lse = q32.new_full((B, H, T), float("-inf"))
        for i, j in chunks:
            mask = _mask(start, end, i, j)
            for h in _groups(H, k.shape[2]):
                part, part_lse = _attend(q32[:, i, h], k32[:, j], v32[:, j], mask, scale)
                out[:, i, h] = part
                lse[:, h, i] = part_lse
    blind = start >= end
    if bool(blind.any()):  # not left to what the kernel makes of a row of -inf, or of a NaN in q
        out.masked_fill_(blind[..., None, None], 0)
        lse.masked_fill_(blind[:, None], float("-inf"))
    return out.to(q.dtype), lse


def backward(
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
    """Gradients of q, k and v."""
    start, end = torch.atleast_2d(start), torch.atleast_2d(end)
    grad32, q32, out32 = _float(grad), _float(q), _float(out)
    k32, v32 = _without_unseen(start, end, _float(k), _float(v))
    blind = start >= end
    if bool(blind.any()):
        # The weights of a query that sees nothing are exp(-inf - L): 0 for a finite L, and 0 times
        # its q and gradient is 0 if those are finite too.
        lse = lse.masked_fill(blind[:, None], 0)
        q32 = q32.masked_fill(blind[..., None, None], 0)
        grad32 = grad32.masked_fill(blind[..., None, None], 0)
    chunks = _chunks(start, end, k.shape[1])
    if _at_once(chunks, q, k):
        mask = _mask(start, end, *chunks[0])
        dq, dk, dv = _attend_backward(grad32, q32, k32, v32, out32, lse, mask, scale)
    else:
        dq, dk, dv = (q32.new_zeros(x.shape) for x in (q, k, v))
        for i, j in chunks:
            mask = _mask(start, end, i, j)
            for h in _groups(q.shape[2], k.shape[2]):
                dq[:, i, h], part_dk, part_dv = _attend_backward(
                    grad32[:, i, h],
                    q32[:, i, h],
                    k32[:, j],
                    v32[:, j],
                    out32[:, i, h],
                    lse[:, h, i],
                    mask,
                    scale,
                )
                dk[:, j] += part_dk
                dv[:, j] += part_dv
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse = _attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).contiguous(), lse.contiguous()


def _attend_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
) -> Iterator[torch.Tensor]:
    grad, q, k, v, out = (x.transpose(1, 2) for x in (grad, q, k, v, out))
    no_dropout, not_causal = 0.0, False
    grads = _attention_backward(
        grad, q, k, v, out, lse, no_dropout, not_causal, attn_mask=mask, scale=scale
    )
    return (x.transpose(1, 2).contiguous() for x in grads)


def _chunks(start: torch.Tensor, end: torch.Tensor, Tk: int) -> list[tuple[slice, slice]]:
    """Queries and the keys that any of them sees, without the queries that see no key at all."""
    B, T = start.shape
    chunks: list[tuple[slice, slice]] = []
    queries = max(1, min(_QUERIES, _MASK // max(1, B * Tk)))
    for first in range(0, T if B else 0, queries):
        last = min(first + queries, T) - 1
        low, high = int(start[:, first].min()), min(int(end[:, last].max()), Tk)
        if low < high:
            chunks.append((slice(first, last + 1), slice(low, high)))
    return chunks


def _at_once(chunks: list[tuple[slice, slice]], q: torch.Tensor, k: torch.Tensor) -> bool:
    """Whether one call of the kernel gives the whole result, so that nothing has to be copied."""
    whole = [(slice(0, q.shape[1]), slice(0, k.shape[1]))]
    return chunks == whole and q.shape[2] == k.shape[2]


def _mask(start: torch.Tensor, end: torch.Tensor, i: slice, j: slice) -> torch.Tensor:
    """0 where query i sees key j, else -inf: [B or 1, 1, i, j]."""
    start, end = (x[:, None, i] - j.start for x in (start, end))
    visible = _intervals.visible(start, end, j.stop - j.start)
    mask = torch.zeros_like(visible, dtype=torch.float32)
    return mask.masked_fill_(~visible, float("-inf"))


def _groups(H: int, Hkv: int) -> Iterator[slice]:
    """Slices of the query heads that hold one head for every key-value head, in their order."""
    group = H // Hkv
    return (slice(g, None, group) for g in range(group))


def _float(x: torch.Tensor) -> torch.Tensor:
    """`x` as float32, copied if its rows lie so that the kernel's products would round otherwise.

    Parts of a packed projection, whose heads begin at whole vectors, are read in place: copies of
    q, k and v take longer than attention among a hundred tokens.
    """
    x = x.float()
    steps = (x.storage_offset(), *x.stride()[:-1])
    in_place = x.stride(-1) == 1 and all(step % _VECTOR == 0 for step in steps)
    return x if in_place else x.contiguous()


def _without_unseen(
    start: torch.Tensor, end: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with 0 where no query sees them: weights of 0 do not undo a NaN."""
    unseen = ~_intervals.seen(start, end, k.shape[1])
    if not bool(unseen.any()):
        return k, v
    return k.masked_fill(unseen[..., None, None], 0), v.masked_fill(unseen[..., None, None], 0)
