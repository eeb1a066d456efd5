"""Lower bound on the time of a whole image: its products and its traffic at the card's limits.

A serial sum over dependent stages, each of which takes as long as its arithmetic, its weights or
the shortest way from one stage to the next, whichever is longest. In the head the weights of its
blocks stay in the L2 cache as far as they fit. Counted from the configuration, for the published
100 denoising steps with guidance (two rows an image); nothing is measured here but the limits that
are given.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import ModelConfig
from bitdance.models.diffusion_head import HeadNetwork
from bitdance.models.packed_batch import PackedBatch
from bitdance.models.text_to_image import TextToImageModel

_BYTES = 2  # bfloat16
_EVALUATIONS = 101
_L2_BYTES = 50e6


@dataclass(frozen=True)
class Limits:
    """Limits of a card: bytes and operations a second; seconds from a stage to the next."""

    copy: float
    matrix: float
    l2: float
    stage: float


@functools.lru_cache
def _counts(config: ModelConfig) -> tuple[Sequence[int], Sequence[int], int, float]:
    """Weights of each product of the trunk and of the head's blocks, and of all its modulations.

    At last the operations of the decoder.
    """

    def products(*modules: nn.Module) -> list[int]:
        weights: Iterable[nn.Parameter] = (p for module in modules for p in module.parameters())
        return [weight.numel() for weight in weights if weight.dim() == 2]

    with torch.device("meta"):
        model = BitDanceModel(config)
        codes = torch.empty(1, config.latent_dim, *[config.grid * config.patch_size] * 2)
        with FlopCounterMode(display=False) as counter:
            model.vae.decode(codes)
    net = model.head.net
    modulations = sum(products(net.ada_ln_blocks, net.final_layer.ada_ln_modulation))
    flops = float(counter.get_total_flops())
    return products(model.layers), products(net.res_blocks), modulations, flops


def training_flops(model: BitDanceModel, batch: int) -> float:
    """Operations of the products of a training step, and of the pairs that attention must see.

    A product does as much for each of its two gradients as forward; attention 3.5 times as much in
    all, since its backward pass computes the scores again.
    """
    config, net = model.config, model.head.net
    ranges = model.ranges()
    pairs = int((ranges.end - ranges.start).sum())
    rows = config.diff_batch_mul * config.tokens
    trunk = 6.0 * len(ranges.end) * _weights(model.layers)
    trunk += 14.0 * config.n_layer * config.dim * pairs
    return batch * (trunk + _head_flops(net, rows, config.parallel_num))


def text_to_image_flops(model: TextToImageModel, batch: PackedBatch, repeats: int) -> float:
    """The same of a step of a text-to-image model, whose head sees each patch `repeats` times."""
    config, trunk = model.config.llm, model.llm_model.model
    pairs = int((batch.ranges.end - batch.ranges.start).sum())
    flops = 6.0 * len(batch.token_ids) * _weights(trunk.layers)
    flops += 6.0 * len(batch.fed_rows) * _weights(model.embed_vision_mlp)
    # The logits of the words are computed again for the gradient.
    flops += 8.0 * len(batch.text_rows) * config.vocab_size * config.hidden_size
    width = config.num_attention_heads * config.head_dim
    flops += 14.0 * config.num_hidden_layers * width * pairs
    rows = repeats * len(batch.loss_tokens)
    return flops + _head_flops(model.vision_head.net, rows, model.config.parallel_num)


def _weights(*modules: nn.Module) -> int:
    parameters = (p for module in modules for p in module.parameters())
    return sum(p.numel() for p in parameters if p.dim() == 2)


def _head_flops(net: HeadNetwork, rows: int, patch: int) -> float:
    """Operations of a training step of the head, of `rows` tokens in patches."""
    products = rows * _weights(net)
    products -= (rows - rows // patch) * _weights(net.time_embed)  # one time for all of a patch
    attention = len(net.res_blocks) * net.config.ch_latent * rows * patch if patch > 1 else 0
    return 6.0 * products + 14.0 * attention


def seconds(config: ModelConfig, batch: int, limits: Limits) -> dict[str, float]:
    """Seconds a batch of the trunk, the head and the decoder, and their sum."""
    trunk, blocks, modulations, decoder_flops = _counts(config)
    P, steps = config.parallel_num, config.ar_steps
    lengths = [config.prefix + P * i for i in range(steps)]
    cache_bytes = 2 * 2 * _BYTES * config.dim * config.n_layer * sum(lengths)

    def chain(weights: Sequence[int], rows: int, bandwidth: float) -> float:
        """Seconds of dependent products."""
        arithmetic, traffic = 2 * rows / limits.matrix, _BYTES / bandwidth
        return sum(max(limits.stage, w * arithmetic, w * traffic) for w in weights)

    block_bytes = _BYTES * sum(blocks)
    held = min(block_bytes, _L2_BYTES)
    from_l2 = block_bytes / (held / limits.l2 + (block_bytes - held) / limits.copy)
    rows = 2 * P * batch
    # The modulations of all evaluations may be one product, which reads their weights once.
    modulation = chain([modulations], rows * _EVALUATIONS, limits.copy)
    first = chain(trunk, 2 * batch * config.prefix, limits.copy)
    parts = {
        "trunk": first + (steps - 1) * chain(trunk, rows, limits.copy)
        + batch * cache_bytes / limits.copy,
        "head": steps * (_EVALUATIONS * chain(blocks, rows, from_l2) + modulation),
        "decoder": batch * decoder_flops / limits.matrix,
    }  # fmt: skip
    return {**parts, "whole": sum(parts.values())}
