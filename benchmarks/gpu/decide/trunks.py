"""A language model's layers by their plans, and decode attention with its keys split or not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu.decide import common, plans
from benchmarks.gpu.worker import Context, Step
from bitdance.models.qwen3 import Qwen3Config, Qwen3Model, rope_frequencies, rope_table
from bitdance.sampling import config
from bitdance.sampling.trunk_products import packed_qwen3
from bitdance_kernels import block_decode_attention, use_backend
from bitdance_kernels.attention.block_decode_attention import config as decode_config

_LAYERS = Qwen3Config(
    hidden_size=5120, num_hidden_layers=4, num_attention_heads=40, num_key_value_heads=8,
    intermediate_size=17408, vocab_size=16, head_dim=128,
)  # fmt: skip
"""Layers of the 14 B model; how many there are changes nothing about one."""
_TINY = Qwen3Config(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=48, vocab_size=16, head_dim=16,
)  # fmt: skip
_PATCHES = {"14B-16x": (16, (1, 2, 4)), "14B-64x": (64, (1,))}
_TOKENS = 1024  # in the cache of every row
_KEYS = 319  # of the class-conditional models
_CALLS = 30


def steps(context: Context) -> Sequence[Step]:
    """A step per model and batch, then one for the attention."""
    pairs = [(name, batch) for name, (_, batches) in _PATCHES.items() for batch in batches]
    return [
        *(
            common.unless_wrong(
                context, f"language model, {name}, batch {batch}",
                functools.partial(_language, context, name, batch),
            )
            for name, batch in pairs[: 1 if context.dry_run else None]
        ),
        ("decode attention, split or not", functools.partial(_decode, context)),
    ]  # fmt: skip


@common.no_grad()
def _language(context: Context, name: str, batch: int) -> None:
    """Microseconds of a layer by every plan, and how far they are from the library's."""
    dtype = torch.float32 if context.dry_run else torch.bfloat16
    shape = _TINY if context.dry_run else _LAYERS
    torch.manual_seed(0)
    trunk = Qwen3Model(shape, dtype=dtype, device=context.device).eval()
    P, tokens = _PATCHES[name][0], 32 if context.dry_run else _TOKENS
    cache = trunk.allocate(2 * batch, tokens + P)
    for memory in cache.layers:
        for tensor in memory:
            tensor.normal_()
    frequencies = rope_frequencies(shape.head_dim, shape.rope_theta).to(context.device)
    freqs = rope_table(tokens + P, frequencies)
    x = torch.randn(2 * batch, P, shape.hidden_size, device=context.device, dtype=dtype)

    def step(decode: Callable[..., Tensor]) -> Tensor:
        cache.lengths.fill_(tokens)
        return decode(x, freqs, cache)

    ways: dict[str, Callable[[], Tensor]] = {"library": functools.partial(step, trunk.decode)}
    with config.use_plans(t2i_trunk="packed"):
        packed = packed_qwen3(trunk, 2 * batch * P, dtype)
    if packed is not None:
        packed.load()
        ways["packed"] = functools.partial(
            step, lambda *arguments: trunk.norm(packed.decode(*arguments))
        )
    with use_backend("reference"):
        truth = ways["library"]()
    plans.compare(
        context, "t2i_trunk", ways, truth, bits=False,
        model=name, rows=2 * batch * P, architecture="", parts=shape.num_hidden_layers,
    )  # fmt: skip


@common.no_grad()
def _decode(context: Context) -> None:
    """Microseconds of decode attention for one image with one launch, and with the usual splits."""
    dtype = torch.float32 if context.dry_run else torch.bfloat16
    for P in (1, 16):
        q = torch.randn(2, P, 12, 64, device=context.device).to(dtype)
        keys, values = torch.randn(2, 2, _KEYS, 12, 64, device=context.device).to(dtype)
        lengths = torch.full((2,), _KEYS, dtype=torch.int32, device=context.device)

        def chain(
            q: Tensor = q, keys: Tensor = keys, values: Tensor = values, lengths: Tensor = lengths
        ) -> Tensor:
            for _ in range(1 if context.dry_run else _CALLS):
                out = block_decode_attention(q, keys, values, lengths)
            return out

        def with_keys(most: int, chain: Callable[[], Tensor] = chain) -> Tensor:
            with mock.patch.object(decode_config, "MAX_UNSPLIT_KEYS", most):
                return chain()

        common.time_ways(
            context, "decode attention",
            {"split": functools.partial(with_keys, 0),
             "one launch": functools.partial(with_keys, _KEYS)},
            parts=1 if context.dry_run else _CALLS, calls=10, rows=2 * P,
        )  # fmt: skip
