"""Train a small autoencoder of your own on ``lfq_quantize_commitment`` and ``lfq_entropy``.

The model is plain PyTorch: any network with C output channels works. The images are discs and bars
of random position, size and grey. The loss is the reconstruction error, an entropy term that makes
bits decided and codes evenly used, and a commitment of the features to their codes. ``python
examples/train_autoencoder.py`` takes a minute on a laptop.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from bitdance_kernels import bit_counts, lfq_entropy, lfq_quantize_commitment

SIZE, BITS, GROUP = 16, 16, 8  # pixels a side, bits per code, bits per group


def images(count: int, generator: torch.Generator) -> torch.Tensor:
    """Discs and bars, [count, 1, SIZE, SIZE] in [-1, 1]."""

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    dx, dy = x - uniform(3, SIZE - 4), y - uniform(3, SIZE - 4)
    disc = dx.square() + dy.square() < uniform(2, 5).square()
    bar = (dx.abs() < uniform(1, 3)) & (dy.abs() < uniform(3, 7))
    shape = torch.where(uniform(0, 1) < 0.5, disc, bar)
    return torch.where(shape, uniform(0, 1), uniform(-1, 0))[:, None]


class Autoencoder(nn.Module):
    """A grid of 4 x 4 codes for an image of 16 x 16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(64, 64, 3, 1, 1), nn.SiLU(), nn.Conv2d(64, BITS, 1),
        )  # fmt: skip
        self.decode = nn.Sequential(
            nn.Conv2d(BITS, 64, 3, 1, 1), nn.SiLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.SiLU(),
            nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 1, 3, 1, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstruction, packed bits [..., BITS / 8], and the terms of the codes."""
        features = self.encode(x).movedim(1, -1)  # the ops have channels last
        codes, packed, commitment = lfq_quantize_commitment(features)
        per_sample, codebook = lfq_entropy(features, GROUP, temperature=1.0, per_group=True)
        terms = 0.1 * commitment + 0.02 * (per_sample - codebook.mean())
        return self.decode(codes.movedim(-1, 1)), packed, terms


def main() -> None:
    """Train, and print the reconstruction error and how many bits are used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = Autoencoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(options.steps):
        x = images(options.batch_size, generator)
        y, _, terms = model(x)
        error = F.mse_loss(y, x)
        optimizer.zero_grad()
        (error + terms).backward()
        optimizer.step()
        if step % max(1, options.steps // 10) == 0 or step == options.steps - 1:
            print(f"step {step:5}: mean squared error {error.item():.4f}", flush=True)

    with torch.no_grad():
        x = images(1000, generator)
        y, packed, _ = model(x)
    decibels = 10 * torch.log10(4 / F.mse_loss(y, x))
    ones = bit_counts(packed.flatten(0, -2)) / packed[..., 0].numel()
    used = ((ones > 0.02) & (ones < 0.98)).sum()
    print(f"new images: {decibels:.1f} dB from {packed[0].numel() * 8} bits each")
    print(f"{used} of {BITS} bits vary")


if __name__ == "__main__":
    main()
