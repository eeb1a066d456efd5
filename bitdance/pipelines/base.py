"""What both pipelines share: batches, seeds, callbacks, progress, outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from tqdm.auto import tqdm
from typing_extensions import Self

from bitdance.io.validation import as_list, brief
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.pipelines.arguments import (
    ImageShape,
    batch_slices,
    check_output_type,
    packed_shape,
    to_output,
)
from bitdance.sampling.ar_sampler import StepResult
from bitdance.sampling.finite import NotFiniteError
from bitdance.sampling.flow_sampler import binarize
from bitdance.sampling.image_decoder import ImageDecoder
from bitdance_kernels import noise, noise_keys, unpack_signs

__all__ = [
    "BasePipeline",
    "Callback",
    "GenerationCancelled",
    "ImagePipelineOutput",
    "numbered_images",
]

Callback = Callable[[Any, int, int, dict[str, torch.Tensor]], "Mapping[str, torch.Tensor] | None"]

CALLBACK_TENSOR_INPUTS = ("latents", "packed_latents")


class GenerationCancelled(Exception):  # noqa: N818  (no error: somebody asked for it)
    """A call of a pipeline was stopped by ``interrupt``."""


@dataclass(frozen=True)
class ImagePipelineOutput:
    """Output of a pipeline.

    Attributes:
        images: as ``output_type`` asks: a list of PIL images, or an array or tensor of all images.
    """

    images: Any

    def to_tuple(self) -> tuple[Any]:
        """``(images,)``."""
        return (self.images,)

    def __getitem__(self, index: int) -> Any:
        return self.to_tuple()[index]


class _Call:
    stopped = False


class BasePipeline:
    """A model with what a call of it needs.

    Any number of threads may use one pipeline at a time, and a callback may call it too: each call
    has buffers of its own, and every image has the bits that it has alone.

    Args:
        model: the networks.
        autoencoder: the part of `model` that decodes images.

    Attributes:
        model: the networks, a ``torch.nn.Module`` with the official parameter names.
    """

    model: nn.Module

    def __init__(self, model: nn.Module, autoencoder: BinaryAutoencoder) -> None:
        model.eval()
        # The layout that decoding works in; it changes the memory of the parameters alone.
        autoencoder.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._decode_images = ImageDecoder(autoencoder)
        self._progress_bar_config: dict[str, Any] = {}
        self._running: set[_Call] = set()

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(self.model.parameters()).dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the model, as ``torch.nn.Module.to`` does; returns the pipeline."""
        self.model.to(*args, **kwargs)
        return self

    def set_progress_bar_config(self, **config: Any) -> None:
        """Set arguments of the progress bar, such as ``disable=True``; see ``tqdm.tqdm``."""
        self._progress_bar_config = config

    @property
    def interrupt(self) -> bool:
        """Whether a running call is about to stop.

        Set to True, from a callback or another thread, it stops every call that runs now after its
        AR step, with ``GenerationCancelled``; calls that begin later are not concerned. The name
        ``_interrupt`` serves too.
        """
        return any(call.stopped for call in tuple(self._running))

    @interrupt.setter
    def interrupt(self, stop: bool) -> None:
        for call in tuple(self._running):
            call.stopped = bool(stop)

    _interrupt = interrupt

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_running": set()}  # a copy has no calls

    def _generate(
        self,
        sample: Callable[[slice, Callable[[StepResult], torch.Tensor | None]], torch.Tensor],
        shape: ImageShape,
        seeds: Sequence[int],
        sample_ids: Sequence[int],
        *,
        batch_size: int | None,
        output_type: str,
        return_dict: bool,
        callback_on_step_end: Callback | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> ImagePipelineOutput:
        """Sample images batch by batch and decode them.

        Args:
            sample: called with the images of a batch and a function to call after every AR step;
                returns their tokens [B, N, C].
            shape: shape of the images.
            seeds: one per image.
            sample_ids: one per image.
            batch_size: images at a time; by default all.
            output_type: see the pipelines.
            return_dict: see the pipelines.
            callback_on_step_end: see the pipelines.
            callback_on_step_end_tensor_inputs: see the pipelines.
        """
        function = type(self).__name__
        names = as_list(
            function, "callback_on_step_end_tensor_inputs", callback_on_step_end_tensor_inputs
        )
        unknown = [name for name in names if name not in CALLBACK_TENSOR_INPUTS]
        if unknown:
            raise ValueError(
                f"{function}: callback_on_step_end_tensor_inputs must be of "
                f"{', '.join(CALLBACK_TENSOR_INPUTS)}, got {brief(unknown[0])}"
            )
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise TypeError(
                f"{function}: callback_on_step_end must be a function, got "
                f"{brief(callback_on_step_end)}"
            )
        check_output_type(function, output_type)
        batches = batch_slices(function, len(seeds), batch_size)
        packed = [torch.empty((0, *packed_shape(shape)), dtype=torch.uint8, device="cpu")]
        with (
            torch.no_grad(),
            self._call() as call,
            tqdm(
                **{"total": shape.ar_steps * len(batches), "unit": "step"}
                | self._progress_bar_config
            ) as bar,
        ):

            def on_step(result: StepResult) -> torch.Tensor | None:
                bar.update()
                changed = None
                if callback_on_step_end is not None:
                    changed = _call_back(self, callback_on_step_end, names, result, shape.ar_steps)
                if call.stopped:
                    raise GenerationCancelled(
                        f"stopped after AR step {result.step + 1} of {shape.ar_steps}"
                    )
                return changed

            for batch in batches:
                with numbered_images(function, batch):
                    packed.append(binarize(sample(batch, on_step))[1])
        packed_latents = torch.cat(packed[1:] or packed)
        if output_type == "latent":
            images: Any = packed_latents
        else:
            images = self._decode(
                packed_latents, shape, seeds, sample_ids, batch_size, output_type, function
            )
        return ImagePipelineOutput(images) if return_dict else cast(Any, (images,))

    def _decode(
        self,
        packed_latents: torch.Tensor,
        shape: ImageShape,
        seeds: Sequence[int],
        sample_ids: Sequence[int],
        batch_size: int | None,
        output_type: str,
        function: str,
    ) -> Any:
        """Images of packed tokens, batch by batch.

        A decoder that takes noise gets that of the AR step after the last, so that an image depends
        on its seed and sample id alone.
        """
        device, autoencoder = self.device, self._decode_images.autoencoder
        pixels = [torch.empty((0, *shape.pixels), dtype=torch.uint8, device="cpu")]
        with torch.no_grad():
            for batch in batch_slices(function, len(packed_latents), batch_size):
                tokens = unpack_signs(packed_latents[batch].to(device))[..., : shape.bits]
                latents, drawn = shape.to_latents(tokens), None
                if autoencoder.config.gan_decoder:
                    keys = noise_keys(
                        seeds[batch], sample_ids[batch], ar_step=shape.ar_steps, device=device
                    )
                    drawn = noise(keys, 0, latents[0].numel(), backend="auto").view(latents.shape)
                with numbered_images(function, batch):
                    pixels.append(self._decode_images(latents, noise=drawn).cpu())
        return to_output(torch.cat(pixels[1:] or pixels), output_type)

    @contextmanager
    def _call(self) -> Iterator[_Call]:
        call = _Call()
        self._running.add(call)
        try:
            yield call
        finally:
            self._running.discard(call)


def _call_back(
    pipeline: BasePipeline,
    callback: Callback,
    names: Sequence[str],
    result: StepResult,
    ar_steps: int,
) -> torch.Tensor | None:
    """Call a callback after an AR step; returns the latents that it wants to go on with, if any."""
    tensors = {"latents": result.tokens, "packed_latents": result.packed}
    given = {name: tensors[name] for name in names}
    version = result.tokens._version
    returned = callback(pipeline, result.step, ar_steps - 1 - result.step, given)
    function = type(pipeline).__name__
    if returned is not None and not isinstance(returned, Mapping):
        raise TypeError(
            f"{function}: callback_on_step_end must return its callback_kwargs, or a dict with "
            f"the tensors to replace, got {brief(returned)}"
        )
    latents = (returned or {}).get("latents", result.tokens)
    if latents is result.tokens and latents._version == version:
        return None
    if not isinstance(latents, torch.Tensor) or latents.shape != result.tokens.shape:
        raise ValueError(
            f"{function}: latents that callback_on_step_end returns must be "
            f"{list(result.tokens.shape)}, got {brief(latents)}"
        )
    return binarize(latents.to(result.tokens))[0]


@contextmanager
def numbered_images(function: str, batch: slice) -> Iterator[None]:
    """Inside, a NotFiniteError of a batch names the images by their numbers in the whole."""
    try:
        yield
    except NotFiniteError as error:
        raise error.numbered(function, range(batch.start, batch.stop)) from None
