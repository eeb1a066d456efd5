"""Nodes that save and load bits."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import folder_paths
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .codes import Codes

__all__ = ["BitDanceLoadCodes", "BitDanceSaveCodes"]

_SUFFIX = ".bits.safetensors"
_FORMAT = "bitdance-codes-1"


class BitDanceSaveCodes:
    """Saves bits to a file in ComfyUI's output folder."""

    FUNCTION = "save"
    CATEGORY = "BitDance"
    DESCRIPTION = "Saves the bits of images, some hundred times smaller than their pixels."
    RETURN_TYPES = ("BITDANCE_CODES",)
    RETURN_NAMES = ("codes",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        return {
            "required": {
                "codes": ("BITDANCE_CODES",),
                "filename_prefix": ("STRING", {
                    "default": "codes/BitDance", "tooltip": "Beginning of the file's name.",
                }),
            }
        }  # fmt: skip

    def save(self, codes: Codes, filename_prefix: str) -> dict[str, Any]:
        """Write a file, which appears whole or not at all, and pass the bits on.

        Raises:
            OSError: the folder cannot be written.
        """
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        path = Path(folder, f"{name}_{counter:05}_{_SUFFIX}")
        numbers = {
            "height": codes.height, "width": codes.width, "seed": codes.seed,
            "sample_ids": list(codes.sample_ids),
        }  # fmt: skip
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            save_file(
                {"packed": codes.packed.contiguous()}, temporary,
                {"format": _FORMAT, "images": json.dumps(numbers)},
            )  # fmt: skip
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        saved = {"filename": path.name, "subfolder": subfolder, "type": "output"}
        return {"ui": {"codes": [saved]}, "result": (codes,)}


class BitDanceLoadCodes:
    """Loads bits from a file in ComfyUI's input folder."""

    FUNCTION = "load"
    CATEGORY = "BitDance"
    DESCRIPTION = "Loads bits that Save BitDance Codes has saved, from the input folder."
    RETURN_TYPES = ("BITDANCE_CODES",)
    RETURN_NAMES = ("codes",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        names = os.listdir(folder_paths.get_input_directory())
        files = sorted(name for name in names if name.endswith(_SUFFIX))
        return {"required": {"file": (files, {"tooltip": f"A file *{_SUFFIX}."})}}

    @classmethod
    def VALIDATE_INPUTS(cls, file: str) -> bool | str:
        """Whether there is such a file; else what is wrong."""
        if not folder_paths.exists_annotated_filepath(file):
            return f"no such file: {file}"
        return True

    @classmethod
    def IS_CHANGED(cls, file: str) -> str:
        """The checksum of the file."""
        path = Path(folder_paths.get_annotated_filepath(file))
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def load(self, file: str) -> tuple[Codes]:
        """Bits of a file.

        Raises:
            ValueError: it is damaged, or something else.
        """
        path = folder_paths.get_annotated_filepath(file)
        try:
            with safe_open(path, "pt", device="cpu") as opened:
                metadata = opened.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(f"its format is {metadata.get('format')!r}, not {_FORMAT!r}")
                numbers = json.loads(metadata["images"])
                packed = opened.get_tensor("packed")
            codes = Codes(
                packed, int(numbers["height"]), int(numbers["width"]), int(numbers["seed"]),
                tuple(map(int, numbers["sample_ids"])),
            )  # fmt: skip
        except (KeyError, SafetensorError, TypeError, ValueError) as error:
            raise ValueError(f"{file} has no bits of images: {error}") from error
        if packed.dtype != torch.uint8 or packed.dim() != 3 or len(packed) != len(codes.sample_ids):
            got = f"{packed.dtype} {list(packed.shape)} with {len(codes.sample_ids)} sample ids"
            raise ValueError(f"{file} must have bits uint8 [n, tokens, bytes], got {got}")
        return (codes,)
