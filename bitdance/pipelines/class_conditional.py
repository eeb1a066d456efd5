"""From a checkpoint to pictures: ``BitDance.from_pretrained(...).generate(labels)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch

from bitdance.io.validation import exact_int, finite_number, is_one, listed, shown
from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import ModelConfig
from bitdance.models.loading.hub import locate
from bitdance.models.loading.model_folder import MOST_STEPS, write_folder
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
from bitdance.pipelines.class_conditional_files import load_file, load_folder
from bitdance.sampling.ar_sampler import StepResult


class BitDance(Interruptible):
    """A class-conditional BitDance model with its tokenizer.

    Any number of threads may use one object at a time, and a callback may generate with it too:
    each call has memory of its own, and every picture has the bits that it has alone.

    Attributes:
        model: the network, a ``torch.nn.Module`` with the official parameter names.
        config: its configuration.
        classes: names of the classes, "" where a class has none.
        steps: denoising steps per patch that ``generate`` takes by default.
    """

    def __init__(
        self, model: BitDanceModel, classes: Sequence[str] | None = None, *, steps: int = 100
    ) -> None:
        super().__init__()
        self.model = model.eval()
        # The layout that decoding works in; of the parameters' memory alone, nothing else changes.
        model.vae.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config = model.config
        self.steps = exact_int("BitDance", "steps", steps, 1, MOST_STEPS)
        self.classes = tuple(classes) if classes is not None else _class_names(model.config)
        if len(self.classes) != self.config.num_classes:
            raise ValueError(
                f"BitDance: classes must be {self.config.num_classes} names, got "
                f"{len(self.classes)}"
            )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        tokenizer: str | Path | None = None,
        config: ModelConfig | str | Path | None = None,
        prefer: str = "ema",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> BitDance:
        """Load a model; either all of it is loaded or nothing.

        Args:
            source: "fashion", the small model of bitdance-models; a folder written by
                ``save_pretrained``; an official checkpoint (``.pt``) or a ``.safetensors`` file;
                or the id "owner/name" of a Hugging Face repository that holds such a folder (needs
                ``pip install bitdance[hub]``).
            tokenizer: the tokenizer's own file, where `source` is a file without its weights (or
                with others).
            config: of a file that does not say what it is: a ``ModelConfig``, the name of a preset,
                or a ``.json`` or ``.toml`` file with fields of a ``ModelConfig``, of which shapes
                fill in the rest. An official ``.pt`` has its training arguments, and a file
                "<name>_config.json" beside the weights is read; what contradicts them is an error.
                Where nobody says anything, the shapes must be those of a preset.
            prefer: "ema" or "model", for files that hold both.
            dtype: of the parameters.
            device: where to put the model.
            revision: of a Hugging Face repository.
            local_files_only: take only what was downloaded before.

        Raises:
            FileNotFoundError: there is no such file, folder or repository.
            CheckpointError: the files are damaged, hold code, or do not fit; nothing is loaded.
            ValueError: an argument is out of range.
        """
        if prefer not in ("ema", "model"):
            raise ValueError(f"from_pretrained: prefer must be 'ema' or 'model', got {prefer!r}")
        path = locate(source, revision=revision, local_files_only=local_files_only)
        if path.is_dir():
            for name, value in (("tokenizer", tokenizer), ("config", config)):
                if value is not None:
                    raise ValueError(
                        f"from_pretrained: {name} must be left out where source is a folder, which "
                        f"has its own, got {shown(value)}"
                    )
            model, extra = load_folder(path, dtype)
        else:
            own = None if tokenizer is None else Path(tokenizer)
            model, extra = load_file(path, dtype, tokenizer=own, config=config, prefer=prefer)
        return cls(model.to(device), **extra)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and the weights (safetensors) into `folder`.

        The weights' file is named after its checksum and the configuration that points to it is
        replaced last, so an interrupted save leaves the earlier model loadable. Any number of
        processes may save at once. Only what this library wrote is replaced or removed.

        Raises:
            FileExistsError: the folder holds the configuration of something else; nothing is
                written.
            OSError: the folder cannot be written or the disk is full; what was there is unchanged.
            ValueError: a weight is not finite.
        """
        state = self.model.state_dict()
        write_folder(Path(folder), state, self.config, self.classes, self.steps)

    def label(self, name: str | int) -> int:
        """Number of a class given by name or number.

        Raises:
            TypeError: `name` is neither text nor an integer.
            ValueError: there is no such class.
        """
        count = self.config.num_classes
        if isinstance(name, str):
            text = name.strip().lower()
            lower = [c.lower() for c in self.classes]
            if text and text in lower:  # a name may look like a number
                return lower.index(text)
            near = [c for c in self.classes if text and text in c.lower()][:5]
            digits = text.removeprefix("-")
            number = int(text) if digits.isdecimal() and len(digits) < 20 else None
        else:
            number, near = exact_int("label", "class", name), []
        if number is None or not 0 <= number < count:
            hint = f"; perhaps {', '.join(near)}?" if near else ""
            raise ValueError(
                f"label: class must be 0 to {count - 1} or a name, got {shown(name)}{hint}"
            )
        return number

    def generate(
        self,
        labels: int | str | Sequence[int | str] | torch.Tensor,
        *,
        seed: int | Sequence[int] = 0,
        sample_ids: Sequence[int] | None = None,
        steps: int | None = None,
        cfg_scale: float | None = None,
        cfg_schedule: Literal["linear", "constant"] = "linear",
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
        progress: bool = True,
        mode: Literal["fast", "plain"] = "fast",
    ) -> Any:
        """Generate one picture per label.

        Picture i depends on its label, its seed and its sample id and on nothing else: its noise is
        bit for bit the same alone and in any batch, the picture the same within rounding.

        Args:
            labels: class numbers or names, or a single one.
            seed: one 64-bit seed for all pictures, or one per picture.
            sample_ids: tells pictures of one seed apart; by default 0, 1, 2, ... with one seed, and
                0 for every picture with a seed of its own.
            steps: denoising steps per patch, before the final one; by default those saved with
                the model, else 100.
            cfg_scale: guidance; 1 or less is none. By default the model's published scale.
            cfg_schedule: "linear" grows with the AR step as in the published sampler.
            batch_size: pictures at a time; by default all.
            output_type: "pil": a list of images; "np": uint8 [n, H, W, 3]; "pt": uint8
                [n, 3, H, W]; "latent": packed bits uint8 [n, tokens, C / 8] in generation order.
            callback_on_step_end: called as f(self, AR step, AR steps, {"packed": the step's bits,
                uint8 [rows, P, C / 8], conditional rows first}); stops the run by returning False.
            progress: show a progress bar.
            mode: "plain" runs reference ops and the head as published, for comparison.

        Raises:
            TypeError: an argument is of another kind; nothing is computed.
            ValueError: an argument is out of range; nothing is computed.
            NotFiniteError: the model computes NaN or infinity; it names the pictures.
            GenerationCancelled: a callback returned False, or ``interrupt`` was set.
        """
        given: list[Any] = [labels] if is_one(labels) else listed("generate", "labels", labels)
        numbers = [self.label(label) for label in given]
        count = len(numbers)
        seeds, ids = image_seeds("generate", seed, sample_ids, count)
        check_output_type("generate", output_type)
        count_of_steps = exact_int("generate", "steps", self.steps if steps is None else steps, 1)
        scale = self.config.cfg_scale if cfg_scale is None else cfg_scale
        scale = finite_number("generate", "cfg_scale", scale)
        if cfg_schedule not in ("linear", "constant"):
            raise ValueError(
                f"generate: cfg_schedule must be 'linear' or 'constant', got {cfg_schedule!r}"
            )
        if mode not in ("fast", "plain"):
            raise ValueError(f"generate: mode must be 'fast' or 'plain', got {mode!r}")

        def sample(batch: slice, on_step: Callable[[StepResult], None]) -> torch.Tensor:
            return self.model.sample(
                torch.tensor(numbers[batch], dtype=torch.int64, device=self.device),
                steps=count_of_steps,
                cfg_scale=scale,
                cfg_schedule=cfg_schedule,
                seeds=seeds[batch],
                sample_ids=ids[batch],
                on_step=on_step,
                mode=mode,
            )

        made = generate_batches(
            self,
            sample,
            count=count,
            ar_steps=self.config.ar_steps,
            batch_size=batch_size,
            callback=callback_on_step_end,
            progress=progress,
        )
        none = torch.empty((0, *self._latent_shape), dtype=torch.uint8, device="cpu")
        packed = torch.cat(made) if made else none
        if output_type == "latent":
            return packed
        return self.decode(
            packed, seed=seeds, sample_ids=ids, batch_size=batch_size, output_type=output_type
        )

    @property
    def _latent_shape(self) -> tuple[int, int]:
        return self.config.tokens, -(-self.config.token_bits // 8)

    def decode(
        self,
        packed: torch.Tensor,
        *,
        seed: int | Sequence[int] = 0,
        sample_ids: Sequence[int] | None = None,
        batch_size: int | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
    ) -> Any:
        """Pictures of packed tokens, as ``generate`` gives them with output_type="latent".

        Args:
            packed: uint8 [n, tokens, C / 8] in generation order.
            seed: as for ``generate``; of a decoder that takes noise.
            sample_ids: as for ``generate``.
            batch_size: pictures at a time; by default all.
            output_type: as for ``generate``.

        Raises:
            NotFiniteError: the decoder computes NaN or infinity; it names the pictures.
            TypeError: `packed` is no tensor.
            ValueError: `packed` is of another dtype or shape.
        """
        check_latents(packed, self._latent_shape)
        check_output_type("decode", output_type, ("pil", "np", "pt"))
        pixels = decode_latents(
            self.model.vae,
            packed,
            lambda tokens: self.model.to_codes(tokens[..., : self.config.token_bits]),
            seed=seed,
            sample_ids=sample_ids,
            ar_steps=self.config.ar_steps,
            batch_size=batch_size,
        )
        side = self.config.resolution
        none = torch.empty((0, 3, side, side), dtype=torch.uint8, device="cpu")
        images = torch.cat(pixels) if pixels else none
        return to_output(images, output_type)


def _class_names(config: ModelConfig) -> tuple[str, ...]:
    if config.num_classes != 1000:
        return ("",) * config.num_classes
    text = resources.files("bitdance.pipelines").joinpath("imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())
