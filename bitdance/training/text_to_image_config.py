"""Configuration of the training of a text-to-image model."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

from pydantic import Field

from bitdance.io.settings import (
    Bool,
    Count,
    Depth,
    Fraction,
    ListOrTuple,
    NonNegative,
    Number,
    PathText,
    Positive,
    Size,
    Text,
    invalid,
    settings,
)
from bitdance.models.config import AutoencoderConfig, HeadConfig, TimeSchedule
from bitdance.models.qwen3 import Qwen3Config
from bitdance.models.text_to_image_config import TextToImageConfig
from bitdance.training.optim_config import OptimConfig, ParallelConfig

__all__ = ["CaptionedDataConfig", "TextToImageRun", "TextToImageShape"]


@settings
class CaptionedDataConfig:
    """Data of a run.

    Args:
        path: folder of packed codes with captions.
        max_tokens: tokens of a pack, at most; a step has ``optim.batch_size`` packs.
        text_dropout: probability that a document has the unconditional prompt in place of its
            caption.
    """

    path: Annotated[PathText, Field(min_length=1)]
    max_tokens: Count = 4096
    text_dropout: Fraction = 0.1


@settings
class TextToImageShape:
    """Head and losses; names are the official ones.

    Args:
        diff_dim: width of the head.
        diff_layers: blocks of the head.
        diff_adanln_layers: adaLN projections of the head.
        parallel_num: P, tokens a step, a square number.
        use_swiglu: SwiGLU rather than the SiLU network of the head's first version.
        time_shift: as in ``HeadConfig``, so are `time_schedule`, `P_mean` and `P_std`.
        time_schedule: see there.
        P_mean: see there.
        P_std: see there.
        diff_batch_mul: times and noises at which the head sees each patch in a step.
        perturb_rate: rate of bit flips in training; a bit flips with half of it.
        text_weight: weight of the cross entropy of captions; 0 computes none.
        vision_weight: weight of the head's loss.
    """

    diff_dim: Size
    diff_layers: Depth
    diff_adanln_layers: Depth
    parallel_num: Size = 16
    use_swiglu: Bool = True
    time_shift: Positive = 1.0
    time_schedule: TimeSchedule = "logit_normal"
    P_mean: Number = -0.8
    P_std: NonNegative = 0.8
    diff_batch_mul: Size = 1
    perturb_rate: Fraction = 0.1
    text_weight: NonNegative = 0.01
    vision_weight: NonNegative = 1.0

    def __post_init__(self) -> None:
        if math.isqrt(self.parallel_num) ** 2 != self.parallel_num:
            raise invalid(self, "parallel_num", "a square number")
        heads = max(1, self.diff_dim // 128)
        if self.diff_dim % heads != 0:
            raise invalid(self, "diff_dim", f"a multiple of its {heads} attention heads")
        if self.text_weight == self.vision_weight == 0:
            raise invalid(self, "vision_weight", "over 0 where text_weight is 0")


@settings
class TextToImageRun:
    """Configuration of the training of a model; each section of the TOML file is a field.

    Args:
        data: the packed codes.
        optim: the optimization; ``batch_size`` is the number of packs.
        text_to_image: head and losses.
        autoencoder_path: the trained autoencoder: a run's folder, a file, or a hub id.
        llm: shape of the language model; by default that of `init`.
        parallel: use of several processes, and of memory.
        tokenizer_path: folder of the text tokenizer; by default `init`.
        prompts: prompts of the sample images; by default captions of the data.
        num_inference_steps: denoising steps of the sample images; the exported model's default.
        guidance_scale: guidance of the sample images; the exported model's default.
        init: folder with the initial weights: a run's, what it exported, a release, or a language
            model alone. By default weights are drawn.

    Raises:
        ValueError: a value of the wrong type or out of range, or values that contradict each other.
    """

    data: CaptionedDataConfig
    optim: OptimConfig
    text_to_image: TextToImageShape
    autoencoder_path: Annotated[PathText, Field(min_length=1)]
    llm: Qwen3Config | None = None
    parallel: ParallelConfig = ParallelConfig()
    tokenizer_path: PathText = ""
    prompts: Annotated[tuple[Text, ...], ListOrTuple] = ()
    num_inference_steps: Size = 20
    guidance_scale: Number = 3.0
    init: PathText = ""

    def __post_init__(self) -> None:
        for name, value in (("llm", self.llm), ("tokenizer_path", self.tokenizer_path)):
            if not value and not self.init:
                raise invalid(self, name, "given where init is not")
        shape = self.text_to_image
        if shape.time_schedule == "uniform":
            defaults = type(shape).__dataclass_fields__
            for key in ("P_mean", "P_std"):
                if getattr(shape, key) != defaults[key].default:
                    raise invalid(self, f"text_to_image.{key}", "left out (times are uniform)")

    def model_config(self, llm: Qwen3Config, autoencoder: AutoencoderConfig) -> TextToImageConfig:
        """The model's configuration with a given language model and autoencoder.

        Raises:
            ValueError: they do not fit.
        """
        shape = self.text_to_image
        same = ("use_swiglu", "time_shift", "time_schedule", "P_mean", "P_std")
        head = HeadConfig(
            ch_target=autoencoder.z_channels,
            ch_cond=llm.hidden_size,
            ch_latent=shape.diff_dim,
            depth_latent=shape.diff_layers,
            depth_adanln=shape.diff_adanln_layers,
            architecture="t2i",
            **{name: value for name, value in dataclasses.asdict(shape).items() if name in same},
        )
        return TextToImageConfig(llm, head, autoencoder, shape.parallel_num)
