"""Golden cases: what the official implementation computed, and how ours is held against it.

A case is a pair of files in the golden directory (``tests/golden``, or ``BITDANCE_GOLDEN_DIR``):
tensors ``state.*`` (weights), ``in.*``, ``noise.*`` and ``out.*``, and a JSON file that tells how
they were made. Nothing here or in a runner may depend on the name, the sizes or the number of the
cases at hand.

A kind of case is known by the official source its description names. To cover a kind, write a
runner for it in a module ``golden_<family>.py`` beside this one::

    @runner("quantizer")
    def run_quantizer(case: Case) -> dict[str, torch.Tensor]:
        return {"out.eval.indices": ...}

A runner returns a tensor for every ``out.*`` of its case; it may return more.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

HERE = Path(__file__).parent
GOLDEN_DIR = Path(os.environ.get("BITDANCE_GOLDEN_DIR", HERE.parents[1] / "golden"))

# The first pattern found in description["official"] decides.
KINDS = {
    "quantizer": r"gfq\.py: GFQ",
    "autoencoder, ImageNet": r"qae\.py: VQModel",
    "autoencoder, text-to-image": r"vision_encoder/autoencoder\.py: VQModel",
    "autoencoder, UniWeTok": r"autoencoder_uni\.py: VQModel",
    "layout": r"model_parallel\.py: BitDance buffers",
    "transformer block": r"layers(_parallel)?\.py: .*TransformerBlock",
    "head, ImageNet per token": r"diff_head\.py: DiffHead",
    "head, ImageNet parallel": r"diff_head_parallel\.py: DiffHead",
    "head attention, text-to-image": r"flow_head_parallel_x\.py: Attention",
    "head, text-to-image": r"flow_head_parallel_x\.py: DiffHead",
    "model, ImageNet": r"model(_parallel)?\.py: BitDance$",
    "pipeline, text-to-image": r"t2i_pipeline\.py: BitDanceT2IPipeline",
    "training, text-to-image": r"mllm\.py: MLLModel\.forward_train",
    "utilities": r"modeling/utils\.py: ",
}


@dataclass(frozen=True)
class Case:
    """One golden case.

    Attributes:
        name: of its files.
        info: the JSON file's content.
        tensors: all tensors by full name.
    """

    name: str
    info: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def load(cls, name: str) -> Case:
        info = json.loads((GOLDEN_DIR / f"{name}.json").read_text())
        return cls(name, info, load_file(GOLDEN_DIR / f"{name}.safetensors"))

    @property
    def description(self) -> Mapping[str, Any]:
        return self.info["description"]

    @property
    def params(self) -> Mapping[str, Any]:
        return self.info["params"]

    @property
    def expected(self) -> dict[str, torch.Tensor]:
        return {name: t for name, t in self.tensors.items() if name.startswith("out.")}

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def state(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Weights whose official name begins with `prefix`, without it, in float32.

        They are stored in half precision and were rounded to it before the outputs were computed.
        """
        start = f"state.{prefix}"
        return {
            name.removeprefix(start): t.float() if t.is_floating_point() else t
            for name, t in self.tensors.items()
            if name.startswith(start)
        }

    def load_into(self, module: nn.Module, prefix: str = "") -> nn.Module:
        """Give `module` the weights of `prefix`, every name and shape equal, in eval mode."""
        module.load_state_dict(self.state(prefix), strict=True)
        return module.eval()

    def draws(self, name: str) -> list[torch.Tensor]:
        """The random draws recorded under ``noise[name]`` of the JSON file, in the order drawn."""
        draws: list[torch.Tensor] = []
        for record in self.info["noise"].get(name, ()):
            tensor = self.tensors[record["tensor"]]
            draws += list(tensor) if record["layout"] == "stacked" else [tensor]
        return draws

    def tolerance(self, name: str) -> float:
        """Largest absolute error allowed in ``out.*`` tensor `name`, 0 where it must match exactly.

        Integers, booleans and tensors of +1 and -1 match exactly. Elsewhere it is the rule of the
        golden vectors' documentation: 5 times the output's change under a relative weight noise of
        1e-6, plus 1e-5 of the largest value; gradients of modules without weights get 1e-4.
        """
        expected = self.tensors[name]
        if not expected.is_floating_point():
            return 0.0
        finite = expected[expected.isfinite()].abs()
        if expected.dim() > 0 and finite.numel() > 0 and bool((finite == 1).all()):
            return 0.0
        sensitivity = self.info["sensitivity_to_1e6_relative_weight_noise"].get(name, 0.0)
        largest = finite.max().item() if finite.numel() else 0.0
        without_weights = not any(key.startswith("state.") for key in self.tensors)
        floor = 1e-4 if without_weights and ".grad" in name else 0.0
        return max(5 * sensitivity + 1e-5 * largest, floor)


Runner = Callable[[Case], dict[str, torch.Tensor]]
RUNNERS: dict[str, Runner] = {}


def runner(kind: str) -> Callable[[Runner], Runner]:
    """Register the decorated function as the runner of `kind`."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")

    def register(function: Runner) -> Runner:
        if kind in RUNNERS:
            raise ValueError(f"kind {kind!r} has two runners")
        RUNNERS[kind] = function
        return function

    return register


def load_runners() -> None:
    """Import every ``golden_<family>.py`` beside this file, which registers its runners."""
    for path in sorted(HERE.glob("golden_*.py")):
        importlib.import_module(f"{__package__}.{path.stem}")


def case_names() -> list[str]:
    """All cases of the golden directory."""
    return sorted(path.stem for path in GOLDEN_DIR.glob("*.json"))


def kind_of(name: str) -> str | None:
    """The kind of case `name`, or None if no pattern knows it."""
    official = json.loads((GOLDEN_DIR / f"{name}.json").read_text())["description"]["official"]
    for kind, pattern in KINDS.items():
        if re.search(pattern, official):
            return kind
    return None


def mismatches(case: Case, actual: Mapping[str, torch.Tensor]) -> list[str]:
    """Every ``out.*`` tensor of the case that `actual` lacks or has differently, in words."""
    found = []
    for name, expected in case.expected.items():
        if name not in actual:
            found.append(f"{name}: not computed by the runner")
            continue
        got = actual[name].detach()
        if got.shape != expected.shape or got.dtype != expected.dtype:
            found.append(
                f"{name}: expected {expected.dtype} {list(expected.shape)}, got {got.dtype} "
                f"{list(got.shape)}"
            )
            continue
        # Infinities are equal or an infinite error; a NaN is an error wherever it stands.
        error = (got.double() - expected.double()).abs()
        error = torch.where(got == expected, 0.0, error).nan_to_num(nan=torch.inf)
        largest = error.max().item() if error.numel() else 0.0
        allowed = case.tolerance(name)
        if largest > allowed:
            wrong = int((error > allowed).sum())
            found.append(
                f"{name}: largest error {largest:.3g}, allowed {allowed:.3g}; "
                f"{wrong} of {error.numel()} elements beyond it"
            )
    return found
