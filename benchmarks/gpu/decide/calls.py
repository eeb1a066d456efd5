"""Calls of the new ops beyond their samples: every compiled kernel, widths of the models."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bitdance_kernels import pack_weight, quantize_rows
from bitdance_kernels._shared import moments
from bitdance_kernels.testing import Call
from tests.cases.denoise_patch import head_call

ROWS = (2, 8, 27, 32, 64, 77, 128)
"""Rows of each of the kernels, whole tiles and not."""
_WIDTH, _HIDDEN, _HEADS = 768, 1152, 12
_CACHE = 24


class _Make:
    def __init__(self, device: torch.device, dtype: torch.dtype, *, float8: bool = False) -> None:
        self.device, self.dtype, self._float8 = device, dtype, float8
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator) * scale
        return drawn.to(self.device, self.dtype)

    def packed(self, features: int, channels: int, layout: str = "rows") -> Tensor:
        return _packed(self.device, self.dtype, features, channels, layout, self._float8)


@functools.lru_cache(maxsize=2)  # the calls of an op differ in their rows alone
def _packed(
    device: torch.device, dtype: torch.dtype, features: int, channels: int, layout: str,
    float8: bool,
) -> Tensor:  # fmt: skip
    weight = _Make(device, dtype)(features, channels, scale=channels**-0.5)
    values, scales = quantize_rows(weight) if float8 else (weight, None)
    return pack_weight(values, layout, scales=scales)


def _normed(make: _Make, rows: int, *, features: int, layout: str, modulated: bool) -> Call:
    x, weight, bias = make(rows, _WIDTH), make.packed(features, _WIDTH, layout), make(features)
    norm = 1 + make(_WIDTH, scale=0.2), make(_WIDTH, scale=0.2)
    given = {"moments": moments.of(x)} if rows % 2 == 0 else {}
    if not modulated:
        return Call("", (x, weight, bias, norm[0]), given)
    scale, shift = make(rows, 3 * _WIDTH, scale=0.5)[:, : 2 * _WIDTH].chunk(2, dim=-1)
    return Call("", (x, scale, shift, weight, bias, *norm), given)


def _plain(make: _Make, rows: int, *, layout: str) -> Call:
    features = 2 * _HIDDEN if layout == "swiglu" else _WIDTH
    return Call("", (make(rows, _WIDTH), make.packed(features, _WIDTH, layout), make(features)))


def _added(make: _Make, rows: int) -> Call:
    gate = make(rows, 3 * _WIDTH)[:, _WIDTH : 2 * _WIDTH] if rows % 2 == 0 else None
    x, weight = make(rows, _HIDDEN), make.packed(_WIDTH, _HIDDEN)
    args = (x, weight, make(_WIDTH), make(rows, _WIDTH), gate)
    return Call("", args, {"return_moments": True})


def _queries(make: _Make, rows: int) -> Call:
    D = _WIDTH // _HEADS
    x, caches = make(rows, 1, _WIDTH), make(2, rows, _CACHE, _HEADS, D)
    angles = torch.outer(torch.arange(_CACHE), 0.9 ** torch.arange(D // 2)).float()
    freqs = torch.stack([angles.cos(), angles.sin()], dim=-1).to(make.device)
    position = torch.arange(rows, dtype=torch.int32, device=make.device) % _CACHE
    weight = make.packed(3 * _WIDTH, _WIDTH, "rope")
    args = (x, weight, 1 + make(_WIDTH, scale=0.2), *caches.unbind(), position, freqs)
    return Call("", args, {"num_heads": _HEADS, "moments": moments.of(x)})


_MAKERS: dict[str, tuple[Callable[..., Call], dict[str, Any]]] = {
    "adaln_linear": (_normed, {"features": 3 * _WIDTH, "layout": "rows", "modulated": True}),
    "adaln_linear_swiglu": (
        _normed, {"features": 2 * _HIDDEN, "layout": "swiglu", "modulated": True}
    ),
    "rms_norm_linear": (_normed, {"features": 32, "layout": "rows", "modulated": False}),
    "rms_norm_linear_swiglu": (
        _normed, {"features": 2 * _HIDDEN, "layout": "swiglu", "modulated": False}
    ),
    "linear": (_plain, {"layout": "rows"}),
    "linear_swiglu": (_plain, {"layout": "swiglu"}),
    "linear_gated_residual": (_added, {}),
    "rms_norm_qkv": (_queries, {}),
}  # fmt: skip


def _patches(device: torch.device) -> Iterator[Call]:
    """Heads of every width that there are kernels for, with all their rows."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        for width, batches in ((768, (1, 5, 16)), (1024, (4, 7, 16)), (1280, (1, 8))):
            options: dict[str, Any] = {"cfg": 3.0, "projections": 2, "layers": 2, "steps": 3}
            widths, most = (width, 3 * width // 2), batches[-1]
            whole = head_call("", generator, dtype, (most, 32), widths, **options)
            x, modulation, *others = whole.map(lambda t: t.to(device)).args
            named = {**whole.kwargs, "cfg": whole.kwargs["cfg"].to(device)}
            for batch in batches:
                args = (x[:batch], modulation[:, : 2 * batch], *others)
                keys = whole.kwargs["keys"][:batch].to(device)
                name = f"{2 * batch} rows of {width}, {dtype}"
                yield Call(name, args, {**named, "keys": keys})
        for shape in ((1, 16, 32), (1, 4, 32), (2, 4, 32)):
            heads = {**options, "num_heads": 12}
            call = head_call(f"{list(shape)} with attention, {dtype}", generator, dtype, shape,
                             (768, 1152), **heads)  # fmt: skip
            yield call.map(lambda t: t.to(device))


def _decoding(device: torch.device) -> Iterator[Call]:
    """Few and many queries of every head that there are kernels for, caches whole and split."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        for D, P, cached in itertools.product((32, 64, 96, 128), (1, 20), (70, 900)):
            k, v = torch.randn(2, 2, cached, 2, D, generator=generator).to(device, dtype)
            q = torch.randn(2, P, 4, D, generator=generator).to(device, dtype)
            lengths = torch.tensor([cached - P, 3], dtype=torch.int32, device=device)
            name = f"{P} tokens, {cached} cached, D = {D}, {dtype}"
            yield Call(name, (q, k, v, lengths))


def of_op(name: str, device: torch.device, rows: Sequence[int] = ROWS) -> Iterator[Call]:
    """Calls of an op, for each of the half dtypes; none for one whose samples are enough."""
    if name == "denoise_patch":
        yield from _patches(device)
    if name == "block_decode_attention":
        yield from _decoding(device)
    if name not in _MAKERS:
        return
    function, options = _MAKERS[name]
    for dtype in (torch.bfloat16, torch.float16):
        for count, float8 in itertools.product(rows, (False, True)):
            if float8 and count % 8 != 0:  # one number of rows for each kernel
                continue
            call = function(_Make(device, dtype, float8=float8), count, **options)
            name = f"{count} rows, {'float8, ' * float8}{dtype}"
            yield Call(name, call.args, call.kwargs)
