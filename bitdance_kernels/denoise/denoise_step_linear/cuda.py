"""denoise_step_linear in CUDA C++: csrc/cuda/denoise_step_linear."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import moments, native, packed_weight, skinny_config, skinny_cuda

_MAX_BITS = 128


def unsupported(
    x: torch.Tensor,
    x0: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *_: object,
) -> str | None:
    bits, tokens = x.shape[-1], x.shape[:-1].numel()
    if x0.dtype != weight.dtype:
        return f"it takes x0 in the dtype of weight, {weight.dtype}, got {x0.dtype}"
    if bits > _MAX_BITS:
        return f"it handles up to {_MAX_BITS} bits a token, got {bits}"
    if tokens > skinny_config.MAX_ROWS:
        return f"it is for at most {skinny_config.MAX_ROWS} tokens, got {tokens}"
    return skinny_cuda.unsupported(x0[:0], weight, function="denoise_step_linear")


def run(
    x: torch.Tensor,
    x0: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    cfg: torch.Tensor | None,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
    squash: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens, bits = x.shape[:-1].numel(), x.shape[-1]
    features = packed_weight.features(weight)
    state = x.new_empty(x.shape)
    stream = weight.new_empty((*x0.shape[:-1], features))
    stream_moments = moments.fake(stream)
    early = (weight, keys)
    ready = tuple(map(skinny_cuda.contiguous, early))
    native.cuda.denoise_step_linear(
        x.contiguous(),
        x0.contiguous(),
        table.contiguous(),
        step,
        step.element_size(),
        None if cfg is None else cfg.to(torch.float32),
        skinny_cuda.contiguous(noise),
        ready[1],
        squash,
        ready[0],
        skinny_cuda.contiguous(bias),
        state,
        stream,
        stream_moments,
        tokens,
        x.shape[1:-1].numel(),
        bits,
        features,
        native.DTYPE_CODES[weight.dtype],
        skinny_cuda.overlaps(early, ready),
        *native.stream(x.device),
    )
    return state, stream, stream_moments
