"""``bitdance bench``: the speed of a model on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitdance.cli.arguments import (
    add_model_arguments,
    add_quantization_argument,
    add_sampling_arguments,
    load_pipeline,
    positive_int,
)
from bitdance.cli.report import Report, add_json_argument
from bitdance.io.files import replace_file
from bitdance.io.outputs import check_file
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance_kernels import pack_signs, unpack_signs

_BITS = 2**22


@dataclass(frozen=True)
class Speed:
    """Times of one operation.

    Attributes:
        name: title of the operation.
        amount: units processed by one run.
        unit: such as "images".
        seconds: time of each run.
    """

    name: str
    amount: float
    unit: str
    seconds: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Units per second of the median run."""
        return self.amount / statistics.median(self.seconds)


def add_command(commands: Any) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "bench",
        help="measure the speed of a model on this machine",
        description="Time generation, decoding, encoding and the packing of bits; print a table "
        "and draw it.",
    )
    add_model_arguments(parser)
    add_quantization_argument(parser)
    parser.add_argument("--num-images", type=positive_int, default=8, help="images per batch")
    add_sampling_arguments(parser, guidance=False)
    parser.add_argument("--rounds", type=positive_int, default=5, help="runs to take medians of")
    parser.add_argument("--out", type=Path, default=Path("bench.svg"), help="file of the plot")
    add_json_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> Report:
    """Run the command."""
    check_drawing(options.out)
    pipeline = load_pipeline(options)
    pipeline.set_progress_bar_config(disable=True)  # a bar takes time
    speeds = measure(
        pipeline, options.num_images, rounds=options.rounds, steps=options.num_inference_steps
    )
    draw(speeds, options.out)
    device, version = device_name(pipeline.device), str(torch.__version__)
    values = {
        "model": options.model, "device": device, "torch": version,
        "operations": [dataclasses.asdict(speed) | {"rate": speed.rate} for speed in speeds],
        "plot": options.out,
    }  # fmt: skip
    title = f"{options.model} on {device}, PyTorch {version}"
    return Report(values, f"{title}\n{table(speeds)}\n{options.out}")


def measure(
    pipeline: BitDancePipeline, count: int, *, rounds: int, steps: int | None = None
) -> list[Speed]:
    """Time a model; operations take turns, so that a busy moment affects all of them.

    Args:
        pipeline: the model.
        count: images per batch.
        rounds: runs of each operation.
        steps: denoising steps per patch; by default the model's own.
    """
    config, device = pipeline.config, pipeline.device
    labels = [i % config.num_classes for i in range(count)]

    def generate(batch: list[int]) -> torch.Tensor:
        return pipeline(batch, num_inference_steps=steps, output_type="latent").images

    packed = generate(labels)
    pixels = pipeline.decode(packed, output_type="uint8")
    images = pixels.to(device, pipeline.model.norm.weight.dtype) / 127.5 - 1
    noise = torch.randn(_BITS, dtype=torch.float32, device=device)
    signs = torch.where(noise > 0, 1.0, -1.0)
    bits = pack_signs(signs)
    operations: list[tuple[str, Callable[[], Any], float, str]] = [
        ("generate, 1 image", lambda: generate(labels[:1]), config.tokens, "tokens"),
        (f"generate, {count} images", lambda: generate(labels), count * config.tokens, "tokens"),
        (f"decode, {count} images", lambda: pipeline.decode(packed), count, "images"),
        (f"encode, {count} images", lambda: pipeline.model.encode(images), count, "images"),
        ("pack_signs", lambda: pack_signs(signs), _BITS / 1e6, "Mbit"),
        ("unpack_signs", lambda: unpack_signs(bits), _BITS / 1e6, "Mbit"),
    ]
    seconds: list[list[float]] = [[] for _ in operations]
    for i in range(rounds + 1):
        for (_, function, _, _), times in zip(operations, seconds, strict=True):
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if i > 0:  # the first run loads modules, allocates and captures graphs
                times.append(time.perf_counter() - start)
    return [
        Speed(name, amount, unit, tuple(times))
        for (name, _, amount, unit), times in zip(operations, seconds, strict=True)
    ]


def table(speeds: Sequence[Speed]) -> str:
    """A table of medians, minima and rates."""
    lines = [f"{'':<22}{'median ms':>12}{'min ms':>12}{'per second':>16}"]
    for speed in speeds:
        median, fastest = (1e3 * f(speed.seconds) for f in (statistics.median, min))
        rate = f"{speed.rate:>16,.1f} {speed.unit}"
        lines.append(f"{speed.name:<22}{median:>12.2f}{fastest:>12.2f}{rate}")
    return "\n".join(lines)


def check_drawing(path: Path) -> None:
    """Check that the plot can be drawn.

    Raises:
        RuntimeError: matplotlib is not installed.
        ValueError: matplotlib does not know the format.
        OSError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError("to draw the plot, pip install 'bitdance[bench]'") from error
    formats = Figure().canvas.get_supported_filetypes()
    if _format(path) not in formats:
        raise ValueError(f"bench: --out must end with one of {', '.join(formats)}, got {path}")
    check_file(path)


def _format(path: Path) -> str:
    return path.suffix.removeprefix(".").lower() or "svg"


def draw(speeds: Sequence[Speed], path: Path) -> None:
    """Draw a bar for each median time, labeled with its rate.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axis = figure.add_subplot()
    times = [1e3 * statistics.median(speed.seconds) for speed in speeds]
    bars = axis.barh([speed.name for speed in speeds], times)
    labels = [f"{speed.rate:,.0f} {speed.unit}/s" for speed in speeds]
    axis.bar_label(bars, labels, padding=4, fontsize=8)
    axis.set_xscale("log")
    axis.margins(x=0.3)
    axis.invert_yaxis()
    axis.set_xlabel("ms")
    with replace_file(path) as temporary:
        figure.savefig(temporary, format=_format(path))


def device_name(device: torch.device) -> str:
    """Name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
