"""flip_bits and flip_signs: the public functions and the ops' contracts."""

from __future__ import annotations

import operator
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from bitdance_kernels._dispatch import arguments
from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._dispatch.tracing import is_traced
from bitdance_kernels._shared import checks

__all__ = ["flip_bits", "flip_signs"]

_ORDER = {"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")}
_KEY = struct.Struct("=QQ")  # seed, offset


def flip_bits(
    packed: torch.Tensor,
    rate: float,
    *,
    seed: int | torch.Tensor = 0,
    offset: int | torch.Tensor = 0,
    uniforms: tuple[torch.Tensor, torch.Tensor] | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Flip each bit with probability `rate` / 2, independently.

    BitDance perturbs its training tokens so: with r1, r2 uniform, a bit flips where r1 < rate r2,
    which happens with probability exactly rate / 2. One 16-bit random number a bit decides the
    same: it flips where the number is below rate 2^15. Bit j of byte i takes half-word j (low half
    of word 0 first) of Philox4x32-10 at counter (i mod 2^32, i div 2^32, offset, 0xB175F11D) under
    the key `seed`, so the flips are a pure function of seed, offset and position.

    Args:
        packed: uint8 [..., C / 8], any strides.
        rate: in [0, 1]; resolved to 2^-15, exact at 0 and 1.
        seed: 64 bits: an int in [0, 2^64), or an int64 tensor of one element on the device of
            `packed`, which is read there.
        offset: number of the draw under that seed, in [0, 2^32); likewise.
        uniforms: (r1, r2), each floating point [..., C], instead of `seed` and `offset`: the
            official draw itself.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        uint8 [..., C / 8], contiguous.

    Raises:
        TypeError: `packed` is not uint8, or a uniform is not floating point.
        ValueError: `rate`, `seed` or `offset` is out of range, or shapes or devices do not fit.
        BackendError: a backend named explicitly cannot run the call.

    Backends:
        reference (given `uniforms` too); cpu (AVX2, AVX-512), triton and cuda. All give equal bits.
    """
    key = _key("flip_bits", "packed", packed, seed, offset)
    r1, r2 = (None, None) if uniforms is None else _pair("flip_bits", uniforms)
    return _op.call(packed, rate, key, r1, r2, backend)


def flip_signs(
    x: torch.Tensor,
    rate: float,
    *,
    seed: int | torch.Tensor = 0,
    offset: int | torch.Tensor = 0,
    uniforms: tuple[torch.Tensor, torch.Tensor] | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Negate each value with probability `rate` / 2: ``flip_bits`` for unpacked bits.

    On x of +1 and -1 this is ``unpack_signs(flip_bits(pack_signs(x), ...))`` with the same random
    numbers, without the round trip.

    Args:
        x: [..., C], floating point, C a multiple of 8, any strides.
        rate: as in ``flip_bits``.
        seed: as in ``flip_bits``.
        offset: as in ``flip_bits``.
        uniforms: as in ``flip_bits``, of the shape of `x`.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        [..., C] of the dtype of `x`, contiguous.

    Raises:
        TypeError: `x` or a uniform is not floating point.
        ValueError: as in ``flip_bits``, or C is not a positive multiple of 8.
        RuntimeError: `x` requires grad.
        BackendError: a backend named explicitly cannot run the call.

    Backends:
        reference (float64 and given `uniforms` too); cpu (AVX2, AVX-512), triton and cuda
        (float32, float16, bfloat16). All give equal bits.
    """
    key = _key("flip_signs", "x", x, seed, offset)
    r1, r2 = (None, None) if uniforms is None else _pair("flip_signs", uniforms)
    return _signs_op.call(x, rate, key, r1, r2, backend)


def _pair(op: str, uniforms: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """(r1, r2), checked to be two tensors."""
    if not isinstance(uniforms, tuple | list) or len(uniforms) != 2:
        raise TypeError(f"{op}: uniforms must be a pair of tensors, got {type(uniforms).__name__}")
    for i in range(2):
        arguments.tensor(op, f"uniforms[{i}]", uniforms[i])
    return uniforms


def _key(
    op: str, argument: str, like: torch.Tensor, seed: int | torch.Tensor, offset: int | torch.Tensor
) -> torch.Tensor:
    """(seed, offset) as int64 [2] on the device of `like`; tensors are not read on the host."""
    if (
        type(seed) is type(offset) is int
        and (0 <= seed < 2**64 and 0 <= offset < 2**32)
        and (isinstance(like, torch.Tensor) and like.is_cpu)
        and not (is_traced() or _get_current_dispatch_mode_stack())
    ):  # the usual case, in a fifth of the time
        return torch.from_numpy(np.frombuffer(bytearray(_KEY.pack(seed, offset)), np.int64))
    arguments.tensor(op, argument, like)
    parts = []
    for name, value, bits in (("seed", seed, 64), ("offset", offset, 32)):
        if isinstance(value, torch.Tensor):
            checks.dtype(op, name, value, (torch.int64,))
            if value.numel() != 1:
                raise checks.fail(op, name, "of one element", f"shape {list(value.shape)}")
            checks.same_device(op, "the input", like, **{name: value})
            parts.append(value.reshape(()))
            continue
        value = arguments.integer(op, name, value)
        if not 0 <= value < 2**bits:
            raise checks.fail(op, name, f"in [0, 2^{bits})", value)
        if value >= 2**63:  # the same 64 bits; a compiled program has it as a constant of its own
            value = operator.index(value) - 2**64
        parts.append(torch.full((), value, dtype=torch.int64, device=like.device))
    return torch.stack(parts)


def _check_draw(
    op: str,
    like: torch.Tensor,
    shape: tuple[int, ...],
    rate: float,
    key: torch.Tensor,
    r1: torch.Tensor | None,
    r2: torch.Tensor | None,
) -> None:
    if not 0 <= rate <= 1:
        raise checks.fail(op, "rate", "in [0, 1]", rate)
    checks.dtype(op, "key", key, (torch.int64,))
    checks.shape(op, "key", key, (2,), "(seed, offset)")
    if (r1 is None) != (r2 is None):
        raise checks.fail(op, "uniforms", "a pair (r1, r2)", "one of them")
    for name, uniform in (("uniforms[0]", r1), ("uniforms[1]", r2)):
        if uniform is not None:
            checks.dtype(op, name, uniform, checks.FLOATS)
            checks.shape(op, name, uniform, shape, "[..., C]")
    checks.same_device(op, "the input", like, key=key, uniforms=r1)
    checks.same_device(op, "the input", like, uniforms=r2)


def _check(packed: torch.Tensor, *draw: Any) -> None:
    checks.dtype("flip_bits", "packed", packed, (torch.uint8,))
    checks.rank("flip_bits", "packed", packed, 1)
    if packed.shape[-1] == 0:
        raise checks.fail("flip_bits", "packed", "[..., C / 8] with C > 0", list(packed.shape))
    _check_draw("flip_bits", packed, (*packed.shape[:-1], packed.shape[-1] * 8), *draw)


def _check_signs(x: torch.Tensor, *draw: Any) -> None:
    checks.dtype("flip_signs", "x", x, checks.FLOATS)
    checks.channels("flip_signs", "x", x)
    _check_draw("flip_signs", x, x.shape, *draw)


def _fake(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty(x.shape)


_op = KernelOp(
    "flip_bits",
    "(Tensor packed, float rate, Tensor key, Tensor? r1, Tensor? r2) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order=_ORDER,
    called_arguments={"r1": "uniforms[0]", "r2": "uniforms[1]"},
)
_signs_op = KernelOp(
    "flip_signs",
    "(Tensor x, float rate, Tensor key, Tensor? r1, Tensor? r2) -> Tensor",
    package=__package__,
    check=_check_signs,
    fake=_fake,
    order=_ORDER,
    called_arguments={"r1": "uniforms[0]", "r2": "uniforms[1]"},
    entry="_signs",
)
