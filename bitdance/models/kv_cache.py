"""A cache of keys and values in static memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["KVCache"]


@dataclass(frozen=True)
class KVCache:
    """One static cache per layer, with the lengths of all rows on the device.

    Rows may have different lengths; a step reads and writes them there, so nothing of a step
    depends on the host.

    Attributes:
        layers: per layer (keys, values), each [B, Tmax, Hkv, D].
        lengths: int32 [B], tokens in the cache.
    """

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    lengths: torch.Tensor

    @classmethod
    def allocate(
        cls,
        layers: int,
        rows: int,
        tokens: int,
        num_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> KVCache:
        """An empty cache.

        Args:
            layers: number of layers, at least 1.
            rows: B.
            tokens: Tmax, maximum number of tokens of a row.
            num_heads: Hkv, key heads.
            head_dim: D.
            dtype: dtype of keys and values, that of the layers' projections.
            device: device of the cache.
        """
        shape = (rows, tokens, num_heads, head_dim)
        # Tensors made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            return cls(
                tuple(
                    (
                        torch.zeros(shape, dtype=dtype, device=device),
                        torch.zeros(shape, dtype=dtype, device=device),
                    )
                    for _ in range(layers)
                ),
                torch.zeros(rows, dtype=torch.int32, device=device),
            )

    def fits(self, rows: int, tokens: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether ``first(rows)`` serves a run of that size."""
        keys = self.layers[0][0]
        enough = keys.shape[0] >= rows and keys.shape[1] >= tokens
        return enough and (keys.dtype, keys.device) == (dtype, device)

    def first(self, rows: int) -> KVCache:
        """The first `rows` rows, in the same memory."""
        return self.part(slice(0, rows))

    def part(self, rows: slice) -> KVCache:
        """The rows of a slice, in the same memory."""
        layers = tuple((keys[rows], values[rows]) for keys, values in self.layers)
        return KVCache(layers, self.lengths[rows])

    def copy_(self, other: KVCache, tokens: int) -> None:
        """Take the lengths, and the first `tokens` tokens, of a cache of as many rows."""
        for mine, others in zip(self.layers, other.layers, strict=True):
            for tensor, source in zip(mine, others, strict=True):
                tensor[:, :tokens].copy_(source[:, :tokens])
        self.lengths.copy_(other.lengths)

    def reset(self) -> None:
        """Discard all tokens; the memory is kept."""
        self.lengths.zero_()

    def advance(self, tokens: int) -> None:
        """Count `tokens` more in every row, after all layers have written them."""
        self.lengths.add_(tokens)
