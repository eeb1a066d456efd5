"""A run's configuration: one TOML file, read strictly and saved with the run."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BeforeValidator, Field

from bitdance.data.images import OnError
from bitdance.io.image_files import parse_color
from bitdance.io.settings import (
    Count,
    Flag,
    Integer,
    Listed,
    Location,
    NotNegative,
    Number,
    Positive,
    Size,
    Text,
    invalid,
    parse,
    settings,
)
from bitdance.io.validation import shown
from bitdance.models.config import AutoencoderConfig, ModelConfig, ModelShape

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DataConfig", "LossConfig", "OptimConfig", "RunConfig", "read_config"]


def _function_name(name: object) -> object:
    module, colon, function = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not (module and colon and function.isidentifier()):
        raise ValueError(f"must be named module:function, got {shown(name)}")
    return name


BelowOne = Annotated[Number, Field(ge=0, lt=1)]
FunctionName = Annotated[str, BeforeValidator(_function_name)]


@settings
class DataConfig:
    """What a run sees.

    Args:
        path: a folder of images (a sub-folder a class), of IDX files, or of packed codes.
        size: pixels a side of the square that images are padded (IDX) or resized to.
        flip: mirror images at random.
        shift: move images by up to so many pixels at random; what comes in repeats the edge.
        classes: names for IDX files; of image files, the class folders to take and their order.
        background: color behind transparent pixels of image files.
        on_error: "raise" where an image file cannot be read, "check" all before the first step, or
            "skip" those that cannot be read.
    """

    path: Annotated[Location, Field(min_length=1)]
    size: Annotated[Size, Field(le=2**16)]
    flip: Flag = False
    shift: Annotated[Integer, Field(ge=0)] = 0
    classes: Annotated[tuple[Text, ...], Listed] = ()
    background: Text = "white"
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        try:
            parse_color(self.background)
        except ValueError:
            raise invalid(self, "background", "an opaque color such as 'white'") from None
        if self.shift >= self.size:
            raise invalid(self, "shift", f"less than size = {self.size}")


@settings
class LossConfig:
    """Weights of the autoencoder's loss terms.

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

    l1: NotNegative = 0.0
    l2: NotNegative = 1.0
    entropy: NotNegative = 0.02
    sample_entropy: NotNegative = 1.0
    codebook_entropy: NotNegative = 1.0
    temperature: Positive = 0.01
    per_group: Flag = False
    commitment: NotNegative = 0.05
    extra: dict[FunctionName, Number] = dataclasses.field(default_factory=dict)


@settings
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

    steps: Annotated[Integer, Field(ge=1, le=99_999_999)]  # names of files have eight digits
    batch_size: Size = 64
    accumulate: Size = 1
    lr: Positive = 6e-4
    lr_end: NotNegative = 1e-5
    warmup: Annotated[Integer, Field(ge=0)] = 100
    betas: Annotated[tuple[BelowOne, BelowOne], Listed] = (0.9, 0.95)
    weight_decay: NotNegative = 0.05
    grad_clip: Positive = 1.0
    ema_decay: BelowOne = 0.9999
    autocast: Literal["auto", "off", "bfloat16"] = "auto"
    seed: Annotated[Integer, Field(ge=0, le=2**64 - 1)] = 0
    log_every: Count = 20
    save_every: Count = 200
    picture_every: Count = 500
    keep: Count = 2

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulate != 0:
            raise invalid(self, "accumulate", f"a divisor of batch_size = {self.batch_size}")
        if self.lr_end > self.lr:
            raise invalid(self, "lr_end", f"at most lr = {self.lr:g}")
        if self.warmup >= self.steps:
            raise invalid(self, "warmup", f"less than steps = {self.steps}")

    def learning_rate(self, step: int) -> float:
        """Of step `step` (from 0): linear warm-up, then a cosine down to `lr_end`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / (self.steps - self.warmup)
        return self.lr_end + (self.lr - self.lr_end) * 0.5 * (1 + math.cos(math.pi * done))


@settings
class RunConfig:
    """Everything that decides a run; one section of the TOML file each.

    Args:
        data: see ``DataConfig``.
        optim: see ``OptimConfig``.
        autoencoder: the autoencoder that is trained; None when a model is.
        loss: of the autoencoder.
        model: what of ``ModelConfig`` does not follow from autoencoder and data; None when
            an autoencoder is trained.
        autoencoder_path: folder of the trained autoencoder, for a model.
        sample_steps: denoising steps of a model's sample pictures, saved with it as its default.
        init: a checkpoint whose weights the run begins with: a run's folder, what it exported, or
            an official file. By default weights are drawn.

    Raises:
        ValueError: a value of the wrong type or out of range, values that do not fit each other, or
            one that this kind of run does not use.
    """

    data: DataConfig
    optim: OptimConfig
    autoencoder: AutoencoderConfig | None = None
    loss: LossConfig = LossConfig()
    model: ModelShape | None = None
    autoencoder_path: Location = ""
    sample_steps: Size = 20
    init: Location = ""

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value != _default(self, name)}
        if self.model is not None:
            shape = vars(self.model).items()
            given["model"] = {k: v for k, v in shape if v != _default(self.model, k)}
        _refuse_unused(given)
        if self.model is not None and not self.autoencoder_path:
            raise invalid(self, "autoencoder_path", "the folder of a trained autoencoder")
        if self.autoencoder is not None and self.data.size % self.autoencoder.downsampling != 0:
            expected = (
                f"a multiple of the autoencoder's {self.autoencoder.downsampling} pixels a code"
            )
            raise invalid(self, "data.size", expected)

    def model_config(self, autoencoder: AutoencoderConfig) -> ModelConfig:
        """The model's configuration with a given autoencoder.

        Raises:
            ValueError: they do not fit.
        """
        assert self.model is not None
        side = autoencoder.downsampling * self.model.patch_size
        if self.data.size % side != 0:
            raise ValueError(f"data.size must be a multiple of {side}, got {self.data.size}")
        return ModelConfig(
            **dataclasses.asdict(self.model),
            latent_dim=autoencoder.z_channels,
            down_size=autoencoder.downsampling,
            resolution=self.data.size,
            autoencoder=autoencoder,
        )

    def to_dict(self) -> dict[str, Any]:
        """As TOML can hold it; ``from_dict`` is the inverse."""
        content: dict[str, Any] = {"init": self.init} if self.init else {}
        if self.model is not None:
            content |= {
                "autoencoder_path": self.autoencoder_path,
                "sample_steps": self.sample_steps,
            }
        content |= {"data": dataclasses.asdict(self.data), "optim": dataclasses.asdict(self.optim)}
        if self.autoencoder is not None:
            content |= {
                "autoencoder": self.autoencoder.to_dict(),
                "loss": dataclasses.asdict(self.loss),
            }
        if self.model is not None:
            content["model"] = dataclasses.asdict(self.model)
        for name, _ in _unused(content):
            _take(content, name)
        return content

    def to_toml(self) -> str:
        """The text of a file that ``read_config`` reads."""
        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "") -> RunConfig:
        """Build a configuration from nested dicts.

        Args:
            content: sections and their values.
            source: what it is called in errors.

        Raises:
            ValueError: as the class; also for a key that the run would not use, whatever its value.
        """
        try:
            _refuse_unused(content)
        except ValueError as error:
            raise ValueError(f"{source or cls.__name__}: {error}") from None
        return parse(cls, content, source)


def _default(config: Any, name: str) -> Any:
    return type(config).__dataclass_fields__[name].default


def _unused(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Keys (as section.key) that a run of this content passes over, and why."""
    found = []
    if "autoencoder" in content:
        found += [(name, "it is a model's") for name in ("autoencoder_path", "sample_steps")]
    if "model" in content:
        found += [("loss", "it is an autoencoder's")]
    autoencoder, model = (content.get(name) for name in ("autoencoder", "model"))
    if isinstance(autoencoder, Mapping) and autoencoder.get("architecture", "conv") == "conv":
        attention = "architecture 'conv' has no attention"
        found += [(f"autoencoder.{name}", attention) for name in ("attn_blocks", "n_heads")]
    if isinstance(model, Mapping) and model.get("time_schedule") == "uniform":
        found += [(f"model.{name}", "uniform times have none") for name in ("P_mean", "P_std")]
    return found


def _take(content: dict[str, Any], name: str) -> Any:
    """Remove section.key, and return its value; None where there is none."""
    *sections, key = name.split(".")
    for section in sections:
        content = content[section]
    return content.pop(key, None)


def _refuse_unused(content: Mapping[str, Any]) -> None:
    if ("autoencoder" in content) == ("model" in content):
        got = "both" if "model" in content else "neither"
        raise ValueError(f"there must be either a section [autoencoder] or [model], got {got}")
    for name, reason in _unused(content):
        *sections, key = name.split(".")
        values = content[sections[0]] if sections else content
        if key in values:
            raise ValueError(f"{name} must be left out ({reason}), got {shown(values[key])}")


def read_config(
    path: Path, changes: Sequence[str] = (), values: Mapping[str, str] | None = None
) -> RunConfig:
    """Read a TOML file. What it names in ``[loss.extra]`` is code that a run calls.

    Args:
        path: the file.
        changes: "section.key=value" each, with a TOML value (or a bare word as a string), which
            replace what the file says.
        values: by name, what to put in the place of top-level keys and of section.key as it is.

    Raises:
        OSError: no such file, or it cannot be read.
        ValueError: not TOML, or not a run's configuration.
    """
    text = path.read_bytes()
    try:
        content = tomllib.loads(text.decode("utf-8-sig"))
        merged: dict[str, Any] = {}
        for change in [
            *map(_parsed, changes),
            *(_nested(*item) for item in (values or {}).items()),
        ]:
            _merge(merged, change, once=True)
        _merge(content, merged, once=False)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    return RunConfig.from_dict(content, str(path))


def _parsed(change: str) -> dict[str, Any]:
    """A change as nested dicts."""
    name, equals, text = change.partition("=")
    for value in (text, tomli_w.dumps({"v": text}).removeprefix("v =")):
        try:
            found = tomllib.loads(f"{name} ={value}") if equals else {}
        except (tomllib.TOMLDecodeError, RecursionError):
            continue
        if len(found) == 1 and "\n" not in change:
            return found
    raise ValueError(f"a change must be section.key=value, got {shown(change)}")


def _nested(name: str, value: Any) -> dict[str, Any]:
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


def _merge(content: dict[str, Any], change: Mapping[str, Any], *, once: bool, at: str = "") -> None:
    """Put what `change` has into `content`; with `once`, nothing may be there already."""
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(content.get(key, {}), Mapping):
            _merge(content.setdefault(key, {}), value, once=once, at=f"{at}{key}.")
        elif once and key in content:
            raise ValueError(
                f"{at}{key} must be changed once, got {shown(content[key])} and {shown(value)}"
            )
        else:
            content[key] = value
