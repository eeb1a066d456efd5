"""From a released folder to pictures: ``TextToImage.from_pretrained(...).generate(prompts)``."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bitdance.io.validation import exact_int, finite_number, is_one, listed, shown
from bitdance.models.text_to_image import TextToImageModel
from bitdance.pipelines.base import (
    Callback,
    Interruptible,
    OutputType,
    check_latents,
    check_output_type,
    decode_latents,
    generate_batches,
    image_seeds,
    to_output,
)
from bitdance.pipelines.prompts import NO_PROMPT, PROMPT, Words, image_prefix, token_ids
from bitdance.pipelines.text_to_image_files import load_released
from bitdance.sampling.ar_sampler import StepResult

__all__ = ["TextToImage"]


class TextToImage(Interruptible):
    """A text-to-image model with its tokenizers: one of images, in the model, and one of texts.

    Any number of threads may use one object at a time, and a callback may generate with it too:
    each call has memory of its own, and every picture has the bits that it has alone. Calls take
    turns at `words`, which need not be safe for threads.

    Args:
        model: the network.
        words: tokenizer of texts, for example what ``transformers.AutoTokenizer`` loads.

    Attributes:
        model: the network, a ``torch.nn.Module`` with the official parameter names.
        config: its configuration.
        words: see above.
    """

    def __init__(self, model: TextToImageModel, words: Words) -> None:
        super().__init__()
        self.model, self.words = model.eval(), words
        self.config = model.config
        self._reading = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: v for name, v in super().__getstate__().items() if name != "_reading"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _reading=threading.Lock())

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        words: Words,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> TextToImage:
        """Load a released folder; either all of it is loaded or nothing.

        Its files are those of a Hugging Face language model (``config.json`` and
        ``model.safetensors``, or its parts with ``model.safetensors.index.json``), and
        ``ae_config.json``, ``ae.safetensors``, ``vision_head_config.json``,
        ``vision_head.safetensors`` and ``projector.safetensors``.

        Args:
            folder: where they are.
            words: tokenizer of texts.
            dtype: of the parameters.
            device: where to put the model.

        Raises:
            FileNotFoundError: a file is missing.
            CheckpointError: a file is damaged, or does not fit the configuration.
        """
        return cls(load_released(Path(folder), dtype, device), words)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens of an image of that many pixels, vertically and horizontally.

        Raises:
            TypeError: a side is no integer.
            ValueError: it is not made of whole patches.
        """
        factor = self.config.autoencoder.downsampling
        side = factor * math.isqrt(self.config.parallel_num)
        sides = []
        for name, value in (("height", height), ("width", width)):
            pixels = exact_int("grid", name, value)
            if pixels < side or pixels % side:
                raise ValueError(f"{name} must be a multiple of {side} pixels, got {pixels}")
            sides.append(pixels // factor)
        return sides[0], sides[1]

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int = 1024,
        width: int = 1024,
        seed: int | Sequence[int] = 0,
        sample_ids: Sequence[int] | None = None,
        steps: int = 50,
        cfg_scale: float = 7.5,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
        progress: bool = True,
    ) -> Any:
        """Generate one picture per prompt.

        Picture i depends on its prompt, its seed and its sample id and on nothing else, as with
        ``BitDance.generate``.

        Args:
            prompts: what to draw, one text or several.
            negative_prompt: what guidance leads away from, one text for all pictures or one per
                picture. By default, and where it is empty, the text that training put in place of
                a prompt.
            height: in pixels.
            width: in pixels.
            seed: one 64-bit seed for all pictures, or one per picture.
            sample_ids: tells pictures of one seed apart; by default 0, 1, 2, ... with one seed, and
                0 for every picture with a seed of its own.
            steps: denoising steps per patch, before the final one.
            cfg_scale: guidance, the same at all steps; 1 or less is none.
            batch_size: pictures at a time; by default all.
            output_type: "pil": a list of images; "np": uint8 [n, H, W, 3]; "pt": uint8
                [n, 3, H, W]; "latent": packed bits uint8 [n, tokens, C / 8] in generation order.
            callback_on_step_end: called as f(self, AR step, AR steps, {"packed": the step's bits,
                uint8 [rows, P, C / 8], conditional rows first}); stops the run by returning False.
            progress: show a progress bar.

        Raises:
            TypeError: an argument is of another kind; nothing is computed.
            ValueError: an argument is out of range, the tokenizer does not know images of that
                size, or a prompt is longer than the model; nothing is computed.
            NotFiniteError: the model computes NaN or infinity; it names the pictures.
            GenerationCancelled: a callback returned False, or ``interrupt`` was set.
        """
        texts = _texts("prompts", prompts)
        grid, count = self.grid(height, width), len(texts)
        negatives = _texts("negative_prompt", "" if negative_prompt is None else negative_prompt)
        if negative_prompt is None or isinstance(negative_prompt, str):
            negatives *= count
        if len(negatives) != count:
            raise ValueError(
                f"generate: negative_prompt must be one text, or one per picture ({count}), got "
                f"{len(negatives)}"
            )
        seeds, ids = image_seeds("generate", seed, sample_ids, count)
        check_output_type("generate", output_type)
        count_of_steps = exact_int("generate", "steps", steps, 1)
        scale = finite_number("generate", "cfg_scale", cfg_scale)
        with self._reading:
            prefix = image_prefix(self.words, grid, self.config.parallel_num)
            encoded = [token_ids(self.words, PROMPT.format(text)) for text in texts]
            avoided = [
                token_ids(self.words, PROMPT.format(text) if text else NO_PROMPT)
                for text in negatives
            ]

        # Before the first batch is drawn, not after it.
        self.model.texts(encoded, prefix, grid=grid, negative=avoided, guided=scale > 1)

        def sample(batch: slice, on_step: Callable[[StepResult], None]) -> torch.Tensor:
            return self.model.sample(
                encoded[batch],
                prefix,
                grid=grid,
                negative=avoided[batch],
                steps=count_of_steps,
                cfg_scale=scale,
                seeds=seeds[batch],
                sample_ids=ids[batch],
                on_step=on_step,
            )

        made = generate_batches(
            self,
            sample,
            count=count,
            ar_steps=grid[0] * grid[1] // self.config.parallel_num,
            batch_size=batch_size,
            callback=callback_on_step_end,
            progress=progress,
        )
        none = torch.empty((0, *self._latent_shape(grid)), dtype=torch.uint8, device="cpu")
        packed = torch.cat(made) if made else none
        if output_type == "latent":
            return packed
        return self.decode(
            packed,
            height=height,
            width=width,
            seed=seeds,
            sample_ids=ids,
            batch_size=batch_size,
            output_type=output_type,
        )

    def _latent_shape(self, grid: tuple[int, int]) -> tuple[int, int]:
        return grid[0] * grid[1], -(-self.config.autoencoder.z_channels // 8)

    def decode(
        self,
        packed: torch.Tensor,
        *,
        height: int = 1024,
        width: int = 1024,
        seed: int | Sequence[int] = 0,
        sample_ids: Sequence[int] | None = None,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
    ) -> Any:
        """Pictures of packed tokens, as ``generate`` gives them with output_type="latent".

        Args:
            packed: uint8 [n, tokens, C / 8] in generation order.
            height: in pixels.
            width: in pixels.
            seed: as for ``generate``; of a decoder that takes noise.
            sample_ids: as for ``generate``.
            batch_size: pictures at a time; by default all.
            output_type: as for ``generate``.

        Raises:
            NotFiniteError: the decoder computes NaN or infinity; it names the pictures.
            TypeError: `packed` is no tensor.
            ValueError: `packed` is of another dtype, or not of images of that size.
        """
        grid = self.grid(height, width)
        check_latents(packed, self._latent_shape(grid))
        check_output_type("decode", output_type, ("pil", "np", "pt"))
        config = self.config.autoencoder
        images = decode_latents(
            self.model.ae,
            packed,
            lambda tokens: self.model.to_codes(tokens[..., : config.z_channels], grid),
            seed=seed,
            sample_ids=sample_ids,
            ar_steps=grid[0] * grid[1] // self.config.parallel_num,
            batch_size=batch_size,
        )
        if not images:
            images = [
                torch.empty((0, config.out_ch, height, width), dtype=torch.uint8, device="cpu")
            ]
        return to_output(torch.cat(images), output_type)


def _texts(name: str, given: str | Sequence[str]) -> list[str]:
    """One text or several as a list."""
    texts: list[Any] = [given] if is_one(given) else listed("generate", name, given)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"generate: {name} must be text, one or several, got {shown(text)}")
    return texts
