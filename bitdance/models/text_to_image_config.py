"""Shape of the text-to-image models, read from the files of a release."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from bitdance.io.settings import Size, invalid, parse, settings
from bitdance.models.config import AutoencoderConfig, HeadConfig
from bitdance.models.qwen3 import Qwen3Config

__all__ = ["TextToImageConfig"]


@settings
class TextToImageConfig:
    """Shape of a text-to-image model.

    Args:
        llm: the language model.
        head: the diffusion head, of the "t2i" architecture.
        autoencoder: shape of the autoencoder.
        parallel_num: P, tokens a step, a square number. No weight depends on it.

    Raises:
        ValueError: the parts do not fit each other.
    """

    llm: Qwen3Config
    head: HeadConfig
    autoencoder: AutoencoderConfig
    parallel_num: Size

    def __post_init__(self) -> None:
        width, bits = self.llm.hidden_size, self.autoencoder.z_channels
        square = math.isqrt(self.parallel_num) ** 2 == self.parallel_num
        for name, fulfilled, expected in (
            ("parallel_num", square, "a square number"),
            ("head.architecture", self.head.architecture == "t2i", "'t2i'"),
            ("head.ch_cond", self.head.ch_cond == width, f"{width}, llm's"),
            ("head.ch_target", self.head.ch_target == bits, f"{bits}, a code"),
            ("llm.hidden_size", width % 4 == 0, "a multiple of 4"),
        ):
            if not fulfilled:
                raise invalid(self, name, expected)

    @classmethod
    def from_dicts(
        cls, llm: Mapping[str, Any], head: Mapping[str, Any], autoencoder: Mapping[str, Any]
    ) -> TextToImageConfig:
        """Read the three configuration files of a release.

        Args:
            llm: ``config.json``.
            head: ``vision_head_config.json``; what it leaves out has the official class's default.
            autoencoder: ``ae_config.json``.

        Raises:
            ValueError: a key is missing, unknown, of the wrong type or out of range.
        """
        known = {field.name for field in fields(HeadConfig)} - {"architecture"}
        shape = {name: value for name, value in head.items() if name in known}
        defaults = {"use_swiglu": False, "P_mean": 0.0, "P_std": 1.0}
        # The quantizer has no weights and is not used while generating, so any divisor will do.
        ae = AutoencoderConfig.from_dict({"num_codebooks": 1, **autoencoder})
        if "num_codebooks" not in autoencoder and ae.z_channels % 4 == 0:
            ae = replace(ae, num_codebooks=4)
        return cls(
            Qwen3Config.from_dict(llm),
            parse(HeadConfig, {**defaults, **shape, "architecture": "t2i"}),
            ae,
            head.get("parallel_num", 4),
        )
