"""A tour of the ops on one image, without a model: ``python examples/tour.py --out demo.png``.

An image is cut into 8 x 8 patches; the signs of a random projection of each patch are its 64-bit
code, in place of a binary autoencoder. The panels show the image; the codes of some patches, one
per row; the same with a tenth of the bits flipped; the distance of each code to that of the patch
marked in red; and the codes while a diffusion head that knows the answer denoises them, as
distributions at some steps and as an image of one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from bitdance_kernels import (
    denoise_schedule,
    denoise_step,
    finalize_bits,
    flip_bits,
    hamming_distance,
    noise,
    noise_keys,
    pack_signs,
    unpack_signs,
)

SIZE, PATCH, BITS = 128, 8, 64


def drawing() -> torch.Tensor:
    """A [SIZE, SIZE] picture in [-1, 1]: rings and a bar."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    rings = torch.cos(14 * (x**2 + y**2).sqrt())
    return torch.where((x - 0.3 * y).abs() < 0.12, torch.ones_like(x), rings)


def encode(picture: torch.Tensor) -> torch.Tensor:
    """Packed codes uint8 [patches, BITS / 8] of the picture's patches."""
    patches = picture.unfold(0, PATCH, PATCH).unfold(1, PATCH, PATCH).flatten(2).flatten(0, 1)
    projection = torch.randn(PATCH * PATCH, BITS, generator=torch.Generator().manual_seed(1))
    return pack_signs(patches @ projection)


def denoise(codes: torch.Tensor, steps: int, seed: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The states on the way from noise to `codes` under a head that predicts `codes`."""
    table, _ = denoise_schedule(steps)
    keys = noise_keys(seed, range(len(codes)))
    x = noise(keys, 0, BITS)
    states = [x]
    for step in range(steps):
        x = denoise_step(x, codes, table, step, keys=keys)
        states.append(x)
    _, packed = finalize_bits(codes)
    return states, packed


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo.png"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    picture = drawing()
    packed = encode(picture)
    codes = unpack_signs(packed)
    flipped = flip_bits(packed, 0.2, seed=options.seed)
    changed = (unpack_signs(flipped) != codes).float().mean().item()
    side = SIZE // PATCH
    marked = side * (side // 2) + side // 2
    distances = hamming_distance(packed[marked : marked + 1], packed)[0].reshape(side, side)
    states, final = denoise(codes, steps=50, seed=options.seed)
    assert torch.equal(final, packed)

    figure, axes = plt.subplots(2, 3, figsize=(12, 8), layout="constrained")
    axes[0, 0].imshow(picture, cmap="gray")
    axes[0, 0].set_title(f"drawing, {SIZE} x {SIZE}")
    axes[0, 1].imshow(codes[:64], cmap="gray", interpolation="nearest")
    axes[0, 1].set_title(
        f"codes of 64 of its {len(codes)} patches:\n{BITS} bits, {BITS // 8} bytes each"
    )
    axes[0, 2].imshow(unpack_signs(flipped)[:64] * codes[:64], cmap="gray", interpolation="nearest")
    axes[0, 2].set_title(f"black: the {changed:.1%} of bits that flip_bits turned")
    shown = axes[1, 0].imshow(distances, cmap="viridis")
    axes[1, 0].plot(side // 2, side // 2, "rs", markersize=9, markerfacecolor="none")
    axes[1, 0].set_title("Hamming distance of each patch's code\nto the marked one's")
    figure.colorbar(shown, ax=axes[1, 0], shrink=0.8)
    for step in (0, 10, 20, 35, 50):
        axes[1, 1].hist(
            states[step].flatten().numpy(), 80, range=(-3, 3), histtype="step", label=f"step {step}"
        )
    axes[1, 1].set_title("values on the way from noise to bits")
    axes[1, 1].legend()
    axes[1, 2].imshow(states[35][:64], cmap="gray", vmin=-1.5, vmax=1.5, interpolation="nearest")
    axes[1, 2].set_title("the codes at denoise step 35 of 50")
    for axis in axes.flat[[0, 1, 2, 3, 5]]:
        axis.set_axis_off()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=90)
    print(f"{changed:.1%} of the bits flipped; all {len(codes)} codes denoised; see {options.out}")


if __name__ == "__main__":
    main()
