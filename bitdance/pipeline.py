"""From a checkpoint to pictures: ``BitDance.from_pretrained(...).generate(labels)``."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch

from bitdance import weights
from bitdance.batches import (
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
from bitdance.config import PRESETS, ModelConfig
from bitdance.generation import StepResult
from bitdance.model import BitDanceModel
from bitdance.numbers import exact_int, finite_number, is_one, listed, shown

FORMAT = "bitdance-1"
BUNDLED = ("fashion",)
"""Models that come with the library, in ``assets``."""


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
        self.steps = steps
        self.classes = tuple(classes) if classes is not None else _class_names(model.config)

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
        config: ModelConfig | str | None = None,
        prefer: str = "ema",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> BitDance:
        """Load a model; either all of it is loaded or nothing.

        Args:
            source: "fashion", the small model that comes with the library; a folder written by
                ``save_pretrained``; an official checkpoint (``.pt``) or a ``.safetensors`` file;
                or the id "owner/name" of a Hugging Face repository that holds such a folder (needs
                ``pip install bitdance[hub]``).
            tokenizer: the tokenizer's own file, where `source` is a file without its weights (or
                with others).
            config: of a file: a ``ModelConfig`` or the name of a preset. By default the preset that
                the shapes in the file belong to.
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
        path = Path(source)
        if not path.exists() and str(source) in BUNDLED:
            path = Path(str(resources.files("bitdance").joinpath("assets", str(source))))
        elif not path.exists():
            path = _download(str(source), revision, local_files_only)
        if path.is_dir():
            model_config, tensors, extra = _read_folder(path)
        else:
            tensors = weights.read_weights(path, prefer=prefer)
            if tokenizer is not None:
                _, tensors = weights.split_prefix(tensors, "vae.")
                tensors |= _read_tokenizer(Path(tokenizer))
            model_config, extra = _find_config(tensors, config, path), {}
        with torch.device("meta"):
            model = BitDanceModel(model_config).to(dtype)
        weights.load_weights(model, tensors, str(path))
        return cls(model.to(device), **extra)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and the weights (safetensors) into `folder`.

        The weights' file is named after its checksum and the configuration that points to it is
        replaced last, so an interrupted save leaves the earlier model loadable.

        Raises:
            OSError: the folder cannot be written or the disk is full; what was there is unchanged.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / "model.new.safetensors"
        weights.write_tensors(fresh, self.model.state_dict())
        digest = weights.sha256(fresh)
        file = folder / f"model-{digest[:12]}.safetensors"
        fresh.replace(file)
        content = {
            "format": FORMAT,
            "weights": {"file": file.name, "sha256": digest},
            "model": self.config.to_dict(),
            "classes": list(self.classes),
            "steps": self.steps,
        }
        weights.write_text(folder / "config.json", json.dumps(content, indent=2) + "\n")
        for old in folder.glob("model-*.safetensors"):
            if old != file:
                old.unlink()

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


def _read_folder(folder: Path) -> tuple[ModelConfig, weights.Tensors, dict[str, Any]]:
    """Configuration, weights, and classes and steps of a folder that ``save_pretrained`` wrote."""
    path = folder / "config.json"
    if not path.is_file():
        raise weights.CheckpointError(
            f"{folder} has no config.json: it was not written by save_pretrained; for an official "
            "checkpoint give the .pt file itself"
        )
    content = weights.read_json(path)
    if content.get("format") != FORMAT:
        raise weights.CheckpointError(
            f"{path}: format must be {FORMAT!r}, got {content.get('format')!r}"
        )
    try:
        config = ModelConfig.from_dict(content["model"])
        name, digest = str(content["weights"]["file"]), content["weights"]["sha256"]
        extra: dict[str, Any] = {"steps": int(content.get("steps", 100))}
    except (KeyError, TypeError, ValueError) as error:
        raise weights.CheckpointError(f"{path} is damaged: {error!r}") from error
    file = folder / name
    if Path(name).name != name or not file.is_file():
        raise weights.CheckpointError(f"{path}: there is no file {name!r} beside it")
    if weights.sha256(file) != digest:
        raise weights.CheckpointError(f"{file} is altered: its checksum is not the one in {path}")
    if content.get("classes"):
        extra["classes"] = tuple(map(str, content["classes"]))
    return config, weights.read_weights(file), extra


def _read_tokenizer(path: Path) -> weights.Tensors:
    """A tokenizer's weights under the names they have inside the model.

    A tokenizer checkpoint also carries what only its training needs (discriminator, perceptual
    loss); that is left out. Whether all that is needed is there is checked with the rest.
    """
    tensors = weights.read_weights(path)
    wanted = ("encoder.", "decoder.")
    return {f"vae.{name}": t for name, t in tensors.items() if name.startswith(wanted)}


def _find_config(
    tensors: weights.Tensors, config: ModelConfig | str | None, path: Path
) -> ModelConfig:
    """The configuration given, or the preset whose shapes are those of `tensors`."""
    if isinstance(config, ModelConfig):
        return config
    if config is not None:
        if config not in PRESETS:
            raise ValueError(f"config must be one of {', '.join(PRESETS)}, got {config!r}")
        return PRESETS[config]
    shapes = {name: tuple(t.shape) for name, t in tensors.items() if not name.startswith("vae.")}
    for preset in PRESETS.values():
        if shapes == _shapes(preset):
            return preset
    nearest = max(PRESETS, key=lambda name: len(shapes.items() & _shapes(PRESETS[name]).items()))
    raise weights.CheckpointError(
        f"{path} has the shapes of no preset ({', '.join(PRESETS)}; nearest: {nearest}); "
        "give config=..."
    )


@functools.lru_cache
def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's state without its tokenizer."""
    with torch.device("meta"):
        state = BitDanceModel(config).state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if not name.startswith("vae.")}


def _class_names(config: ModelConfig) -> tuple[str, ...]:
    if config.num_classes != 1000:
        return ("",) * config.num_classes
    text = resources.files("bitdance").joinpath("assets/imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())


def _download(source: str, revision: str | None, local_files_only: bool) -> Path:
    """A Hugging Face repository's folder on this disk."""
    parts = source.split("/")
    if len(parts) != 2 or not all(parts) or source.startswith((".", "~")):
        raise FileNotFoundError(
            f"{source!r} is no file, no folder and no repository id of the form owner/name"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f"{source!r} is no file or folder here; to look for it on the Hugging Face hub, "
            "pip install 'bitdance[hub]'"
        ) from error
    try:
        folder = snapshot_download(
            source,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=["config.json", "*.safetensors"],
        )
    except Exception as error:  # the hub client has many kinds, all of which mean: not to be had
        where = "among the files downloaded before" if local_files_only else "on the hub"
        raise FileNotFoundError(f"{source!r} was not found {where}: {error}") from error
    return Path(folder)
