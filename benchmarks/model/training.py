"""A training step of the model that comes with the library, against plain PyTorch.

Loss and gradients three ways that take turns: as the library does it ("fast"), the same with
reference ops ("plain"), and as published, with a dense mask for the transformer and the head op by
op ("published"; the mask goes to ``scaled_dot_product_attention``, the fastest way there is to use
one on a CPU).

On a card there is a fourth way: "published, flex", with FlexAttention in place of the mask.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.model import Comparison, published
from benchmarks.model.bound import training_flops
from benchmarks.shapes import attention
from bitdance import BitDancePipeline
from bitdance.models.class_conditional import BitDanceModel, TrainingDraws
from bitdance.models.layers import RMSNorm
from bitdance_kernels import dense_mask, use_backend

WAYS = ("fast", "plain", "published")


@contextlib.contextmanager
def going(way: str, model: BitDanceModel, *, compiled: bool = False) -> Iterator[None]:
    """Inside, a call of `model` (its training loss) goes that way.

    With `compiled` the transformer and the head of a published way are compiled.
    """
    if way == "fast":
        yield
        return
    parts = _parts(way, model, compiled=compiled) if way.startswith("published") else ()
    with with_parts((model.layers, model.head.net), parts):
        yield


def _parts(way: str, model: BitDanceModel, *, compiled: bool) -> Sequence[Any]:
    """The forward functions of the transformer and the head of a published way."""
    layers, attend = model.layers, _attention(way, model)

    def trunk(x: Tensor, freqs: Tensor, ranges: Any) -> Tensor:
        return published.transformer(layers, x, freqs, attend)

    parts = (trunk, functools.partial(published.head, model.head.net))
    return [torch.compile(part, dynamic=False) for part in parts] if compiled else parts


@contextlib.contextmanager
def with_parts(modules: Sequence[nn.Module], parts: Sequence[Any]) -> Iterator[None]:
    """Inside, ops are reference ops, and `parts`, if any, are the forward functions of modules."""
    with use_backend("reference"), contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(RMSNorm, "forward", nn.RMSNorm.forward))
        for module, part in zip(modules, parts, strict=bool(parts)):
            stack.enter_context(mock.patch.object(module, "forward", part))
        yield


def _attention(way: str, model: BitDanceModel) -> Callable[..., Tensor]:
    """Attention of a published way: of the number of a block and q, k and v [B, T, H, D]."""
    ranges = model.ranges()
    function = (
        attention.compiled_flex(ranges, len(ranges.end))
        if way == "published, flex"
        else functools.partial(F.scaled_dot_product_attention, attn_mask=dense_mask(ranges))
    )

    def attend(_: int, *qkv: Tensor) -> Tensor:
        return function(*(y.transpose(1, 2) for y in qkv)).transpose(1, 2)

    return attend


def draws(model: BitDanceModel, batch: int) -> TrainingDraws:
    """The random numbers of a step, so that every way computes the same loss."""
    config, device = model.config, model.freqs.device
    rows = batch * config.ar_steps * config.diff_batch_mul
    patch = () if config.parallel_num == 1 else (config.parallel_num,)
    of_tokens = (batch, config.tokens, config.token_bits)
    return TrainingDraws(
        flips=(torch.rand(of_tokens, device=device), torch.rand(of_tokens, device=device)),
        drop=torch.rand(batch, device=device),
        time=torch.randn(rows, device=device),
        noise=torch.randn(rows, *patch, config.token_bits, device=device),
    )


def step(way: str, model: BitDanceModel, tokens: Tensor, labels: Tensor) -> float:
    """One step without the optimizer: the loss, with the gradients in place."""
    model.zero_grad(set_to_none=True)
    with going(way, model):
        loss: Tensor = model(tokens, labels)
        loss.backward()
    return loss.item()


def comparisons(batch: int = 32) -> Iterator[Comparison]:
    """Loss and gradients of the bundled model; `batch` images a step."""
    model = BitDancePipeline.from_pretrained("fashion").model.requires_grad_(True)
    model.vae.requires_grad_(False)
    yield training(model, batch)


def training(model: BitDanceModel, batch: int) -> Comparison:
    """The ways to do a step of `model`."""
    config = model.config
    torch.manual_seed(0)
    signs = torch.rand(batch, config.tokens, config.token_bits) < 0.5
    tokens = torch.where(signs, 1.0, -1.0)
    labels = torch.arange(batch) % config.num_classes
    model.train()
    compiled: list[Any] = []

    def compiled_step() -> None:
        if not compiled:
            compiled.extend(_parts("published", model, compiled=True))
        model.zero_grad(set_to_none=True)
        with with_parts((model.layers, model.head.net), compiled):
            model(tokens, labels).backward()

    ways: dict[str, Callable[[], object]] = {
        "bitdance": functools.partial(step, "fast", model, tokens, labels),
        "PyTorch": functools.partial(step, "published", model, tokens, labels),
        "torch.compile": compiled_step,
    }
    flops = training_flops(model, batch)
    return Comparison("training step", f"bundled model, {batch} images", ways, flops)
