"""Writes docs/api.md, the API reference, from the docstrings: ``make docs``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import bitdance_kernels

OUT = Path(__file__).with_name("api.md")
FAMILIES = {
    "binary": "Packed binary latents",
    "denoise": "Denoising steps of the diffusion head",
    "attention": "Block-causal attention",
    "autoencode": "The tokenizer's decoder",
}


def family(member: object) -> str:
    """The family that a public name belongs to; "" for the machinery."""
    parts = getattr(member, "__module__", "").split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FAMILIES else ""


def entry(name: str, member: object) -> str:
    """One public name: signature and docstring."""
    text = inspect.getdoc(member) or ""
    signature = str(inspect.signature(member)) if inspect.isfunction(member) else ""
    # Annotations are kept as strings; show them as they are written.
    signature = re.sub(r"'([^']+)'", r"\1", signature).replace("torch.Tensor", "Tensor")
    return f"### {name}\n\n```python\n{name}{signature}\n```\n\n```text\n{text}\n```\n"


def build() -> str:
    """The whole page."""
    names = [name for name in bitdance_kernels.__all__ if not name.startswith("__")]
    page = ["# API reference\n", "Made by `make docs` from the docstrings; do not edit.\n"]
    for key, title in {"": "Backends and errors", **FAMILIES}.items():
        members = [name for name in names if family(getattr(bitdance_kernels, name)) == key]
        if members:
            page.append(f"## {title}\n")
            page += [entry(name, getattr(bitdance_kernels, name)) for name in members]
    return "\n".join(page)


if __name__ == "__main__":
    OUT.write_text(build())
    print(f"wrote {OUT}")
