"""From a released folder to pictures: ``TextToImage.from_pretrained(...).generate(prompts)``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitdance import weights
from bitdance.batches import (
    Callback,
    OutputType,
    check_output_type,
    generate_batches,
    image_seeds,
    to_output,
)
from bitdance.generation import StepResult
from bitdance.prompts import NO_PROMPT, PROMPT, Words, image_prefix
from bitdance.text_to_image import TextToImageModel
from bitdance.text_to_image_config import TextToImageConfig
from bitdance_kernels import unpack_signs

__all__ = ["TextToImage"]


class TextToImage:
    """A text-to-image model with its tokenizers: one of images, in the model, and one of texts.

    Args:
        model: the network.
        words: tokenizer of texts, for example what ``transformers.AutoTokenizer`` loads.

    Attributes:
        model: the network, a ``torch.nn.Module`` with the official parameter names.
        config: its configuration.
        words: see above.
        interrupt: set to True, from a callback or another thread, to stop ``generate``.
    """

    def __init__(self, model: TextToImageModel, words: Words) -> None:
        self.model, self.words = model.eval(), words
        self.config = model.config
        self.interrupt = False

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
        folder = Path(folder)
        config = _read_config(folder)
        with torch.device("meta"):
            model = TextToImageModel(config).to(dtype)
        parts: Mapping[str, tuple[nn.Module, Callable[[], weights.Tensors]]] = {
            "language model": (model.llm_model, lambda: _read_language_model(folder, config)),
            "vision_head.safetensors": (model.vision_head, lambda: _read(folder, "vision_head")),
            "ae.safetensors": (model.ae, lambda: _read(folder, "ae")),
            "projector.safetensors": (model.embed_vision_mlp, lambda: _read(folder, "projector")),
        }
        for name, (part, read) in parts.items():  # one at a time, so that there is memory for it
            weights.load_weights(part, read(), f"{folder}: {name}")
            part.to(device)
        return cls(model, words)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens of an image of that many pixels, vertically and horizontally.

        Raises:
            ValueError: it is not made of whole patches.
        """
        factor = self.config.autoencoder.downsampling
        side = factor * math.isqrt(self.config.parallel_num)
        for name, pixels in (("height", height), ("width", width)):
            if pixels < side or pixels % side:
                raise ValueError(f"{name} must be a multiple of {side} pixels, got {pixels}")
        return height // factor, width // factor

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
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
            ValueError: an argument is out of range, or the tokenizer does not know images of that
                size; nothing is computed.
            GenerationCancelled: a callback returned False, or ``interrupt`` was set.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        grid, count = self.grid(height, width), len(texts)
        seeds, ids = image_seeds(seed, sample_ids, count)
        check_output_type(output_type)
        prefix = image_prefix(self.words, grid, self.config.parallel_num)
        encoded = [self.words.encode(PROMPT.format(text)) for text in texts]
        negative = self.words.encode(NO_PROMPT)

        def sample(batch: slice, on_step: Callable[[StepResult], None]) -> torch.Tensor:
            return self.model.sample(
                encoded[batch],
                prefix,
                grid=grid,
                negative=negative,
                steps=steps,
                cfg_scale=cfg_scale,
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
            packed, height=height, width=width, batch_size=batch_size, output_type=output_type
        )

    def _latent_shape(self, grid: tuple[int, int]) -> tuple[int, int]:
        return grid[0] * grid[1], -(-self.config.autoencoder.z_channels // 8)

    def decode(
        self,
        packed: torch.Tensor,
        *,
        height: int = 1024,
        width: int = 1024,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
    ) -> Any:
        """Pictures of packed tokens, as ``generate`` gives them with output_type="latent".

        Args:
            packed: uint8 [n, tokens, C / 8] in generation order.
            height: in pixels.
            width: in pixels.
            batch_size: pictures at a time; by default all.
            output_type: as for ``generate``.

        Raises:
            ValueError: `packed` is of another dtype, or not of images of that size.
        """
        grid = self.grid(height, width)
        expected = self._latent_shape(grid)
        if packed.dtype != torch.uint8 or packed.shape[1:] != expected:
            raise ValueError(
                f"decode: packed must be uint8 {['n', *expected]}, got {packed.dtype} "
                f"{list(packed.shape)}"
            )
        device, config = self.model.ae.decoder.conv_in.weight.device, self.config.autoencoder
        none = (0, config.out_ch, height, width)
        images = [torch.empty(none, dtype=torch.uint8, device="cpu")]
        with torch.no_grad():
            for part in packed.to(device).split(batch_size or max(len(packed), 1)):
                if len(part):
                    tokens = unpack_signs(part)[..., : config.z_channels]
                    codes = self.model.to_codes(tokens, grid)
                    images.append(self.model.ae.decode_pixels(codes).cpu())
        return to_output(torch.cat(images), output_type)


def _read_config(folder: Path) -> TextToImageConfig:
    names = ("config.json", "vision_head_config.json", "ae_config.json")
    files = [weights.read_json(folder / name) for name in names]
    try:
        return TextToImageConfig.from_dicts(*files)
    except (TypeError, ValueError) as error:
        raise weights.CheckpointError(f"{folder}: {error}") from error


def _read(folder: Path, name: str) -> weights.Tensors:
    return weights.read_weights(folder / f"{name}.safetensors")


def _read_language_model(folder: Path, config: TextToImageConfig) -> weights.Tensors:
    """All tensors, from one file or from the parts that an index names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        tensors = _read(folder, "model")
    else:
        names = weights.read_json(index).get("weight_map")
        files = sorted(set(names.values())) if isinstance(names, dict) else []
        if not files or any(Path(str(name)).name != name for name in files):
            raise weights.CheckpointError(f"{index} must map tensors to files beside it")
        tensors = {}
        for name in files:
            tensors |= weights.read_weights(folder / name)
    if config.llm.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)  # the input's once more
    return tensors
