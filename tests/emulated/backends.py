"""The CUDA backends of the products of few rows on CPU tensors, by their emulated device code."""

import ctypes
import itertools
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch

from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels._shared import native
from tests.emulated import build_once, drivers
from tests.emulated.drivers import int64s

OPS = (
    "adaln_linear", "adaln_linear_swiglu", "denoise_patch", "denoise_step_linear", "linear",
    "linear_gated_residual", "linear_gated_residual_moments", "linear_swiglu", "rms_norm_linear",
    "rms_norm_linear_swiglu", "rms_norm_qkv",
)  # fmt: skip
LIBRARIES = ("skinny_product", "denoise_step_linear", "denoise_patch")


def build_all(factory):
    """The emulated kernels, by name."""
    libraries = {name: build_once(name, factory) for name in LIBRARIES}
    for name, library in libraries.items():
        getattr(library, name).restype = ctypes.c_char_p
    return libraries


@contextmanager
def emulated_card(libraries, first_seed=1):
    """A context in which these ops take CPU tensors to the device code.

    Every launch has another order of threads, and the one before it ends as late as it can. The
    context is a list of the names of the functions that were called, with whether they may begin
    early.
    """
    launches = []
    seeds = itertools.count(first_seed)

    def skinny_product(
        x, moments, weight, float8, bias, norm, scale, shift, norm_weight, norm_bias, eps, epilogue,
        residual, gate, y, y_moments, rows, channels, features, tiles, parts, split, programmatic,
        *_,
    ):  # fmt: skip
        launches.append(("skinny_product", programmatic))
        tensors = [x, moments, weight, bias, scale, shift, norm_weight, norm_bias, residual, gate,
                   y, y_moments]  # fmt: skip
        strides = [row_stride(t) for t in (x, scale, shift, residual, gate)]
        sizes = [rows, channels, features, norm, epilogue, tiles, parts, split, *strides]
        norms = norm_weight, None, None
        launch(tensors, sizes, (x, moments, residual), x.dtype, norms, eps, float8)

    def rms_norm_qkv(
        x, moments, weight, float8, bias, norm_weight, eps, q, k_cache, v_cache, position, freqs,
        interleaved, q_norm, k_norm, batch, tokens, heads, kv_heads, head_dim, k_batch, k_token,
        k_head, v_batch, v_token, v_head, channels, tiles, parts, split, programmatic, *_,
    ):  # fmt: skip
        launches.append(("rms_norm_qkv", programmatic))
        tensors = [x, moments, weight, bias, None, None, norm_weight, None, None, None, None, None,
                   q, k_cache, v_cache, position, freqs, q_norm, k_norm]  # fmt: skip
        features = (heads + 2 * kv_heads) * head_dim
        sizes = [batch * tokens, channels, features, 2, 3, tiles, parts, split, row_stride(x), 0, 0,
                 0, 0, k_batch, k_token, k_head, v_batch, v_token, v_head, tokens, heads, kv_heads,
                 head_dim, interleaved, 1 if q_norm is None else head_dim // 16]  # fmt: skip
        norms = norm_weight, q_norm, k_norm
        launch(tensors, sizes, (x, moments), x.dtype, norms, eps, float8)

    def launch(tensors, sizes, late, dtype, norms, eps, float8):
        tensors += [None] * (19 - len(tensors))
        sizes += [0] * (25 - len(sizes))
        codes = [native.DTYPE_CODES[dtype if norm is None else norm.dtype] for norm in norms]
        with drivers.addresses(tensors) as pointers:
            message = libraries["skinny_product"].skinny_product(
                pointers, int64s([*sizes, codes[0], float8, *codes[1:]]),
                ctypes.c_float(eps), ctypes.c_int(dtype == torch.float16),
                late_bytes(tensors, late), ctypes.c_uint32(next(seeds)),
            )  # fmt: skip
        assert message is None, message

    def denoise_step_linear(
        x, x0, table, step, step_bytes, cfg, noise, keys, squash, weight, bias, state, stream,
        moments, tokens, patch, bits, features, dtype, programmatic, *_,
    ):  # fmt: skip
        launches.append(("denoise_step_linear", programmatic))
        tensors = [x, x0, table, step, cfg, noise, keys, weight, bias, state, stream, moments]
        with drivers.addresses(tensors) as pointers:
            message = libraries["denoise_step_linear"].denoise_step_linear(
                pointers, int64s((tokens, patch, bits, features, squash, step_bytes)),
                ctypes.c_int(dtype == native.FLOAT16), late_bytes(tensors, (x, x0)),
                ctypes.c_uint32(next(seeds)),
            )  # fmt: skip
        assert message is None, message

    def denoise_patch(*arguments):
        launches.append(("denoise_patch", 0))
        *tensors, words = arguments[:25]
        rows, patch, channels, hidden, _, layers, projections, evaluations = arguments[25:33]
        eps, squash, max_polls, dtype = arguments[33:37]
        words.view(torch.int16).fill_(-1)
        tensors[-1].zero_()
        sizes = (rows, tensors[0][..., 0].numel(), patch, layers, projections, evaluations,
                 max_polls, squash, dtype == native.FLOAT16, channels)  # fmt: skip
        with drivers.addresses([*tensors, words]) as pointers:
            message = libraries["denoise_patch"].denoise_patch(
                pointers, int64s(sizes), ctypes.c_float(eps), ctypes.c_int(hidden // 16),
                ctypes.c_uint32(next(seeds)), ctypes.c_int(1), ctypes.c_int(1),
            )  # fmt: skip
        assert message is None, message

    own = (skinny_product, rms_norm_qkv, denoise_step_linear, denoise_patch)
    functions = {f.__name__: f for f in own}
    functions["denoise_patch_max_rows"] = lambda channels, *_: 8 if channels == 256 else 0
    ops = [REGISTRY[name] for name in OPS]
    patches = [
        mock.patch.dict(vars(native.cuda), functions),  # there may be no module to look them up in
        mock.patch.object(native, "stream", return_value=(0, 0)),
        mock.patch.object(native, "cuda_unsupported", return_value=None),
        mock.patch.object(native, "sm90_unsupported", return_value=None),
        *(mock.patch.object(op, "order", {"cpu": ("cuda", "reference")}) for op in ops),
        *(mock.patch.object(op, "_chosen", {}) for op in ops),
    ]
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield launches


def row_stride(x):
    """Elements from a row of x [..., C] to the next."""
    if x is None:
        return 0
    rows = x.flatten(0, -2) if x.dim() > 1 else x[None]
    assert rows.data_ptr() == x.data_ptr(), "rows must be evenly spaced"
    return rows.stride(0)


def late_bytes(tensors, late):
    known = {t.data_ptr() for t in late if t is not None}
    given = [t.nbytes if t is not None and t.data_ptr() in known else 0 for t in tensors]
    return int64s(given)
