"""Results of the ops have the shapes and dtypes that their docstrings give, autocast or not."""

import pytest
import torch
from torch.utils import _pytree as pytree

import bitdance_kernels as bk
from bitdance_kernels._dispatch.op import REGISTRY
from tests.cases.denoise_patch import head_call

HALF, FULL, WIDE = torch.bfloat16, torch.float32, torch.float64
INT, LONG, BYTE = torch.int32, torch.int64, torch.uint8
GIVEN, CAST = "the dtype given", "the dtype given, under autocast its own"
SUMS = "float32, for float64 its own"

X, Y = torch.randn(3, 4, 16), torch.randn(3, 4, 32)
PACKED = bk.pack_signs(Y)
IMAGES = torch.randn(2, 8, 3, 5)
Q, K = torch.randn(2, 7, 4, 8), torch.randn(2, 7, 2, 8)
RANGES, LENGTHS = bk.block_causal_ranges(3, 2, 2), torch.tensor([7, 3], dtype=INT)
ANGLES = torch.randn(9, 4, 2)
TABLE, KEYS = bk.denoise_schedule(3)[0], bk.noise_keys([1, 2, 3], [0, 0, 0], stream=0)


def _cast(dtype, *tensors):
    return (tensor.to(dtype) for tensor in tensors)


def _rope_append(d):
    qkv, keys, values = _cast(
        d, torch.randn(2, 3, 64), torch.zeros(2, 9, 2, 8), torch.ones(2, 9, 2, 8)
    )
    return bk.rope_append(
        qkv, keys, values, LENGTHS * 0, ANGLES, num_heads=4, num_kv_heads=2
    )  # fmt: skip


def _rms_norm_qkv(d):
    x, weight, norm, keys, values = _cast(
        d, torch.randn(2, 3, 16), torch.randn(64, 16), torch.ones(16), torch.zeros(2, 9, 2, 8),
        torch.ones(2, 9, 2, 8),
    )  # fmt: skip
    return bk.rms_norm_qkv(
        x, weight, norm, keys, values, LENGTHS * 0, ANGLES, num_heads=4, num_kv_heads=2
    )


HEAD = head_call("", torch.Generator().manual_seed(0), FULL, (2, 4, 16), (32, 48))


def _denoise_patch(d):
    x, modulation, table, *weights = HEAD.args
    return bk.denoise_patch(x, modulation.to(d), table, *_cast(d, *weights), **HEAD.kwargs)


# By op: a call with floats of dtype d, and shape and dtype of each of its results.
RESULTS = {
    "pack_signs": (lambda d: bk.pack_signs(Y.to(d)), [((3, 4, 4), BYTE)]),
    "unpack_signs": (lambda d: bk.unpack_signs(PACKED, d), [((3, 4, 32), GIVEN)]),
    "flip_bits": (
        lambda d: bk.flip_bits(PACKED, 0.5, uniforms=(Y.to(d).sigmoid(), Y.to(d).sigmoid())),
        [((3, 4, 4), BYTE)],
    ),
    "flip_signs": (
        lambda d: bk.flip_signs(Y.to(d), 0.5, uniforms=(Y.sigmoid(), Y.sigmoid())),
        [((3, 4, 32), GIVEN)],
    ),
    "hamming_distance": (
        lambda d: bk.hamming_distance(PACKED[0], PACKED[1, :2]), [((4, 2), INT)]
    ),
    "nearest_codes": (
        lambda d: bk.nearest_codes(PACKED[0], PACKED[1], 2), [((4, 2), LONG), ((4, 2), INT)]
    ),
    "packed_linear": (
        lambda d: bk.packed_linear(PACKED, *_cast(d, torch.randn(6, 32), torch.randn(6))),
        [((3, 4, 6), CAST)],
    ),
    "bit_counts": (lambda d: bk.bit_counts(PACKED), [((32,), LONG)]),
    "lfq_quantize": (lambda d: bk.lfq_quantize(X.to(d)), [((3, 4, 16), GIVEN), ((3, 4, 2), BYTE)]),
    "lfq_quantize_commitment": (
        lambda d: bk.lfq_quantize_commitment(X.to(d)),
        [((3, 4, 16), GIVEN), ((3, 4, 2), BYTE), ((), GIVEN)],
    ),
    "lfq_entropy": (
        lambda d: bk.lfq_entropy(X.to(d), 8, per_group=True), [((), GIVEN), ((2,), GIVEN)]
    ),
    "adaln_norm": (lambda d: bk.adaln_norm(X.to(d), X, X.half()), [((3, 4, 16), GIVEN)]),
    "gated_residual": (lambda d: bk.gated_residual(X.to(d), X, X.half()), [((3, 4, 16), GIVEN)]),
    "gated_residual_adaln": (
        lambda d: bk.gated_residual_adaln(X.to(d), X, X, X, X.half()), [((3, 4, 16), GIVEN)] * 2
    ),
    "swiglu": (lambda d: bk.swiglu(Y.to(d)), [((3, 4, 16), GIVEN)]),
    "linear": (lambda d: bk.linear(*_cast(d, X, torch.randn(6, 16))), [((3, 4, 6), CAST)]),
    "linear_out": (
        lambda d: bk.linear(*_cast(d, X, torch.randn(6, 16)), out=torch.zeros(3, 4, 6, dtype=d)),
        [((3, 4, 6), GIVEN)],
    ),
    "linear_fp8": (
        lambda d: bk.linear_fp8(X.to(d), *bk.quantize_rows(torch.randn(6, 16))),
        [((3, 4, 6), CAST)],
    ),
    "linear_swiglu": (
        lambda d: bk.linear_swiglu(*_cast(d, X, torch.randn(6, 16))), [((3, 4, 3), CAST)]
    ),
    "linear_gated_residual": (
        lambda d: bk.linear_gated_residual(
            *_cast(HALF, X, torch.randn(16, 16), X[0, 0]), X.to(d), X.half()
        ),
        [((3, 4, 16), GIVEN)],
    ),
    "linear_gated_residual_moments": (
        lambda d: bk.linear_gated_residual(
            *_cast(HALF, X, torch.randn(16, 16), X[0, 0]), X.to(d), return_moments=True
        ),
        [((3, 4, 16), GIVEN), ((3, 4, 1, 2), SUMS)],
    ),
    "rms_norm_linear": (
        lambda d: bk.rms_norm_linear(*_cast(d, X, torch.randn(6, 16))), [((3, 4, 6), CAST)]
    ),
    "rms_norm_linear_swiglu": (
        lambda d: bk.rms_norm_linear_swiglu(*_cast(d, X, torch.randn(6, 16))), [((3, 4, 3), CAST)]
    ),
    "adaln_linear": (
        lambda d: bk.adaln_linear(X.to(d), X, X.half(), torch.randn(6, 16).to(d)),
        [((3, 4, 6), CAST)],
    ),
    "adaln_linear_swiglu": (
        lambda d: bk.adaln_linear_swiglu(X.to(d), X, X.half(), torch.randn(6, 16).to(d)),
        [((3, 4, 3), CAST)],
    ),
    "patch_attention": (
        lambda d: bk.patch_attention(torch.randn(3, 4, 24).to(d), 2), [((3, 4, 8), CAST)]
    ),
    "denoise_step": (
        lambda d: bk.denoise_step(X[..., :8], X[..., :8].to(d), TABLE, 1, keys=KEYS),
        [((3, 4, 8), FULL)],
    ),
    "finalize_bits": (
        lambda d: bk.finalize_bits(X.to(d)), [((3, 4, 16), GIVEN), ((3, 4, 2), BYTE)]
    ),
    "denoise_step_linear": (
        lambda d: bk.denoise_step_linear(
            X[..., :8], X[..., :8].to(d), TABLE, 1, *_cast(d, torch.randn(16, 8), X[0, 0]),
            keys=KEYS,
        ),
        [((3, 4, 8), FULL), ((3, 4, 16), CAST), ((3, 4, 1, 2), SUMS)],
    ),
    "denoise_patch": (_denoise_patch, [((2, 4, 16), FULL), ((1,), INT)]),
    "rope": (lambda d: bk.rope(Q.to(d), ANGLES[:7]), [((2, 7, 4, 8), GIVEN)]),
    "rope_append": (_rope_append, [((2, 3, 4, 8), GIVEN)]),
    "rms_norm_qkv": (_rms_norm_qkv, [((2, 3, 4, 8), GIVEN)]),
    "block_causal_attention": (
        lambda d: bk.block_causal_attention(*_cast(d, Q, K, K), RANGES), [((2, 7, 4, 8), CAST)]
    ),
    "block_decode_attention": (
        lambda d: bk.block_decode_attention(*_cast(d, Q, K, K), LENGTHS), [((2, 7, 4, 8), CAST)]
    ),
    "group_norm_silu": (
        lambda d: bk.group_norm_silu(IMAGES.to(d), 2, torch.ones(8), torch.zeros(8)),
        [((2, 8, 3, 5), GIVEN)],
    ),
    "conv3x3": (
        lambda d: bk.conv3x3(*_cast(d, IMAGES, torch.ones(16, 8, 3, 3))),
        [((2, 16, 3, 5), CAST)],
    ),
    "rms_norm": (lambda d: bk.rms_norm(X.to(d)), [((3, 4, 16), GIVEN)]),
}  # fmt: skip


def test_every_op_has_a_row():
    assert set(RESULTS) == {name for name in REGISTRY if not name.endswith("_backward")}


@pytest.mark.parametrize("on", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("dtype", [FULL, HALF, torch.float16, WIDE])
@pytest.mark.parametrize("name", RESULTS)
def test_shapes_and_dtypes(name, dtype, on):
    call, expected = RESULTS[name]
    meant = {
        GIVEN: dtype,
        CAST: HALF if on and dtype is not WIDE else dtype,
        SUMS: WIDE if dtype is WIDE else FULL,
    }
    for backend in ("auto", "reference"):
        with torch.autocast("cpu", HALF, enabled=on), bk.use_backend(backend):
            results = pytree.tree_leaves(call(dtype))
        found = [(tuple(result.shape), result.dtype) for result in results]
        assert found == [(shape, meant.get(kind, kind)) for shape, kind in expected]


@pytest.mark.parametrize("on", [False, True], ids=["", "autocast"])
def test_of_ranges_tables_and_noise(on):
    with torch.autocast("cpu", HALF, enabled=on):
        ranges = bk.block_causal_ranges(3, 2, 2)
        assert (ranges.start.dtype, ranges.end.dtype, ranges.start.shape) == (INT, INT, (7,))
        assert [t.dtype for t in bk.denoise_schedule(3)] == [FULL, FULL]
        assert (KEYS.dtype, KEYS.shape) == (LONG, (3, 3))
        for backend in ("auto", "reference"):
            for dtype in (FULL, WIDE):
                drawn = bk.noise(KEYS, 0, 8, dtype=dtype, backend=backend)
                assert (drawn.dtype, drawn.shape) == (dtype, (3, 8))
