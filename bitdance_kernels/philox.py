"""The noise of every sampler: counter-based Philox4x32-10 and Box-Muller, in plain PyTorch.

A normal is a pure function of what it is for, never of what was drawn before: of the seed, the
sample, the autoregressive step, the denoise step and the element. So image i of seed s has the same
noise for every batch size, order, rank and device. C++ (csrc/common/philox.h), CUDA and Triton
compute the same function; this module is the definition.

===============  ==================================================================================
key              the 64-bit seed, low word first
counter word 0   element // 4, element the flat index inside the sample's [P, C] block
counter word 1   0 for the initial noise, i + 1 for SDE step i
counter word 2   2 * AR step + stream; stream 0 is the conditional row, 1 the unconditional one
counter word 3   sample id
===============  ==================================================================================

Element 4 j + k takes word k of block j. Philox4x32-10 is that of J. Salmon, M. Moraes, R. Dror,
D. Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011). Words are equal on every backend;
normals agree within the rounding of logarithm, sine and cosine.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from bitdance_kernels._dispatch import arguments, transforms
from bitdance_kernels._dispatch.backends import default_backend
from bitdance_kernels._dispatch.tracing import is_traced
from bitdance_kernels._shared import checks, native
from bitdance_kernels.cpu_graph import CpuGraph

__all__ = ["noise", "noise_keys", "noise_words", "philox4x32"]

_ROUNDS = 10
# Multipliers of the two halves of a round, and increments of the key after each: the first 32
# fractional bits of the golden ratio and of sqrt(3).
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox4x32(counter: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Ten rounds of Philox4x32: four random words for each counter.

    Args:
        counter: int64 [..., 4], each word in [0, 2^32).
        key: int64 [..., 2], each word in [0, 2^32); leading dimensions broadcast.

    Returns:
        int64 [..., 4], each word in [0, 2^32).

    Numerics:
        Exact: the 32-bit words are held in int64 and masked.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), dim=-1)


def _multiply(constant: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low word of an unsigned 32 x 32-bit product, by halves, since int64 overflows."""
    upper = constant * (word >> 16)  # < 2^48
    lower = constant * (word & 0xFFFF)
    middle = upper + (lower >> 16)
    return middle >> 16, (middle & 0xFFFF) << 16 | lower & 0xFFFF


def noise_words(keys: torch.Tensor, step: torch.Tensor | int, elements: int) -> torch.Tensor:
    """Random words for `elements` elements of each row.

    Args:
        keys: int64 [R, 3] as ``noise_keys`` makes them, on any device.
        step: counter word 1, an int or an integer tensor of one element on the device of `keys`.
        elements: P * C, the size of a row's block.

    Returns:
        int64 [R, elements], each word in [0, 2^32), contiguous.

    Raises:
        TypeError: `keys` is not int64, or `step` is a floating tensor.
        ValueError: `keys` is not [R, 3], `step` has several elements or is out of range, or
            `elements` is negative or over 2^34 (32 bits count the blocks of four).
    """
    _check(keys, step, elements)
    return _blocks(keys, step, elements).flatten(1)[:, :elements].contiguous()


def noise(
    keys: torch.Tensor,
    step: torch.Tensor | int,
    elements: int,
    *,
    dtype: torch.dtype = torch.float32,
    backend: str = "reference",
) -> torch.Tensor:
    """Standard normals, a pure function of key, step and element.

    Each pair of words (w0, w1) gives two normals by Box-Muller:

        u(w)  = ((w >> 8) + 0.5) 2^-24      in float32, one rounding
        r     = sqrt(-2 ln u(w0))           theta = 2 pi u(w1)
        z0    = r cos(theta)                z1    = r sin(theta)

    so |z| never exceeds sqrt(50 ln 2) = 5.89.

    Args:
        keys: int64 [R, 3] as ``noise_keys`` makes them, on any device; read there, never on the
            host, so that a captured graph draws fresh noise when the tensor changes.
        step: 0 for the initial noise, i + 1 for SDE step i; an int or an integer tensor of one
            element on the device of `keys`.
        elements: P * C, the size of a row's block.
        dtype: float32, or float64 for the same normals with the logarithm, the root, sine and
            cosine in float64 (what the float32 ones are checked against).
        backend: "reference" for the formula in PyTorch, which the kernels are checked against, or
            "auto": for float32 in C++ on the CPU and in Triton on a GPU, where they are there and
            ``use_backend`` names no other.

    Returns:
        `dtype` [R, elements], contiguous.

    Raises:
        TypeError, ValueError: as ``noise_words``; also another `dtype` or `backend`.

    Numerics:
        The words are equal on every backend and device; the normals agree to a few units in the
        last place of r (the libraries differ in how they round log, sin and cos).

    Example:
        >>> keys = noise_keys(7, range(4))
        >>> noise(keys, 0, 512).shape
        torch.Size([4, 512])
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"noise: dtype must be float32 or float64, got {dtype}")
    if backend not in ("auto", "reference"):
        raise ValueError(f"noise: backend must be auto or reference, got {backend!r}")
    _check(keys, step, elements)
    if backend == "auto" and dtype == torch.float32 and not _traced(keys):
        if _native_can(keys):
            return _native_noise(keys, step, elements)
        if _triton_can(keys):
            return _triton_noise(keys, step, elements)
    words = _blocks(keys, step, elements).unflatten(-1, (2, 2))
    uniform = ((words >> 8).to(torch.float32) + 0.5) * 2.0**-24
    uniform = uniform.to(dtype)
    radius = torch.sqrt(-2 * torch.log(uniform[..., 0]))
    theta = 2 * math.pi * uniform[..., 1]
    normals = torch.stack((radius * torch.cos(theta), radius * torch.sin(theta)), dim=-1)
    return normals.flatten(1)[:, :elements].contiguous()


def _traced(keys: torch.Tensor) -> bool:
    """Whether a tracer, transform or mode must see PyTorch operators rather than a kernel."""
    if is_traced() or transforms.active():
        return True
    captured = keys.is_cpu and CpuGraph.capturing()
    return bool(_get_current_dispatch_mode_stack()) and not captured


def _native_can(keys: torch.Tensor) -> bool:
    chosen = default_backend() in ("auto", "cpu")
    return keys.is_cpu and chosen and native.cpu.unavailable("noise") is None


def _native_noise(keys: torch.Tensor, step: torch.Tensor | int, elements: int) -> torch.Tensor:
    normals = torch.empty((keys.shape[0], elements), dtype=torch.float32, device=keys.device)
    keys, step = keys.contiguous(), _step_tensor(keys, step)
    native.cpu.noise(keys, keys.shape[0], elements, step, normals, None, torch.get_num_threads())
    return normals


def _triton_can(keys: torch.Tensor) -> bool:
    chosen = default_backend()
    if chosen != "triton" and not (chosen == "auto" and keys.is_cuda):
        return False
    try:
        from bitdance_kernels._shared import triton_support
    except ImportError:
        return False
    return triton_support.unsupported(keys) is None


def _triton_noise(keys: torch.Tensor, step: torch.Tensor | int, elements: int) -> torch.Tensor:
    from bitdance_kernels._shared import philox_triton

    return philox_triton.noise(keys, _step_tensor(keys, step), elements)


def _step_tensor(keys: torch.Tensor, step: torch.Tensor | int) -> torch.Tensor:
    if isinstance(step, torch.Tensor):
        return step.to(torch.int64)
    return torch.full((), step, dtype=torch.int64, device=keys.device)


def noise_keys(
    seeds: int | Sequence[int],
    sample_ids: Sequence[int],
    *,
    ar_step: int = 0,
    stream: int = 0,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Keys of the noise of a batch's rows.

    The middle column of the result is ``2 * ar_step + stream``: add 2 to it in place, on the
    device, to go on to the next autoregressive step.

    Args:
        seeds: one seed for all rows or one for each, in [0, 2^64).
        sample_ids: for each row the number of its image under that seed, in [0, 2^32).
        ar_step: autoregressive step, in [0, 2^31).
        stream: 0 for conditional rows (and for rows whose two branches share their noise), 1 for
            unconditional rows that draw their own.
        device: where the keys go.

    Returns:
        int64 [R, 3] = (seed, 2 * ar_step + stream, sample id); a seed of 2^63 or more is held as
        the negative number of the same 64 bits.

    Raises:
        TypeError: a number is not an int.
        ValueError: a number is out of range, or there is not one seed for each row.

    Example:
        >>> noise_keys(7, [0, 1], ar_step=2)
        tensor([[7, 4, 0],
                [7, 4, 1]])
    """
    ids = [_in_range("sample_ids", sample, 32) for sample in _list("sample_ids", sample_ids)]
    alone = isinstance(seeds, numbers.Integral)
    each = [
        _in_range("seeds", s, 64) for s in ([seeds] * len(ids) if alone else _list("seeds", seeds))
    ]
    if len(each) != len(ids):
        raise checks.fail("noise_keys", "seeds", f"one or {len(ids)} as sample_ids", len(each))
    ar_step, stream = _in_range("ar_step", ar_step, 31), _in_range("stream", stream, 1)
    rows = [
        (seed - 2**64 if seed >= 2**63 else seed, 2 * ar_step + stream, sample)
        for seed, sample in zip(each, ids, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.int64, device=device).reshape(-1, 3)


def _list(argument: str, values: object) -> list[Any]:
    if not isinstance(values, Iterable):
        raise TypeError(f"noise_keys: {argument} must be a list, got {type(values).__name__}")
    return list(values)


def _in_range(argument: str, value: Any, bits: int) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"noise_keys: {argument} must be int, got {type(value).__name__}")
    number = int(value)
    if not 0 <= number < 2**bits:
        raise checks.fail("noise_keys", argument, f"in [0, 2^{bits})", number)
    return number


def _check(keys: torch.Tensor, step: torch.Tensor | int, elements: int) -> None:
    arguments.tensor("noise", "keys", keys)
    arguments.integer("noise", "elements", elements)
    if not isinstance(step, torch.Tensor):
        arguments.integer("noise", "step", step)
    checks.dtype("noise", "keys", keys, (torch.int64,))
    checks.rank("noise", "keys", keys, 2, 2)
    checks.shape("noise", "keys", keys, (keys.shape[0], 3), "[R, 3]")
    if not 0 <= elements <= 2**34:
        raise checks.fail("noise", "elements", "in [0, 2^34]", elements)
    if isinstance(step, torch.Tensor):
        checks.dtype("noise", "step", step, (torch.int64, torch.int32))
        checks.same_device("noise", "keys", keys, step=step)
        if step.numel() != 1:
            raise checks.fail("noise", "step", "of one element", f"shape {list(step.shape)}")
    elif not 0 <= step < 2**32:
        raise checks.fail("noise", "step", "in [0, 2^32)", step)
    if not _traced(keys):
        arguments.check_memory("noise", "keys", keys, has_memory=True)


def _blocks(keys: torch.Tensor, step: torch.Tensor | int, elements: int) -> torch.Tensor:
    """Words [R, ceil(elements / 4), 4]."""
    step = _step_tensor(keys, step).reshape(()) & _MASK
    seed, ar_step, sample = keys.unbind(1)
    key = torch.stack((seed & _MASK, seed >> 32 & _MASK), dim=-1)
    block = torch.arange((elements + 3) // 4, dtype=torch.int64, device=keys.device)
    words = (block, step, ar_step[:, None] & _MASK, sample[:, None] & _MASK)
    counter = torch.stack(torch.broadcast_tensors(*words), dim=-1)
    return philox4x32(counter, key[:, None])
