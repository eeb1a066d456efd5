"""Configuration of a training run: one TOML file, strictly checked and saved with the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import BeforeValidator, Field

from bitdance.data.images import OnError
from bitdance.io.files import write_text
from bitdance.io.image_files import parse_color
from bitdance.io.settings import (
    Bool,
    Fraction,
    Integer,
    ListOrTuple,
    NonNegative,
    Number,
    PathText,
    Positive,
    Size,
    Text,
    invalid,
    parse,
    settings,
)
from bitdance.io.toml_files import read_toml
from bitdance.io.validation import brief
from bitdance.models.config import AutoencoderConfig, ModelConfig, ModelShape
from bitdance.models.presets import expand_autoencoder, expand_shape
from bitdance.training.optim_config import OptimConfig, ParallelConfig, Step
from bitdance.training.text_to_image_config import TextToImageRun

__all__ = [
    "AdversarialConfig",
    "AutoencoderRun",
    "ClassConditionalRun",
    "DataConfig",
    "LossConfig",
    "OptimConfig",
    "ParallelConfig",
    "RunConfig",
    "TextToImageRun",
    "parse_run",
    "read_config",
    "run_to_dict",
    "write_config",
]


def _function_name(name: object) -> object:
    module, colon, function = name.partition(":") if isinstance(name, str) else ("", "", "")
    if not (module and colon and function.isidentifier()):
        raise ValueError(f"must be named module:function, got {brief(name)}")
    return name


FunctionName = Annotated[str, BeforeValidator(_function_name)]


@settings
class DataConfig:
    """Data of a run.

    Args:
        path: folder of images (a sub-folder per class), of IDX files, or of packed codes; a tar
            archive of images, or a pattern of webdataset shards.
        size: pixels a side of the square that images are padded (IDX) or resized to.
        flip: mirror images at random.
        shift: largest random translation in pixels; the edge is repeated.
        min_crop: crop image files at random; smallest share of the shorter side that a crop has.
            1 crops the middle.
        crop_decay: steps between which the share of random crops falls from 1 to 0.
        classes: for IDX files, names of the classes; for image files, the class folders to use, in
            this order.
        balance: from 0 to 1, how far images of small classes are repeated: at 1 an epoch has as
            many images of each class as of the largest; see ``repeat_classes``. Training an
            autoencoder, it needs classes.
        background: color behind transparent pixels of image files.
        on_error: "raise" when an image file that cannot be read is used, "check" all files before
            the first step, or "skip" those that cannot be read.
        cache: read all image files before the first step and keep them in memory, resized.
    """

    path: Annotated[PathText, Field(min_length=1)]
    size: Annotated[Size, Field(le=2**16)]
    flip: Bool = False
    shift: Annotated[Integer, Field(ge=0)] = 0
    min_crop: Annotated[Number, Field(ge=0.1, le=1)] = 1.0
    crop_decay: Annotated[tuple[Step, ...], ListOrTuple] = ()
    classes: Annotated[tuple[Text, ...], ListOrTuple] = ()
    balance: Fraction = 0.0
    background: Text = "white"
    on_error: OnError = "raise"
    cache: Bool = False

    def __post_init__(self) -> None:
        try:
            parse_color(self.background)
        except ValueError:
            raise invalid(self, "background", "an opaque color such as 'white'") from None
        if self.shift >= self.size:
            raise invalid(self, "shift", f"less than size = {self.size}")
        if self.crop_decay:
            if len(self.crop_decay) != 2 or self.crop_decay[0] >= self.crop_decay[1]:
                raise invalid(self, "crop_decay", "two steps, the first before the second")
            if self.min_crop == 1:
                raise invalid(self, "crop_decay", "left out without random crops (min_crop = 1)")
        if self.cache and self.min_crop < 1:
            raise invalid(self, "cache", "false with random crops (min_crop below 1)")


@settings
class LossConfig:
    """Weights of the autoencoder's loss terms.

    Args:
        l1: mean absolute error of the pixels.
        l2: mean squared error of the pixels.
        chroma: mean squared error of the two color differences of the pixels, without which rare
            colors turn grey.
        entropy: group-wise entropy term, see ``BinaryQuantizer``.
        sample_entropy: per-sample entropy within that term.
        codebook_entropy: codebook entropy within that term.
        temperature: temperature of the softmax inside the entropies.
        per_group: take the codebook entropy of each group on its own, so that no channel stays
            constant.
        commitment: squared distance of features and codes.
        extra: weights of further terms by "module:function"; each is called with images and
            reconstructions [B, 3, H, W] in [-1, 1] and returns a scalar (perceptual, adversarial).
            The state of one that has ``state_dict`` and ``load_state_dict`` is saved with every
            checkpoint.
    """

    l1: NonNegative = 0.0
    l2: NonNegative = 1.0
    chroma: NonNegative = 0.0
    entropy: NonNegative = 0.02
    sample_entropy: NonNegative = 1.0
    codebook_entropy: NonNegative = 1.0
    temperature: Positive = 0.01
    per_group: Bool = False
    commitment: NonNegative = 0.05
    extra: dict[FunctionName, Number] = dataclasses.field(default_factory=dict)


@settings
class AdversarialConfig:
    """The discriminator that an autoencoder may be trained against.

    Args:
        weight: weight of the term that raises the discriminator's logits of reconstructions; 0 has
            no discriminator.
        start: step from which there is a discriminator.
        adaptive: scale the term so that its gradient at the decoder's last layer is as large as
            that of the terms that compare images with reconstructions.
        channels: channels of the discriminator's first layer.
        layers: its layers that halve the resolution.
        lr: learning rate of its AdamW, which has the betas and the decay of the autoencoder's.
        warmup: steps of linear warm-up after `start`.
    """

    weight: NonNegative = 0.0
    start: Step = 0
    adaptive: Bool = True
    channels: Annotated[Integer, Field(ge=8, le=1024)] = 64
    layers: Annotated[Integer, Field(ge=1, le=8)] = 3
    lr: Positive = 1e-4
    warmup: Step = 0


@settings
class AutoencoderRun:
    """Configuration of the training of an autoencoder; each section of the TOML file is a field.

    Args:
        data: the images.
        optim: the optimization.
        autoencoder: shape of the autoencoder; ``preset`` names one to begin with.
        loss: weights of the loss terms.
        adversarial: a discriminator to train against.
        parallel: use of several processes, and of memory.
        init: checkpoint with the initial weights: a run's folder, what it exported, an official
            file, or a hub id. By default weights are drawn.

    Raises:
        ValueError: a value of the wrong type or out of range, or values that contradict each other.
    """

    data: DataConfig
    optim: OptimConfig
    autoencoder: AutoencoderConfig
    loss: LossConfig = LossConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    parallel: ParallelConfig = ParallelConfig()
    init: PathText = ""

    def __post_init__(self) -> None:
        if self.data.size % self.autoencoder.downsampling != 0:
            expected = (
                f"a multiple of the autoencoder's {self.autoencoder.downsampling} pixels a code"
            )
            raise invalid(self, "data.size", expected)
        if self.adversarial.weight == 0:
            return
        if self.parallel.strategy != "ddp":
            raise invalid(self, "parallel.strategy", "'ddp' with an adversarial term")
        if self.data.size >> self.adversarial.layers < 3:
            raise invalid(self, "adversarial.layers", f"fewer for data.size = {self.data.size}")


@settings
class ClassConditionalRun:
    """Configuration of the training of a model; each section of the TOML file is a field.

    Args:
        data: images or packed codes.
        optim: the optimization.
        model: the fields of ``ModelConfig`` that autoencoder and data do not decide; ``preset``
            names a model to begin with.
        parallel: use of several processes, and of memory.
        autoencoder_path: the trained autoencoder: a run's folder, a file, or a hub id.
        num_inference_steps: denoising steps of the sample images; the exported model's default.
        init: checkpoint with the initial weights, as for an autoencoder.

    Raises:
        ValueError: a value of the wrong type or out of range, or values that contradict each other.
    """

    data: DataConfig
    optim: OptimConfig
    model: ModelShape
    autoencoder_path: Annotated[PathText, Field(min_length=1)]
    parallel: ParallelConfig = ParallelConfig()
    num_inference_steps: Size = 20
    init: PathText = ""

    def __post_init__(self) -> None:
        defaults = type(self.model).__dataclass_fields__
        for _, key, reason in _unused_keys({"model": vars(self.model)}):
            if getattr(self.model, key) != defaults[key].default:
                raise invalid(self, f"model.{key}", f"left out ({reason})")

    def model_config(self, autoencoder: AutoencoderConfig) -> ModelConfig:
        """The model's configuration with a given autoencoder.

        Raises:
            ValueError: they do not fit.
        """
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


RunConfig = AutoencoderRun | ClassConditionalRun | TextToImageRun

_KINDS: dict[str, type[RunConfig]] = {
    "autoencoder": AutoencoderRun,
    "model": ClassConditionalRun,
    "text_to_image": TextToImageRun,
}


def parse_run(content: Mapping[str, Any], source: str = "run") -> RunConfig:
    """The configuration in nested dicts.

    Args:
        content: sections and their values; the section [autoencoder], [model] or [text_to_image]
            tells the kind.
        source: name of the content in errors.

    Raises:
        ValueError: unknown or missing keys, values of the wrong type or out of range, or a key that
            has no effect on the run.
    """
    found = [section for section in _KINDS if section in content]
    if len(found) != 1:
        raise ValueError(
            f"{source}: there must be one section of [autoencoder], [model] and [text_to_image], "
            f"got {' and '.join(found) or 'none'}"
        )
    content = _expand_presets(content, source)
    for section, key, reason in _unused_keys(content):
        if key in content[section]:
            got = brief(content[section][key])
            raise ValueError(f"{source}: {section}.{key} must be left out ({reason}), got {got}")
    return parse(_KINDS[found[0]], content, source)


def _expand_presets(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The content with the fields of presets, without those that the other values make unused."""
    expanded = dict(content)
    for section in ("autoencoder", "model"):
        own = content.get(section)
        if not isinstance(own, Mapping):
            continue
        try:
            expand = expand_autoencoder if section == "autoencoder" else expand_shape
            values = expand(own)
        except ValueError as error:
            raise ValueError(f"{source}: {section}.{error}") from None
        expanded[section] = values
        for _, key, _ in list(_unused_keys({section: values})):
            if key not in own:
                values.pop(key, None)
    return expanded


def read_config(
    path: Path, changes: Sequence[str] = (), values: Mapping[str, str] | None = None
) -> RunConfig:
    """Read the configuration of a run; see ``read_toml`` for the arguments.

    Functions that ``[loss.extra]`` names are called by the run: the file can run any code.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not TOML, or not the configuration of a run.
    """
    return parse_run(read_toml(path, changes, values), str(path))


def write_config(config: RunConfig, path: Path) -> None:
    """Write a file that ``read_config`` reads, completely or not at all."""
    write_text(path, tomli_w.dumps(run_to_dict(config)))


def run_to_dict(config: RunConfig) -> dict[str, Any]:
    """Nested dicts as TOML can hold them; ``parse_run`` is the inverse."""
    content = dataclasses.asdict(config)
    if not config.init:
        del content["init"]
    if isinstance(config, TextToImageRun) and config.llm is None:
        del content["llm"]
    if isinstance(config, AutoencoderRun):
        content["autoencoder"] = config.autoencoder.to_dict()
    for section, key, _ in _unused_keys(content):
        content[section].pop(key, None)
    return content


def _unused_keys(content: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(section, key, reason) of keys that have no effect with the other values of their section."""
    autoencoder = content.get("autoencoder")
    if isinstance(autoencoder, Mapping) and autoencoder.get("architecture", "conv") == "conv":
        for key in ("attn_blocks", "n_heads"):
            yield "autoencoder", key, "architecture 'conv' has no attention"
    for section in ("model", "text_to_image"):
        model = content.get(section)
        if isinstance(model, Mapping) and model.get("time_schedule") == "uniform":
            for key in ("P_mean", "P_std"):
                yield section, key, "uniform times do not use it"
    adversarial = content.get("adversarial")
    if isinstance(adversarial, Mapping) and adversarial.get("weight", 0) == 0:
        for field in dataclasses.fields(AdversarialConfig):
            if field.name != "weight":
                yield "adversarial", field.name, "there is no discriminator with weight 0"
