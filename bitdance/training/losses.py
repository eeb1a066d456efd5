"""Loss terms of colors, and of the user's own: "module:function" in the section [loss.extra]."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch

from bitdance.io.validation import brief

__all__ = ["ExtraLoss", "call_loss", "chroma_error", "import_loss"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as are the factors of the color differences
_CB, _CR = 0.5 / (1 - _LUMA[2]), 0.5 / (1 - _LUMA[0])

ExtraLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A scalar for images and reconstructions [B, 3, H, W] in [-1, 1]."""


def chroma_error(error: torch.Tensor) -> torch.Tensor:
    """Mean square of the color differences Cb and Cr of an error [B, 3, H, W]; 0 of a grey one."""
    red, green, blue = error.unbind(1)
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    return 0.5 * ((_CB * (blue - luma)).square().mean() + (_CR * (red - luma)).square().mean())


def import_loss(name: str) -> ExtraLoss:
    """The function "module:function"; a class is instantiated without arguments.

    Raises:
        ValueError: it cannot be imported, or does not take two arguments.
    """
    module, _, attribute = name.partition(":")
    try:
        loss = getattr(importlib.import_module(module), attribute)
        loss = loss() if isinstance(loss, type) else loss
    except Exception as error:  # foreign code may raise anything
        raise ValueError(
            f"loss.extra: {name!r} is not module:function: {type(error).__name__}: {error}"
        ) from error
    if not callable(loss):
        raise ValueError(f"loss.extra: {name!r} must be a function or a class, got {brief(loss)}")
    try:
        signature = inspect.signature(loss)
    except ValueError:  # functions in C may have none
        return loss
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ValueError(
            f"loss.extra: {name!r} must accept images and reconstructions: {error}"
        ) from error
    return loss


def call_loss(name: str, loss: ExtraLoss, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The scalar that a loss returns.

    Raises:
        ValueError: it returns something else, or raises an error other than PyTorch's own.
    """
    try:
        term: Any = loss(x, y)
    except (RuntimeError, MemoryError, OSError):  # PyTorch's errors say what to do
        raise
    except Exception as error:
        raise ValueError(f"loss.extra: {name!r} raises {type(error).__name__}: {error}") from error
    if isinstance(term, torch.Tensor) and term.numel() == 1 and term.is_floating_point():
        return term.reshape(())
    raise ValueError(f"loss.extra: {name!r} must return a scalar tensor, got {brief(term)}")
