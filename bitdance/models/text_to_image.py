"""The text-to-image model: a language model whose sequence ends in patches of an image.

A sequence is the prompt, <|vision_start|>, tokens for height and width, and P - 1 query tokens. All
but the last P run causally. Those P, the width and the queries, are the first block; a block's
outputs condition the head that samples the next P tokens, which are the next block. Tokens of a
block see each other and all before them. Two-dimensional sinusoids are added to the head's
conditions, and to the tokens that are fed back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.diffusion_head import DiffusionHead
from bitdance.models.kv_cache import KVCache
from bitdance.models.projectors import TextToImageProjection, position_embedding_2d
from bitdance.models.qwen3 import LanguageModel, rope_frequencies, rope_table
from bitdance.models.text_to_image_config import TextToImageConfig
from bitdance.models.token_order import generation_order, tokens_to_codes
from bitdance.sampling import graphs
from bitdance.sampling.ar_sampler import StepResult, check_noise, row_keys
from bitdance.sampling.finite import check_predictions
from bitdance.sampling.flow_sampler import Schedule, binarize, denoise, make_head
from bitdance.sampling.head_runner import compute_dtype
from bitdance.sampling.workspace import Pool, Workspace
from bitdance_kernels import default_backend

__all__ = ["TextToImageModel"]

MOST_RUNS = 2
"""Kinds of batches whose memory and graphs a model keeps."""

_CACHE_STEP = 256  # tokens by which the cache grows, so that prompts of similar length share one

Tensors = tuple[torch.Tensor, ...]


class TextToImageModel(nn.Module):
    """Language model, head, tokenizer and projector, under the names of the official pipeline.

    Args:
        config: its shape.
        **factory: ``dtype`` and ``device`` as torch.nn's layers take them.
    """

    def __init__(self, config: TextToImageConfig, **factory: Any) -> None:
        super().__init__()
        self.config = config
        self.llm_model = LanguageModel(config.llm, **factory)
        self.vision_head = DiffusionHead(config.head, **factory)
        self.ae = BinaryAutoencoder(config.autoencoder, **factory)
        self.embed_vision_mlp = TextToImageProjection(
            config.autoencoder.z_channels, config.llm.hidden_size, **factory
        )
        self.workspaces: Pool[Workspace[_Decoding]] = Pool(partial(Workspace, MOST_RUNS))

    def order(self, grid: tuple[int, int]) -> torch.Tensor:
        """Raster index of the k-th token of an image of `grid` tokens (height, width)."""
        device = self.llm_model.model.norm.weight.device
        return generation_order(grid, self.config.parallel_num, "patch", device)

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """What tells the tokens of an image apart: float32 [N, C], in generation order."""
        return position_embedding_2d(self.order(grid), grid[1], self.config.llm.hidden_size)

    def decode(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Tokens [B, N, bits] of +1 and -1, in generation order, to images [B, 3, H, W].

        Raises:
            ValueError: `tokens` are not those of an image of `grid` tokens.
        """
        return self.ae.decode(self.to_codes(tokens, grid))

    def to_codes(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Tokens [B, N, bits] in generation order to the tokenizer's map [B, bits, h, w].

        Raises:
            ValueError: `tokens` are not those of an image of `grid` tokens.
        """
        expected = (grid[0] * grid[1], self.config.autoencoder.z_channels)
        if tokens.dim() != 3 or tokens.shape[1:] != expected:
            raise ValueError(f"tokens must be {['B', *expected]}, got {list(tokens.shape)}")
        return tokens_to_codes(tokens, 1, self.order(grid), grid)

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        image_prefix: Sequence[int],
        *,
        grid: tuple[int, int],
        negative: Sequence[int] | Sequence[Sequence[int]] | None = None,
        steps: int = 50,
        cfg_scale: float = 7.5,
        seeds: Sequence[int] | None = None,
        sample_ids: Sequence[int] | None = None,
        noise: Sequence[Sequence[torch.Tensor]] | None = None,
        on_prefill: Callable[[torch.Tensor], None] | None = None,
        on_step: Callable[[StepResult], None] | None = None,
    ) -> torch.Tensor:
        """Generate the tokens of one image per prompt.

        With guidance the batch holds 2 B rows, conditional ones first. Both halves get the same
        tokens. Prompts may differ in length; what rows have in common is computed once.

        Args:
            prompts: token ids of B texts.
            image_prefix: ids of <|vision_start|>, height, width and P - 1 queries.
            grid: tokens vertically and horizontally, multiples of the root of P.
            negative: token ids of the unconditional text, or of one for each prompt; needed with
                guidance.
            steps: noisy denoising steps per patch.
            cfg_scale: guidance, the same at all steps; at most 1 is none.
            seeds: one per image, as in ``BitDanceModel.sample``.
            sample_ids: one per image, by default 0.
            noise: instead of `seeds`, for each AR step the draws of ``sample_patch``.
            on_prefill: called once with the normalised outputs of the different prompts, in order
                of first use, [n, longest, C]; those after the end of a prompt mean nothing.
            on_step: called after every AR step; may raise to stop.

        Returns:
            [B, N, bits] of +1 and -1, in generation order.

        Raises:
            TypeError: `steps` or a seed is not an int.
            ValueError: an argument is out of range, or there is not one seed for each prompt.
        """
        P, bits = self.config.parallel_num, self.config.autoencoder.z_channels
        device = self.order(grid).device  # checks the grid, too
        if not math.isfinite(cfg_scale):
            raise ValueError(f"sample: cfg_scale must be finite, got {cfg_scale}")
        guided = cfg_scale > 1
        texts = self.texts(
            prompts, image_prefix, grid=grid, negative=negative if guided else None, guided=guided
        )
        count, ar_steps = len(prompts), grid[0] * grid[1] // P
        check_noise(noise, seeds, ar_steps)
        keys = None if seeds is None else row_keys(seeds, sample_ids, count, False, device)
        tokens = torch.empty((count, ar_steps * P, bits), dtype=torch.float32, device=device)
        if count == 0:
            return tokens
        with self.workspaces.lease() as workspace:
            longest = max(map(len, texts))
            decoding = self._decoding(workspace, len(texts), longest, grid, guided, steps)
            outputs = decoding.start(self, texts, cfg_scale, keys)
            if on_prefill is not None:
                on_prefill(outputs)
            for i in range(ar_steps):
                made = decoding.advance(self, None if noise is None else noise[i])
                tokens[:, i * P : (i + 1) * P] = made[2][:count]
                if on_step is not None:
                    # Of their own: those of a replayed step are overwritten by the next one.
                    on_step(StepResult(i, cfg_scale, *(tensor.clone() for tensor in made)))
            check_predictions("sample", decoding.predictions, count)
        return tokens

    def texts(
        self,
        prompts: Sequence[Sequence[int]],
        image_prefix: Sequence[int],
        *,
        grid: tuple[int, int],
        negative: Sequence[int] | Sequence[Sequence[int]] | None,
        guided: bool,
    ) -> list[tuple[int, ...]]:
        """Token ids of every row up to the first patch, conditional rows first; see ``sample``.

        Raises:
            ValueError: there are not as many as needed, an id is unknown, or a row with its image
                is longer than the language model's positions.
        """
        P, vocabulary = self.config.parallel_num, self.config.llm.vocab_size
        if len(image_prefix) != P + 2:
            raise ValueError(
                f"sample: image_prefix must be {P + 2} ids, of <|vision_start|>, height, width and "
                f"{P - 1} queries, got {len(image_prefix)}"
            )
        rows = list(prompts)
        if guided:
            if negative is None:
                raise ValueError("sample: negative must be given with cfg_scale > 1, got None")
            for_each = len(negative) > 0 and isinstance(negative[0], Sequence)
            negatives: Any = negative if for_each else [negative] * len(prompts)
            rows += negatives
            if len(rows) != 2 * len(prompts):
                raise ValueError(
                    f"sample: negative must be {len(prompts)} texts, one a prompt, got "
                    f"{len(rows) - len(prompts)}"
                )
        texts = [tuple(int(i) for i in (*row, *image_prefix)) for row in rows]
        wrong = next((i for text in texts for i in text if not 0 <= i < vocabulary), None)
        if wrong is not None:
            raise ValueError(f"sample: token ids must be 0 to {vocabulary - 1}, got {wrong}")
        positions = self.config.llm.max_position_embeddings
        # The last patch of an image is not fed.
        room = positions - (grid[0] * grid[1] - P) - len(image_prefix)
        longest = max((len(row) for row in rows), default=0)
        if longest > room:
            raise ValueError(
                f"sample: prompts must have at most {room} tokens beside an image of {grid[0]} x "
                f"{grid[1]} tokens, since the model has {positions} positions, got {longest}"
            )
        return texts

    def _decoding(
        self,
        workspace: Workspace[_Decoding],
        rows: int,
        longest: int,
        grid: tuple[int, int],
        guided: bool,
        steps: int,
    ) -> _Decoding:
        """That of an earlier run of the same kind, if all memory is where it was then."""
        trunk = self.llm_model.model
        # The last patch is not fed back.
        tokens = longest + grid[0] * grid[1] - self.config.parallel_num
        dtype, device = compute_dtype(trunk.layers), trunk.norm.weight.device
        rounded = -(-tokens // _CACHE_STEP) * _CACHE_STEP
        cache = workspace.reserve(
            rows, tokens, dtype, device, lambda: trunk.allocate(rows, rounded)
        )
        memory = (cache.layers[0][0].data_ptr(), *(p.data_ptr() for p in graphs.parameters(self)))
        kind = (rows, grid, guided, steps, self.config.parallel_num, device, default_backend())
        return workspace.runs.get(
            memory,
            (*kind, dtype, compute_dtype(self.vision_head.net)),
            lambda: _Decoding(self, cache, grid=grid, guided=guided, steps=steps),
        )


class _Decoding:
    """The AR steps of batches of one kind; all of them are one function without arguments.

    Args:
        model: whose weights are used. It is not kept, since it keeps this.
        cache: of all rows.
        grid: tokens of an image.
        guided: whether half of the rows are unconditional.
        steps: noisy denoising steps per patch.
    """

    def __init__(
        self,
        model: TextToImageModel,
        cache: KVCache,
        *,
        grid: tuple[int, int],
        guided: bool,
        steps: int,
    ) -> None:
        llm, P, device = model.config.llm, model.config.parallel_num, cache.lengths.device
        rows, longest = len(cache.lengths), cache.layers[0][0].shape[1]
        self.cache, self.guided = cache, guided
        count = rows // 2 if guided else rows
        # Made in inference mode, memory could not be written outside of it.
        with torch.inference_mode(False):
            self.schedule = Schedule.of(model.vision_head.net, steps)
            self.head = make_head(model.vision_head.net, self.schedule, rows, P, "fast")
            frequencies = rope_frequencies(llm.head_dim, llm.rope_theta)
            self.freqs = rope_table(longest, frequencies.to(device))
            self.positions = model.positions(grid).unflatten(0, (-1, P))
            self.guidance = torch.zeros(1, dtype=torch.float32, device=device)
            self.step = torch.zeros(1, dtype=torch.int64, device=device)
            self.keys = torch.zeros(count, 3, dtype=torch.int64, device=device)
            steps, bits = len(self.positions), model.config.autoencoder.z_channels
            # Both halves of a guided batch have the same.
            self.predictions = torch.zeros(
                (steps, count, P, bits), dtype=torch.float32, device=device
            )
            weight = model.llm_model.model.embed_tokens.weight
            self.block = weight.new_zeros(rows, P, llm.hidden_size, requires_grad=False)
        self._step = graphs.step_for(device)
        self._call = graphs.call_for(device, within=True)

    def start(
        self,
        model: TextToImageModel,
        texts: list[tuple[int, ...]],
        cfg: float,
        keys: torch.Tensor | None,
    ) -> torch.Tensor:
        """Begin with the ids of all rows; returns the outputs of the different prompts."""
        trunk, device, P = model.llm_model.model, self.keys.device, self.block.shape[1]
        different = list(dict.fromkeys(texts))
        index = {text: i for i, text in enumerate(different)}
        rows = torch.tensor([index[text] for text in texts], dtype=torch.int64, device=device)
        ids = [torch.tensor(text, dtype=torch.int64, device=device) for text in different]
        embedded = [trunk.embed_tokens(row) for row in ids]
        outputs = trunk.prefill([x[:-P] for x in embedded], rows, self.freqs, self.cache)
        self.block.copy_(torch.stack([x[-P:] for x in embedded])[rows])
        self.guidance.fill_(cfg)
        self.step.zero_()
        if keys is not None:
            self.keys.copy_(keys)
        self.head.load()
        return outputs

    def advance(
        self, model: TextToImageModel, noise: Sequence[torch.Tensor] | None = None
    ) -> Tensors:
        """Results of the next AR step; they are valid until the one after it."""
        if noise is not None:
            return self._advance(model, noise)  # which lies somewhere else in every step
        return self._step(partial(self._advance, model))

    def _advance(
        self, model: TextToImageModel, noise: Sequence[torch.Tensor] | None = None
    ) -> Tensors:
        """Sample the patch that follows the block, and make it the next block."""
        hidden = model.llm_model.model.decode(self.block, self.freqs, self.cache)
        position = self.positions.index_select(0, self.step)
        cond, cfg = hidden + position, self.guidance if self.guided else None
        if noise is None:
            prediction = self._call(self._drawn, cond, cfg)
        else:
            prediction = denoise(self.head, self.schedule, cond, cfg=cfg, noise=noise)
        self.predictions.index_copy_(0, self.step, prediction[None])
        if self.guided:
            prediction = torch.cat([prediction, prediction])
        tokens, packed = binarize(prediction)
        fed = model.embed_vision_mlp(tokens.to(model.embed_vision_mlp.fc1.weight.dtype))
        self.block.copy_(fed + position)
        self.step += 1
        self.keys[:, 1] += 2  # the same stream of the next AR step
        return hidden, prediction, tokens, packed

    def _drawn(self, cond: torch.Tensor, cfg: torch.Tensor | None) -> torch.Tensor:
        """The prediction, from noise that is drawn."""
        return denoise(self.head, self.schedule, cond, cfg=cfg, keys=self.keys)
