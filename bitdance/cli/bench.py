"""``bitdance bench``: how fast a model is on this machine."""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bitdance.io.outputs import check_file
from bitdance.io.weights import replace_file
from bitdance.pipelines.class_conditional import BitDance
from bitdance_kernels import pack_signs, unpack_signs

_BITS = 2**22


@dataclass(frozen=True)
class Speed:
    """One thing that was timed.

    Attributes:
        what: for people.
        amount: of `unit` in one go.
        unit: such as "images".
        seconds: of every go.
    """

    what: str
    amount: float
    unit: str
    seconds: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Units a second, by the median go."""
        return self.amount / statistics.median(self.seconds)


def add_command(
    commands: Any, add_model: Callable[..., None], load: Callable[..., BitDance], positive: Any
) -> None:
    """Add the command's parser."""
    bench = commands.add_parser(
        "bench",
        help="how fast a model is on this machine",
        description="Time generation, decoding, encoding and the packing of bits; print a table "
        "and draw it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_model(bench)
    bench.add_argument("--n", type=positive, default=8, help="images at a time")
    bench.add_argument("--steps", type=positive, help="denoising steps (default: the model's own)")
    bench.add_argument("--rounds", type=positive, default=5, help="the median of so many counts")
    bench.add_argument("--out", type=Path, default=Path("bench.svg"), help="the plot")

    def run(options: argparse.Namespace) -> None:
        check_drawing(options.out)
        pipeline = load(options)
        speeds = measure(pipeline, options.n, rounds=options.rounds, steps=options.steps)
        print(f"{options.model} on {device_name(pipeline.device)}, PyTorch {torch.__version__}")
        print(table(speeds))
        draw(speeds, options.out)
        print(options.out)

    bench.set_defaults(run=run)


def measure(
    pipeline: BitDance, count: int, *, rounds: int, steps: int | None = None
) -> list[Speed]:
    """Time a model; everything takes turns, so that a busy moment meets all alike.

    Args:
        pipeline: the model.
        count: images at a time.
        rounds: of each.
        steps: denoising steps a patch; by default the model's own.
    """
    config, device = pipeline.config, pipeline.device
    labels = [i % config.num_classes for i in range(count)]

    def generate(batch: list[int]) -> torch.Tensor:
        return pipeline.generate(batch, steps=steps, output_type="latent", progress=False)

    packed = generate(labels)
    pixels = pipeline.decode(packed, output_type="pt")
    images = pixels.to(device, pipeline.model.norm.weight.dtype) / 127.5 - 1
    noise = torch.randn(_BITS, dtype=torch.float32, device=device)
    signs = torch.where(noise > 0, 1.0, -1.0)
    bits = pack_signs(signs)
    things: list[tuple[str, Callable[[], Any], float, str]] = [
        ("generate, 1 image", lambda: generate(labels[:1]), config.tokens, "tokens"),
        (f"generate, {count} images", lambda: generate(labels), count * config.tokens, "tokens"),
        (f"decode, {count} images", lambda: pipeline.decode(packed), count, "images"),
        (f"encode, {count} images", lambda: pipeline.model.encode(images), count, "images"),
        ("pack_signs", lambda: pack_signs(signs), _BITS / 1e6, "Mbit"),
        ("unpack_signs", lambda: unpack_signs(bits), _BITS / 1e6, "Mbit"),
    ]
    seconds: list[list[float]] = [[] for _ in things]
    for i in range(rounds + 1):
        for (_, function, _, _), times in zip(things, seconds, strict=True):
            begin = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if i > 0:  # the first loads modules, allocates and captures
                times.append(time.perf_counter() - begin)
    return [
        Speed(what, amount, unit, tuple(times))
        for (what, _, amount, unit), times in zip(things, seconds, strict=True)
    ]


def table(speeds: Sequence[Speed]) -> str:
    """For people."""
    lines = [f"{'':<22}{'median ms':>12}{'least ms':>12}{'a second':>16}"]
    for speed in speeds:
        median, least = (1e3 * f(speed.seconds) for f in (statistics.median, min))
        rate = f"{speed.rate:>16,.1f} {speed.unit}"
        lines.append(f"{speed.what:<22}{median:>12.2f}{least:>12.2f}{rate}")
    return "\n".join(lines)


def check_drawing(path: Path) -> None:
    """Check before the work that the plot can be drawn.

    Raises:
        RuntimeError: matplotlib is not installed.
        ValueError: it does not know the format.
        OSError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError("to draw the plot, pip install 'bitdance[bench]'") from error
    known = Figure().canvas.get_supported_filetypes()
    if _format(path) not in known:
        raise ValueError(f"bench: --out must end with one of {', '.join(known)}, got {path}")
    check_file(path)


def _format(path: Path) -> str:
    return path.suffix.removeprefix(".").lower() or "svg"


def draw(speeds: Sequence[Speed], path: Path) -> None:
    """Bars of the median times, with the rates.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axis = figure.add_subplot()
    times = [1e3 * statistics.median(speed.seconds) for speed in speeds]
    bars = axis.barh([speed.what for speed in speeds], times)
    labels = [f"{speed.rate:,.0f} {speed.unit}/s" for speed in speeds]
    axis.bar_label(bars, labels, padding=4, fontsize=8)
    axis.set_xscale("log")
    axis.margins(x=0.3)
    axis.invert_yaxis()
    axis.set_xlabel("ms")
    with replace_file(path) as temporary:
        figure.savefig(temporary, format=_format(path))


def device_name(device: torch.device) -> str:
    """What a table says it was made on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
