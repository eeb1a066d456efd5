"""Properties of what is stored: data sets, sample folders, latents as tokens and indices."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st

from bitdance.data.packed_dataset import PackedDataset
from bitdance.data.packed_writer import PackedWriter
from bitdance.distributed import World
from bitdance.evaluation.sample_folder import SampleFolder, SampleSettings
from bitdance.models.autoencoder.quantizer import BinaryQuantizer, pack_latents, unpack_latents
from bitdance.models.token_order import generation_order, latents_to_tokens, tokens_to_latents
from bitdance_kernels import dequantize_rows, quantize_rows
from tests.reliability.properties._for_all import SEEDS, for_all, rng

__all__ = ["PROPERTIES"]

_PARTS = st.lists(st.integers(0, 5), min_size=0, max_size=4)


def _write(folder: Path, codes: np.ndarray, labels: np.ndarray, channels: int, shard: int,
           parts: list[int]) -> PackedDataset:  # fmt: skip
    cuts = [int(end) for end in np.cumsum(parts) if end < len(codes)]
    with PackedWriter(folder, tokens=codes.shape[1], channels=channels, shard_size=shard) as writer:
        for first, end in zip([0, *cuts], [*cuts, len(codes)], strict=True):
            given = codes[first:end].copy(), labels[first:end].copy()
            writer.write(*given)
            for array in given:  # its caller may use it again
                array.fill(0)
    return PackedDataset(folder)


@for_all(
    seed=SEEDS, images=st.integers(1, 9), tokens=st.integers(1, 4), channels=st.integers(1, 40),
    shards=st.tuples(st.integers(1, 9), st.integers(1, 9)), parts=_PARTS,
)  # fmt: skip
def data_sets_return_what_was_written(
    seed: int, images: int, tokens: int, channels: int, shards: tuple[int, int], parts: list[int]
) -> None:
    """However the writes and the shards divide it; in any order."""
    draw = np.random.default_rng(seed)
    latents = torch.from_numpy(draw.standard_normal((images, channels, tokens)))
    codes = pack_latents(latents).numpy()
    labels = draw.integers(0, 2**40, images)
    with tempfile.TemporaryDirectory() as folder:
        one = _write(Path(folder, "one"), codes, labels, channels, shards[0], parts)
        two = _write(Path(folder, "two"), codes, labels, channels, shards[1], [])
        same = shards[0] == shards[1]
        assert (one.identity == two.identity) == (same or max(images, 1) <= min(shards))
        order = draw.permutation(images)
        for data in (one, two):
            assert (len(data), data.tokens, data.channels) == (images, tokens, channels)
            found, numbers = data.take(order)
            assert np.array_equal(found.numpy(), codes[order])
            assert np.array_equal(numbers.numpy(), labels[order])


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """A context in which a damaged block is not reported: here there are hundreds."""
    log = logging.getLogger(SampleFolder.__module__)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


_BLOCK = st.tuples(st.sampled_from(("write", "damage", "remove", "reopen")), st.integers(0, 5))


@for_all(
    seed=SEEDS, images=st.integers(1, 11), block=st.integers(1, 4),
    events=st.lists(_BLOCK, max_size=8),
)  # fmt: skip
def folders_of_samples_know_what_they_lack(
    seed: int, images: int, block: int, events: list[tuple[str, int]]
) -> None:
    """After any blocks are written, damaged or removed, those that lack are exactly the others."""
    made = np.random.default_rng(seed).integers(0, 256, (images, 2, 3), np.uint8)
    wanted = SampleSettings(
        model="m", dtype="float32", quantization="none", content="npz", images=images, labels="l",
        seed=seed, num_inference_steps=1, guidance_scale=1.0, guidance_schedule="linear",
        block_size=block,
    )  # fmt: skip
    blocks = [range(i, min(i + block, images)) for i in range(0, images, block)]
    whole: set[int] = set()

    def file(path: Path, items: range) -> Path:
        return path / "blocks" / f"{items.start:08d}.safetensors"

    def open_folder(path: Path) -> SampleFolder:
        return SampleFolder(path, wanted, made.shape[1:], World())

    with tempfile.TemporaryDirectory() as root, _without_warnings():
        path = Path(root, "samples")
        for name, which in [*events, ("reopen", 0)]:
            which %= len(blocks)
            items = blocks[which]
            with open_folder(path) as folder:
                if name == "write":
                    folder.write(items, made[items.start : items.stop])
                    whole.add(which)
                elif name == "damage" and which in whole:
                    content = bytearray(file(path, items).read_bytes())
                    content[-1] ^= 1
                    file(path, items).write_bytes(content)
                    whole.discard(which)
                elif name == "remove":
                    file(path, items).unlink(missing_ok=True)
                    whole.discard(which)
                lacks = [b for i, b in enumerate(blocks) if i not in whole]
                assert folder.missing() == lacks
                for items in lacks if name == "reopen" else ():
                    folder.write(items, made[items.start : items.stop])
                if name == "reopen":
                    whole = set(range(len(blocks)))
                    assert np.array_equal(np.concatenate(list(folder.read())), made)


@for_all(
    seed=SEEDS, B=st.integers(1, 3), squares=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    side=st.integers(1, 3), cell=st.integers(1, 2), channels=st.integers(1, 20),
    mode=st.sampled_from(("patch", "standard")), codebooks=st.integers(1, 4),
    bits=st.integers(1, 9),
)  # fmt: skip
def latents_tokens_bits_and_indices_are_one(
    seed: int,
    B: int,
    squares: tuple[int, int],
    side: int,
    cell: int,
    channels: int,
    mode: str,
    codebooks: int,
    bits: int,
) -> None:
    """Every way there has its way back."""
    grid = (squares[0] * side, squares[1] * side)
    order = generation_order(grid, side * side, mode)
    assert torch.equal(order.sort().values, torch.arange(len(order), dtype=torch.int64))
    shape = (B, channels, grid[0] * cell, grid[1] * cell)
    latents = torch.randn(shape, generator=rng(seed), dtype=torch.float32, device="cpu")
    tokens = latents_to_tokens(latents, cell, order)
    assert torch.equal(tokens_to_latents(tokens, cell, order, grid), latents)
    signs = (latents > 0).float() * 2 - 1
    assert torch.equal(unpack_latents(pack_latents(latents), channels), signs)
    quantizer = BinaryQuantizer(codebooks * bits, codebooks)
    codes = torch.randint(
        2**bits, (codebooks, 5), generator=rng(seed), dtype=torch.int64, device="cpu"
    )
    vectors = quantizer.from_indices(codes)
    packed = pack_latents(vectors.T[None])
    assert torch.equal(quantizer.to_indices(packed), codes)


@for_all(
    seed=SEEDS, rows=st.integers(1, 5), channels=st.integers(1, 40), power=st.integers(-100, 100),
    kind=st.sampled_from((torch.float8_e4m3fn, torch.int8)),
)  # fmt: skip
def rounded_weights_are_rounded_once(
    seed: int, rows: int, channels: int, power: int, kind: torch.dtype
) -> None:
    """Rounding again changes nothing, and a power of two goes into the scale."""
    x = torch.randn(rows, channels, generator=rng(seed), dtype=torch.float32, device="cpu")
    values, scales = quantize_rows(x, kind)
    rounded = dequantize_rows(values, scales, torch.float64)
    largest = x.double().abs().amax(1, keepdim=True)
    assert bool(
        ((rounded - x).abs() <= largest / (16 if kind == torch.float8_e4m3fn else 200)).all()
    )
    scaled, new = quantize_rows(x * 2.0**power, kind)
    assert torch.equal(scaled, values)
    assert torch.equal(new.double(), scales.double() * 2.0**power)
    if kind == torch.float8_e4m3fn:
        again, _ = quantize_rows(rounded.float(), kind)
        assert torch.equal(dequantize_rows(again, _, torch.float64), rounded)


PROPERTIES = (
    data_sets_return_what_was_written,
    folders_of_samples_know_what_they_lack,
    latents_tokens_bits_and_indices_are_one,
    rounded_weights_are_rounded_once,
)
