"""What generating has in common, whatever is drawn: seeds, batches, progress, cancellation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from PIL import Image
from tqdm.auto import tqdm

from bitdance.io.validation import exact_int, is_one, listed, shown
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.sampling.ar_sampler import StepResult
from bitdance.sampling.finite import NotFiniteError
from bitdance.sampling.flow_sampler import binarize
from bitdance_kernels import noise, noise_keys, unpack_signs

__all__ = [
    "Callback",
    "GenerationCancelled",
    "Interruptible",
    "OutputType",
    "batch_slices",
    "check_latents",
    "check_output_type",
    "decode_latents",
    "generate_batches",
    "image_seeds",
    "numbered_images",
    "to_output",
]

OutputType = Literal["pil", "np", "pt", "latent"]
Callback = Callable[[Any, int, int, Mapping[str, torch.Tensor]], Any]


class GenerationCancelled(Exception):  # noqa: N818  (no error: somebody asked for it)
    """``generate`` was stopped, by a callback that returned False or by ``interrupt``."""


class Interruptible:
    """A pipeline whose running calls of ``generate`` can be stopped."""

    def __init__(self) -> None:
        self._running: set[_Call] = set()

    @property
    def interrupt(self) -> bool:
        """Whether a running call is about to stop.

        Set to True, from a callback or another thread, it stops every call that runs now, each
        after its AR step; calls that begin later are not concerned.
        """
        return any(call.stopped for call in tuple(self._running))

    @interrupt.setter
    def interrupt(self, stop: bool) -> None:
        for call in tuple(self._running):
            call.stopped = bool(stop)

    @contextmanager
    def _run(self) -> Iterator[_Call]:
        call = _Call()
        self._running.add(call)
        try:
            yield call
        finally:
            self._running.discard(call)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_running": set()}  # a copy has no calls


class _Call:
    stopped = False


def check_output_type(
    function: str, output_type: str, known: Sequence[str] = ("pil", "np", "pt", "latent")
) -> None:
    """Raise ValueError unless `output_type` is known."""
    if output_type not in known:
        *most, last = map(repr, known)
        raise ValueError(
            f"{function}: output_type must be {', '.join(most)} or {last}, got {shown(output_type)}"
        )


def check_latents(packed: torch.Tensor, shape: tuple[int, int]) -> None:
    """Raise TypeError or ValueError unless `packed` is uint8 [n, *shape]."""
    expected = f"uint8 {['n', *shape]}"
    if not isinstance(packed, torch.Tensor):
        raise TypeError(f"decode: packed must be {expected}, got {shown(packed)}")
    if packed.dtype != torch.uint8 or packed.dim() != 3 or packed.shape[1:] != shape:
        raise ValueError(
            f"decode: packed must be {expected}, got {packed.dtype} {list(packed.shape)}"
        )


def image_seeds(
    function: str, seed: int | Sequence[int], sample_ids: Sequence[int] | None, count: int
) -> tuple[list[int], list[int]]:
    """The seed and the sample id of each picture; see ``BitDance.generate``.

    Raises:
        TypeError: one is no integer.
        ValueError: there are not as many as pictures, or one is out of range.
    """
    one = is_one(seed)
    given: dict[str, list[Any]] = {
        "seed": [seed] * count if one else listed(function, "seed", seed),
        "sample_ids": (list(range(count)) if one else [0] * count)
        if sample_ids is None
        else listed(function, "sample_ids", sample_ids),
    }
    if one:
        exact_int(function, "seed", seed, 0, 2**64 - 1)  # also where there are no pictures
    for name, values in given.items():
        if len(values) != count:
            raise ValueError(
                f"{function}: {name} must be one per picture ({count}), got {len(values)}"
            )
    seeds = [exact_int(function, "seed", s, 0, 2**64 - 1) for s in given["seed"]]
    ids = [exact_int(function, "sample_ids", i, 0, 2**32 - 1) for i in given["sample_ids"]]
    return seeds, ids


def batch_slices(function: str, count: int, batch_size: int | None) -> list[slice]:
    """The pictures of every batch.

    Raises:
        TypeError, ValueError: `batch_size` is no integer of at least 1.
    """
    size = max(count, 1)
    if batch_size is not None:
        size = exact_int(function, "batch_size", batch_size, 1)
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def generate_batches(
    pipeline: Interruptible,
    sample: Callable[[slice, Callable[[StepResult], None]], torch.Tensor],
    *,
    count: int,
    ar_steps: int,
    batch_size: int | None,
    callback: Callback | None,
    progress: bool,
) -> list[torch.Tensor]:
    """Sample pictures batch by batch.

    Args:
        pipeline: what the callback is given; its ``interrupt`` stops the run.
        sample: called with the pictures of a batch and a function to call after every AR step;
            returns their tokens [B, N, C].
        count: pictures.
        ar_steps: of a batch.
        batch_size: pictures at a time; by default all.
        callback: see ``BitDance.generate``.
        progress: show a progress bar.

    Returns:
        Packed tokens of each batch, uint8 [B, N, ceil(C / 8)].

    Raises:
        TypeError: `callback` cannot be called.
        ValueError: `batch_size` is less than 1.
        NotFiniteError: the predictions of some pictures hold NaN or infinity.
        GenerationCancelled: the callback returned False, or ``interrupt`` was set.
    """
    if callback is not None and not callable(callback):
        raise TypeError(f"generate: callback_on_step_end must be a function, got {shown(callback)}")
    batches = batch_slices("generate", count, batch_size)
    made = []
    with (
        torch.no_grad(),
        pipeline._run() as call,
        tqdm(total=ar_steps * len(batches), disable=not progress, unit="step") as bar,
    ):

        def on_step(result: StepResult) -> None:
            bar.update()
            step, wanted = result.step, True
            if callback is not None:
                bits = {"packed": result.packed}
                wanted = callback(pipeline, step, ar_steps, bits) is not False
            if call.stopped or not wanted:
                raise GenerationCancelled(f"stopped after AR step {step + 1} of {ar_steps}")

        for batch in batches:
            with numbered_images("generate", batch):
                made.append(binarize(sample(batch, on_step))[1])
    return made


@contextmanager
def numbered_images(function: str, batch: slice) -> Iterator[None]:
    """Inside, a NotFiniteError of a batch names the pictures by their numbers in the whole."""
    try:
        yield
    except NotFiniteError as error:
        raise error.numbered(function, range(batch.start, batch.stop)) from None


def decode_latents(
    autoencoder: BinaryAutoencoder,
    packed: torch.Tensor,
    to_codes: Callable[[torch.Tensor], torch.Tensor],
    *,
    seed: int | Sequence[int],
    sample_ids: Sequence[int] | None,
    ar_steps: int,
    batch_size: int | None,
) -> list[torch.Tensor]:
    """Pictures of packed tokens, batch by batch.

    Args:
        autoencoder: whose decoder is used. One that takes noise gets that of AR step `ar_steps`,
            the one after the last, so that a picture depends on its seed and sample id alone.
        packed: uint8 [n, N, ceil(C / 8)].
        to_codes: tokens [B, N, C' >= C] of +1 and -1 to the decoder's maps.
        seed: as for ``generate``.
        sample_ids: as for ``generate``.
        ar_steps: of a picture.
        batch_size: pictures at a time; by default all.

    Returns:
        uint8 [B, C, H, W] on the CPU of each batch.

    Raises:
        TypeError, ValueError: an argument is of another kind or out of range.
        NotFiniteError: a picture holds NaN or infinity.
    """
    seeds, ids = image_seeds("decode", seed, sample_ids, len(packed))
    device = autoencoder.decoder.conv_in.weight.device
    pixels = []
    with torch.no_grad():
        for batch in batch_slices("decode", len(packed), batch_size):
            codes, drawn = to_codes(unpack_signs(packed[batch].to(device))), None
            if autoencoder.config.gan_decoder:
                keys = noise_keys(seeds[batch], ids[batch], ar_step=ar_steps, device=device)
                drawn = noise(keys, 0, codes[0].numel(), backend="auto").view(codes.shape)
            with numbered_images("decode", batch):
                pixels.append(autoencoder.decode_pixels(codes, noise=drawn).cpu())
    return pixels


def to_output(images: torch.Tensor, output_type: str) -> Any:
    """Pictures uint8 [n, C, H, W] as a caller wants them: "pt", "np" or "pil"."""
    if output_type == "pt":
        return images
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    return arrays if output_type == "np" else [Image.fromarray(array) for array in arrays]
