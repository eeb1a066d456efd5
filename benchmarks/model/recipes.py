"""Training steps of the emoji recipe, and their memory, against the same in plain PyTorch.

Loss and gradients of the recipe's autoencoder and of its text-to-image model, with random weights,
on random images and captions of the recipe's sizes. In plain PyTorch attention takes a dense mask
of the pack, norms and activations are operations of their own, and the entropy of a group of bits
is that of a softmax over all of its codes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import products
from benchmarks.model import Comparison, bound, published
from benchmarks.model.training import with_parts
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.autoencoder.blocks import CodeStatistics, ResBlock, depth_to_space
from bitdance.models.autoencoder.quantizer import QuantizerLosses, QuantizerOutput, pack_latents
from bitdance.models.packed_batch import PackedBatch, PackedDraws
from bitdance.models.qwen3 import Qwen3Model
from bitdance.models.text_to_image import TextToImageModel
from bitdance.training.autoencoder import AutoencoderTask
from bitdance.training.config import AutoencoderRun, read_config
from bitdance.training.documents import Document, ImageSegment, TextSegment, pack_documents
from bitdance.training.draws import Draws
from bitdance.training.text_to_image_config import TextToImageRun
from bitdance_kernels import Ranges, dense_mask

RECIPE = Path(__file__).parents[2] / "recipes" / "emoji"
_EPS = 1e-5  # within the logarithm of the published entropy


def comparisons() -> Iterator[Comparison]:
    """Of the recipe's configurations."""
    first, second = (read_config(RECIPE / f"{name}.toml") for name in ("autoencoder", "model"))
    assert isinstance(first, AutoencoderRun)
    assert isinstance(second, TextToImageRun)
    yield of_autoencoder(first, first.optim.batch_size)
    yield of_model(second, first, second.data.max_tokens)


class _Random:
    """Images of noise."""

    def __init__(self, size: int) -> None:
        self.size, self.source = size, (size, size)
        self.classes: tuple[str, ...] = ("",)
        self.labels = np.zeros(1, np.int64)

    def __len__(self) -> int:
        return 1

    def identity(self) -> str:
        return "noise"

    def take(self, indices: np.ndarray, crops: object = None) -> Tensor:
        return torch.randint(256, (len(indices), 3, self.size, self.size), dtype=torch.uint8)


def of_autoencoder(run: AutoencoderRun, batch: int) -> Comparison:
    """The ways to do a step of an autoencoder."""
    torch.manual_seed(0)
    images = _Random(run.data.size)
    task = AutoencoderTask(run, images=images)
    pixels, draws = images.take(np.arange(batch)), Draws(0, 0, range(batch))
    module, weights = task.module, list(task.module.parameters())
    networks: dict[str, nn.Module] = {"bitdance": module, "PyTorch": PlainAutoencoder(module)}

    def step(way: str) -> float:
        task.network = networks[way].train()
        for weight in weights:
            weight.grad = None
        loss, _ = task.loss(pixels, draws)
        loss.backward()
        return loss.item()

    def compiled() -> float:
        if "torch.compile" not in networks:
            networks["torch.compile"] = cast(
                nn.Module, torch.compile(PlainAutoencoder(module), dynamic=False)
            )
        return step("torch.compile")

    ways: dict[str, Callable[[], object]] = {
        way: functools.partial(step, way) for way in networks
    } | {"torch.compile": compiled}
    # A product does as much for each of its two gradients.
    flops = 3.0 * products.flops(lambda: module(torch.zeros(batch, 3, *images.source)))
    shape = f"autoencoder of the emoji recipe, {batch} images"
    return Comparison("training step", shape, ways, flops, memory=True)


class PlainAutoencoder(nn.Module):
    """Reconstruction and losses as published, on the weights of an autoencoder.

    Args:
        module: a convolutional one whose decoder takes no noise.
    """

    def __init__(self, module: BinaryAutoencoder) -> None:
        super().__init__()
        if module.config.architecture != "conv" or module.config.gan_decoder:
            raise ValueError("PlainAutoencoder: decoder must be convolutional and without noise")
        self.module = module

    def forward(self, images: Tensor, noise: None = None) -> tuple[Tensor, QuantizerOutput]:
        """The reconstruction [B, 3, H, W], and latents with their losses."""
        quantized = self._quantize(self._features(images))
        return self._decode(quantized.latents), quantized

    def _features(self, images: Tensor) -> Tensor:
        encoder: Any = self.module.encoder
        h = encoder.conv_in(images)
        for down in encoder.down:
            h = _blocks(down.block, h)
            h = h if down.downsample is None else down.downsample(h)
        return encoder.conv_out(F.silu(encoder.norm_out(_blocks(encoder.mid_block, h))))

    def _quantize(self, features: Tensor) -> QuantizerOutput:
        quantizer = self.module.quantizer
        x, bits = features.movedim(1, -1), quantizer.code_bits
        signs = torch.where(x > 0, 1.0, -1.0)
        corners = torch.arange(2**bits)[:, None] >> torch.arange(bits) & 1
        groups = x.unflatten(-1, (-1, bits)).flatten(0, -3)  # [positions, groups, bits]
        logits = groups @ (2.0 * corners - 1).T * (2 / quantizer.temperature)
        of_sample, mean = logits.softmax(-1), logits.softmax(-1).mean(0)
        mean = mean if quantizer.per_group else mean.mean(0)
        per_sample = -(of_sample * logits.log_softmax(-1)).sum(-1).mean()
        codebook = -(mean * (mean + _EPS).log()).sum(-1).mean()
        losses = QuantizerLosses(
            per_sample, codebook,
            quantizer.sample_weight * per_sample - quantizer.codebook_weight * codebook,
            F.mse_loss(x, signs),
        )  # fmt: skip
        latents = (x + (signs - x).detach()).movedim(-1, 1)
        return QuantizerOutput(latents, pack_latents(latents), losses)

    def _decode(self, latents: Tensor) -> Tensor:
        decoder: Any = self.module.decoder
        statistics = CodeStatistics.of(latents)
        h = _blocks(decoder.mid_block, decoder.conv_in(latents))
        for level in reversed(range(len(decoder.up))):
            if level + 1 < len(decoder.up):
                h = depth_to_space(decoder.up[level + 1].upsample.conv1(h), 2)
            adaptive = decoder.adaptive[level]
            h = F.group_norm(h, decoder.norm_out.num_groups, eps=decoder.norm_out.eps)
            scale, shift = adaptive.gamma(statistics.std), adaptive.beta(statistics.mean)
            h = torch.addcmul(shift[..., None, None], scale[..., None, None], h)
            h = _blocks(decoder.up[level].block, h)
        return decoder.conv_out(F.silu(decoder.norm_out(h)))


def _blocks(blocks: Any, x: Tensor) -> Tensor:
    for block in blocks:
        x = _residual(block, x)
    return x


def _residual(block: ResBlock, x: Tensor) -> Tensor:
    h = block.conv1(F.silu(block.norm1(x)))
    h = block.conv2(F.silu(block.norm2(h)))
    return h + (x if block.nin_shortcut is None else block.nin_shortcut(x))


def of_model(run: TextToImageRun, autoencoder: AutoencoderRun, tokens: int) -> Comparison:
    """The ways to do a step of a text-to-image model on a pack of so many tokens."""
    assert run.llm is not None
    torch.manual_seed(0)
    shape = autoencoder.autoencoder
    config = run.model_config(run.llm, shape)
    model = TextToImageModel(config, dtype=torch.float32, device="cpu").train()
    model.ae.requires_grad_(False)
    side = autoencoder.data.size // shape.downsampling
    P, repeats = config.parallel_num, run.text_to_image.diff_batch_mul
    batch = random_pack(config.llm.vocab_size, (side, side), shape.z_channels, P, tokens)
    draws = _draws(batch, shape.z_channels, P, repeats)
    weights = torch.tensor([run.text_to_image.text_weight, run.text_to_image.vision_weight])
    modules = model.llm_model.model, model.vision_head.net
    mask = dense_mask(batch.ranges)
    plain = (
        functools.partial(language_model, modules[0], mask),
        functools.partial(published.head, modules[1]),
    )
    compiled: list[Any] = []

    def loss() -> float:
        model.zero_grad(set_to_none=True)
        means = model([batch], [draws], perturb_rate=run.text_to_image.perturb_rate,
                      repeats=repeats)  # fmt: skip
        found = (means[0] * weights).sum()
        found.backward()
        return found.item()

    def with_plain(parts: Any) -> float:
        with with_parts(modules, parts):
            return loss()

    def with_compiled() -> float:
        if not compiled:
            compiled.extend(torch.compile(part, dynamic=False) for part in plain)
        return with_plain(compiled)

    ways: dict[str, Callable[[], object]] = {
        "bitdance": loss, "PyTorch": lambda: with_plain(plain), "torch.compile": with_compiled
    }  # fmt: skip
    flops = bound.text_to_image_flops(model, batch, repeats)
    name = f"text to image of the emoji recipe, {len(batch.grids)} images"
    return Comparison("training step", name, ways, flops, memory=True)


def random_pack(
    vocabulary: int, grid: tuple[int, int], bits: int, parallel_num: int, tokens: int
) -> PackedBatch:
    """Documents of a caption and an image, as many as a pack of `tokens` has room for."""
    rng = np.random.default_rng(0)
    documents: list[Document] = []
    left, count = tokens, grid[0] * grid[1]
    while True:
        words = int(rng.integers(12, 25))  # of a caption and what stands around it
        ids = rng.integers(0, vocabulary, words + parallel_num + 4).tolist()
        codes = rng.integers(0, 256, (count, -(-bits // 8)), np.uint8)
        left -= len(ids) + count
        if left < 0:
            return pack_documents(documents, parallel_num)
        split = words + parallel_num + 2
        documents.append((
            TextSegment(tuple(ids[:words]), (2, words - 4)),
            ImageSegment(tuple(ids[words:split]), grid, codes),
            TextSegment(tuple(ids[split:]), (0, 2)),
        ))  # fmt: skip


def _draws(batch: PackedBatch, bits: int, parallel_num: int, repeats: int) -> PackedDraws:
    count = len(batch.loss_tokens)
    patches = repeats * count // parallel_num
    return PackedDraws(
        flips=(torch.rand(count, bits), torch.rand(count, bits)),
        time=torch.randn(patches),
        noise=torch.randn(patches, parallel_num, bits),
    )


def language_model(
    model: Qwen3Model, mask: Tensor, x: Tensor, freqs: Tensor, ranges: Ranges
) -> Tensor:
    """Normalized outputs [B, T, C], by PyTorch's operations and a dense mask [T, T]."""
    cos, sin = freqs[:, None].unbind(-1)

    def turn(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).transpose(1, 2)

    blocks: Any = model.layers
    for block in blocks:
        attention, mlp, h = block.self_attn, block.mlp, block.input_layernorm(x)
        q, k, v = (
            project(h).unflatten(-1, (-1, model.config.head_dim))
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        out = F.scaled_dot_product_attention(
            turn(attention.q_norm(q)), turn(attention.k_norm(k)), v.transpose(1, 2),
            attn_mask=mask, enable_gqa=True,
        )  # fmt: skip
        x = x + attention.o_proj(out.transpose(1, 2).flatten(2))
        h = block.post_attention_layernorm(x)
        x = x + mlp.down_proj(F.silu(mlp.gate_proj(h)) * mlp.up_proj(h))
    return model.norm(x)
