"""Packed weights and the context of overlapping launches."""

import threading

import pytest
import torch

from bitdance_kernels import (
    dequantize_rows,
    overlapping_launches,
    pack_weight,
    quantize_rows,
    unpack_weight,
)
from bitdance_kernels._shared.launches import programmatic
from bitdance_kernels.testing import cpu_threads

LAYOUTS = ("rows", "swiglu", "rope")
HALF = {"layout": "rope_half", "head_dim": 48}


def _row(layout, features, tile, row):
    """Number of the matrix's row that is row `row` of a tile."""
    if layout == "rows":
        return 16 * tile + row
    if layout == "swiglu":
        return 8 * tile + row % 8 + row // 8 * (features // 2)
    return 16 * tile + row % 8 * 2 + row // 8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_lane_has_its_part_of_the_operand(layout):
    """Registers of the A operand as the PTX manual gives them for mma.m16n8k16."""
    weight = torch.randperm(48 * 64).view(48, 64)
    packed = pack_weight(weight, layout)
    assert packed.shape == (3, 4, 32, 8)
    for tile in range(3):
        for step in range(4):
            for lane in range(32):
                for i in range(8):
                    row = lane // 4 + 8 * (i // 2 % 2)
                    channel = 16 * step + lane % 4 * 2 + i % 2 + 8 * (i // 4)
                    expected = weight[_row(layout, 48, tile, row), channel]
                    assert packed[tile, step, lane, i] == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_unpacking_is_the_inverse(layout, dtype):
    for shape in ((16, 16), (48, 32), (32, 80), (0, 16)):
        weight = torch.randint(100, shape).to(dtype)
        packed = pack_weight(weight, layout)
        assert packed.dtype == dtype
        assert packed.is_contiguous()
        assert torch.equal(unpack_weight(packed, layout), weight)
        out = torch.full(packed.shape, torch.nan, dtype=torch.float64)
        assert pack_weight(weight, layout, out=out) is out
        assert torch.equal(out, packed.double())
    columns = torch.randn(32, 48).t()  # of any strides
    assert torch.equal(unpack_weight(pack_weight(columns, layout), layout), columns)


def test_a_panel_is_16_rows_transposed():
    for features, channels in ((16, 1), (48, 7), (32, 64), (0, 5)):
        weight = torch.randn(features, channels)
        packed = pack_weight(weight, "panels")
        assert packed.is_contiguous()
        assert packed.shape == (features // 16, channels, 16)
        for feature in range(features):
            assert torch.equal(packed[feature // 16, :, feature % 16], weight[feature])
        unpacked = unpack_weight(packed, "panels")
        assert unpacked.is_contiguous()
        assert torch.equal(unpacked, weight)
        columns, wide = weight.t().contiguous().t(), torch.randn(features, channels + 3)
        wide[:, 2:-1] = weight
        for dtype in (torch.float32, torch.float64):  # C++ packs float32
            for given in (weight, columns, wide[:, 2:-1]):
                out = torch.full(packed.shape, torch.nan, dtype=dtype)
                assert pack_weight(given, "panels", out=out) is out
                assert torch.equal(out, packed.to(dtype))


def test_scales_of_int8_values_are_behind_the_channels_of_their_panel():
    for features, channels in ((16, 1), (48, 7), (32, 64), (0, 5)):
        values, scales = quantize_rows(torch.randn(features, channels), torch.int8)
        packed = pack_weight(values, "panels", scales=scales)
        assert packed.dtype == torch.int8
        assert packed.shape == (features // 16, channels + 4, 16)
        for feature in range(features):
            panel, lane = packed[feature // 16], feature % 16
            assert torch.equal(panel[:-4, lane], values[feature])
            assert panel[-4:].flatten().view(torch.float32)[lane] == scales[feature]
        expected = dequantize_rows(values, scales, torch.float32)
        assert torch.equal(unpack_weight(packed, "panels"), expected)
        columns = values.t().contiguous().t()
        out = torch.full_like(packed, -1)
        assert pack_weight(columns, "panels", scales=scales, out=out) is out
        assert torch.equal(out, packed)


def test_threads_pack_panels_of_their_own():
    weight = torch.randn(16 * 37, 300)
    expected = pack_weight(weight, "panels")
    for threads in (1, 2, 5):
        with cpu_threads(threads):
            out = torch.full(expected.shape, torch.nan)
            assert torch.equal(pack_weight(weight, "panels", out=out), expected)


def test_halves_of_heads_are_pairs_of_rows():
    """Row r of a tile and row r + 8 turn together: channels i and i + D / 2 of a head."""
    weight = torch.randperm(96 * 32).view(96, 32)  # two heads of 48 channels
    packed = pack_weight(weight, **HALF)
    assert torch.equal(unpack_weight(packed, **HALF), weight)
    for tile in range(6):
        for row in range(8):
            first = tile // 3 * 48 + tile % 3 * 8 + row
            for half in range(2):  # channel 0 of the tile's rows is the first one of a lane
                assert packed[tile, 0, 4 * row, 2 * half] == weight[first + 24 * half, 0]


@pytest.mark.parametrize("layout", [*LAYOUTS, "rope_half"])
def test_float8_weights_keep_their_scales_behind_each_tile(layout):
    weight = torch.randn(96, 32) * torch.logspace(-5, 5, 96)[:, None]
    values, scales = quantize_rows(weight)
    head_dim = 48 if layout == "rope_half" else None
    packed = pack_weight(values, layout, head_dim=head_dim, scales=scales)
    assert packed.shape == (6, 3, 32, 8)
    assert torch.equal(packed[:, :2], _packed_as_numbers(values, layout, head_dim))
    # In the order of the tile's rows: that of the first channel of each.
    of_rows = _packed_as_numbers(scales[:, None].expand(96, 32), layout, head_dim)
    behind = packed[:, 2].flatten(1)
    assert torch.equal(
        behind[:, :64].contiguous().view(torch.float32),
        torch.cat([of_rows[:, 0, ::4, 0], of_rows[:, 0, ::4, 2]], 1),
    )
    assert not behind[:, 64:].any()
    unpacked = unpack_weight(packed, layout, head_dim=head_dim)
    assert torch.equal(unpacked, dequantize_rows(values, scales, torch.float32))
    out = torch.full_like(packed, 255)
    pack_weight(values, layout, head_dim=head_dim, scales=scales, out=out)
    assert torch.equal(out, packed)


def _packed_as_numbers(matrix, layout, head_dim):
    return pack_weight(matrix.double(), layout, head_dim=head_dim).to(matrix.dtype)


def test_a_row_with_a_nan_is_nan_in_float8():
    weight = torch.ones(16, 16)
    weight[3, 5], weight[7, 0] = torch.nan, torch.inf
    values, scales = quantize_rows(weight)
    unpacked = unpack_weight(pack_weight(values, scales=scales))
    assert unpacked[[3, 7]].isnan().all()
    assert unpacked[[0, 15]].eq(1).all()


def test_bad_arguments():
    weight, packed = torch.zeros(16, 32), torch.zeros(1, 2, 32, 8)
    values, scales = quantize_rows(weight)
    int8 = weight.to(torch.int8)
    for call, error, message in (
        (lambda: pack_weight([1.0]), TypeError, "pack_weight: weight must be a torch.Tensor"),
        (lambda: pack_weight(values), ValueError,
         r"pack_weight: scales must be float32 \[F\] for a weight of bytes, got None"),
        (lambda: pack_weight(weight, scales=scales), ValueError,
         "pack_weight: scales must be None for torch.float32 and the layout 'rows', got a tensor"),
        (lambda: pack_weight(int8, "panels"), ValueError,
         r"pack_weight: scales must be float32 \[F\] for panels of int8, got None"),
        (lambda: pack_weight(int8, scales=scales), ValueError,
         "pack_weight: scales must be None for torch.int8 and the layout 'rows', got a tensor"),
        (lambda: pack_weight(values, "panels", scales=scales), ValueError,
         'pack_weight: weight must be no bytes for the layout "panels", got uint8'),
        (lambda: pack_weight(int8, "panels", scales=scales[:8]), ValueError,
         r"pack_weight: scales must be of shape \[F\] = \[16\], got \[8\]"),
        (lambda: pack_weight(int8, "panels", scales=scales, out=torch.zeros(1, 36, 16)), TypeError,
         "pack_weight: out must be int8, got float32"),
        (lambda: pack_weight(int8, "panels", scales=scales, out=packed[0].to(torch.int8)),
         ValueError, r"out must be of shape \[F / 16, C \+ 4, 16\] = \[1, 36, 16\], got"),
        (lambda: unpack_weight(int8[:, :3].reshape(1, 3, 16), "panels"), ValueError,
         r"unpack_weight: packed must be \[F / 16, C \+ 4, 16\], got shape \[1, 3, 16\]"),
        (lambda: pack_weight(values, scales=scales[:8]), ValueError,
         r"pack_weight: scales must be of shape \[F\] = \[16\], got \[8\]"),
        (lambda: pack_weight(values, scales=scales.double()), TypeError,
         "pack_weight: scales must be float32, got float64"),
        (lambda: pack_weight(values, scales=scales, out=torch.zeros(1, 3, 32, 8)), TypeError,
         "pack_weight: out must be uint8, got float32"),
        (lambda: pack_weight(values, scales=scales, out=packed.byte()), ValueError,
         r"pack_weight: out must be of shape .* \[1, 3, 32, 8\], got \[1, 2, 32, 8\]"),
        (lambda: pack_weight(weight[0]), ValueError, "pack_weight: weight must be of 2 dimensions"),
        (lambda: pack_weight(weight[:8]), ValueError,
         r"pack_weight: weight must be \[F, C\] with F and C multiples of 16, got shape \[8, 32\]"),
        (lambda: pack_weight(weight[:, :24]), ValueError, r"multiples of 16, got shape \[16, 24\]"),
        (lambda: pack_weight(weight, "columns"), ValueError,
         "pack_weight: layout must be one of rows, swiglu, rope, rope_half, panels, got 'columns'"),
        (lambda: pack_weight(weight[:8], "panels"), ValueError,
         r"pack_weight: weight must be \[F, C\] with F a multiple of 16, got shape \[8, 32\]"),
        (lambda: pack_weight(weight, "panels", head_dim=16), ValueError,
         "pack_weight: head_dim must be None for the layout 'panels', got 16"),
        (lambda: pack_weight(weight, "panels", out=packed), ValueError,
         r"pack_weight: out must be of shape \[F / 16, C, 16\] = \[1, 32, 16\], got"),
        (lambda: unpack_weight(packed, "panels"), ValueError, "packed must be of 3 dimensions"),
        (lambda: unpack_weight(packed[0], "panels", head_dim=16), ValueError,
         "unpack_weight: head_dim must be None for the layout 'panels', got 16"),
        (lambda: unpack_weight(packed[0], "panels"), ValueError,
         r"packed must be of shape \[F / 16, C, 16\] = \[2, 32, 16\], got \[2, 32, 8\]"),
        (lambda: pack_weight(weight, head_dim=16), ValueError,
         "pack_weight: head_dim must be None for the layout 'rows', got 16"),
        (lambda: pack_weight(weight, "rope_half"), ValueError,
         "pack_weight: head_dim must be a multiple of 16 that divides F = 16, got None"),
        (lambda: unpack_weight(packed, "rope_half", head_dim=32), ValueError,
         "unpack_weight: head_dim must be a multiple of 16 that divides F = 16, got 32"),
        (lambda: pack_weight(weight, None), ValueError, "layout must be one of .*, got None"),
        (lambda: pack_weight(weight, out=[]), TypeError, "pack_weight: out must be a torch.Tensor"),
        (lambda: pack_weight(weight, out=packed[:, :1]), ValueError,
         r"pack_weight: out must be of shape \[F / 16, C / 16, 32, 8\] = \[1, 2, 32, 8\], got"),
        (lambda: pack_weight(weight, out=torch.zeros(1, 2, 8, 32).mT), ValueError,
         r"pack_weight: out must be contiguous, got strides \[512, 256, 1, 32\]"),
        (lambda: unpack_weight(None), TypeError, "unpack_weight: packed must be a torch.Tensor"),
        (lambda: unpack_weight(weight), ValueError, "packed must be of 4 dimensions"),
        (lambda: unpack_weight(packed[..., :4]), ValueError,
         r"packed must be of shape \[F / 16, C / 16, 32, 8\] = \[1, 2, 32, 8\], got"),
        (lambda: unpack_weight(packed, "rop"), ValueError, "unpack_weight: layout must be one of"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()


def test_the_first_launch_of_a_context_waits():
    assert [programmatic() for _ in range(2)] == [0, 0]
    with overlapping_launches():
        assert [programmatic() for _ in range(3)] == [0, 1, 1]
        with overlapping_launches():
            assert [programmatic() for _ in range(2)] == [0, 1]
        assert [programmatic() for _ in range(2)] == [0, 1], "a chain of its own"
        of_a_thread = []
        thread = threading.Thread(target=lambda: of_a_thread.append(programmatic()))
        thread.start()
        thread.join()
        assert of_a_thread == [0]
        assert programmatic() == 1
    assert [programmatic() for _ in range(2)] == [0, 0]
    with pytest.raises(ZeroDivisionError), overlapping_launches():
        1 / programmatic()
    assert programmatic() == 0
