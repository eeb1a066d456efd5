"""Files that a text-to-image model is written to, and its sampling by default."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from bitdance.io import weights
from bitdance.io.files import CheckpointError, one_line, temporary_file, write_text
from bitdance.io.json_files import read_json
from bitdance.io.settings import Count, Number, parse, settings
from bitdance.models.text_to_image import TextToImageModel

__all__ = ["SAMPLING_FILE", "SamplingConfig", "parse_sampling", "read_sampling", "save_release"]

SAMPLING_FILE = "sampling_config.json"


@settings
class SamplingConfig:
    """Sampling by default; the authors' where a release says nothing.

    Args:
        height: pixels vertically.
        width: pixels horizontally.
        num_inference_steps: denoising steps per patch.
        guidance_scale: guidance scale of all AR steps.
    """

    height: Count = 1024
    width: Count = 1024
    num_inference_steps: Count = 50
    guidance_scale: Number = 7.5


def read_sampling(folder: Path) -> SamplingConfig:
    """What a folder says of sampling.

    Raises:
        CheckpointError: its file is damaged.
        FileNotFoundError: its file is a broken link.
    """
    path = folder / SAMPLING_FILE
    if not os.path.lexists(path):  # a broken link is no missing file
        return SamplingConfig()
    return parse_sampling(read_json(path), path)


def parse_sampling(content: Any, path: Path) -> SamplingConfig:
    """The sampling that a section of a file describes.

    Args:
        content: the section.
        path: the file, for errors.

    Raises:
        CheckpointError: the section is damaged.
    """
    try:
        return parse(SamplingConfig, content)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from error


_PARTS = {
    "llm_model.": "model.safetensors",
    "vision_head.": "vision_head.safetensors",
    "embed_vision_mlp.": "projector.safetensors",
    "ae.": "ae.safetensors",
}
"""Files of the weights that are written, by prefix of the parameters in them."""


def save_release(model: TextToImageModel, sampling: SamplingConfig, folder: Path) -> None:
    """Write a model in the form of a release into a folder that nobody else writes to.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    config, head = model.config, dataclasses.asdict(model.config.head)
    del head["architecture"]
    configs = {
        "config.json": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"],
                        **config.llm.to_dict()},
        "vision_head_config.json": {**head, "parallel_num": config.parallel_num},
        "ae_config.json": config.autoencoder.to_dict(),
        SAMPLING_FILE: dataclasses.asdict(sampling),
    }  # fmt: skip
    state = model.state_dict()
    for prefix, name in _PARTS.items():
        with temporary_file(folder / name) as fresh:
            weights.save_tensors(fresh, weights.split_prefix(state, prefix)[0])
            weights.publish_tensors(fresh, folder / name)
    for name, content in configs.items():
        write_text(folder / name, json.dumps(content, indent=1) + "\n")
