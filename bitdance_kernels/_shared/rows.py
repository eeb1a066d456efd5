"""Views as evenly spaced rows, the layout that the elementwise kernels read."""

from __future__ import annotations

import torch


def as_rows(x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """`x` [..., C] as rows of C adjacent elements, one row every `stride` elements.

    A view whose leading dimensions collapse into one evenly spaced dimension is read in place; any
    other is copied first.

    Returns:
        The tensor to read (`x` or a contiguous copy), the number of rows, the row stride in
        elements.
    """
    width = x.shape[-1]
    rows = x.numel() // width if width else 0
    if x.is_contiguous():
        return x, rows, width
    if x.dim() == 2:  # a chunk of a wider tensor: the usual case, and looked at in every call
        across, along = x.stride()
        if along == 1:
            return x, rows, across
    stride = _row_stride(x)
    if stride is None:
        return x.contiguous(), rows, width
    return x, rows, stride


def _row_stride(x: torch.Tensor) -> int | None:
    if x.stride(-1) != 1 and x.shape[-1] != 1:
        return None
    stride: int | None = None
    span = 0  # elements from one index of the next outer dimension to the next, if evenly spaced
    for size, step in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if size == 1:
            continue
        if stride is None:
            stride, span = step, step * size
        elif step != span:
            return None
        else:
            span = step * size
    return x.shape[-1] if stride is None else stride
