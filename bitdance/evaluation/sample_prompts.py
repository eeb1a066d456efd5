"""Images of the prompts of a benchmark, in the folders that its evaluation reads."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from bitdance.distributed import World
from bitdance.evaluation.prompt_lists import LAYOUTS, Layout, Prompt
from bitdance.evaluation.sample_settings import fingerprint, read_settings, write_settings
from bitdance.io import files
from bitdance.io.folder_lock import FolderLock
from bitdance.io.image_grid import grid
from bitdance.io.outputs import check_folder, save_image
from bitdance.io.progress import progress_bar
from bitdance.io.settings import Count, Integer, Number, Text, settings
from bitdance.io.validation import brief, exact_int, finite_number
from bitdance.models.quantization import quantization_of
from bitdance.pipelines.arguments import inference_steps
from bitdance.pipelines.text_to_image import BitDanceT2IPipeline

__all__ = ["IMAGES", "sample_prompts"]

IMAGES = 4
"""Images of a prompt, as both benchmarks take them."""
_SETTINGS = ".samples.json"  # hidden from programs that list the images


@settings
class _Settings:
    model: Text
    dtype: Text
    quantization: Text
    layout: Text
    prompts: Text
    seed: Integer
    num_inference_steps: Count
    guidance_scale: Number
    height: Count
    width: Count


def sample_prompts(
    pipeline: BitDanceT2IPipeline,
    prompts: Sequence[Prompt],
    folder: str | Path,
    *,
    layout: Layout,
    seed: int = 0,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    height: int = 1024,
    width: int = 1024,
    batch_size: int = 4,
    world: World | None = None,
    progress: bool = True,
) -> int:
    """Generate four images of each prompt; those that are there are not made again.

    Image j of prompt i has the sample id 4 i + j: it is the same whatever the number of processes
    and the batch size. "geneval" writes ``00000/metadata.jsonl``, ``00000/samples/0000.png`` to
    ``0003.png`` and ``00000/grid.png`` for prompt 0; "dpg" writes ``ID.png``, two rows of two
    images.

    Args:
        pipeline: the model, on the device of this process.
        prompts: the prompts, as ``read_prompts`` returns them.
        folder: folder to write: new, empty, or with earlier samples of equal settings.
        layout: "geneval" or "dpg".
        seed: seed of all images.
        num_inference_steps: denoising steps per patch.
        guidance_scale: guidance scale.
        height: height in pixels.
        width: width in pixels.
        batch_size: images at a time, rounded down to whole prompts.
        world: the processes, which take prompts in turn; by default this one alone.
        progress: show a progress bar, in the first process.

    Returns:
        The number of prompts whose images this call generated, in all processes.

    Raises:
        FileExistsError: the folder has other files.
        OSError: the folder cannot be written, or is in use by another run.
        ValueError: an argument is out of range, or the folder has samples with other settings.
    """
    function, world, folder = "sample_prompts", world or World(), Path(folder)
    if not prompts:
        raise ValueError(f"{function}: prompts must be at least one, got none")
    if layout not in LAYOUTS:
        raise ValueError(f"{function}: layout must be 'geneval' or 'dpg', got {brief(layout)}")
    pipeline.grid(height, width)  # raises for a size that is not made of patches
    texts = "\n".join(repr(prompt) for prompt in prompts)
    wanted = _Settings(
        model=fingerprint(pipeline.model),
        dtype=str(pipeline.dtype).removeprefix("torch."),
        quantization=quantization_of(pipeline.model) or "none",
        layout=layout,
        prompts=hashlib.sha256(texts.encode("utf-8", "surrogatepass")).hexdigest(),
        seed=exact_int(function, "seed", seed, 0, 2**64 - 1),
        num_inference_steps=inference_steps(function, num_inference_steps),
        guidance_scale=finite_number(function, "guidance_scale", guidance_scale),
        height=height, width=width,
    )  # fmt: skip
    size = max(1, exact_int(function, "batch_size", batch_size, 1) // IMAGES)
    world.check_equal(f"{function}: settings", wanted)
    missing: list[int] = []
    with contextlib.ExitStack() as stack:
        with world.together():
            if world.is_main:
                lock = _begin(folder, wanted)  # it is held as long as there is this name
                stack.callback(lock.release)
                missing = [i for i, p in enumerate(prompts) if not _is_there(folder, p, layout)]
        missing = world.broadcast(missing)
        mine = missing[world.rank :: world.size]
        hidden = not (progress and world.is_main)
        with (
            progress_bar(total=len(mine), unit="prompt", disable=hidden) as bar,
            pipeline.progress_bar_config(disable=True),
        ):
            for start in range(0, len(mine), size):
                items = mine[start : start + size]
                images = pipeline(
                    [prompts[i].text for i in items], num_images_per_prompt=IMAGES, seed=seed,
                    sample_ids=[IMAGES * i + j for i in items for j in range(IMAGES)],
                    num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
                    height=height, width=width, batch_size=IMAGES * size,
                ).images  # fmt: skip
                for n, i in enumerate(items):
                    _save(images[IMAGES * n : IMAGES * (n + 1)], folder, prompts[i], layout)
                bar.update(len(items))
        world.barrier()
    return len(missing)


def _begin(folder: Path, wanted: _Settings) -> FolderLock:
    check_folder(folder)
    file = folder / _SETTINGS
    if not file.is_file() and folder.is_dir() and any(folder.glob("[!.]*")):
        raise FileExistsError(f"{folder} exists, has no {_SETTINGS} and is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder)
    try:
        if file.is_file():
            read_settings(file, wanted)
        else:
            write_settings(file, wanted)
        files.remove_leftovers(folder)
    except BaseException:
        lock.release()
        raise
    return lock


def _is_there(folder: Path, prompt: Prompt, layout: Layout) -> bool:
    # GenEval's grid is written last.
    name = f"{prompt.name}.png" if layout == "dpg" else f"{prompt.name}/grid.png"
    return (folder / name).is_file()


def _save(images: Sequence[Image.Image], folder: Path, prompt: Prompt, layout: Layout) -> None:
    if layout == "dpg":
        save_image(grid(images, 2, gap=0), folder / f"{prompt.name}.png")
        return
    place = folder / prompt.name
    for j, image in enumerate(images):
        save_image(image, place / f"samples/{j:04d}.png")
    files.write_text(place / "metadata.jsonl", prompt.metadata + "\n")
    save_image(grid(images, 2), place / "grid.png")
