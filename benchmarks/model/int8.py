"""Products of few rows with an int8 weight, against those of other packages, and in float32.

Each peer has the weight in its own form: with a scale for each feature, or for each 64 channels of
it. Those marked "int8 rows" round the rows of x to int8 too, which is less exact; one takes x in
bfloat16.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.model import Comparison
from benchmarks.peers import installed, onnxruntime_model
from bitdance_kernels import dequantize_rows, linear, pack_weight, quantize_rows

_WIDTHS = ((768, 2304), (2048, 6144), (5120, 5120))
_ROWS = (1, 4, 8, 16, 32)
_BLOCK = 64  # channels of a scale of MatMulNBits
_MICROSOFT = "com.microsoft"


def comparisons() -> Iterator[Comparison]:
    """Every number of rows at the widths of the published models."""
    for channels, features in _WIDTHS:
        for rows in _ROWS:
            yield product(rows, channels, features)


def product(rows: int, channels: int, features: int) -> Comparison:
    """The ways to multiply so many rows."""
    weight, bias = torch.randn(features, channels) / channels**0.5, torch.randn(features)
    x, (values, scales) = torch.randn(rows, channels), quantize_rows(weight, torch.int8)
    packed = pack_weight(values, "panels", scales=scales)
    rounded = dequantize_rows(values, scales, torch.float32)
    panels = pack_weight(rounded, "panels")
    ways: dict[str, Callable[[], object]] = {
        "linear": lambda: linear(x, packed, bias),
        "linear, float32 panels": lambda: linear(x, panels, bias),
        "F.linear": lambda: F.linear(x, rounded, bias),
    }
    ways |= {name: _prepared(make, x, values, scales, bias) for name, make in peers().items()}
    name = f"[{rows}, {channels}] to {features}"
    return Comparison("int8 weight", name, ways, 2.0 * rows * channels * features, packed)


Way = Callable[[Tensor], Any]


def peers() -> Mapping[str, Callable[[Tensor, Tensor, Tensor], Way]]:
    """By name, what prepares values, scales and bias to multiply rows."""
    return {
        "torch._weight_int8pack_mm, bfloat16": _int8pack,
        "torch dynamic Linear, int8 rows": _dynamic,
        "ONNX Runtime MatMulNBits": lambda *given: _blocks(0, *given),
        "ONNX Runtime MatMulNBits, int8 rows": lambda *given: _blocks(4, *given),
        "ONNX Runtime DynamicQuantizeMatMul, int8 rows": _dynamic_onnx,
    }


def _prepared(
    make: Callable[[Tensor, Tensor, Tensor], Way],
    x: Tensor, values: Tensor, scales: Tensor, bias: Tensor,
) -> Callable[[], object]:  # fmt: skip
    """The product, prepared at the first call, which names what is missing."""
    ready: list[Way] = []

    def call() -> object:
        if not ready:
            ready.append(make(values, scales, bias))
        return ready[0](x)

    return call


def _int8pack(values: Tensor, scales: Tensor, bias: Tensor) -> Way:
    half, added = scales.bfloat16(), bias.bfloat16()
    return lambda x: torch._weight_int8pack_mm(x.bfloat16(), values, half).add_(added)


def _dynamic(values: Tensor, scales: Tensor, bias: Tensor) -> Way:
    from torch.ao.nn.quantized import dynamic

    features, channels = values.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own tensors of int8 are deprecated
        weight = torch.quantize_per_channel(
            values * scales[:, None],
            scales.double(),
            torch.zeros(features, dtype=torch.long),
            0,
            torch.qint8,
        )
        layer = dynamic.Linear(channels, features, dtype=torch.qint8)
        layer.set_weight_bias(weight, bias)
    return layer


def _blocks(accuracy_level: int, values: Tensor, scales: Tensor, bias: Tensor) -> Way:
    features, channels = values.shape
    blocks = channels // _BLOCK
    constants = {
        "w": (values.int() + 128).to(torch.uint8).view(features, blocks, _BLOCK).numpy(),
        "s": scales[:, None].expand(features, blocks).flatten().numpy(),
        "b": bias.numpy(),
    }
    return _onnxruntime(
        "MatMulNBits", ["x", "w", "s", "", "", "b"], constants, channels, features,
        K=channels, N=features, bits=8, block_size=_BLOCK, accuracy_level=accuracy_level,
    )  # fmt: skip


def _dynamic_onnx(values: Tensor, scales: Tensor, bias: Tensor) -> Way:
    features, channels = values.shape
    constants = {"w": values.t().contiguous().numpy(), "s": scales.numpy(), "b": bias.numpy()}
    names = ["x", "w", "s", "", "b"]
    return _onnxruntime("DynamicQuantizeMatMul", names, constants, channels, features)


def _onnxruntime(
    kind: str,
    inputs: list[str],
    constants: Mapping[str, np.ndarray],
    channels: int,
    features: int,
    **options: int,
) -> Way:
    onnx = installed("onnx")
    make = onnx.helper
    node = make.make_node(kind, inputs, ["y"], domain=_MICROSOFT, **options)
    ends = [
        [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", size])]
        for name, size in (("x", channels), ("y", features))
    ]
    known = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = make.make_graph([node], "linear", *ends, known)
    opsets = [make.make_opsetid("", 18), make.make_opsetid(_MICROSOFT, 1)]
    model = make.make_model(graph, opset_imports=opsets, ir_version=10)
    run = onnxruntime_model(model.SerializeToString())
    return lambda x: run(x.numpy())
