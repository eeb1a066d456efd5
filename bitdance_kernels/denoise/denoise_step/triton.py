"""denoise_step in Triton: a lane of a block makes four values, those of one Philox counter."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support
from bitdance_kernels._shared.philox_triton import four_normals

# Counters per program. Some hundred instructions a counter hide every load.
_BLOCK = 128


@triton.jit
def _denoise_step_kernel(
    x_ptr, x0_ptr, table_ptr, step_ptr, cfg_ptr, noise_ptr, keys_ptr, y_ptr,
    elements, row_blocks, total_blocks, total,
    GUIDED: tl.constexpr, DRAWN: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    if WIDE:  # a 64-bit division costs as much as Philox
        i = i.to(tl.int64)
    i = i * BLOCK + tl.arange(0, BLOCK)
    inside = (i < total_blocks)[:, None]
    # Without random numbers all values are one row.
    row = i // row_blocks
    block = i - row * row_blocks
    row = row.to(tl.int64)
    four = tl.arange(0, 4)[None, :]
    if EVEN:
        value = i.to(tl.int64)[:, None] * 4 + four  # [BLOCK, 4]
    else:
        in_row = block.to(tl.int64)[:, None] * 4 + four
        inside = inside & (in_row < elements)
        value = row[:, None] * elements + in_row

    step = tl.load(step_ptr).to(tl.int64)
    a = tl.load(table_ptr + step * 3)
    b = tl.load(table_ptr + (step * 3 + 1))
    s = tl.load(table_ptr + (step * 3 + 2))
    x = tl.load(x_ptr + value, mask=inside, other=0.0)
    x0 = tl.load(x0_ptr + value, mask=inside, other=0.0).to(tl.float32)
    if GUIDED:
        other = tl.load(x0_ptr + (value + total), mask=inside, other=0.0).to(tl.float32)
        x0 = other + tl.load(cfg_ptr) * (x0 - other)
    if DRAWN:
        # Lanes past the end read the key of the first row, which exists.
        row = tl.where(i < total_blocks, row, 0)
        eps = four_normals(keys_ptr, row, block, step + 1, BLOCK)
    else:
        eps = tl.load(noise_ptr + value, mask=inside, other=0.0)
    tl.store(y_ptr + value, tl.fma(s, eps, tl.fma(b, x0, a * x)), mask=inside)


def unsupported(x: torch.Tensor, x0: torch.Tensor, *_: object) -> str | None:
    return triton_support.unsupported(x, x0)


def run(
    x: torch.Tensor,
    x0: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    cfg: torch.Tensor | None,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
) -> torch.Tensor:
    y = x.new_empty(x.shape)
    total = y.numel()
    if total == 0:
        return y
    # Explicit noise needs no rows: all values are one.
    rows = 1 if keys is None else x.shape[0]
    elements = total // rows
    row_blocks = triton.cdiv(elements, 4)
    blocks = rows * row_blocks
    with triton_support.on_device(x):
        _denoise_step_kernel[(triton.cdiv(blocks, _BLOCK),)](
            x.contiguous(),
            x0.contiguous(),
            table.contiguous(),
            step,
            None if cfg is None else cfg.to(torch.float32),
            None if noise is None else noise.contiguous(),
            None if keys is None else keys.contiguous(),
            y,
            elements,
            row_blocks,
            blocks,
            total,
            GUIDED=cfg is not None,
            DRAWN=keys is not None,
            EVEN=elements % 4 == 0,
            WIDE=blocks + _BLOCK >= 2**31,
            BLOCK=_BLOCK,
            # Guidance rounds after each operation: a fused multiply-add would change signs.
            enable_fp_fusion=False,
        )
    return y
