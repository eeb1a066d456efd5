"""What the kernels for sm_90 take of a card: registers, shared memory, blocks of a multiprocessor.

Tests read the machine code for CODE alone, the command that of the other card too: to print it
takes half a minute.

``python -m tests.offline_sm90`` builds the CUDA module and writes RECORD, which a test compares
with what is built: a kernel that takes more than before is seen, whether it spills or not. The
sizes of launches are those that the CUDA backends choose for the published models, see
``tests.launches``.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bitdance.models.config import HEAD_PRESETS, PRESETS, HeadConfig
from bitdance_kernels import (
    adaln_linear,
    adaln_linear_swiglu,
    denoise_patch,
    denoise_step_linear,
    linear_gated_residual,
    noise_keys,
    overlapping_launches,
    rms_norm_linear_swiglu,
    rms_norm_qkv,
)
from bitdance_kernels._shared import native
from tests import sass
from tests.launches import NVCC, ROOT, Launch, objects, recording

RECORD = Path(__file__).with_name("compiled_sm90.json")
CODE = "sm_90"
ARCHS = (CODE, "sm_100")
ROWS = (2, 8, 32, 64, 128)
_BITS, _HEAD_DIM = 32, 64

# Of a multiprocessor, on either card.
_REGISTERS, _SHARED, _THREADS, _BLOCKS = 65536, 228 * 1024, 2048, 32
_SYSTEM = 1024  # bytes of shared memory that each block takes besides its own


def nvcc_version() -> str:
    """Version of the compiler, such as "13.0.88"."""
    printed = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True, check=True)
    return re.findall(r"V(\d+\.\d+\.\d+)", printed.stdout)[0]


@functools.cache
def code(arch: str) -> dict[str, list[sass.Instruction]]:
    """The instructions of every kernel compiled for `arch`, by mangled name."""
    found: dict[str, list[sass.Instruction]] = {}
    for path in objects("csrc/**/*_sm90.cu.o"):
        found |= sass.kernels(path, arch)
    return found


def faults(arch: str = CODE) -> dict[str, list[str]]:
    """Of every kernel that waits: stores before, and whether it loads its weights there."""
    return {
        # Decode attention in clusters has no weights.
        sass.short_name(name): sass.faults(instructions, 0 if "decode_cluster" in name else 1)
        for name, instructions in code(arch).items()
        if any(i.name == sass.WAIT for i in instructions)
    }


@functools.cache
def kernels(arch: str) -> dict[str, dict[str, int]]:
    """Resources of every kernel; and, by its code, the weights that it loads before it waits."""
    found = {}
    for path in objects("csrc/**/*_sm90.cu.o"):
        for name, of_kernel in sass.resources(path, arch).items():
            found[name] = {**vars(of_kernel), **(_waiting(name) if arch == CODE else {})}
    return found


def _waiting(name: str) -> dict[str, int]:
    waits = any(i.name == sass.WAIT for i in code(CODE)[name])
    early = sass.instructions_before_wait(code(CODE)[name]) if waits else []
    return {"waits": int(waits), "early_weights": sum(i.is_weight_load for i in early)}


def blocks_per_multiprocessor(used: dict[str, int], launch: Launch) -> int:
    """Blocks of a launch that a multiprocessor holds at a time, by the largest of its demands."""
    warps = -(-launch.threads // 32)
    of_warp = -(-used["registers"] * 32 // 256) * 256
    by_registers = _REGISTERS // 4 // of_warp * 4 // warps
    static = max(used["shared"], _SYSTEM)  # which has the system's share already
    by_shared = _SHARED // (-(-(launch.shared + static) // 128) * 128)
    return min(by_registers, by_shared, _THREADS // (32 * warps), _BLOCKS)


@functools.cache
def launches() -> dict[str, list[Launch]]:
    """Launches of every product of the published models, by its name, sizes and rows."""
    found: dict[str, list[Launch]] = {}
    with recording() as taken:
        for label, call in _calls():
            with overlapping_launches():
                for _ in range(2):  # the second one may overlap the first
                    call()
            found[label] = taken()
    return found


def _calls() -> Iterator[tuple[str, Any]]:
    heads = {name: preset.head for name, preset in PRESETS.items()} | HEAD_PRESETS
    seen = set()
    for config in heads.values():
        width, hidden = config.ch_latent, int(1.5 * config.ch_latent)
        if width not in seen:
            seen.add(width)
            for rows in ROWS:
                yield from _head(width, hidden, rows)
    for name in ("B-1x", "B-16x", "L-1x", "H-1x"):
        for rows in ROWS:
            yield from _patch(heads[name], rows)
    for dim in sorted({preset.dim for preset in PRESETS.values()}):
        for rows in ROWS:
            yield from _trunk(dim, -(-int(8 / 3 * dim) // 256) * 256, rows)


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def _weight(features: int, channels: int) -> torch.Tensor:
    return _empty(features // 16, channels // 16, 32, 8)


def _head(width: int, hidden: int, rows: int) -> Iterator[tuple[str, Any]]:
    x, h = _empty(rows, width), _empty(rows, hidden)
    moments = _empty(rows, width // 16, 2, dtype=torch.float32)
    scale, shift, gate = _empty(rows, 3 * width).chunk(3, dim=-1)
    norm = (_empty(width), _empty(width))

    def normed(function: Any, features: int) -> Any:
        weight, bias = _weight(features, width), _empty(features)
        return lambda: function(
            x, scale, shift, weight, bias, *norm, moments=moments, backend="cuda"
        )

    def added(y: torch.Tensor) -> Any:
        weight, bias = _weight(width, y.shape[-1]), _empty(width)
        return lambda: linear_gated_residual(
            y, weight, bias, x, gate, return_moments=True, backend="cuda"
        )

    state, predicted = (_empty(rows // 2, 1, _BITS, dtype=torch.float32), _empty(rows, 1, _BITS))
    table, step = _empty(3, 3, dtype=torch.float32), torch.zeros((), dtype=torch.int64)
    into, bias = _weight(width, _BITS), _empty(width)
    cfg, keys = torch.ones(()), noise_keys(0, range(rows // 2))
    yield from {
        f"head of {width}, {rows} rows, qkv": normed(adaln_linear, 3 * width),
        f"head of {width}, {rows} rows, wo": added(x),
        f"head of {width}, {rows} rows, w1": normed(adaln_linear_swiglu, 2 * hidden),
        f"head of {width}, {rows} rows, w2": added(h),
        f"head of {width}, {rows} rows, final": normed(adaln_linear, _BITS),
        f"head of {width}, {rows} rows, step": lambda: denoise_step_linear(
            state, predicted, table, step, into, bias, cfg=cfg, keys=keys, backend="cuda"
        ),
    }.items()


def _trunk(dim: int, hidden: int, rows: int) -> Iterator[tuple[str, Any]]:
    x, h, heads = _empty(rows, 1, dim), _empty(rows, 1, hidden), dim // _HEAD_DIM
    moments = _empty(rows, 1, dim // 16, 2, dtype=torch.float32)
    caches = torch.empty(2, rows, 8, heads, _HEAD_DIM, dtype=torch.bfloat16)
    freqs = torch.empty(8, _HEAD_DIM // 2, 2)
    position = torch.zeros(rows, dtype=torch.int32)
    norm, qkv, w1 = _empty(dim), _weight(3 * dim, dim), _weight(2 * hidden, dim)
    wo, w2 = _weight(dim, dim), _weight(dim, hidden)
    yield from {
        f"trunk of {dim}, {rows} rows, qkv": lambda: rms_norm_qkv(
            x, qkv, norm, *caches, position, freqs, num_heads=heads, moments=moments,
            backend="cuda",
        ),
        f"trunk of {dim}, {rows} rows, w1": lambda: rms_norm_linear_swiglu(
            x, w1, None, norm, moments=moments, backend="cuda"
        ),
        f"trunk of {dim}, {rows} rows, wo": lambda: linear_gated_residual(
            x, wo, None, x, return_moments=True, backend="cuda"
        ),
        f"trunk of {dim}, {rows} rows, w2": lambda: linear_gated_residual(
            h, w2, None, x, return_moments=True, backend="cuda"
        ),
    }.items()  # fmt: skip


def _patch(config: HeadConfig, rows: int) -> Iterator[tuple[str, Any]]:
    """All evaluations of a head in one launch, for rows that there is a kernel for."""
    C, H, L, D = config.ch_latent, int(1.5 * config.ch_latent), config.depth_latent, _BITS
    heads = 0 if config.architecture == "mlp" else config.num_heads
    if rows > native.cuda.denoise_patch_max_rows(C, H, heads, 0):
        return

    def stack(features: int, channels: int) -> torch.Tensor:
        return _empty(L, features // 16, channels // 16, 32, 8)

    x = _empty(1, rows // 2, D, dtype=torch.float32)
    modulation = _empty(3, rows, ((6 if heads else 3) * config.depth_adanln + 2) * C)
    table, keys = _empty(3, 3, dtype=torch.float32), noise_keys(0, range(1))
    arguments = (
        x, modulation, table, _weight(C, D), _empty(C), _empty(L, C), _empty(L, C),
        stack(2 * H, C), _empty(L, 2 * H), stack(C, H), _empty(L, C), _weight(D, C), _empty(D),
    )  # fmt: skip
    attention = (
        _empty(L, C), _empty(L, C), stack(3 * C, C), _empty(L, 3 * C), stack(C, C), _empty(L, C)
    )  # fmt: skip
    with_heads = {"attention": attention, "num_heads": heads} if heads else {}
    kind = f"head of {C} with attention" if heads else f"head of {C}"
    yield (
        f"{kind}, {rows} rows, all evaluations",
        lambda: denoise_patch(
            *arguments, **with_heads, cfg=torch.ones(()), keys=keys, backend="cuda"
        ),
    )


def built() -> tuple[str, ...]:
    """Those of ARCHS that the CUDA module has machine code for."""
    found = native.cuda.architectures.split()
    return tuple(arch for arch in ARCHS if arch.removeprefix("sm_") in found)


def record() -> dict[str, Any]:
    """All figures of what is built."""
    found = {arch: kernels(arch) for arch in built()}
    names = {name: sass.short_name(name) for name in found[CODE]}
    sizes = {}
    for label, launched in launches().items():
        last = launched[-1]
        together = "at once" if last.cooperative else f"in clusters of {last.cluster}"
        sizes[label] = (
            f"{names[last.kernel]}: {last.blocks} blocks of {last.threads} threads {together}, "
            f"{last.shared} bytes, "
            f"{blocks_per_multiprocessor(found[CODE][last.kernel], last)} on a multiprocessor"
        )
    by_name = {
        arch: {names[name]: figures for name, figures in of_arch.items()}
        for arch, of_arch in found.items()
    }
    return {"nvcc": nvcc_version(), "kernels": by_name, "launches": sizes}


def main() -> int:
    """Build, and write the record."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=ROOT, check=True)
    RECORD.write_text(json.dumps(record(), indent=0, sort_keys=True) + "\n")
    wrong = [f"{a}, {name}: {found}" for a in ARCHS for name, found in faults(a).items() if found]
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
