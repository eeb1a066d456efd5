"""The formulas of ``reference`` on the CPU by PyTorch's fused attention kernel, for speed.

The kernel (the one behind ``scaled_dot_product_attention`` on the CPU) takes a dense mask. It gets
some queries at a time with only the keys that these can see, so the mask stays small and about half
of the work of a causal mask is not done. Values of the ranges are read here to choose the keys:
they are in CPU memory, so nothing waits for that. All layers and steps of a model have the same
ranges, so what follows from them is kept (``_plan``).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bitdance_kernels.attention._shared import intervals

# Queries at a time, forward and backward: the fastest of 32 to 1024 on an AVX2 core at T from 319
# to 2111, D = 64. The kernel takes queries in larger tiles from 192 on. Backward, each part's
# gradients of keys and values are summed up in memory, which takes as long as what a part saves
# among a few hundred tokens; those go whole.
_QUERIES = 192
_BACKWARD_QUERIES = 256
_BACKWARD_WHOLE = 384
# Elements of a mask, which may limit the queries further: 64 MB.
_MASK = 2**24

# Number of cached plans, and elements of the masks that one may hold (4 MB), enough for 1,000
# tokens. Masks of longer sequences take no time next to the attention.
_PLANS = 8
_KEPT = 2**20

# Alignment, in elements, of rows that are read in place.
_VECTOR = 16

_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def applies(q: torch.Tensor) -> bool:
    """Whether `q` is on the CPU and its scores are computed in float32."""
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
    plan = _plan(start, end, k.shape[1], _QUERIES)
    queries = _rows(q)
    keys, values = plan.without_unseen(_rows(k), _rows(v))
    if plan.at_once(q, k):
        out, lse = _attend(queries, keys, values, plan.mask(0), scale)
    else:
        out = queries.new_zeros(q.shape)
        lse = queries.new_full((B, H, T), float("-inf"), dtype=torch.float32)
        for n, (i, j) in enumerate(plan.chunks):
            mask = plan.mask(n)
            for h in _groups(H, k.shape[2]):
                part, part_lse = _attend(queries[:, i, h], keys[:, j], values[:, j], mask, scale)
                out[:, i, h] = part
                lse[:, h, i] = part_lse
    blind = plan.blind
    if blind is not None:  # the kernel may return anything for a row of -inf or a NaN in q
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
    whole = q.shape[1] <= _BACKWARD_WHOLE
    plan = _plan(start, end, k.shape[1], _BACKWARD_WHOLE if whole else _BACKWARD_QUERIES)
    grad32, q32, out32 = _rows(grad), _rows(q), _rows(out)
    k32, v32 = plan.without_unseen(_rows(k), _rows(v))
    blind = plan.blind
    if blind is not None:
        # The weights of a query that sees nothing are exp(-inf - L): 0 for a finite L, and 0 times
        # its q and gradient is 0 if those are finite too.
        lse = lse.masked_fill(blind[:, None], 0)
        q32 = q32.masked_fill(blind[..., None, None], 0)
        grad32 = grad32.masked_fill(blind[..., None, None], 0)
    if plan.at_once(q, k):
        dq, dk, dv = _attend_backward(grad32, q32, k32, v32, out32, lse, plan.mask(0), scale)
    else:
        dq, dk, dv = (q32.new_zeros(x.shape) for x in (q, k, v))
        for n, (i, j) in enumerate(plan.chunks):
            mask = plan.mask(n)
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


@dataclass(frozen=True)
class _Plan:
    """Everything that depends on the values of ranges alone.

    Attributes:
        start: of the ranges, [T] or [B, T], a copy.
        end: of the ranges, a copy.
        keys: Tk.
        chunks: queries and the keys that any of them sees, without the queries that see no key.
        masks: of the chunks, if they are small enough to be kept.
        blind: which queries see nothing, [1 or B, T]; None if none is blind.
        unseen: which keys no query sees, [1 or B, Tk]; None if all are seen.
    """

    start: torch.Tensor
    end: torch.Tensor
    keys: int
    chunks: tuple[tuple[slice, slice], ...]
    masks: tuple[torch.Tensor, ...]
    blind: torch.Tensor | None
    unseen: torch.Tensor | None

    def mask(self, n: int) -> torch.Tensor:
        """Arguments of chunk n."""
        return self.masks[n] if self.masks else _mask(self.start, self.end, *self.chunks[n])

    def at_once(self, q: torch.Tensor, k: torch.Tensor) -> bool:
        """Whether one call of the kernel gives the whole result, so that nothing is copied."""
        whole = ((slice(0, q.shape[1]), slice(0, self.keys)),)
        return self.chunks == whole and q.shape[2] == k.shape[2]

    def without_unseen(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values with 0 where no query sees them: weights of 0 do not remove a NaN."""
        if self.unseen is None:
            return k, v
        unseen = self.unseen[..., None, None]
        return k.masked_fill(unseen, 0), v.masked_fill(unseen, 0)


_Key = tuple[torch.Size, int, int]
_plans: dict[_Key, _Plan] = {}
_lock = threading.Lock()


def _plan(start: torch.Tensor, end: torch.Tensor, keys: int, queries: int) -> _Plan:
    """The plan of these ranges with chunks of `queries`, cached.

    Kept by what the ranges hold, of every size the last: comparing them takes two microseconds, and
    unlike an identity or a version counter their values tell of every change. Nothing of a caller's
    is kept alive.
    """
    key = (start.shape, keys, queries)
    plan = _plans.get(key)
    if plan is None or not (torch.equal(plan.start, start) and torch.equal(plan.end, end)):
        with torch.inference_mode(False):  # a training step may be the next to use it
            plan = _make_plan(start.clone(), end.clone(), keys, queries)
        with _lock:
            _plans.pop(key, None)
            _plans[key] = plan
            while len(_plans) > _PLANS:
                del _plans[next(iter(_plans))]
    return plan


def _make_plan(start: torch.Tensor, end: torch.Tensor, keys: int, queries: int) -> _Plan:
    ranges = start, end
    start, end = torch.atleast_2d(start), torch.atleast_2d(end)
    B, T = start.shape
    chunks = []
    queries = max(1, min(queries, _MASK // max(1, B * keys)))
    for first in range(0, T if B else 0, queries):
        i = slice(first, min(first + queries, T))
        # From all values, not the first and last: the ranges may not have been checked.
        low, high = max(0, int(start[:, i].min())), min(int(end[:, i].max()), keys)
        if low < high:
            chunks.append((i, slice(low, high)))
    elements = B * sum((i.stop - i.start) * (j.stop - j.start) for i, j in chunks)
    masks = (_mask(start, end, *chunk) for chunk in chunks) if elements <= _KEPT else ()
    blind, unseen = start >= end, ~intervals.seen(start, end, keys)
    return _Plan(
        *ranges,
        keys,
        tuple(chunks),
        tuple(masks),
        blind if bool(blind.any()) else None,
        unseen if bool(unseen.any()) else None,
    )


def _mask(start: torch.Tensor, end: torch.Tensor, i: slice, j: slice) -> torch.Tensor:
    """0 where query i sees key j, else -inf: [B or 1, 1, i, j]."""
    start, end = (torch.atleast_2d(x)[:, None, i] - j.start for x in (start, end))
    visible = intervals.visible(start, end, j.stop - j.start)
    mask = torch.zeros_like(visible, dtype=torch.float32)
    return mask.masked_fill_(~visible, float("-inf"))


def _groups(H: int, Hkv: int) -> Iterator[slice]:
    """Slices of the query heads that hold one head for every key-value head, in their order."""
    group = H // Hkv
    return (slice(g, None, group) for g in range(group))


def _rows(x: torch.Tensor) -> torch.Tensor:
    """`x` in float32, copied if the layout of its rows would change how products round.

    Parts of a packed projection, whose heads begin at whole vectors, are read in place: copies of
    q, k and v take longer than attention among a hundred tokens.
    """
    x = x.float()
    steps = (x.storage_offset(), *x.stride()[:-1])
    in_place = x.stride(-1) == 1 and all(step % _VECTOR == 0 for step in steps)
    return x if in_place else x.contiguous()
