"""What generating has in common, whatever is drawn: seeds, batches, progress, cancellation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from PIL import Image
from tqdm.auto import tqdm

from bitdance.generation import StepResult
from bitdance.sampler import binarize

__all__ = [
    "Callback",
    "GenerationCancelled",
    "OutputType",
    "check_output_type",
    "generate_batches",
    "image_seeds",
    "to_output",
]

OutputType = Literal["pil", "np", "pt", "latent"]
Callback = Callable[[Any, int, int, Mapping[str, torch.Tensor]], Any]


class GenerationCancelled(Exception):  # noqa: N818  (no error: somebody asked for it)
    """``generate`` was stopped, by a callback that returned False or by ``interrupt``."""


def check_output_type(output_type: str) -> None:
    """Raise ValueError unless `output_type` is known."""
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(
            f"generate: output_type must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}"
        )


def image_seeds(
    seed: int | Sequence[int], sample_ids: Sequence[int] | None, count: int
) -> tuple[list[int], list[int]]:
    """The seed and the sample id of each picture; see ``BitDance.generate``.

    Raises:
        ValueError: there are not as many as pictures, or one is out of range.
    """
    one = isinstance(seed, int)
    seeds = [seed] * count if isinstance(seed, int) else [int(s) for s in seed]
    if sample_ids is not None:
        ids = [int(i) for i in sample_ids]
    else:
        ids = list(range(count)) if one else [0] * count
    for name, values, bits in (("seed", seeds, 64), ("sample_ids", ids, 32)):
        if len(values) != count:
            raise ValueError(
                f"generate: {name} must be one per picture ({count}), got {len(values)}"
            )
        wrong = next((v for v in values if not 0 <= v < 2**bits), None)
        if wrong is not None:
            raise ValueError(f"generate: {name} must be 0 to 2^{bits} - 1, got {wrong}")
    return seeds, ids


def generate_batches(
    pipeline: Any,
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
        ValueError: `batch_size` is less than 1.
        GenerationCancelled: the callback returned False, or ``interrupt`` was set.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"generate: batch_size must be at least 1, got {batch_size}")
    size = batch_size or max(count, 1)
    batches = [slice(i, min(i + size, count)) for i in range(0, count, size)]
    pipeline.interrupt = False
    with (
        torch.no_grad(),
        tqdm(total=ar_steps * len(batches), disable=not progress, unit="step") as bar,
    ):

        def on_step(result: StepResult) -> None:
            bar.update()
            step, wanted = result.step, True
            if callback is not None:
                bits = {"packed": result.packed}
                wanted = callback(pipeline, step, ar_steps, bits) is not False
            if pipeline.interrupt or not wanted:
                raise GenerationCancelled(f"stopped after AR step {step + 1} of {ar_steps}")

        return [binarize(sample(batch, on_step))[1] for batch in batches]


def to_output(images: torch.Tensor, output_type: str) -> Any:
    """Pictures uint8 [n, C, H, W] as a caller wants them: "pt", "np" or "pil"."""
    if output_type == "pt":
        return images
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    return arrays if output_type == "np" else [Image.fromarray(array) for array in arrays]
