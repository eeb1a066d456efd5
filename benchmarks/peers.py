"""What users would call instead on a CPU: the packages of ``pip install '.[peers]'``, numpy, torch.

Each function takes the arguments of an op and gives its results, or another container of the same
values. What a user would prepare once (an index, a packed weight, a session) is prepared once.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from bitdance_kernels import CodeIndex

_PREPARED: dict[str, WeakIdKeyDictionary] = {}
_MAX_QUERIES = 16  # a numpy call for each


def installed(module: str) -> Any:
    """A module of another library, or two words on why it is not compared."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeError("not installed") from error


def prepared(what: str, tensor: Tensor | CodeIndex, make: Callable[[], Any]) -> Any:
    """What `make` gives for this tensor, made once."""
    made = _PREPARED.setdefault(what, WeakIdKeyDictionary())
    if tensor not in made:
        made[tensor] = make()
    return made[tensor]


def and_compiled(function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The function, and by torch.compile for exactly the shapes that it meets."""

    @functools.cache
    def made() -> Callable[..., Any]:
        torch._dynamo.config.recompile_limit = 64
        return torch.compile(function, dynamic=False)

    return {"torch": function, "torch.compile": lambda *args, **kwargs: made()(*args, **kwargs)}


# Bits


@functools.cache
def _signs() -> np.ndarray:
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return bits.astype(np.float32) * 2 - 1


@functools.cache
def _table(dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(_signs()).to(dtype)


def pack_numpy(x: Tensor) -> np.ndarray:
    ones = x.numpy() if x.dtype in (torch.bool, torch.uint8) else x.numpy() > 0
    return np.packbits(ones, axis=-1, bitorder="little")


def pack_torch(x: Tensor) -> Tensor:
    """Eight bytes of 0 and 1 are a word, of which a product gathers the bits in the last byte."""
    return ((x > 0).view(torch.int64) * 0x0102040810204080 >> 56).to(torch.uint8)


def take_numpy(packed: Tensor, dtype: torch.dtype) -> np.ndarray:
    if dtype != torch.float32:
        raise TypeError("numpy has no such type")
    return np.take(_signs(), packed.numpy(), axis=0)


def embed_torch(packed: Tensor, dtype: torch.dtype) -> Tensor:
    return F.embedding(packed.int(), _table(dtype)).flatten(-2)


def counts_numpy(packed: Tensor) -> np.ndarray:
    """Bit by bit, since ``numpy.unpackbits`` writes eight times as many bytes."""
    rows = packed.numpy().reshape(-1, packed.shape[-1])
    sums = [((rows >> j) & 1).sum(0, dtype=np.int64) for j in range(8)]
    return np.stack(sums, axis=1).reshape(-1)


def counts_table(packed: Tensor) -> Tensor:
    """How often each byte occurs in a column, times its bits."""
    columns = packed.view(-1, packed.shape[-1]).long() + 256 * torch.arange(packed.shape[-1])
    found = torch.bincount(columns.view(-1), minlength=256 * packed.shape[-1])
    return found.view(-1, 256) @ torch.from_numpy(_signs() > 0).long()


def flip_bits_words(packed: Tensor, rate: float, **_: Any) -> np.ndarray:
    """Bits with a chance of `rate` / 2 from 16 random words, by AND and OR."""
    draw = np.random.Generator(np.random.SFC64(1))
    flips = np.zeros(packed.numel() // 8, np.uint64)
    for i in range(16):
        words = draw.integers(0, 2**64, len(flips), np.uint64)
        flips = flips | words if round(rate * 2**15) >> i & 1 else flips & words
    return packed.numpy() ^ flips.view(np.uint8).reshape(packed.shape)


def flip_signs_torch(x: Tensor, rate: float, **_: Any) -> Tensor:
    """One draw, since a product of two has no other distribution."""
    return torch.where(torch.rand_like(x) < rate / 2, -x, x)


# Search


def codes_of(b: Tensor | CodeIndex) -> np.ndarray:
    """The codes of an index, too."""
    codes: np.ndarray = (b.codes() if isinstance(b, CodeIndex) else b).numpy()
    return codes


def hamming_faiss(a: Tensor, b: Tensor | CodeIndex) -> np.ndarray:
    faiss, queries, codes = installed("faiss"), a.numpy(), codes_of(b)
    found = np.empty((len(queries), len(codes)), np.int32)
    faiss.omp_set_num_threads(1)
    pointers = map(faiss.swig_ptr, (queries, codes, found))
    first, second, out = pointers
    faiss.hammings(first, second, len(queries), len(codes), codes.shape[1], out)
    return found


def hamming_numkong(a: Tensor, b: Tensor | CodeIndex) -> Any:
    numkong = installed("numkong")
    packed = prepared("numkong", b, lambda: numkong.hammings_pack(codes_of(b)))
    return numkong.hammings_packed(a.numpy(), packed)


def hamming_numpy(a: Tensor, b: Tensor | CodeIndex) -> np.ndarray:
    if len(a) > _MAX_QUERIES:
        raise RuntimeError("a call for each query")
    kind = np.uint64 if a.shape[1] % 8 == 0 else np.uint32
    words, codes = a.numpy().view(kind), codes_of(b).view(kind)
    return np.stack([np.bitwise_count(codes ^ word).sum(1, np.int32) for word in words])


def hamming_product(a: Tensor, b: Tensor | CodeIndex) -> Tensor:
    """A product of signs in float32, the signs of the codes kept."""

    def signs() -> Tensor:
        return torch.from_numpy(_signs()[codes_of(b)]).flatten(1)

    product = embed_torch(a, torch.float32) @ prepared("signs", b, signs).T
    return product.mul_(-0.5).add_(4 * a.shape[1]).int()


def nearest_faiss(a: Tensor, b: Tensor | CodeIndex, k: int) -> Any:
    faiss = installed("faiss")
    faiss.omp_set_num_threads(1)

    def index() -> Any:
        made = faiss.IndexBinaryFlat(8 * a.shape[1])
        made.add(codes_of(b))
        return made

    return prepared("faiss", b, index).search(a.numpy(), k)


def nearest_usearch(a: Tensor, b: Tensor | CodeIndex, k: int) -> Any:
    usearch = installed("usearch.index")
    metric = usearch.MetricKind.Hamming
    return usearch.search(codes_of(b), a.numpy(), k, metric, exact=True, threads=1)


# Quantization


def entropy_halves(
    x: Tensor, bits: int, temperature: float = 0.01, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """The identity of the op in few lines: bits are independent, so codes are two half-codes."""
    logits = (4 / temperature) * x.unflatten(-1, (-1, bits)).flatten(0, -2)
    per_sample = -(logits.sigmoid() * F.logsigmoid(logits)
                   + (-logits).sigmoid() * F.logsigmoid(-logits)).sum(1).mean()  # fmt: skip

    def codes(half: Tensor) -> Tensor:
        p = half.new_ones(len(half), 1)
        for bit in half.sigmoid().unbind(1):
            p = torch.cat((p * (1 - bit[:, None]), p * bit[:, None]), dim=1)
        return p

    low, high = logits.split((bits // 2, bits - bits // 2), dim=1)
    mean = codes(high).T @ codes(low) / len(logits)
    return per_sample, -(mean * (mean + eps).log()).sum()


def lfq_layer(bits: int) -> Callable[[Tensor], Any]:
    """Codes, commitment and entropies of vector-quantize-pytorch, as one layer of `bits`."""
    package = installed("vector_quantize_pytorch")
    layer = package.LFQ(
        dim=bits, codebook_size=2**bits, entropy_loss_weight=1.0, commitment_loss_weight=1.0
    ).train()
    return lambda x: layer(x[None], inv_temperature=100.0)


# Products


def linear_onnxruntime(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    return prepared("ort", weight, lambda: onnxruntime_model(_gemm(weight, bias)))(x.numpy())


def linear_openvino(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    return prepared("openvino", weight, lambda: openvino_model(_gemm(weight, bias)))(x.numpy())


def _gemm(weight: Tensor, bias: Tensor) -> bytes:
    onnx = installed("onnx")
    kind = onnx.TensorProto.FLOAT
    node = onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    ends = [
        [onnx.helper.make_tensor_value_info(name, kind, ["rows", size])]
        for name, size in zip("xy", reversed(weight.shape), strict=True)
    ]
    constants = [
        onnx.numpy_helper.from_array(t.numpy(), n) for t, n in ((weight, "w"), (bias, "b"))
    ]
    graph = onnx.helper.make_graph([node], "linear", *ends, constants)
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def onnxruntime_model(model: bytes, threads: int = 1) -> Callable[[np.ndarray], Any]:
    """A model of one input "x" and one output in ONNX Runtime."""
    runtime = installed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


def openvino_model(model: bytes, threads: int = 1) -> Callable[[np.ndarray], Any]:
    """The same in OpenVINO, in float32 too."""
    core = installed("openvino").Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    return lambda x: request.infer([x], share_inputs=True, share_outputs=True)[0]
