"""What both pipelines share: batches, seeds, callbacks, progress, outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn
from typing_extensions import Self

from bitdance.io.progress import progress_bar
from bitdance.io.validation import as_list, brief
from bitdance.pipelines.arguments import (
    Generators,
    ImageShape,
    Seeds,
    batch_slices,
    check_output_type,
    image_seeds,
    packed_shape,
    to_output,
)
from bitdance.pipelines.memory_options import DECODING, SAMPLING, MemoryOptions
from bitdance.sampling.ar_sampler import ARSampler, OnStep, StepResult
from bitdance.sampling.finite import NotFiniteError
from bitdance.sampling.flow_sampler import binarize
from bitdance.sampling.image_decoder import ImageDecoder
from bitdance_kernels import noise, noise_keys, unpack_signs

__all__ = ["BasePipeline", "Callback", "GenerationCancelled", "ImagePipelineOutput"]

_GENERATED = "generated_latents"
_GRAY = 128  # pixels of a preview that are not generated yet

Callback = Callable[[Any, int, int, dict[str, torch.Tensor]], "Mapping[str, torch.Tensor] | None"]


class GenerationCancelled(Exception):  # noqa: N818  (requested by the caller, not an error)
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

    def __getitem__(self, key: int | str) -> Any:
        return {"images": self.images}[key] if isinstance(key, str) else self.to_tuple()[key]


class _Call:
    stopped = False

    def check(self, after: str) -> None:
        """Raise GenerationCancelled if the call is to stop."""
        if self.stopped:
            raise GenerationCancelled(f"stopped after {after}")


class BasePipeline(MemoryOptions):
    """A model with what a call of it needs.

    Any number of threads may use one pipeline at a time, and a callback may call it too: each call
    has buffers of its own, and every image has the bits that it has alone.

    Args:
        sampler: sampler of the model.
    """

    _callback_tensor_inputs: ClassVar = ["latents", "packed_latents", _GENERATED]

    def __init__(self, sampler: ARSampler[Any]) -> None:
        self.sampler = sampler
        sampler.model.eval()
        # The layout that decoding works in; it changes the memory of the parameters alone.
        decoder = self._autoencoder.decoder
        decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._decode_images = ImageDecoder(self._autoencoder)
        self._progress_bar_config: dict[str, Any] = {}
        self._running: set[_Call] = set()

    @property
    def model(self) -> nn.Module:
        """The networks, with the official parameter names."""
        return self.sampler.model

    @property
    def device(self) -> torch.device:
        """Device of the parameters; of offloaded ones, the device where they work."""
        if self._offload is not None:
            return self._offload.device
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(self.model.parameters()).dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the model, as ``torch.nn.Module.to`` does; returns the pipeline.

        Raises:
            RuntimeError: the model is offloaded.
        """
        self._refuse_offloaded("to")
        self.model.to(*args, **kwargs)
        return self

    def set_progress_bar_config(self, **config: Any) -> None:
        """Set arguments of the progress bar, such as ``disable=True``; see ``tqdm.tqdm``."""
        self._progress_bar_config = config

    @contextmanager
    def progress_bar_config(self, **config: Any) -> Iterator[None]:
        """A context with other arguments of the progress bar."""
        earlier = self._progress_bar_config
        self.set_progress_bar_config(**config)
        try:
            yield
        finally:
            self._progress_bar_config = earlier

    @property
    def interrupt(self) -> bool:
        """Whether a running call is about to stop.

        Set to True, from a callback or another thread, it stops every call that runs now after its
        AR step, with ``GenerationCancelled`` rather than an unfinished image; later calls are not
        affected. The name ``_interrupt`` serves too.
        """
        return any(call.stopped for call in tuple(self._running))

    @interrupt.setter
    def interrupt(self, stop: bool) -> None:
        for call in tuple(self._running):
            call.stopped = bool(stop)

    _interrupt = interrupt

    def __getstate__(self) -> dict[str, Any]:
        # A copy has no calls, and weights of its own.
        return {**vars(self), "_running": set(), "_offload": None}

    def _generate(
        self,
        sample: Callable[[slice, list[int], list[int], OnStep], torch.Tensor],
        shape: ImageShape,
        count: int,
        *,
        generator: Generators | None,
        seed: Seeds | None,
        sample_ids: Sequence[int] | None,
        batch_size: int | None,
        output_type: str,
        return_dict: bool,
        callback_on_step_end: Callback | None,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> ImagePipelineOutput:
        """Sample images batch by batch and decode them.

        Args:
            sample: called with the images of a batch, their seeds, their sample ids and a function
                to call after every AR step; returns their tokens [B, N, C].
            shape: shape of the images.
            count: number of images.
            generator: see the pipelines.
            seed: see the pipelines.
            sample_ids: see the pipelines.
            batch_size: images at a time; by default all.
            output_type: see the pipelines.
            return_dict: see the pipelines.
            callback_on_step_end: see the pipelines.
            callback_on_step_end_tensor_inputs: see the pipelines.
        """
        function = type(self).__name__
        # A PipelineCallback of diffusers says itself which tensors it takes.
        wanted = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
        names = as_list(function, "callback_on_step_end_tensor_inputs", wanted)
        unknown = [name for name in names if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"{function}: callback_on_step_end_tensor_inputs must be of "
                f"{', '.join(self._callback_tensor_inputs)}, got {brief(unknown[0])}"
            )
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise TypeError(
                f"{function}: callback_on_step_end must be a function, got "
                f"{brief(callback_on_step_end)}"
            )
        check_output_type(function, output_type)
        batches = batch_slices(function, count, batch_size)
        # Last, since a refused call must not advance a generator.
        seeds, ids = image_seeds(function, seed, generator, sample_ids, count)
        packed = [torch.empty((0, *packed_shape(shape)), dtype=torch.uint8, device="cpu")]
        with torch.no_grad(), self._call() as call:
            progress = {"total": shape.ar_steps * len(batches), "unit": "step"}
            with progress_bar(**progress | self._progress_bar_config) as bar:

                def on_step(result: StepResult) -> torch.Tensor | None:
                    bar.update()
                    changed = None
                    if callback_on_step_end is not None:
                        changed = _call_back(
                            self, callback_on_step_end, names, result, shape.ar_steps
                        )
                    call.check(f"AR step {result.step + 1} of {shape.ar_steps}")
                    return changed

                with self._turn(SAMPLING):
                    for batch in batches:
                        with numbered_images(function, batch):
                            tokens = sample(batch, seeds[batch], ids[batch], on_step)
                            packed.append(binarize(tokens)[1].cpu())
            images: Any = torch.cat(packed)
            if output_type != "latent":
                images = self._decode(
                    images, shape, seeds, ids, batch_size, output_type, function, call
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
        call: _Call | None = None,
    ) -> Any:
        """Images of packed tokens, batch by batch."""
        pixels = [torch.empty((0, *shape.pixels), dtype=torch.uint8, device="cpu")]
        with self._turn(DECODING):
            for batch in batch_slices(function, len(packed_latents), batch_size):
                tokens = unpack_signs(packed_latents[batch].to(self.device))[..., : shape.bits]
                with numbered_images(function, batch):
                    decoded = self._pixels(tokens, shape, seeds[batch], sample_ids[batch])
                pixels.append(decoded.cpu())
                if call is not None:
                    call.check(f"decoding image {batch.stop} of {len(packed_latents)}")
        return to_output(torch.cat(pixels), output_type)

    @torch.no_grad()
    def _encode(
        self, images: torch.Tensor, to_tokens: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Packed tokens of images, the inverse of ``_decode``.

        Args:
            images: argument of ``encode``.
            to_tokens: images [n, C, H, W] in [-1, 1] to tokens [n, N, C], on the model's device.
        """
        if not isinstance(images, torch.Tensor) or not images.is_floating_point():
            got = images.dtype if isinstance(images, torch.Tensor) else brief(images)
            raise TypeError(
                f"encode: images must be floating point [n, 3, H, W] in [0, 1], got {got}"
            )
        if images.dim() != 4:
            raise ValueError(f"encode: images must be [n, 3, H, W], got {list(images.shape)}")
        if not bool(images.isfinite().all()):
            raise ValueError("encode: images must be finite, got NaN or infinity")
        scaled = images.to(self.device, torch.float32) * 2 - 1
        with self._turn(DECODING):  # which has the autoencoder
            return binarize(to_tokens(scaled))[1].cpu()

    @torch.no_grad()
    def _pixels(
        self,
        tokens: torch.Tensor,
        shape: ImageShape,
        seeds: Sequence[int],
        sample_ids: Sequence[int],
    ) -> torch.Tensor:
        """Images uint8 [n, C, H, W] of tokens, on their device.

        A decoder that takes noise gets that of the AR step after the last, so that an image depends
        on its seed and sample id alone.
        """
        autoencoder = self._autoencoder
        if self._decode_images.autoencoder is not autoencoder:  # replaced in the model
            self._decode_images = ImageDecoder(autoencoder)
        latents, drawn = shape.to_latents(tokens), None
        if autoencoder.config.gan_decoder:
            keys = noise_keys(seeds, sample_ids, ar_step=shape.ar_steps, device=tokens.device)
            drawn = noise(keys, 0, latents[0].numel(), backend="auto").view(latents.shape)
        return self._decode_images(latents, noise=drawn)

    def _preview(
        self,
        generated_latents: torch.Tensor,
        shape: ImageShape,
        seeds: Sequence[int],
        sample_ids: Sequence[int],
        output_type: str,
    ) -> Any:
        """Images of the first tokens of each; pixels of the others are gray."""
        count, bits, drawn = len(generated_latents), shape.bits, generated_latents.shape[1]
        size = (shape.tokens, bits)
        tokens = torch.zeros(count, *size, dtype=torch.float32, device=self.device)
        tokens[:, :drawn] = unpack_signs(generated_latents.to(self.device))[..., :bits]
        with self._turn(DECODING):
            pixels = self._pixels(tokens, shape, seeds, sample_ids)
        mask = torch.zeros(1, *size, dtype=torch.float32, device=self.device)
        mask[:, :drawn] = 1
        cells = shape.to_latents(mask)[:, :1]
        pixels.masked_fill_(F.interpolate(cells, shape.pixels[1:]) == 0, _GRAY)
        return to_output(pixels.cpu(), output_type)

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
    """Call a callback after an AR step; returns the latents to continue from, if it changed any."""
    function = f"{type(pipeline).__name__}: callback_on_step_end"
    originals = {"latents": result.tokens, "packed_latents": result.packed}
    if _GENERATED in names:
        originals[_GENERATED] = binarize(result.generated)[1]
    given = {name: originals[name].clone() for name in names}
    returned = callback(pipeline, result.step, ar_steps - 1 - result.step, given)
    if returned is not None and not isinstance(returned, Mapping):
        raise TypeError(
            f"{function} must return its callback_kwargs, or a dict with the tensors to replace, "
            f"got {brief(returned)}"
        )
    for name, original in originals.items():
        tensor = (given | dict(returned or {})).get(name, original)
        if name == _GENERATED:
            if not isinstance(tensor, torch.Tensor) or not torch.equal(tensor, original):
                raise ValueError(f"{function} must leave {name} unchanged, got {brief(tensor)}")
            continue
        rows, *rest = original.shape
        shape = list(tensor.shape) if isinstance(tensor, torch.Tensor) else None
        if shape is None or shape not in ([rows, *rest], [rows // 2, *rest]):
            raise ValueError(
                f"{function} must return {name} of shape {[rows, *rest]}, got "
                f"{brief(tensor) if shape is None else shape}"
            )
        if shape[0] != rows:  # one for both halves of a guided batch
            tensor = torch.cat([tensor, tensor])
        if torch.equal(tensor.to(original), original):
            continue
        if name == "packed_latents":
            tensor = unpack_signs(tensor.to(original))[..., : result.tokens.shape[-1]]
        elif tensor.isnan().any():
            raise ValueError(f"{function} must return latents without NaN, got some")
        return binarize(tensor.to(result.tokens))[0]
    return None


@contextmanager
def numbered_images(function: str, batch: slice) -> Iterator[None]:
    """Inside, a NotFiniteError of a batch names the images by their numbers in the whole."""
    try:
        yield
    except NotFiniteError as error:
        raise error.numbered(function, range(batch.start, batch.stop)) from None
