"""A run's configuration: one TOML file, read strictly and saved with the run."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from bitdance.config import AutoencoderConfig, ModelConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DataConfig", "LossConfig", "OptimConfig", "RunConfig", "dump_toml", "read_config"]

Section = TypeVar("Section")


def _require(section: object, name: str, fulfilled: bool, expected: str) -> None:
    if not fulfilled:
        got = getattr(section, name)
        raise ValueError(f"{type(section).__name__}: {name} must be {expected}, got {got!r}")


@dataclass(frozen=True)
class DataConfig:
    """What a run sees.

    Args:
        path: a folder of images (a sub-folder a class), of IDX files, or of packed codes.
        size: pixels a side of the square that images are padded (IDX) or resized to.
        flip: mirror images at random.
        shift: move images by up to so many pixels at random; what comes in repeats the edge.
        classes: names, for data without any.
    """

    path: str
    size: int
    flip: bool = False
    shift: int = 0
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        _require(self, "size", self.size >= 1, "at least 1")
        _require(self, "shift", 0 <= self.shift < self.size, "0 or more, and less than size")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the tokenizer's loss terms.

    Args:
        l1: mean absolute error of the pixels.
        l2: mean squared error of the pixels.
        entropy: of the group-wise entropy term, see ``BinaryQuantizer``.
        sample_entropy: of the per-sample entropy within that term.
        codebook_entropy: of the codebook entropy within that term.
        temperature: of the entropies' softmax.
        per_group: codebook entropy of every group by itself, so that no channel stays constant.
        commitment: squared distance of the features to their codes.
        extra: further terms, "module:function" to weight; each is called with images and
            reconstructions [B, 3, H, W] in [-1, 1] and returns a scalar (perceptual, adversarial).
            One with ``state_dict`` and ``load_state_dict`` is saved with every checkpoint.
    """

    l1: float = 0.0
    l2: float = 1.0
    entropy: float = 0.02
    sample_entropy: float = 1.0
    codebook_entropy: float = 1.0
    temperature: float = 0.01
    per_group: bool = False
    commitment: float = 0.05
    extra: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self, "temperature", self.temperature > 0, "greater than 0")


@dataclass(frozen=True)
class OptimConfig:
    """How a run optimises; steps are optimizer steps.

    Args:
        steps: of the whole run.
        batch_size: images a step.
        accumulate: parts that a batch is computed in, one after the other.
        lr: peak learning rate of AdamW.
        lr_end: at the end of the cosine.
        warmup: steps of linear warm-up.
        betas: of AdamW.
        weight_decay: of matrices and convolutions; vectors have none, nor the parts that the task
            names.
        grad_clip: largest norm of the gradient.
        ema_decay: of the averaged weights, approached as (1 + step) / (10 + step).
        autocast: "off", "bfloat16", or "auto": bfloat16 on CUDA, off on the CPU.
        seed: of everything random: initial weights, order, augmentation, noise.
        log_every: steps that a line of the log averages over.
        save_every: steps between checkpoints.
        picture_every: steps between pictures.
        keep: newest checkpoints kept.
    """

    steps: int
    batch_size: int = 64
    accumulate: int = 1
    lr: float = 6e-4
    lr_end: float = 1e-5
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    grad_clip: float = 1.0
    ema_decay: float = 0.9999
    autocast: Literal["auto", "off", "bfloat16"] = "auto"
    seed: int = 0
    log_every: int = 20
    save_every: int = 200
    picture_every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in (
            "steps", "batch_size", "accumulate", "log_every", "save_every", "picture_every", "keep",
        ):  # fmt: skip
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        parts = self.batch_size % self.accumulate == 0
        _require(self, "accumulate", parts, f"a divisor of batch_size = {self.batch_size}")
        _require(self, "lr", self.lr > 0, "greater than 0")
        _require(self, "lr_end", 0 <= self.lr_end <= self.lr, "0 to lr")
        _require(self, "warmup", 0 <= self.warmup < self.steps, "0 or more, and less than steps")
        betas = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(self, "betas", betas, "two numbers in [0, 1)")
        _require(self, "weight_decay", self.weight_decay >= 0, "0 or more")
        _require(self, "grad_clip", self.grad_clip > 0, "greater than 0")
        _require(self, "ema_decay", 0 <= self.ema_decay < 1, "in [0, 1)")
        _require(self, "autocast", self.autocast in ("auto", "off", "bfloat16"), "auto, off, ...")
        _require(self, "seed", 0 <= self.seed < 2**64, "0 to 2^64 - 1")

    def learning_rate(self, step: int) -> float:
        """Of step `step` (from 0): linear warm-up, then a cosine down to `lr_end`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / (self.steps - self.warmup)
        return self.lr_end + (self.lr - self.lr_end) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run; one section of the TOML file each.

    Args:
        data: see ``DataConfig``.
        optim: see ``OptimConfig``.
        tokenizer: the autoencoder that is trained; None when a model is.
        loss: of the autoencoder.
        model: what ``ModelConfig`` is made of, but for the tokenizer, which comes with its file;
            None when a tokenizer is trained.
        tokenizer_path: folder of the trained tokenizer, for a model.
        sample_steps: denoising steps of a model's sample pictures, saved with it as its default.
    """

    data: DataConfig
    optim: OptimConfig
    tokenizer: AutoencoderConfig | None = None
    loss: LossConfig = LossConfig()
    model: Mapping[str, Any] | None = None
    tokenizer_path: str = ""
    sample_steps: int = 20

    def __post_init__(self) -> None:
        if (self.tokenizer is None) == (self.model is None):
            raise ValueError("a configuration must have either [tokenizer] or [model]")

    def model_config(self, autoencoder: AutoencoderConfig) -> ModelConfig:
        """The model's configuration with a given tokenizer.

        Raises:
            ValueError: they do not fit.
        """
        assert self.model is not None
        shape = {
            "latent_dim": autoencoder.z_channels,
            "down_size": autoencoder.downsampling,
            "resolution": self.data.size,
            "autoencoder": autoencoder.to_dict(),
        }
        return ModelConfig.from_dict({**self.model, **shape})

    def to_dict(self) -> dict[str, Any]:
        """As TOML can hold it; ``from_dict`` is the inverse."""
        content: dict[str, Any] = {}
        if self.model is not None:
            content |= {"tokenizer_path": self.tokenizer_path, "sample_steps": self.sample_steps}
        content |= {
            "data": dataclasses.asdict(self.data),
            "optim": dataclasses.asdict(self.optim),
        }
        if self.tokenizer is not None:
            content |= {"tokenizer": self.tokenizer.to_dict(), "loss": _plain(self.loss)}
        if self.model is not None:
            content["model"] = dict(self.model)
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunConfig:
        """Build a configuration from nested dicts.

        Raises:
            ValueError: an unknown or missing key, or a value out of range or of the wrong type.
        """
        content = dict(content)
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(content) - known)
        if unknown:
            raise ValueError(
                f"unknown keys {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        values: dict[str, Any] = {k: content[k] for k in content if k not in _SECTIONS}
        for name, kind in _SECTIONS.items():
            if name in content:
                values[name] = _section(kind, name, content[name])
        if "tokenizer" in content:
            values["tokenizer"] = AutoencoderConfig.from_dict(content["tokenizer"])
        missing = [name for name in ("data", "optim") if name not in values]
        if missing:
            raise ValueError(f"missing section [{missing[0]}]")
        return cls(**values)


_SECTIONS: dict[str, type] = {"data": DataConfig, "optim": OptimConfig, "loss": LossConfig}


def _section(kind: type[Section], name: str, values: Any) -> Section:
    fields = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise ValueError(f"[{name}] must be a section, got {values!r}")
    unknown = sorted(set(values) - fields)
    if unknown:
        raise ValueError(f"[{name}] has unknown keys {', '.join(unknown)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"[{name}]: {error}") from error


def _plain(loss: LossConfig) -> dict[str, Any]:
    return {**dataclasses.asdict(loss), "extra": dict(loss.extra)}


def read_config(path: Path, changes: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file.

    Args:
        path: the file.
        changes: "section.key=value" each, with a TOML value (or a bare word as a string), which
            replace what the file says.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML, or not a run's configuration.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        for change in changes:
            _apply(content, change)
        return RunConfig.from_dict(content)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _apply(content: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"a change must be section.key=value, got {change!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, key = name.strip().split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise ValueError(f"a change must be section.key=value, got {change!r}")
    content[key] = value


def dump_toml(content: Mapping[str, Any], prefix: str = "") -> str:
    """Nested dicts of numbers, strings, booleans and lists as TOML."""
    plain = {k: v for k, v in content.items() if not isinstance(v, Mapping)}
    lines = [f"{_key(k)} = {_value(v)}" for k, v in plain.items()]
    for name, section in content.items():
        if isinstance(section, Mapping) and section:
            full = f"{prefix}{_key(name)}"
            lines += ["", f"[{full}]", dump_toml(section, f"{full}.").strip()]
    return "\n".join(lines).strip() + "\n"


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(v) for v in value)}]"
    raise TypeError(f"TOML cannot hold {type(value).__name__}")
