"""The products of few rows without a card: their device code as C++, on tests/emulated."""

import ctypes
import itertools
import math

import pytest
import torch

from bitdance.models.config import HEAD_PRESETS, PRESETS
from bitdance_kernels import dequantize_rows, pack_weight, quantize_rows
from bitdance_kernels._shared import moments, native, skinny_config
from bitdance_kernels.attention.rms_norm_qkv import reference as rms_norm_qkv
from bitdance_kernels.denoise.adaln_linear import reference as adaln_linear
from bitdance_kernels.denoise.linear_gated_residual import reference as linear_gated_residual
from bitdance_kernels.denoise.linear_swiglu import reference as linear_swiglu
from bitdance_kernels.denoise.rms_norm_linear import reference as rms_norm_linear
from bitdance_kernels.testing import compare
from tests.emulated import build, build_once, needs_compiler, plant

pytestmark = [needs_compiler, pytest.mark.slow]

HEADER = "cuda/common/skinny_product_sm90.cuh"
NORMS = {"none": 0, "layer": 1, "rms": 2}
EPILOGUES = {"plain": 0, "swiglu": 1, "gated": 2, "rope": 3}
LAYOUTS = {"plain": "rows", "swiglu": "swiglu", "gated": "rows", "rope": "rope"}
BOTH = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
EPS = 1e-6


class Case:
    """Arguments of a product [rows, channels] by [features, channels]."""

    def __init__(
        self, rows, channels, features, *, norm="none", epilogue="plain", dtype=torch.bfloat16,
        launch=None, affine=True, given=True, float8=False, seed=0,
    ):  # fmt: skip
        self.generator = torch.Generator().manual_seed(seed)
        self.norm, self.epilogue, self.dtype = norm, epilogue, dtype
        self.launch = launch or skinny_config.choose(rows, channels, features, torch.device("cpu"))
        self.x = self.normal(rows, channels)
        self.weight = (self.normal(features, channels).float() * channels**-0.5).to(dtype)
        self.float8 = quantize_rows(self.weight) if float8 else None
        if self.float8 is not None:
            self.weight = dequantize_rows(*self.float8, dtype)
        self.bias = self.normal(features, factor=0.1)
        # Modulations are chunks of a wider tensor, and what lies beside them is not to be read.
        wide = torch.full((rows, 2 * channels + features + 16), math.nan, dtype=dtype)
        self.scale, self.shift, self.gate, _ = wide.split([channels, channels, features, 16], -1)
        for part in (self.scale, self.shift, self.gate):
            part.copy_(self.normal(*part.shape, factor=0.5))
        self.residual = self.normal(rows, features)
        self.moments = moments.of(self.x).contiguous() if given and norm != "none" else None
        # In the dtype of x, or in float32.
        norms = torch.float32 if seed % 2 else dtype
        self.norm_weight = self.normal(channels).to(norms) if affine else None
        self.norm_bias = self.normal(channels, factor=0.1).to(norms) if affine else None

    def packed(self, layout="rows", head_dim=None):
        """The weight as the kernel takes it."""
        values, scales = (self.weight, None) if self.float8 is None else self.float8
        return pack_weight(values, layout, head_dim=head_dim, scales=scales)

    def normal(self, *shape, factor=1.0):
        return (factor * torch.randn(*shape, generator=self.generator)).to(self.dtype)

    def run(self, library, seed=0):
        """y, and its moments with the gated epilogue; x and what else is late is NaN at first."""
        rows, channels = self.x.shape
        features = len(self.weight)
        width = features // 2 if self.epilogue == "swiglu" else features
        y = torch.full((rows, width), math.nan, dtype=self.dtype)
        gated, layer = self.epilogue == "gated", self.norm == "layer"
        y_moments = torch.full((rows, features // 16, 2), math.nan) if gated else None
        modulated = (self.scale, self.shift) if layer else (None, None)
        tensors = [
            self.x, self.moments, self.packed(LAYOUTS[self.epilogue]), self.bias,
            *modulated, self.norm_weight if self.norm != "none" else None,
            self.norm_bias if layer else None, self.residual if gated else None,
            self.gate if gated else None, y, y_moments,
        ]  # fmt: skip
        strides = [t.stride(0) for t in (self.x, self.scale, self.shift, self.residual, self.gate)]
        codes = NORMS[self.norm], EPILOGUES[self.epilogue]
        sizes = [rows, channels, features, *codes, *self.launch, *strides]
        late = (self.x, self.moments, self.residual if gated else None)
        norm_dtype = None if self.norm_weight is None else self.norm_weight.dtype
        call(library, tensors, sizes, late, self.dtype, seed, norm_dtype)
        return (y, y_moments) if gated else y

    def reference(self, dtype):
        """The op's reference in `dtype`."""
        t = {k: v.to(dtype) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        if dtype == self.dtype and self.norm_weight is not None:
            t |= {"norm_weight": self.norm_weight, "norm_bias": self.norm_bias}
        x, weight, bias, norm_weight = t["x"], t["weight"], t["bias"], t.get("norm_weight")
        if self.epilogue == "gated":
            return linear_gated_residual.run(x, weight, bias, t["residual"], t["gate"])
        if self.norm == "none":
            assert self.epilogue == "swiglu"
            return linear_swiglu.run(x, weight, bias)
        if self.norm == "layer":
            run = adaln_linear.run_swiglu if self.epilogue == "swiglu" else adaln_linear.run
            norm = (norm_weight, t.get("norm_bias"))
            return run(x, t["scale"], t["shift"], weight, bias, *norm, None, EPS)
        swiglu = self.epilogue == "swiglu"
        run = rms_norm_linear.run_swiglu if swiglu else rms_norm_linear.run
        return run(x, weight, bias, norm_weight, None, EPS)


def call(library, tensors, sizes, late, dtype, seed, norm_dtype=None):
    """Launch the emulated kernel; the tensors of `late` are written by the kernel before it."""
    tensors = [*tensors, *[None] * (19 - len(tensors))]
    known_late = {id(t) for t in late if t is not None}
    pointers = (ctypes.c_void_p * 19)(*(t.data_ptr() if t is not None else 0 for t in tensors))
    bytes_late = (ctypes.c_int64 * 19)(*(t.nbytes * (id(t) in known_late) if t is not None else 0
                                         for t in tensors))  # fmt: skip
    norm_code = native.DTYPE_CODES[norm_dtype or dtype]
    float8 = tensors[2].dtype == torch.uint8
    sizes = (ctypes.c_int64 * 29)(
        *sizes, *[0] * (25 - len(sizes)), norm_code, float8, norm_code, norm_code
    )  # fmt: skip
    half = ctypes.c_int(dtype == torch.float16)
    message = library.skinny_product(
        pointers, sizes, ctypes.c_float(EPS), half, bytes_late, ctypes.c_uint32(seed)
    )
    assert message is None, message


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    found = build_once("skinny_product", tmp_path_factory)
    found.skinny_product.restype = ctypes.c_char_p
    return found


def widths():
    """(norm, epilogue, channels, features) of all products of the presets."""
    found = set()
    for config in PRESETS.values():
        C, head = config.dim, config.head
        hidden = -(-int(8 / 3 * C) // 256) * 256
        found |= {("rms", "plain", C, 3 * C), ("none", "gated", C, C)}
        found |= {("rms", "swiglu", C, 2 * hidden), ("none", "gated", hidden, C)}
        found |= head_widths(head)
    for head in HEAD_PRESETS.values():
        found |= head_widths(head)
    return sorted(found)


def head_widths(head):
    C, hidden = head.ch_latent, int(1.5 * head.ch_latent)
    widths = {("layer", "swiglu", C, 2 * hidden), ("none", "gated", hidden, C)}
    widths |= {("layer", "plain", C, 3 * C), ("none", "gated", C, C)}
    return widths | {("layer", "plain", C, head.ch_target)}


@pytest.mark.parametrize(
    ("norm", "epilogue", "channels", "features"),
    [
        pytest.param(*each, marks=[pytest.mark.nightly] if i % 4 else [])
        for i, each in enumerate(widths())
    ],
)
def test_products_of_the_presets(library, norm, epilogue, channels, features):
    """By the launches chosen for them; features beyond two clusters are more of the same."""
    turn = widths().index((norm, epilogue, channels, features)) % 2
    for i, rows in enumerate(((2, 64), (27, 101))[turn] if channels < 2048 else (3, 38)):
        launch = skinny_config.choose(rows, channels, features, torch.device("cpu"))
        few = min(features, 16 * launch.tiles * (2 if channels < 2048 else 1))
        dtype = (torch.bfloat16, torch.float16)[i % 2]
        options = {"norm": norm, "epilogue": epilogue, "dtype": dtype, "launch": launch}
        case = Case(rows, channels, few, **options, seed=i)
        check(case, library)


def check(case, library):
    y = case.run(library)
    where = f"{list(case.x.shape)}, {case.norm}, {case.epilogue}, {case.launch}"
    if case.epilogue == "gated":
        y, y_moments = y
        # Of the rounded values, so nearly exact.
        torch.testing.assert_close(y_moments, moments.of(y), rtol=1e-4, atol=1e-5, msg=where)
    compare("staged", y, case.reference(case.dtype), case.reference(torch.float64), where)


@BOTH
@pytest.mark.parametrize("rows", [1, 7, 8, 9, 31, 33, 65, 128])
def test_rows_of_every_number(library, rows, dtype):
    for norm, epilogue in (("layer", "swiglu"), ("rms", "plain"), ("none", "gated")):
        check(Case(rows, 160, 96, norm=norm, epilogue=epilogue, dtype=dtype), library)


@pytest.mark.parametrize(
    "launch", [(1, 1, 1), (1, 16, 1), (3, 2, 1), (16, 1, 2), (2, 3, 4), (5, 1, 8), (1, 7, 8)]
)
@pytest.mark.parametrize("channels", [128, 208, 1040])
def test_launches_of_every_shape(library, launch, channels):
    """Shares of channels that differ, parts and tiles without work, several chunks."""
    for rows in (5, 40):
        for norm, epilogue in (("layer", "plain"), ("none", "gated")):
            options = {"norm": norm, "epilogue": epilogue, "launch": launch}
            check(Case(rows, channels, 112, **options), library)


@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_norms_without_parameters_and_moments(library, rows, norm):
    for affine, given in itertools.product((True, False), repeat=2):
        check(Case(rows, 208, 64, norm=norm, affine=affine, given=given), library)


@BOTH
def test_products_are_exact(library, dtype):
    """Sums of small integers are the same in every order."""
    for rows, channels, features in ((2, 768, 64), (29, 768, 256), (64, 1152, 96), (128, 512, 80)):
        case = Case(rows, channels, features, dtype=dtype)
        case.x.copy_(torch.randint(0, 2, case.x.shape) * 2 - 1)
        case.weight.copy_(torch.randint(-2, 3, case.weight.shape))
        case.bias.copy_(torch.randint(-3, 4, case.bias.shape))
        expected = case.x.double() @ case.weight.double().T + case.bias.double()
        compare("exact", case.run(library), expected.to(dtype), expected, f"{rows} rows")


@BOTH
@pytest.mark.parametrize("rows", [1, 8, 9, 33, 65])
def test_float8_weights_give_the_bits_of_what_they_stand_for(library, rows, dtype):
    """Values and scales are exact in both dtypes, and powers of two commute with sums."""
    for norm, epilogue, launch in (
        ("layer", "swiglu", (3, 2, 4)), ("rms", "plain", (1, 8, 1)), ("none", "gated", (2, 1, 8)),
    ):  # fmt: skip
        options = {"norm": norm, "epilogue": epilogue, "dtype": dtype, "launch": launch}
        # Chunks of both weights have equal steps, so that sums have the same order.
        case = Case(rows, 16 * 6 * launch[1] * launch[2], 96, **options, float8=True)
        float8 = as_tuple(case.run(library))
        case.float8 = None
        for one, other in zip(float8, as_tuple(case.run(library)), strict=True):
            assert torch.equal(one, other)


@BOTH
def test_every_float8_value_is_widened_exactly(library, dtype):
    """All 254 numbers, subnormal ones among them, one at a time; a row with a NaN is NaN."""
    values = torch.arange(256).to(torch.uint8).view(16, 16)
    case = Case(16, 16, 16, dtype=dtype, launch=(1, 1, 1))
    case.x, case.bias = torch.eye(16, dtype=dtype), torch.zeros(16, dtype=dtype)
    case.float8 = (values, torch.ones(16))
    wide = values.view(torch.float8_e4m3fn).double()
    wide[[7, 15]] = math.nan  # whose last values are the two NaN
    torch.testing.assert_close(case.run(library).double(), wide.T, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("channels", [128, 208, 1040, 3104])
def test_float8_launches_of_every_shape(library, channels):
    for rows in (5, 40):
        for launch in ((1, 1, 1), (3, 2, 1), (2, 3, 4), (1, 7, 8)):
            options = {"norm": "layer", "epilogue": "swiglu", "launch": launch, "float8": True}
            check(Case(rows, channels, 112, **options), library)


CHAINED = {"norm": "layer", "epilogue": "swiglu", "launch": (3, 2, 4)}
SEEDS = 100


def test_every_order_of_threads_gives_the_same_bits(library):
    """Of 4 blocks of 6 warps, with stores that arrive late and blocks that sleep."""
    cases = [Case(12, 416, 96, **CHAINED), Case(6, 416, 48, norm="rms", launch=(1, 8, 1))]
    cases.append(Case(40, 416, 64, epilogue="gated", launch=(2, 1, 8)))
    cases.append(Case(6, 416, 64, epilogue="gated", launch=(1, 2, 4), float8=True))
    for case in cases:
        first = case.run(library)
        for seed in range(1, SEEDS):
            for one, other in zip(as_tuple(case.run(library, seed)), as_tuple(first), strict=True):
                assert torch.equal(one, other), f"seed {seed}"


def as_tuple(results):
    return results if isinstance(results, tuple) else (results,)


FAULTS = {
    "a block written to before it has begun": ("if (p.split > 1) cluster_wait();", ""),
    "sums read before they are there": ("      cluster_sync();", "      __syncthreads();"),
    "x read before the wait": (
        "    wait_for_previous();\n    load_inputs(0, threadIdx.x);",
        "    load_inputs(0, threadIdx.x);\n    wait_for_previous();",
    ),
    "moments read before the wait": (
        "    wait_for_previous();\n    load_inputs(0, threadIdx.x);\n"
        "    if constexpr (kNorm) measure_rows();",
        "    if constexpr (kNorm) measure_rows();\n"
        "    wait_for_previous();\n    load_inputs(0, threadIdx.x);",
    ),
    "rows multiplied before they are measured": (
        "if (kNorm || chunk > 0) __syncthreads();", "if (chunk > 0) __syncthreads();",
    ),
    "inputs multiplied before they are there": (
        "      __syncthreads();\n      multiply(chunk);", "      multiply(chunk);",
    ),
    "inputs written while they are read": (
        "if (kNorm || chunk > 0) __syncthreads();", "if (kNorm) __syncthreads();",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.nightly
def test_a_planted_fault_is_found(fault, library, tmp_path):
    """In some order of the threads: a wrong or missing value, or a launch that reports a fault."""
    plant(HEADER, *FAULTS[fault], tmp_path)
    wrong = build("skinny_product", tmp_path, changed=tmp_path)
    wrong.skinny_product.restype = ctypes.c_char_p
    options = {"epilogue": "swiglu", "launch": (3, 1, 4)}
    cases = [Case(12, 608, 96, norm=norm, **options) for norm in ("layer", "none")]
    right = [case.run(library) for case in cases]
    for seed, (case, expected) in itertools.product(range(SEEDS), zip(cases, right, strict=True)):
        try:
            if not torch.equal(case.run(wrong, seed), expected):
                return
        except AssertionError:
            return
    raise AssertionError("no order of the threads shows the fault")


QUERIES = {
    "interleaved": {},
    "interleaved, heads of 10": {"D": 10, "H": 4, "Hkv": 2},
    "halves": {"interleaved": False},
    "halves, norms": {"interleaved": False, "normed": True},
    "interleaved, norms, heads of 16": {"normed": True, "D": 16, "H": 6, "Hkv": 3},
    "halves, norms, heads of 128": {"interleaved": False, "normed": True, "D": 128, "H": 2},
    "one token": {"interleaved": False, "normed": True, "B": 2, "P": 1},
    "many rows": {"interleaved": False, "normed": True, "B": 5, "P": 16},
    "float8": {"float8": True},
    "float8, halves, norms": {"interleaved": False, "normed": True, "float8": True},
}


@BOTH
@pytest.mark.parametrize("kind", QUERIES)
def test_queries_keys_and_values(library, kind, dtype):
    """Rotated, and appended where every row's cache ends; nothing else of the caches changes."""
    options = {"interleaved": True, "normed": False, "B": 3, "P": 4, "H": 3, "Hkv": 1, "D": 32,
               "float8": False}  # fmt: skip
    interleaved, normed, B, P, H, Hkv, D, float8 = (options | QUERIES[kind]).values()
    C, Tmax, features = 160, 31, (H + 2 * Hkv) * D
    group = D // 16 if normed else 1
    launch = skinny_config.choose(B * P, C, features, torch.device("cpu"), group=group)
    assert launch.tiles % group == 0
    options = {"norm": "rms", "epilogue": "rope", "dtype": dtype, "launch": launch}
    case = Case(B * P, C, features, **options, float8=float8)
    q_norm, k_norm = (case.normal(D), case.normal(D)) if normed else (None, None)
    position = torch.tensor([0, 7, 3, 15, 2][:B], dtype=torch.int32)
    angles = torch.randn(Tmax, D // 2, generator=case.generator)
    freqs = torch.stack([angles.cos(), angles.sin()], -1)
    x = case.x.view(B, P, C)

    def caches(dtype):
        g = torch.Generator().manual_seed(5)
        return [torch.randn(B, Tmax, 2, Hkv, D, generator=g).to(case.dtype).to(dtype)[:, :, i]
                for i in range(2)]  # fmt: skip

    def reference(dtype):
        k_cache, v_cache = caches(dtype)
        weights = (case.weight.to(dtype), case.norm_weight.to(dtype), k_cache, v_cache)
        table = freqs.double() if dtype == torch.float64 else freqs
        norms = [None if t is None else t.to(dtype) for t in (q_norm, k_norm)]
        q = rms_norm_qkv.run(
            x.to(dtype), *weights, position, table, H, Hkv, interleaved, *norms,
            case.bias.to(dtype), None, EPS,
        )  # fmt: skip
        return q, k_cache, v_cache

    k_cache, v_cache = caches(dtype)
    q = torch.full((B, P, H, D), math.nan, dtype=dtype)
    layout = {"layout": "rope"} if interleaved else {"layout": "rope_half", "head_dim": D}
    tensors = [case.x, case.moments, case.packed(**layout), case.bias, None, None,
               case.norm_weight, None, None, None, None, None, q, k_cache, v_cache, position,
               freqs, q_norm, k_norm]  # fmt: skip
    strides = [C, 0, 0, 0, 0, *k_cache.stride()[:3], *v_cache.stride()[:3]]
    codes = NORMS["rms"], EPILOGUES["rope"]
    sizes = [B * P, C, features, *codes, *case.launch, *strides, P, H, Hkv, D, interleaved, group]
    call(library, tensors, sizes, (case.x, case.moments), dtype, 1)
    names = ("q", "k_cache", "v_cache")
    every = zip(names, (q, k_cache, v_cache), reference(dtype), reference(torch.float64),
                strict=True)  # fmt: skip
    for name, actual, plain, truth in every:
        compare("staged", actual, plain, truth, name)


def test_launches_fit_a_card(library):
    """Threads and shared memory of every launch that is chosen or tried."""
    for (_, _, channels, features), rows in itertools.product(widths(), (2, 8, 16, 32, 64, 128)):
        for launch in skinny_config.candidates(rows, channels, features):
            where = (rows, channels, features, launch)
            assert (
                32 * launch.tiles * launch.parts
                <= 32 * skinny_config._MAX_WARPS[skinny_config.row_class(rows)]
            ), where
            assert launch.split in (1, 2, 4, 8), where
            assert channels // 16 >= launch.split, where
            for float8 in (0, 1):
                shared = library.skinny_shared(rows, channels, *launch, 1, float8)
                assert shared <= 227 * 1024, where


built = pytest.mark.skipif(
    native.cuda.unavailable("skinny_product") is not None,
    reason="the CUDA module was not built here",
)


@built
def test_c_function_checks_before_it_launches():
    half, none = native.FLOAT16, (0, 0, native.FLOAT16)

    def call(*, x=(0, 64, half), weight=0, float8=0, norm=1, scale=none, epilogue=0, rows=4,
             channels=64, features=32, tiles=1, parts=2, split=2):  # fmt: skip
        native.cuda.skinny_product(
            x, 0, weight, float8, 0, norm, scale, none, none, none, EPS, epilogue, none, none, 0, 0,
            rows, channels, features, tiles, parts, split, 0, 0, 0,
        )  # fmt: skip

    wrong = [{"rows": -1}, {"rows": 129}, {"channels": 40}, {"channels": 0}, {"features": 24}]
    wrong += [{"split": 3}, {"split": 16}, {"split": 8}, {"tiles": 0}, {"parts": 17}]
    wrong += [{"norm": 3}, {"epilogue": 3}, {"weight": 8}, {"x": (16, 60, half)}]
    wrong += [{"x": (8, 64, half)}, {"scale": (16, 64, native.BFLOAT16)}]
    for arguments in wrong:
        with pytest.raises(RuntimeError, match="size or argument out of range"):
            call(**arguments)
    with pytest.raises(RuntimeError, match="dtype code not handled"):
        call(x=(0, 64, native.FLOAT32))
    for float8 in (0, 1):
        call(rows=0, float8=float8)  # nothing to launch, on any machine


@built
def test_c_function_of_queries_checks_before_it_launches():
    none = (0, 0, native.BFLOAT16)

    def call(*, x=(0, 64, native.BFLOAT16), batch=2, tokens=2, heads=2, kv_heads=1, head_dim=16,
             interleaved=1, q_norm=none, tiles=1):  # fmt: skip
        native.cuda.rms_norm_qkv(
            x, 0, 0, 0, 0, none, EPS, 0, 0, 0, 0, 0, interleaved, q_norm, none, batch, tokens,
            heads, kv_heads, head_dim, *[32] * 6, 64, tiles, 2, 2, 0, 0, 0,
        )  # fmt: skip

    wrong = [{"batch": -1}, {"batch": 65}, {"heads": 0}, {"kv_heads": 0}, {"head_dim": 3}]
    normed = {"q_norm": (16, 16, native.BFLOAT16)}
    wrong += [{"head_dim": 6}, {"heads": 2**30}, {"head_dim": 24, "interleaved": 0}]
    wrong += [{"head_dim": 32, **normed}, {"tiles": 0}]
    for arguments in wrong:
        with pytest.raises(RuntimeError, match="size or argument out of range"):
            call(**arguments)
    with pytest.raises(RuntimeError, match="dtype code not handled"):
        call(x=(0, 64, native.FLOAT32))
    call(batch=0)
