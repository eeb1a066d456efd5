"""What a pipeline offers where memory is short: rounded weights, tiles, slices and offloading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.quantization import quantize_blocks
from bitdance.pipelines.offload import ModelOffload
from bitdance.sampling.ar_sampler import ARSampler
from bitdance.sampling.image_decoder import ImageDecoder

__all__ = ["DECODING", "SAMPLING", "MemoryOptions"]

SAMPLING, DECODING = "sampling", "decoding"
"""Turns of the parts of an offloaded model."""


class MemoryOptions(ABC):
    """Methods of pipelines that change how much memory a call needs."""

    sampler: ARSampler[Any]
    _decode_images: ImageDecoder
    _running: set[Any]
    _offload: ModelOffload | None = None

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The networks."""

    @property
    @abstractmethod
    def _autoencoder(self) -> BinaryAutoencoder:
        """The part of the model that decodes images."""

    @property
    @abstractmethod
    def _blocks(self) -> Sequence[nn.Module]:
        """Blocks of the transformer and of the head."""

    def quantize(self, quantization: str) -> Self:
        """Round the weights of the transformer's and the head's blocks to float8 or int8.

        Their layers are replaced: a weight takes a byte an element, and each of its rows has a
        scale. Other layers, the autoencoder among them, stay as they are. Images change,
        docs/generation.md says how much. No other option does this.

        Args:
            quantization: "fp8_weight_only", for little memory; "fp8", where the layers' inputs are
                rounded too, with a scale for each token, for batches of many tokens; or
                "int8_weight_only", for little memory and for few tokens on a CPU.

        Returns:
            The pipeline.

        Raises:
            ValueError: there is no such quantization, widths of the model are no multiples of 16,
                it is quantized already, or a weight is not finite and to be in int8; nothing is
                changed.
            RuntimeError: the model is offloaded.
        """
        self._refuse_offloaded("quantize")
        quantize_blocks("quantize", self._blocks, quantization)
        return self

    def enable_model_cpu_offload(self, device: torch.device | str = "cuda") -> Self:
        """Keep the weights on the host, and bring parts of the model to a device in turns.

        What samples is there until the last AR step of a call, then the autoencoder while it
        decodes. Memory is that of the larger turn; a call takes longer by the time in which the
        weights are copied. Calls of several threads wait for each other. A preview, from a
        callback, brings the autoencoder beside what samples.

        The weights must not be changed during a call: changes on the device are lost.

        Args:
            device: device of the computation.

        Returns:
            The pipeline.

        Raises:
            RuntimeError: the model is offloaded already, or a call runs.
        """
        self._refuse_offloaded("enable_model_cpu_offload")
        if self._running:
            raise RuntimeError("enable_model_cpu_offload: no call must run, got one that does")
        self.model.to("cpu")
        self.sampler.workspaces.clear()
        self._decode_images.clear()
        decoding = _weights(self._autoencoder)
        own = {id(tensor) for tensor in decoding}
        sampling = [tensor for tensor in _weights(self.model) if id(tensor) not in own]
        turns = {
            SAMPLING: (sampling, self.sampler.workspaces.clear),
            DECODING: (decoding, lambda: self._decode_images.clear()),
        }
        self._offload = ModelOffload(turns, torch.device(device))
        return self

    def disable_model_cpu_offload(self) -> Self:
        """Leave the whole model on the host; ``to`` moves it.

        Returns:
            The pipeline.

        Raises:
            RuntimeError: a call runs.
        """
        if self._running:
            raise RuntimeError("disable_model_cpu_offload: no call must run, got one that does")
        self._offload = None
        return self

    def _refuse_offloaded(self, function: str) -> None:
        if self._offload is not None:
            raise RuntimeError(
                f"{function}: pipeline must not be offloaded, got one that is; call "
                "disable_model_cpu_offload() first"
            )

    def _turn(self, name: str) -> AbstractContextManager[None]:
        """Inside, what samples or what decodes is on the device, if the model is offloaded."""
        return nullcontext() if self._offload is None else self._offload.turn(name)

    def enable_vae_tiling(self, tile_size: int = 512, *, exact: bool = True) -> None:
        """Decode images larger than a tile in tiles, in bounded memory.

        The sampled bits stay the same. Pixels differ from those of the whole decode by rounding,
        or visibly if `exact` is False, see ``BinaryAutoencoder.enable_tiling``.

        Args:
            tile_size: side of a tile in pixels.
            exact: whether the norms' statistics are those of the whole image, which takes several
                passes over the tiles.

        Raises:
            TypeError, ValueError: an argument has another type, or is out of range.
        """
        self._autoencoder.enable_tiling(tile_size, exact=exact)

    def disable_vae_tiling(self) -> None:
        """Decode every image whole."""
        self._autoencoder.disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Decode the images of a batch one after the other; they have the same bits."""
        self._autoencoder.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode all images of a batch at a time."""
        self._autoencoder.disable_slicing()


def _weights(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
