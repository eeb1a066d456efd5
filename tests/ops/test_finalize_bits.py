import pytest
import torch

from bitdance_kernels import denoise_schedule, denoise_step, finalize_bits, pack_signs, unpack_signs
from bitdance_kernels.testing import Call, Invalid, specials

META = torch.device("meta")
INVALID = {
    "finalize_bits": (
        Invalid("dtype", Call("int32", (torch.zeros(2, 8, dtype=torch.int32),)), TypeError,
                "finalize_bits: x0 must be float32 or .*, got int32"),
        Invalid("dtype", Call("cfg int64", (torch.zeros(2, 8),), {"cfg": torch.tensor(3)}),
                TypeError, "finalize_bits: cfg must be float32 or float64, got int64"),
        Invalid("rank", Call("one row without its dimension", (torch.zeros(8),)), ValueError,
                r"finalize_bits: x0 must be of at least 2 dimensions, got shape \[8\]"),
        Invalid("size", Call("C = 12", (torch.zeros(2, 12),)), ValueError,
                r"finalize_bits: x0 must be .* multiple of 8, got shape \[2, 12\]"),
        Invalid("size", Call("three rows, guided", (torch.zeros(3, 8),), {"cfg": 2.0}), ValueError,
                r"finalize_bits: x0 must be \[2 R, ...\] when cfg is given, got shape \[3, 8\]"),
        Invalid("size", Call("two scales", (torch.zeros(2, 8),), {"cfg": torch.ones(2)}),
                ValueError, r"finalize_bits: cfg must be of one element, got shape \[2\]"),
        Invalid("device", Call("cfg", (torch.zeros(2, 8),), {"cfg": torch.ones((), device=META)}),
                ValueError, "finalize_bits: cfg must be on cpu like x0, got meta"),
        Invalid("value", Call("requires grad", (torch.zeros(2, 8, requires_grad=True),)),
                RuntimeError, "finalize_bits: has no gradient, but x0 requires grad"),
    )
}  # fmt: skip

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64]
)


@DTYPES
def test_both_results_are_the_quantiser_of_the_same_values(dtype):
    x0 = torch.tensor(specials(dtype), dtype=dtype).repeat(8).reshape(3, 24)
    signs, packed = finalize_bits(x0)
    assert signs.dtype == dtype
    assert torch.equal(packed, pack_signs(x0))
    assert torch.equal(signs, unpack_signs(packed, dtype))


@pytest.mark.usefixtures("every_isa")
@DTYPES
def test_guidance_is_rounded_operation_by_operation(dtype):
    """The signs near zero, where another order of the three roundings would change them."""
    generator = torch.Generator().manual_seed(1)
    conditional = torch.randn(64, 4, 32, generator=generator).to(dtype)
    cfg = torch.tensor(1.3)
    # x0_u + cfg (x0_c - x0_u) = 0 where x0_u = cfg / (cfg - 1) x0_c
    unconditional = (conditional.double() * (cfg / (cfg - 1))).to(dtype)
    signs, packed = finalize_bits(torch.cat((conditional, unconditional)), cfg=cfg)
    wide = torch.promote_types(dtype, torch.float32)
    c, u = conditional.to(wide), unconditional.to(wide)
    difference = c - u
    product = cfg.to(wide) * difference
    total = u + product
    assert torch.equal(signs, torch.where(total > 0, 1, -1).to(dtype))
    assert torch.equal(packed, pack_signs(total))


def test_a_number_is_the_tensor_with_its_float32_value():
    x0 = torch.randn(8, 16)
    for a, b in zip(
        finalize_bits(x0, cfg=0.1), finalize_bits(x0, cfg=torch.tensor([0.1])), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cfg", [None, 1.0, 4.55])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_last_step_and_the_sign(cfg, dtype):
    """torch.sign only differs at an exact zero, which it leaves and we make -1."""
    table, _ = denoise_schedule(7)
    x = torch.randn(5, 4, 32)
    x0 = torch.randn(5 if cfg is None else 10, 4, 32).to(dtype)
    x0[0, 0, :4] = x0[-5, 0, :4] = 0
    end = denoise_step(x, x0, table, 7, cfg=cfg, noise=torch.randn_like(x))
    signs, packed = finalize_bits(x0, cfg=cfg)
    assert torch.equal(packed, pack_signs(end))
    official = torch.sign(end)
    assert (official[0, 0, :4] == 0).all()
    assert (signs[0, 0, :4] == -1).all()
    assert torch.equal(signs.float(), torch.where(official == 0, -1, official))
