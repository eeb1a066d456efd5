"""Sampling of text-to-image models: from token ids of prompts to the tokens of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bitdance.models.diffusion_head import HeadNetwork
from bitdance.models.kv_cache import KVCache
from bitdance.models.layers import compute_dtype
from bitdance.models.qwen3 import rope_frequencies, rope_table
from bitdance.models.text_to_image import TextToImageModel
from bitdance.models.text_to_image_config import TextToImageConfig
from bitdance.sampling.ar_sampler import ARSampler, OnStep, Run, guidance_at
from bitdance.sampling.trunk_products import packed_qwen3
from bitdance.sampling.workspace import Workspace

__all__ = ["TextSequence", "TextToImageSampler", "cache_tokens", "room_for_prompts"]

MAX_RUNS = 2
"""Kinds of batches whose buffers and graphs a workspace keeps."""

_CACHE_STEP = 256  # tokens by which the cache grows, so that prompts of similar length share one


class TextSequence:
    """A prompt and the patches of an image; see ``PatchSequence``.

    The last P tokens of the prompt are the first block, so that all steps are alike.

    Args:
        model: the networks.
        cache: cache of all rows.
        grid: tokens of the image, vertically and horizontally.
    """

    repeats = True

    def __init__(self, model: TextToImageModel, cache: KVCache, grid: tuple[int, int]) -> None:
        config, rows, device = model.config, len(cache.lengths), cache.lengths.device
        P, llm = config.parallel_num, config.llm
        self.model, self.cache, self.head_patch = model, cache, P
        self.patch_shape = (P, config.autoencoder.z_channels)
        frequencies = rope_frequencies(llm.head_dim, llm.rope_theta)
        self.freqs = rope_table(cache.layers[0][0].shape[1], frequencies.to(device))
        self.positions = model.positions(grid).unflatten(0, (-1, P))
        self.ar_steps = len(self.positions)
        weight = model.llm_model.model.embed_tokens.weight
        self.block = weight.new_zeros(rows, P, llm.hidden_size, requires_grad=False)
        self.trunk = packed_qwen3(model.llm_model.model, rows * P, cache.layers[0][0].dtype)

    def begin(self, rows: list[tuple[int, ...]]) -> torch.Tensor:
        """Start with the token ids of all rows; returns the outputs of the different prompts."""
        self.load()
        return self.prefill(rows)

    def load(self) -> None:
        """Refresh what depends on the parameters."""
        if self.trunk is not None:
            self.trunk.load()

    def prefill(self, rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """``begin`` with parameters that have not changed since ``load``."""
        trunk, device, P = self.model.llm_model.model, self.block.device, self.patch_shape[0]
        prompts = list(dict.fromkeys(rows))
        index = {prompt: i for i, prompt in enumerate(prompts)}
        row_prompts = torch.tensor([index[r] for r in rows], dtype=torch.int64, device=device)
        ids = [torch.tensor(prompt, dtype=torch.int64, device=device) for prompt in prompts]
        embedded = [trunk.embed_tokens(prompt) for prompt in ids]
        outputs = trunk.prefill([x[:-P] for x in embedded], row_prompts, self.freqs, self.cache)
        self.block.copy_(torch.stack([x[-P:] for x in embedded])[row_prompts])
        return outputs

    def first(self) -> torch.Tensor:
        """See ``PatchSequence``."""
        return self.next()

    def next(self) -> torch.Tensor:
        """See ``PatchSequence``."""
        trunk = self.model.llm_model.model
        if self.trunk is None:
            return trunk.decode(self.block, self.freqs, self.cache)
        return trunk.norm(self.trunk.decode(self.block, self.freqs, self.cache))

    def condition(self, hidden: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """See ``PatchSequence``."""
        return hidden + self.positions.index_select(0, step)

    def append(self, tokens: torch.Tensor, step: torch.Tensor) -> None:
        """See ``PatchSequence``."""
        self.block.copy_(self.model.embed(tokens) + self.positions.index_select(0, step))


def cache_tokens(longest: int, grid: tuple[int, int], parallel_num: int) -> tuple[int, int]:
    """Tokens that a row of the cache needs, and those that it gets.

    Args:
        longest: tokens of the longest row up to the first patch.
        grid: tokens of the image, vertically and horizontally.
        parallel_num: P, tokens per step.
    """
    tokens = longest + grid[0] * grid[1] - parallel_num  # the last patch is not fed back
    return tokens, -(-tokens // _CACHE_STEP) * _CACHE_STEP


def room_for_prompts(config: TextToImageConfig, grid: tuple[int, int]) -> int:
    """Most tokens of a prompt that the positions of a model leave beside an image.

    Before the image are its P + 2 ids, and its last patch, of P tokens, is not fed.

    Args:
        config: configuration of the model.
        grid: tokens vertically and horizontally.
    """
    return config.llm.max_position_embeddings - grid[0] * grid[1] - 2


class TextToImageSampler(ARSampler[TextSequence]):
    """Samples images of prompts.

    With guidance the batch holds 2 B rows, conditional ones first. Both halves get the same tokens.
    Prompts may differ in length; what rows have in common is computed once.

    Args:
        model: the networks.
    """

    model: TextToImageModel

    def __init__(self, model: TextToImageModel) -> None:
        super().__init__(MAX_RUNS)
        self.model = model

    @property
    def _network(self) -> HeadNetwork:
        return self.model.vision_head.net

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        image_prefix: Sequence[int],
        *,
        grid: tuple[int, int],
        negative_prompts: Sequence[int] | Sequence[Sequence[int]] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        seeds: Sequence[int] | None = None,
        sample_ids: Sequence[int] | None = None,
        noise: Sequence[Sequence[torch.Tensor]] | None = None,
        on_prefill: Callable[[torch.Tensor], None] | None = None,
        on_step: OnStep | None = None,
    ) -> torch.Tensor:
        """Sample the tokens of one image per prompt.

        Args:
            prompts: token ids of B texts.
            image_prefix: ids of <|vision_start|>, height, width and P - 1 queries.
            grid: tokens vertically and horizontally, multiples of the root of P.
            negative_prompts: token ids of the unconditional text, or of one for each prompt; needed
                with guidance.
            num_inference_steps: noisy denoising steps per patch.
            guidance_scale: guidance, the same at all steps; at most 1 is none.
            seeds: one per image, as in ``ClassConditionalSampler.sample``.
            sample_ids: one per image, by default 0.
            noise: in place of `seeds`, the draws of ``sample_patch`` for each AR step.
            on_prefill: called once with the normalized outputs of the different prompts, in order
                of first use, [n, longest, C]; those after the end of a prompt have no meaning.
            on_step: called after every AR step; may return tokens to continue from, or raise to
                stop.

        Returns:
            [B, N, bits] of +1 and -1, in generation order.

        Raises:
            TypeError: `num_inference_steps` or a seed is not an int.
            ValueError: an argument is out of range, or there is not one seed for each prompt.
            NotFiniteError: a prediction holds NaN or infinity; raised after the last step.
        """
        config, guided = self.model.config, guidance_scale > 1
        ar_steps = grid[0] * grid[1] // config.parallel_num
        device = self.model.order(grid).device  # checks the grid, too
        guidance = guidance_at(0, ar_steps, guidance_scale, "constant")
        rows = self.token_rows(
            prompts, image_prefix, grid=grid, guided=guided,
            negative_prompts=negative_prompts if guided else None,
        )  # fmt: skip
        if not prompts:
            shape = (0, grid[0] * grid[1], config.autoencoder.z_channels)
            return torch.empty(shape, dtype=torch.float32, device=device)

        def begin(sequence: TextSequence) -> None:
            outputs = sequence.begin(rows)
            if on_prefill is not None:
                on_prefill(outputs)

        longest = max(map(len, rows))
        return self._sample(
            len(prompts),
            guided=guided,
            guidance=[guidance] * ar_steps,
            num_inference_steps=num_inference_steps,
            seeds=seeds,
            sample_ids=sample_ids,
            noise=noise,
            on_step=on_step,
            use_kernels=True,
            reserve=lambda workspace, count: self._reserve(workspace, count, longest, grid),
            kind=grid,
            make=lambda cache: TextSequence(self.model, cache, grid),
            begin=begin,
        )

    def _reserve(
        self,
        workspace: Workspace[Run[TextSequence]],
        rows: int,
        longest: int,
        grid: tuple[int, int],
    ) -> KVCache:
        trunk = self.model.llm_model.model
        tokens, rounded = cache_tokens(longest, grid, self.model.config.parallel_num)
        return workspace.reserve(
            rows, tokens, compute_dtype(trunk.layers), trunk.norm.weight.device,
            lambda: trunk.allocate(rows, rounded),
        )  # fmt: skip

    def token_rows(
        self,
        prompts: Sequence[Sequence[int]],
        image_prefix: Sequence[int],
        *,
        grid: tuple[int, int],
        negative_prompts: Sequence[int] | Sequence[Sequence[int]] | None,
        guided: bool,
    ) -> list[tuple[int, ...]]:
        """Token ids of every row up to the first patch, conditional rows first; see ``sample``.

        Raises:
            ValueError: there are not as many as needed, an id is unknown, or a row with its image
                is longer than the language model's positions.
        """
        P, vocabulary = self.model.config.parallel_num, self.model.config.llm.vocab_size
        if len(image_prefix) != P + 2:
            raise ValueError(
                f"sample: image_prefix must be {P + 2} ids, of <|vision_start|>, height, width and "
                f"{P - 1} queries, got {len(image_prefix)}"
            )
        rows = list(prompts)
        if guided:
            if negative_prompts is None:
                raise ValueError(
                    "sample: negative_prompts must be given with guidance_scale > 1, got None"
                )
            for_each = len(negative_prompts) > 0 and isinstance(negative_prompts[0], Sequence)
            negatives: Any = negative_prompts if for_each else [negative_prompts] * len(prompts)
            rows += negatives
            if len(rows) != 2 * len(prompts):
                raise ValueError(
                    f"sample: negative_prompts must be {len(prompts)} texts, one a prompt, got "
                    f"{len(rows) - len(prompts)}"
                )
        texts = [tuple(int(i) for i in (*row, *image_prefix)) for row in rows]
        wrong = next((i for text in texts for i in text if not 0 <= i < vocabulary), None)
        if wrong is not None:
            raise ValueError(f"sample: token ids must be 0 to {vocabulary - 1}, got {wrong}")
        positions = self.model.config.llm.max_position_embeddings
        room = room_for_prompts(self.model.config, grid)
        longest = max((len(row) for row in rows), default=0)
        if longest > room:
            raise ValueError(
                f"sample: prompts must have at most {room} tokens beside an image of {grid[0]} x "
                f"{grid[1]} tokens, since the model has {positions} positions, got {longest}"
            )
        return texts
