"""hamming_distance and nearest_codes: the public functions and the ops' contracts."""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks
from bitdance_kernels.binary.hamming_distance._index import CodeIndex

__all__ = ["CodeIndex", "hamming_distance", "nearest_codes"]

_ORDER = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")}
_MAX_CHANNELS = 2**24  # up to this, sums of +1 and -1 are exact in float32


def hamming_distance(
    a: torch.Tensor, b: torch.Tensor | CodeIndex, *, backend: str = "auto"
) -> torch.Tensor:
    """Number of differing bits, for all pairs of codes: d[n, m] = popcount(a[n] xor b[m]).

    Args:
        a: uint8 [N, C / 8], any strides.
        b: uint8 [M, C / 8], any strides, or an index of such codes; `a` is on the CPU then.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        int32 [N, M], contiguous.

    Raises:
        TypeError: an argument is not uint8.
        ValueError: not two matrices of the same width, width 0, C over 2^24, or two devices.
        BackendError: a backend named explicitly cannot run the call.

    Backends:
        reference; cpu (AVX2, AVX-512, BITALG), cuda (popcount), triton (int8 products). All give
        equal distances.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[0], [1], [255]], dtype=torch.uint8)
        >>> hamming_distance(codes, codes)
        tensor([[0, 1, 8],
                [1, 0, 7],
                [8, 7, 0]], dtype=torch.int32)
    """
    if isinstance(b, CodeIndex):
        return b.distances(a, backend)
    return _op.call(a, b, backend)


def nearest_codes(
    a: torch.Tensor, b: torch.Tensor | CodeIndex, k: int, *, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each code of `a` the `k` nearest codes of `b` by Hamming distance.

    Args:
        a: uint8 [N, C / 8], the queries.
        b: uint8 [M, C / 8], what is searched, or an index of it; `a` is on the CPU then.
        k: how many, 1 to M.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        Indices into `b`, int64 [N, k], and distances, int32 [N, k], both in ascending order of
        distance, equal distances in ascending order of index. The N x M matrix is never stored.

    Raises:
        TypeError: a tensor is not uint8.
        ValueError: as ``hamming_distance``, or `k` is not in 1 to M.
        BackendError: a backend named explicitly cannot run the call.

    Backends:
        reference; cpu (k <= 128), cuda (C <= 8192), triton (k <= 64). All give equal results.
    """
    if isinstance(b, CodeIndex):
        return b.nearest(a, k, backend)
    return _nearest_op.call(a, b, k, backend)


def _check_codes(op: str, a: torch.Tensor, b: torch.Tensor) -> None:
    for name, tensor in (("a", a), ("b", b)):
        checks.dtype(op, name, tensor, (torch.uint8,))
        checks.rank(op, name, tensor, 2, 2)
    width = a.shape[1]
    if not 0 < width * 8 <= _MAX_CHANNELS:
        raise checks.fail(op, "a", "[N, C / 8] with 0 < C <= 2^24", list(a.shape))
    checks.shape(op, "b", b, (b.shape[0], width), "[M, C / 8]")
    checks.same_device(op, "a", a, b=b)


def _check(a: torch.Tensor, b: torch.Tensor) -> None:
    _check_codes("hamming_distance", a, b)


def _fake(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=torch.int32)


def _check_nearest(a: torch.Tensor, b: torch.Tensor, k: int) -> None:
    _check_codes("nearest_codes", a, b)
    if not 1 <= k <= b.shape[0]:
        raise checks.fail("nearest_codes", "k", f"in 1 to M = {b.shape[0]}", k)


def _fake_nearest(a: torch.Tensor, b: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (a.shape[0], k)
    return a.new_empty(shape, dtype=torch.int64), a.new_empty(shape, dtype=torch.int32)


_op = KernelOp(
    "hamming_distance",
    "(Tensor a, Tensor b) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order=_ORDER,
)
_nearest_op = KernelOp(
    "nearest_codes",
    "(Tensor a, Tensor b, int k) -> (Tensor, Tensor)",
    package=__package__,
    check=_check_nearest,
    fake=_fake_nearest,
    order=_ORDER,
    entry="_nearest",
)
