"""Properties of ops on rows: batches, permutations, exact products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from bitdance_kernels import (
    adaln_norm,
    conv3x3,
    denoise_schedule,
    denoise_step,
    finalize_bits,
    gated_residual,
    group_norm_silu,
    lfq_quantize,
    linear,
    linear_swiglu,
    noise_keys,
    pack_signs,
    pack_weight,
    packed_linear,
    patch_attention,
    rms_norm,
    swiglu,
)
from bitdance_kernels.testing import compare, cpu_threads
from tests.reliability.properties._for_all import PLACES, SEEDS, Place, for_all, rng

__all__ = ["PROPERTIES"]

_PLACE = st.sampled_from(PLACES)
_DTYPE = st.sampled_from((torch.float32, torch.float16, torch.bfloat16))
_TABLE = denoise_schedule(3)[0]
Result = torch.Tensor | tuple[torch.Tensor, ...]


def _normals(draw: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float32, device="cpu")


def _integers(draw: torch.Generator, *shape: int) -> torch.Tensor:
    """Integers from -8 to 8, as float32."""
    return torch.randint(-8, 9, shape, generator=draw, dtype=torch.float32, device="cpu")


def _step(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, n: torch.Tensor, **o: Any) -> Result:
    keys = torch.cat([noise_keys(3, [int(i)]) for i in n] or [noise_keys(3, [])])
    return denoise_step(x.float(), a.to(x.dtype), _TABLE, 1, keys=keys, **o)


# Functions of x, a, b [R, T, C] of one dtype and of the numbers of the rows.
ROW_OPS: dict[str, Callable[..., Result]] = {
    "adaln_norm": lambda x, a, b, n, **o: adaln_norm(x, a, b, **o),
    "denoise_step": _step,
    "finalize_bits": lambda x, a, b, n, **o: finalize_bits(x, **o),
    "gated_residual": lambda x, a, b, n, **o: gated_residual(x, a, b, **o),
    "group_norm_silu": lambda x, a, b, n, **o: group_norm_silu(x.mT.unsqueeze(-1), 2, **o),
    "lfq_quantize": lambda x, a, b, n, **o: lfq_quantize(x, **o),
    "patch_attention": lambda x, a, b, n, **o: patch_attention(torch.cat((x, a, b), -1), 2, **o),
    "rms_norm": lambda x, a, b, n, **o: rms_norm(x, a[0, 0] if a.numel() else None, **o),
    "swiglu": lambda x, a, b, n, **o: swiglu(x, **o),
}
# Their reference is of PyTorch's kernels, whose order of summation depends on the batch; the
# weights of rms_norm belong to the batch.
_ONLY_KERNELS = {"group_norm_silu", "patch_attention"}


@for_all(
    seed=SEEDS, op=st.sampled_from(sorted(ROW_OPS)), dtype=_DTYPE, place=_PLACE,
    shape=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 12)),
    threads=st.integers(1, 3),
)  # fmt: skip
def rows_of_a_batch_are_the_rows_alone(
    seed: int, op: str, dtype: torch.dtype, place: Place, shape: tuple[int, int, int], threads: int
) -> None:
    """In any order, with any number of threads, bit for bit."""
    draw = rng(seed)
    R, T, channels = shape[0], shape[1], 8 * shape[2]
    x, a, b = (_normals(draw, R, T, channels).to(dtype) for _ in range(3))
    numbers = torch.arange(R, dtype=torch.int64, device="cpu")
    order = torch.randperm(R, generator=draw, dtype=torch.int64, device="cpu")

    def run(which: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shared = a if op == "rms_norm" else a[which]
        found = ROW_OPS[op](x[which], shared, b[which], numbers[which], backend=place.backend)
        return found if isinstance(found, tuple) else (found,)

    if place.backend == "reference" and op in _ONLY_KERNELS:
        return
    with place.limit(), torch.no_grad():
        together = run(numbers)
        with cpu_threads(threads):
            mixed = run(order)
        alone = [run(numbers[i : i + 1]) for i in range(R)]
    for n, whole in enumerate(together):
        assert torch.equal(mixed[n], whole[order])
        assert torch.equal(torch.cat([parts[n] for parts in alone]), whole)


@for_all(
    seed=SEEDS, R=st.integers(32, 64), P=st.integers(1, 20), heads=st.integers(1, 3),
    D=st.sampled_from((4, 8, 20)), dtype=_DTYPE, place=_PLACE,
)  # fmt: skip
def tokens_of_a_patch_are_a_set(
    seed: int, R: int, P: int, heads: int, D: int, dtype: torch.dtype, place: Place
) -> None:
    """Attention among them has no order: permuted tokens give permuted results."""
    draw = rng(seed)
    qkv = _normals(draw, R, P, 3 * heads * D).to(dtype)
    order = torch.randperm(P, generator=draw, dtype=torch.int64, device="cpu")
    with place.limit():
        out = patch_attention(qkv[:, order], heads, backend=place.backend)
    plain = patch_attention(qkv, heads, backend="reference")[:, order]
    truth = patch_attention(qkv.double(), heads)[:, order]
    compare("staged", out, plain, truth, f"P = {P}, {dtype}")


@for_all(
    seed=SEEDS, rows=st.integers(0, 9), channels=st.integers(1, 20), features=st.integers(1, 3),
    place=_PLACE, threads=st.integers(1, 3),
)  # fmt: skip
def products_of_small_integers_are_exact(
    seed: int, rows: int, channels: int, features: int, place: Place, threads: int
) -> None:
    """Every form of a weight gives the sums of int64, so none drops or repeats a term."""
    draw = rng(seed)
    C, out = 16 * channels, 16 * features
    x, w, bias = _integers(draw, rows, C), _integers(draw, out, C), _integers(draw, out)
    truth = (x.long() @ w.long().T + bias.long()).float()
    signs = x.sign() + (x == 0)
    with place.limit(), cpu_threads(threads):
        forms = [w] + ([pack_weight(w, "panels")] if place.backend == "cpu" else [])
        for form in forms:
            assert torch.equal(linear(x, form, bias, backend=place.backend), truth)
    packed = pack_signs(signs)
    exact = (signs.long() @ w.long().T).float()
    assert torch.equal(packed_linear(packed, w), exact)
    # The gate's product scaled away: silu(0) = 0 wherever the gate has no weight.
    gated = torch.cat((torch.zeros_like(w), w))
    with place.limit():
        form = pack_weight(gated, "panels") if place.backend == "cpu" else gated
        assert not linear_swiglu(x, form, backend=place.backend).any()


@for_all(
    seed=SEEDS, images=st.integers(1, 2), size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    channels=st.integers(1, 9), place=_PLACE, upscale=st.sampled_from((1, 2)),
)  # fmt: skip
def convolutions_of_small_integers_are_exact(
    seed: int, images: int, size: tuple[int, int], channels: int, place: Place, upscale: int
) -> None:
    draw = rng(seed)
    features = 16 * upscale**2
    x, w = _integers(draw, images, channels, *size), _integers(draw, features, channels, 3, 3)
    form = pack_weight(w.permute(0, 2, 3, 1).flatten(1), "panels")
    bias = _integers(draw, features)
    truth = F.conv2d(x.double(), w.double(), bias.double(), padding=1)
    if upscale > 1:
        truth = truth.unflatten(1, (upscale, upscale, -1)).permute(0, 3, 4, 1, 5, 2)
        truth = truth.flatten(4, 5).flatten(2, 3)
    with place.limit():
        found = conv3x3(
            x, form if place.backend == "cpu" else w, bias, upscale_factor=upscale,
            backend=place.backend,
        )  # fmt: skip
    assert torch.equal(found.double(), truth)


PROPERTIES = (
    rows_of_a_batch_are_the_rows_alone,
    tokens_of_a_patch_are_a_set,
    products_of_small_integers_are_exact,
    convolutions_of_small_integers_are_exact,
)
