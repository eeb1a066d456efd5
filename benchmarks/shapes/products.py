"""Shapes of the ops with a product, at the widths of the published models.

On a card with packed weights, for few rows; baselines take the matrices of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

import bitdance_kernels as kernels
from benchmarks import peers
from benchmarks.shapes import Make, Timing, short, timing
from benchmarks.shapes.attention import append_steps
from tests.cases.rope import table

F32, BF16 = torch.float32, torch.bfloat16
_MATRICES = WeakIdKeyDictionary()


def matrix(weight: Tensor, layout: str = "rows") -> Tensor:
    """The matrix of a packed weight, unpacked once."""
    if weight.dim() == 2:
        return weight
    if weight not in _MATRICES:
        unpacked = kernels.unpack_weight(weight, "panels" if weight.dim() == 3 else layout)
        _MATRICES[weight] = unpacked.to(BF16) if weight.dtype == torch.uint8 else unpacked
    return _MATRICES[weight]


def _product(
    kind: str, layout: str, *sizes: tuple[int, int, int], dtype: torch.dtype = BF16,
    float8: bool = False, gated: bool = False,
) -> list[Timing]:  # fmt: skip
    """Products of [rows, channels] with a weight of `features`, or twice as many if `gated`.

    With an "adaln" or "rms" norm before, or a "residual" behind. The weight is in `dtype`, or in
    float8. In float32 it is a matrix, or panels. The layout "swiglu" is `gated`.
    """
    halves = 2 if gated or layout == "swiglu" else 1
    is_packed = dtype == BF16 or layout == "panels"

    def one(rows: int, channels: int, features: int) -> Timing:
        def arguments(make: Make) -> list[Any]:
            x = make.randn(rows, channels, dtype=dtype)
            weight, bias = make.layer(halves * features, channels, dtype)
            if float8:
                values, scales = kernels.quantize_rows(weight)
                weight = kernels.pack_weight(values, layout, scales=scales)
            elif is_packed:
                weight = kernels.pack_weight(weight, layout)
            if kind == "adaln":
                scale, shift = make.randn(rows, 6 * channels, dtype=dtype).chunk(6, dim=-1)[:2]
                return [x, scale, shift, weight, bias, *make.randn(2, channels).unbind()]
            if kind == "rms":
                return [x, weight, None, make.randn(channels, dtype=dtype)]
            if kind == "residual":
                gate = make.randn(rows, 3 * features, dtype=dtype).chunk(3, dim=-1)[1]
                return [x, weight, bias, make.randn(rows, features, dtype=dtype), gate]
            return [x, weight, bias]

        read, written = (3 if kind == "adaln" else 1), (3 if kind == "residual" else 1)
        of_rows = dtype.itemsize * (rows * (read * channels + written * features))
        of_weight = halves * features * (channels + 1) * (1 if float8 else dtype.itemsize)
        packed = ", float8" if float8 else ", packed" if is_packed else ""
        name = f"[{rows}, {channels}] to {features} {short(dtype)}{packed}"
        flops = 2 * rows * channels * halves * features
        devices = ("cpu",) if dtype == F32 else ("cuda",)
        return timing(
            name, arguments, of_rows + of_weight, flops=flops, half=dtype == BF16,
            devices=devices,
        )  # fmt: skip

    return [one(*size) for size in sizes]


def _panels(kind: str, *sizes: tuple[int, int, int], gated: bool = False) -> list[Timing]:
    return _product(kind, "panels", *sizes, dtype=F32, gated=gated)


_WIDTHS = ((192, 576), (768, 2304), (5120, 5120))  # the bundled model, B-16x, 14B
_ROWS = (1, 8, 32, 64, 256, 512)


def linear_torch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, matrix(weight), bias)


def _of_matrix(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, weight, bias: function(x, matrix(weight), bias)


def swiglu_after_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return kernels.swiglu(F.linear(x, matrix(weight, "swiglu"), bias))


def _gate(h: Tensor) -> Tensor:
    """SwiGLU by PyTorch's ops."""
    gate, value = h.chunk(2, dim=-1)
    return F.silu(gate).mul_(value)


def _normed(x: Tensor, scale: Tensor, shift: Tensor, norm: Tensor, bias: Tensor) -> Tensor:
    """The modulated norm by PyTorch's ops."""
    return torch.addcmul(shift, F.layer_norm(x, norm.shape, norm, bias, 1e-6), 1 + scale)


def swiglu_torch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _gate(F.linear(x, matrix(weight), bias))


def gated_residual_torch(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, gate: Tensor
) -> Tensor:
    return torch.addcmul(residual, gate, F.linear(x, matrix(weight), bias))


def adaln_torch(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, *norm: Tensor
) -> Tensor:
    return F.linear(_normed(x, scale, shift, *norm), matrix(weight), bias)


def adaln_swiglu_torch(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, *norm: Tensor
) -> Tensor:
    return _gate(adaln_torch(x, scale, shift, weight, bias, *norm))


def rms_swiglu_torch(x: Tensor, weight: Tensor, bias: None, norm: Tensor) -> Tensor:
    return _gate(linear_after_rms(x, weight, bias, norm))


def _float8(rows: int, channels: int, features: int) -> Timing:
    def arguments(make: Make) -> list[Any]:
        weight, bias = make.layer(features, channels, BF16)
        x = make.randn(rows, channels, dtype=BF16)
        return [x, *kernels.quantize_rows(weight), bias, {"quantize_x": True}]

    moved = 2 * rows * (channels + features) + features * channels
    name = f"[{rows}, {channels}] to {features} {short(BF16)}, float8"
    flops = 2 * rows * channels * features
    return timing(name, arguments, moved, flops=flops, devices=("cuda",))


def linear_in_bfloat16(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor, *, quantize_x: bool
) -> Tensor:
    """The product without float8, on the same values."""
    if weight not in _MATRICES:
        _MATRICES[weight] = kernels.dequantize_rows(weight, weight_scale, x.dtype)
    return F.linear(x, _MATRICES[weight], bias)


def gated_residual_after_linear(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, gate: Tensor
) -> Tensor:
    return kernels.gated_residual(residual, F.linear(x, matrix(weight), bias), gate)


def linear_after_adaln(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, *norm: Tensor
) -> Tensor:
    return F.linear(kernels.adaln_norm(x, scale, shift, *norm), matrix(weight), bias)


def swiglu_after_adaln(
    x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, *norm: Tensor
) -> Tensor:
    n = kernels.adaln_norm(x, scale, shift, *norm)
    return kernels.swiglu(F.linear(n, matrix(weight, "swiglu"), bias))


def linear_after_rms(x: Tensor, weight: Tensor, bias: None, norm: Tensor) -> Tensor:
    return F.linear(F.rms_norm(x, norm.shape, norm, 1e-6), matrix(weight))


def swiglu_after_rms(x: Tensor, weight: Tensor, bias: None, norm: Tensor) -> Tensor:
    n = F.rms_norm(x, norm.shape, norm, 1e-6)
    return kernels.swiglu(F.linear(n, matrix(weight, "swiglu")))


def _qkv(name: str, B: int, P: int, cache: int = 319, C: int = 768, H: int = 12) -> Timing:
    def arguments(make: Make) -> list[Any]:
        weight = kernels.pack_weight(make.layer(3 * C, C, BF16)[0], "rope")
        k, v = make.randn(2, B, cache, H, C // H, dtype=BF16)
        rows = torch.full((B,), cache // 2, dtype=torch.int32, device=make.device)
        x, norm = make.randn(B, P, C, dtype=BF16), make.randn(C, dtype=BF16)
        angles = table(cache, C // H, make.device)
        return [x, weight, norm, k, v, rows, angles, {"num_heads": H}]

    moved = 2 * (B * P * 4 * C + 3 * C * C)
    flops = 6 * B * P * C * C
    return timing(name, arguments, moved, flops=flops, half=True, devices=("cuda",))


def qkv_steps(
    x: Tensor, weight: Tensor, norm: Tensor, k_cache: Tensor, v_cache: Tensor, position: Tensor,
    freqs: Tensor, *, num_heads: int,
) -> Tensor:  # fmt: skip
    """Norm, product, rotation and two writes as separate steps."""
    qkv = F.linear(F.rms_norm(x, norm.shape, norm, 1e-6), matrix(weight, "rope"))
    return append_steps(
        qkv, k_cache, v_cache, position, freqs, num_heads=num_heads, num_kv_heads=num_heads
    )


def _step(name: str, shape: tuple[int, ...], width: int) -> Timing:
    """A guided step and the projection of its state."""
    bits, stack = shape[-1], (2 * shape[0], *shape[1:])

    def arguments(make: Make) -> list[Any]:
        weight, bias = make.layer(width, bits, BF16)
        coefficients = kernels.denoise_schedule(100)[0].to(make.device)
        keys = kernels.noise_keys(7, range(shape[0]), ar_step=3, device=make.device)
        return [
            make.randn(*shape), make.randn(*stack, dtype=BF16), coefficients,
            make.full(3, torch.int32), kernels.pack_weight(weight), bias,
            {"cfg": make.full(3.0).view(1), "keys": keys},
        ]  # fmt: skip

    rows = torch.Size(stack[:-1]).numel()
    moved = rows * (2 * bits + 4 * bits + 2 * width) + 2 * width * bits
    flops = rows * width * bits
    return timing(name, arguments, moved, flops=flops, half=True, devices=("cuda",))


def step_library(
    x: Tensor, x0: Tensor, coefficients: Tensor, step: Tensor, weight: Tensor, bias: Tensor, *,
    cfg: Tensor, keys: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As without the op."""
    x = kernels.denoise_step(x, x0, coefficients, step, cfg=cfg, keys=keys)
    return x, F.linear(torch.cat([x, x]).to(weight.dtype), matrix(weight), bias)


SHAPES: dict[str, tuple[Any, ...]] = {
    "linear": (
        _product("", "panels", *((rows, *width) for width in _WIDTHS for rows in _ROWS), dtype=F32)
        + _product("", "rows", *((rows, 768, 2304) for rows in _ROWS[:3]), dtype=F32)
        + _product("", "rows", (32, 768, 2304)),
        {"F.linear": linear_torch},
        {"F.linear": linear_torch, "ONNX Runtime": _of_matrix(peers.linear_onnxruntime),
         "OpenVINO": _of_matrix(peers.linear_openvino)},
    ),
    "linear_fp8": (
        [_float8(*size) for size in ((2048, 768, 2304), (2048, 1152, 768), (12288, 768, 2304),
                                     (2048, 5120, 15360))],
        {"F.linear in bfloat16": linear_in_bfloat16},
    ),
    "linear_swiglu": (
        _product("", "swiglu", (32, 768, 1152), (32, 5120, 7680), (128, 5120, 7680))
        + _panels("", (8, 192, 288), (64, 192, 288), (32, 768, 1152), gated=True),
        {"F.linear, swiglu": swiglu_after_linear},
        {"torch": swiglu_torch},
    ),
    "linear_gated_residual": (
        _product("residual", "rows", (2, 1152, 768), (32, 1152, 768), (32, 7680, 5120),
                 (128, 7680, 5120))
        + _panels("residual", (8, 288, 192), (64, 288, 192), (32, 1152, 768)),
        {"F.linear, gated_residual": gated_residual_after_linear},
        {"torch": gated_residual_torch},
    ),
    "adaln_linear": (
        _product("adaln", "rows", (2, 768, 2304), (32, 768, 2304), (32, 5120, 15360),
                 (128, 5120, 15360))
        + _panels("adaln", (8, 192, 576), (32, 768, 2304)),
        {"adaln_norm, F.linear": linear_after_adaln},
        {"torch": adaln_torch},
    ),
    "adaln_linear_swiglu": (
        _product("adaln", "swiglu", (2, 768, 1152), (32, 768, 1152), (32, 5120, 7680),
                 (128, 5120, 7680))
        + _product("adaln", "swiglu", (2, 1280, 1920), (128, 5120, 7680), float8=True)
        + _panels("adaln", (8, 192, 288), (32, 768, 1152), gated=True),
        {"adaln_norm, F.linear, swiglu": swiglu_after_adaln},
        {"torch": adaln_swiglu_torch},
    ),
    "rms_norm_linear": (
        _product("rms", "rows", (2, 768, 2304), (32, 5120, 7168), (128, 5120, 7168))
        + _panels("rms", (8, 192, 576), (32, 768, 2304)),
        {"rms_norm, F.linear": linear_after_rms},
        {"torch": linear_after_rms},
    ),
    "rms_norm_linear_swiglu": (
        _product("rms", "swiglu", (2, 768, 2048), (32, 768, 2048), (32, 5120, 17408),
                 (128, 5120, 17408))
        + _product("rms", "swiglu", (2, 5120, 17408), float8=True)
        + _product("rms", "swiglu", (2, 5120, 17408))
        + _panels("rms", (8, 192, 512), (32, 768, 2048), gated=True),
        {"rms_norm, F.linear, swiglu": swiglu_after_rms},
        {"torch": rms_swiglu_torch},
    ),
    "rms_norm_qkv": (
        [_qkv("ImageNet B-1x, 1 image", 2, 1), _qkv("ImageNet B-16x, 1 image", 2, 16)],
        {"steps": qkv_steps},
    ),
    "denoise_step_linear": (
        [
            _step("B-1x, batch 1", (1, 32), 768),
            _step("B-16x, batch 1", (1, 16, 32), 768),
            _step("T2I, 1 image, 16 tokens", (1, 16, 32), 5120),
            _step("T2I, 1 image of 64", (1, 64, 32), 5120),
        ],
        {"library": step_library},
    ),
}  # fmt: skip
"""Timings and baselines by op."""
