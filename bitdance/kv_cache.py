"""Keys and values of the tokens so far, in static memory."""

from __future__ import annotations

import torch

__all__ = ["KVCache"]


class KVCache:
    """One static cache per layer, with the lengths of all rows on the device.

    Rows may have different lengths; a step reads and writes them there, so nothing of a step
    depends on the host.

    Args:
        layers: number of layers.
        rows: B.
        tokens: Tmax, the most tokens a row may get.
        num_heads: key heads.
        head_dim: D.
        dtype: of keys and values.
        device: where to keep them.

    Attributes:
        layers: per layer (keys, values), each [B, Tmax, Hkv, D].
        lengths: int32 [B], tokens in the cache.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        tokens: int,
        num_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (rows, tokens, num_heads, head_dim)
        self.layers = [
            (
                torch.zeros(shape, dtype=dtype, device=device),
                torch.zeros(shape, dtype=dtype, device=device),
            )
            for _ in range(layers)
        ]
        self.lengths = torch.zeros(rows, dtype=torch.int32, device=device)

    def fits(self, rows: int, tokens: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether this cache serves a run of that size as it is."""
        keys = self.layers[0][0]
        return keys.shape[:2] == (rows, tokens) and (keys.dtype, keys.device) == (dtype, device)

    def reset(self) -> None:
        """Forget all tokens; the memory stays."""
        self.lengths.zero_()

    def advance(self, tokens: int) -> None:
        """Count `tokens` more in every row, after all layers have written them."""
        self.lengths += tokens
