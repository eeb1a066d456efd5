"""A small model of your own with the block-causal attention of this library.

``python examples/block_causal_attention.py`` trains a transformer to continue a sequence of patches
of bits: the next patch is the last one with its bits shifted by one place, so the model must look
at whole patches. Then it decodes patch by patch with a cache, and compares that with one pass over
the whole sequence.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from bitdance_kernels import (
    Ranges,
    block_causal_attention,
    block_causal_ranges,
    block_decode_attention,
    rope,
    rope_append,
    swiglu,
)

PATCH, BITS, DIM, HEADS, DEPTH = 4, 8, 64, 4, 2  # tokens per patch, bits per token


class Block(nn.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(DIM), nn.RMSNorm(DIM)
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.up, self.down = nn.Linear(DIM, 8 * DIM), nn.Linear(4 * DIM, DIM)

    def forward(self, x: torch.Tensor, freqs: torch.Tensor, ranges: Ranges) -> torch.Tensor:
        """All patches at once; `ranges` says which keys each token sees, instead of a mask."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).unbind(2)
        mixed = block_causal_attention(rope(q, freqs), rope(k, freqs), v, ranges)
        x = x + self.out(mixed.flatten(2))
        return x + self.down(swiglu(self.up(self.norm2(x))))

    def decode(
        self,
        x: torch.Tensor,
        freqs: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        lengths: torch.Tensor,
    ) -> torch.Tensor:
        """The next patch, which sees the cache and itself: no mask is needed."""
        q = rope_append(self.qkv(self.norm1(x)), *cache, lengths, freqs, num_heads=HEADS)
        mixed = block_decode_attention(q, *cache, lengths + PATCH)
        x = x + self.out(mixed.flatten(2))
        return x + self.down(swiglu(self.up(self.norm2(x))))


class NextPatch(nn.Module):
    """Bits of each patch [B, T, BITS] to logits of the bits of the patch after it."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(BITS, DIM), nn.Linear(DIM, BITS)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        pairs = DIM // HEADS // 2
        angles = torch.arange(patches * PATCH)[:, None] * 100 ** (-torch.arange(pairs) / pairs)
        self.register_buffer("freqs", torch.stack([angles.cos(), angles.sin()], -1))
        self.ranges = block_causal_ranges(0, patches, PATCH)

    def forward(self, bits: torch.Tensor) -> torch.Tensor:
        """[B, T, BITS] of +1 and -1 to logits of the same shape."""
        x = self.embed(bits)
        for block in self.blocks:
            x = block(x, self.freqs, self.ranges)
        return self.head(x)

    @torch.no_grad()
    def generate(self, patch: torch.Tensor, patches: int) -> torch.Tensor:
        """Continue a first patch [B, PATCH, BITS] to `patches` patches after it."""
        rows, room = len(patch), patches * PATCH
        shape = (rows, room, HEADS, DIM // HEADS)
        caches = [(torch.zeros(shape), torch.zeros(shape)) for _ in self.blocks]
        lengths = torch.zeros(rows, dtype=torch.int32)
        steps = []
        for _ in range(patches):
            x = self.embed(patch)
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block.decode(x, self.freqs, cache, lengths)
            lengths += PATCH
            patch = torch.where(self.head(x) > 0, 1.0, -1.0)
            steps.append(patch)
        return torch.cat(steps, 1)


def sequences(rows: int, patches: int, generator: torch.Generator) -> torch.Tensor:
    """[B, patches, PATCH * BITS] of +1 and -1: each patch is the previous one, shifted by a bit."""
    first = torch.randint(2, (rows, PATCH * BITS), generator=generator).float() * 2 - 1
    return torch.stack([first.roll(i, 1) for i in range(patches)], 1)


def main() -> None:
    """Train, then decode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--patches", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small for more
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = NextPatch(options.patches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(options.steps):
        data = sequences(64, options.patches + 1, generator).unflatten(-1, (PATCH, BITS))
        inputs, targets = data[:, :-1].flatten(1, 2), data[:, 1:].flatten(1, 2)
        loss = F.binary_cross_entropy_with_logits(model(inputs), (targets + 1) / 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, options.steps // 5) == 0 or step == options.steps - 1:
            print(f"step {step:4}  loss {loss.item():.4f}")

    data = sequences(16, options.patches + 1, generator).unflatten(-1, (PATCH, BITS))
    generated = model.generate(data[:, 0], options.patches)
    right = (generated == data[:, 1:].flatten(1, 2)).float().mean()
    # One pass over the generated sequence must give the same patches as decoding with a cache.
    sequence = torch.cat([data[:, 0], generated[:, :-PATCH]], 1)
    with torch.no_grad():
        whole = torch.where(model(sequence) > 0, 1.0, -1.0)
    same = (whole == generated).float().mean()
    print(f"{right:.1%} of the decoded bits are right")
    print(f"{same:.1%} of them are what one pass over the whole sequence gives")


if __name__ == "__main__":
    main()
