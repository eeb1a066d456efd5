"""Computes the plan of the 14B models in docs/memory.md: ``make docs``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bitdance.models.config import AUTOENCODER_PRESETS, HEAD_PRESETS
from bitdance.models.qwen3 import Qwen3Config
from bitdance.models.text_to_image_config import TextToImageConfig
from bitdance.pipelines.memory import CARDS, GIB, estimate_memory

PAGE = Path(__file__).with_name("memory.md")
BEGIN, END = "<!-- plan -->\n", "<!-- end of plan -->\n"

LANGUAGE_MODEL = Qwen3Config(
    hidden_size=5120, num_hidden_layers=40, num_attention_heads=40, num_key_value_heads=8,
    intermediate_size=17408, vocab_size=151988,
)  # fmt: skip
MODEL = TextToImageConfig(
    LANGUAGE_MODEL, HEAD_PRESETS["t2i-14b"], AUTOENCODER_PRESETS["d16c32"], parallel_num=64
)
"""BitDance-14B-64x."""

WORDS = {"resident": "fits", "offloaded": "with offload", None: "no"}
PICTURES = ((1, 512), (1, 1024), (4, 1024))
SHORT_OF_MEMORY = {"tile_size": 512, "slicing": True}


def rows(pictures: Sequence[tuple[int, int]] = PICTURES) -> list[list[str]]:
    """A row for each way to hold the weights, to decode, and number and size of pictures."""
    found = []
    for quantization in (None, "fp8_weight_only"):
        for images, side in pictures:
            for saving in ({}, SHORT_OF_MEMORY):
                if saving and side <= SHORT_OF_MEMORY["tile_size"]:
                    continue  # decoded whole
                plan = estimate_memory(
                    MODEL, dtype=torch.bfloat16, quantization=quantization, batch_size=images,
                    height=side, width=side, **saving,  # type: ignore[arg-type]
                )  # fmt: skip
                parts = [plan.weights[name] for name in ("language model", "head", "autoencoder")]
                work = [plan.cache, plan.buffers + plan.sampling, plan.decoding]
                numbers = [*parts, *work, plan.resident, plan.offloaded]
                found.append([
                    quantization or "none", f"{images} of {side} x {side}",
                    "yes" if saving else "", *(f"{number / GIB:.1f}" for number in numbers),
                    *(WORDS[plan.fits(gib)] for gib in CARDS),
                ])  # fmt: skip
    return found


def line(cells: Sequence[str]) -> str:
    """A row in Markdown."""
    return f"| {' | '.join(cells)} |\n".replace("|  |", "| |")


def table() -> str:
    """All rows in Markdown, with their names."""
    names = [
        "`quantization`", "images", "tiles, slices", "language model", "head", "autoencoder",
        "cache", "sampling", "decoding", "all", "with offload",
    ]  # fmt: skip
    names += [f"{gib} GiB" for gib in CARDS]
    rule = ["---"] * 3 + ["---:"] * (len(names) - 3 - len(CARDS)) + ["---"] * len(CARDS)
    return "".join(map(line, [names, rule, *rows()]))


def main() -> None:
    """Write the table into the page."""
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")


if __name__ == "__main__":
    main()
