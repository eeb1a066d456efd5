"""What the programs of this folder have in common."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe
from bitdance.models.diffusion_head import HeadNetwork


def parser(description: str | None) -> argparse.ArgumentParser:
    """With ``--json``; described by the first line of a module."""
    result = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    result.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    return result


def main(
    options: argparse.Namespace, measure: Callable[[], Mapping[str, Any]], device: str = "cpu"
) -> None:
    """Print the figures and what they were measured on, and write them with ``--json``."""
    machine = describe(torch.device(device), torch.get_num_threads())
    text = json.dumps({"machine": machine, **measure()}, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")


def random_head(config: Any, device: torch.device, dtype: torch.dtype) -> HeadNetwork:
    """A head with random weights, those that begin at 0 too."""
    torch.manual_seed(0)
    network = HeadNetwork(config).eval().requires_grad_(False).to(device, dtype)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.normal_(std=0.02)
    return network
