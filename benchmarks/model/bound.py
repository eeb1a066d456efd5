"""Lower bound on the time of a whole image: its products and its traffic at the card's limits.

A serial sum over phases of the larger of compute and traffic. In the head the weights of its blocks
stay in the L2 cache where they fit; at small batches a chain of dependent stages, each at least
`stage` long, is longer than either. Counted from the configuration, for the published 100 denoising
steps with guidance (two rows an image); nothing is measured here but the limits that are given.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import ModelConfig

_BYTES = 2  # bfloat16
_EVALUATIONS = 101
_L2_USABLE = 50e6
# Up to so many rows one grid can hold all of a head evaluation's rows, and its modulations of all
# evaluations are computed at once.
_MAX_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Limits:
    """Limits of a card: bytes and operations a second; seconds of a dependent stage."""

    copy: float
    matrix: float
    l2: float
    stage: float = 1e-6


@functools.lru_cache
def _counts(config: ModelConfig) -> tuple[int, int, int, float]:
    """Weights of the trunk, of the head's blocks and modulations, operations of the decoder."""

    def weights(modules: Iterable[torch.nn.Module]) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    with torch.device("meta"):
        model = BitDanceModel(config)
        codes = torch.empty(1, config.latent_dim, *[config.grid * config.patch_size] * 2)
        with FlopCounterMode(display=False) as counter:
            model.vae.decode(codes)
    net = model.head.net
    modulation = weights([net.ada_ln_blocks, net.final_layer.ada_ln_modulation])
    blocks = weights([net]) - modulation - weights([net.time_embed, net.cond_embed])
    return weights([model.layers]), blocks, modulation, float(counter.get_total_flops())


def training_flops(model: BitDanceModel, batch: int) -> float:
    """Operations of the products of a training step, and of the pairs that attention must see.

    A product does as much for each of its two gradients as forward; attention 3.5 times as much in
    all, since its backward pass computes the scores again.
    """
    config, net = model.config, model.head.net
    ranges, P = model.ranges(), config.parallel_num

    def weights(*modules: torch.nn.Module) -> int:
        parameters = (p for module in modules for p in module.parameters())
        return sum(p.numel() for p in parameters if p.dim() == 2)

    tokens, pairs = len(ranges.end), int((ranges.end - ranges.start).sum())
    rows = config.diff_batch_mul * config.tokens
    products = tokens * weights(model.layers) + rows * weights(net)
    products -= (rows - rows // P) * weights(net.time_embed)  # one time for all of a patch
    attention = config.n_layer * config.dim * pairs
    if P > 1:
        attention += len(net.res_blocks) * net.config.ch_latent * rows * P
    return batch * (6.0 * products + 14.0 * attention)


def seconds(config: ModelConfig, batch: int, limits: Limits) -> dict[str, float]:
    """Seconds a batch of the trunk, the head and the decoder, and their sum."""
    trunk_weights, block_weights, modulation_weights, decoder_flops = _counts(config)
    P = config.parallel_num
    rows = 2 * P * batch
    lengths = [config.prefix + P * i for i in range(config.ar_steps)]
    cache_bytes = 2 * 2 * _BYTES * config.dim * config.n_layer * sum(lengths)

    def product(weights: float, rows: float, bandwidth: float) -> float:
        return max(2 * rows * weights / limits.matrix, weights * _BYTES / bandwidth)

    in_l2 = block_weights * _BYTES < _L2_USABLE
    blocks = product(block_weights, rows, limits.l2 if in_l2 else limits.copy)
    modulation = product(modulation_weights, rows, limits.copy)
    evaluation = blocks + modulation
    if rows <= _MAX_ROWS_AT_ONCE:
        stages = (2 if P == 1 else 4) * config.diff_layers
        evaluation = max(blocks, stages * limits.stage)
    trunk = max(
        config.ar_steps * trunk_weights * _BYTES / limits.copy,
        2 * 2 * batch * lengths[-1] * trunk_weights / limits.matrix,
    )
    parts = {
        "trunk": trunk + batch * cache_bytes / limits.copy,
        "head": config.ar_steps * _EVALUATIONS * evaluation,
        "decoder": batch * decoder_flops / limits.matrix,
    }
    return {**parts, "whole": sum(parts.values())}
