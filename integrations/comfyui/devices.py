"""Devices and dtypes as ComfyUI chooses them."""

from __future__ import annotations

import torch
from comfy import model_management

__all__ = ["DEVICES", "DTYPES", "choose_device", "choose_dtype", "make_room"]

DEVICES = ["default", "cpu"]
DTYPES = ["auto", "float32", "bfloat16", "float16"]


def choose_device(name: str) -> torch.device:
    """The CPU for "cpu", else the device that ComfyUI runs models on."""
    device = model_management.get_torch_device()
    return torch.device("cpu") if name == "cpu" else torch.device(device)


def choose_dtype(name: str, device: torch.device) -> str:
    """The dtype of this name; "auto" is bfloat16 where ComfyUI says that the device is fit for it.

    Args:
        name: one of ``DTYPES``.
        device: device of the model.
    """
    if name != "auto":
        return name
    return "bfloat16" if model_management.should_use_bf16(device) else "float32"


def make_room(device: torch.device, weight_bytes: float = 0) -> None:
    """Let ComfyUI move its own models away from a device.

    ComfyUI counts only those; it measures the memory that is free.

    Args:
        device: device that is about to be used; nothing happens on a CPU.
        weight_bytes: bytes that are needed besides those of a computation.
    """
    if device.type != "cpu":
        needed = weight_bytes + model_management.minimum_inference_memory()
        model_management.free_memory(needed, device)
