"""Models of the package ``bitdance_models``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

__all__ = ["BUNDLED", "BUNDLED_TEXT", "bundled_folder"]

BUNDLED, BUNDLED_TEXT = "fashion", "emoji"
"""Names of the models: of classes, and, where the package has one, of texts."""


def bundled_folder(source: str | Path) -> Path | None:
    """The folder of a bundled model; None if `source` is not the name of one.

    Raises:
        FileNotFoundError: the package is not installed, or has no model of this name.
    """
    if str(source) not in (BUNDLED, BUNDLED_TEXT):
        return None
    found = importlib.util.find_spec("bitdance_models")
    for parent in (found and found.submodule_search_locations) or ():
        if (folder := Path(parent, source)).is_dir():
            return folder
    raise FileNotFoundError(
        f"{str(source)!r} is a model of the package bitdance_models, which was not found or has "
        "none of this name: pip install bitdance-models"
    )
