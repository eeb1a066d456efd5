"""Sampling of class-conditional models: from labels to the tokens of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.diffusion_head import HeadNetwork
from bitdance.models.kv_cache import KVCache
from bitdance.models.layers import compute_dtype
from bitdance.sampling.ar_sampler import ARSampler, OnStep, Run, guidance_at
from bitdance.sampling.panel_products import PanelTransformer, panel_transformer
from bitdance.sampling.trunk_products import PackedTransformer, packed_transformer
from bitdance.sampling.workspace import Workspace

__all__ = ["ClassConditionalSampler", "ClassSequence"]

MAX_RUNS = 4
"""Kinds of batches whose buffers and graphs a workspace keeps."""


class ClassSequence:
    """Class tokens, query tokens and patches; see ``PatchSequence``.

    Args:
        model: the networks.
        cache: cache of all rows.
        use_kernels: False for the transformer as published.
    """

    repeats = False  # the prefix needs a mask

    def __init__(self, model: BitDanceModel, cache: KVCache, use_kernels: bool) -> None:
        config, rows, device = model.config, len(cache.lengths), cache.lengths.device
        P = config.parallel_num
        self.model, self.cache = model, cache
        self.ar_steps, self.patch_shape = config.ar_steps, (P, config.token_bits)
        self.head_patch = P if P > 1 else None
        self.mask = model.ranges(patches=1)
        self.labels = torch.full((rows,), config.num_classes, dtype=torch.int64, device=device)
        self.tokens = torch.zeros(rows, *self.patch_shape, dtype=torch.float32, device=device)
        self.trunk: PackedTransformer | PanelTransformer | None = None
        if use_kernels:
            layers, dtype = model.layers, cache.layers[0][0].dtype
            self.trunk = packed_transformer(layers, rows * P, dtype)
            self.trunk = self.trunk or panel_transformer(layers, rows * P, dtype)

    def begin(self, labels: torch.Tensor) -> None:
        """Start with the labels of the conditional rows; the others keep "no class"."""
        self.labels[: len(labels)] = labels
        self.load()

    def load(self) -> None:
        """Refresh what depends on the parameters."""
        if self.trunk is not None:
            self.trunk.load()

    def first(self) -> torch.Tensor:
        """See ``PatchSequence``."""
        model, x = self.model, self.model.prefix(self.labels)
        if not isinstance(self.trunk, PanelTransformer):
            return model.decode_step(x, self.cache, self.mask)
        x = self.trunk.decode(model.emb_norm(x), model.freqs, self.cache, self.mask)
        return model.norm(x)

    def next(self) -> torch.Tensor:
        """See ``PatchSequence``."""
        # From here on a step sees the whole cache.
        model, x = self.model, self.model.embed(self.tokens)
        if self.trunk is None:
            return model.decode_step(x, self.cache)
        return model.norm(self.trunk.decode(model.emb_norm(x), model.freqs, self.cache))

    def condition(self, hidden: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """See ``PatchSequence``."""
        P = self.patch_shape[0]
        positions = self.model.pos_for_diff.weight.unflatten(0, (-1, P))
        cond = hidden[:, -P:] + positions.index_select(0, step)
        return cond if P > 1 else cond.squeeze(1)

    def append(self, tokens: torch.Tensor, step: torch.Tensor) -> None:
        """See ``PatchSequence``."""
        self.tokens.copy_(tokens)


class ClassConditionalSampler(ARSampler[ClassSequence]):
    """Samples images of classes.

    With guidance the batch holds 2 B rows, conditional first. Where the guidance of a step is 1
    although the scale is more (step 0 of the linear schedule), both halves draw noise of their own
    and go on with tokens of their own; at the other steps they share them. This is the published
    behavior.

    Args:
        model: the networks.
    """

    model: BitDanceModel

    def __init__(self, model: BitDanceModel) -> None:
        super().__init__(MAX_RUNS)
        self.model = model

    @property
    def _network(self) -> HeadNetwork:
        return self.model.head.net

    @torch.no_grad()
    def sample(
        self,
        labels: torch.Tensor,
        *,
        num_inference_steps: int = 100,
        guidance_scale: float = 1.0,
        guidance_schedule: str = "linear",
        seeds: Sequence[int] | None = None,
        sample_ids: Sequence[int] | None = None,
        noise: Sequence[Sequence[torch.Tensor]] | None = None,
        on_step: OnStep | None = None,
        use_kernels: bool = True,
    ) -> torch.Tensor:
        """Sample the tokens of one image per label.

        Args:
            labels: int64 [B].
            num_inference_steps: noisy denoising steps per patch.
            guidance_scale: guidance; at most 1 is none, and no unconditional rows are computed.
            guidance_schedule: "linear" or "constant", see ``guidance_at``.
            seeds: one per image, in [0, 2^64); the noise of an image depends on its seed and sample
                id alone.
            sample_ids: one per image, in [0, 2^32); by default 0.
            noise: in place of `seeds`, the draws of ``sample_patch`` for each AR step.
            on_step: called after every AR step; may return tokens to continue from, or raise to
                stop.
            use_kernels: False for reference ops and the head as published, for comparison. The
                tokens are the same up to rounding.

        Returns:
            [B, N, C] of +1 and -1, in generation order.

        Raises:
            TypeError: `num_inference_steps` or a seed is not an int.
            ValueError: an argument is out of range, or there is not one seed for each label.
            NotFiniteError: a prediction holds NaN or infinity; raised after the last step.
        """
        model = self.model
        model.check_labels(labels, values=True)
        steps = model.config.ar_steps
        return self._sample(
            len(labels),
            guided=guidance_scale > 1,
            guidance=[
                guidance_at(i, steps, guidance_scale, guidance_schedule) for i in range(steps)
            ],
            num_inference_steps=num_inference_steps,
            seeds=seeds,
            sample_ids=sample_ids,
            noise=noise,
            on_step=on_step,
            use_kernels=use_kernels,
            reserve=self.reserve_cache,
            kind=None,
            make=lambda cache: ClassSequence(model, cache, use_kernels),
            begin=lambda sequence: sequence.begin(labels),
        )

    def reserve_cache(self, workspace: Workspace[Run[ClassSequence]], rows: int) -> KVCache:
        """An empty cache of `rows` rows in a workspace, for sequences of the model's length."""
        freqs, layers = self.model.freqs, self.model.layers
        tokens, dtype = len(freqs), compute_dtype(layers)

        def allocate() -> KVCache:
            return KVCache.allocate(
                len(layers), rows, tokens, layers.num_heads, layers.head_dim,
                dtype=dtype, device=freqs.device,
            )  # fmt: skip

        return workspace.reserve(rows, tokens, dtype, freqs.device, allocate)
