"""Shape of the text-to-image models, read from the files of a release."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from bitdance.config import AutoencoderConfig, HeadConfig
from bitdance.qwen import QwenConfig

__all__ = ["TextToImageConfig"]


@dataclass(frozen=True)
class TextToImageConfig:
    """Shape of a text-to-image model.

    Args:
        llm: the language model.
        head: the diffusion head, of the "t2i" architecture.
        autoencoder: the tokenizer.
        parallel_num: P, tokens a step, a square number. No weight depends on it.

    Raises:
        ValueError: the parts do not fit each other.
    """

    llm: QwenConfig
    head: HeadConfig
    autoencoder: AutoencoderConfig
    parallel_num: int

    def __post_init__(self) -> None:
        P, width, bits = self.parallel_num, self.llm.hidden_size, self.autoencoder.z_channels
        square = isinstance(P, int) and P >= 1 and math.isqrt(P) ** 2 == P
        for name, got, fulfilled, expected in (
            ("parallel_num", P, square, "a square number"),
            ("head.architecture", self.head.architecture, self.head.architecture == "t2i", "'t2i'"),
            ("head.ch_cond", self.head.ch_cond, self.head.ch_cond == width, f"{width}, llm's"),
            ("head.ch_target", self.head.ch_target, self.head.ch_target == bits, f"{bits}, a code"),
            ("llm.hidden_size", width, width % 4 == 0, "a multiple of 4"),
        ):
            if not fulfilled:
                raise ValueError(f"TextToImageConfig: {name} must be {expected}, got {got!r}")

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
            TypeError, ValueError: a key is missing, unknown or out of range.
        """
        known = {field.name for field in fields(HeadConfig)} - {"architecture"}
        shape = {name: value for name, value in head.items() if name in known}
        defaults = {"use_swiglu": False, "P_mean": 0.0, "P_std": 1.0}
        bits = autoencoder.get("ddconfig", autoencoder).get("z_channels", 32)
        # The quantiser has no weights and is not used while generating, so any divisor will do.
        groups = 4 if bits % 4 == 0 else 1
        return cls(
            QwenConfig.from_dict(llm),
            HeadConfig(**{**defaults, **shape}, architecture="t2i"),
            AutoencoderConfig.from_dict({"num_codebooks": groups, **autoencoder}),
            head.get("parallel_num", 4),
        )
