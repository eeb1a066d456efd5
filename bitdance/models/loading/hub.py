"""Where a model is: on this disk, in bitdance-models, or on the Hugging Face hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bitdance.io.files import CheckpointError, one_line
from bitdance.models.loading import model_folder

__all__ = ["BUNDLED", "download", "locate"]

BUNDLED = ("fashion",)
"""Models of the package ``bitdance_models``."""


def locate(
    source: str | Path, *, revision: str | None = None, local_files_only: bool = False
) -> Path:
    """The file or folder of a model; a repository is downloaded.

    Raises:
        FileNotFoundError: there is none, or it is bundled and bitdance-models is not installed.
        CheckpointError: a repository holds something else.
    """
    path = Path(source)
    if path.exists():
        return path
    if str(source) in BUNDLED:
        return _bundled(str(source))
    return download(str(source), revision, local_files_only)


def _bundled(name: str) -> Path:
    """The folder of a bundled model."""
    found = importlib.util.find_spec("bitdance_models")
    for parent in (found and found.submodule_search_locations) or ():
        if (folder := Path(parent, name)).is_dir():
            return folder
    raise FileNotFoundError(
        f"{name!r} is a bundled model, and the package bitdance_models, which has it, was not "
        "found: pip install bitdance-models"
    )


def download(source: str, revision: str | None, local_files_only: bool) -> Path:
    """A repository's folder on this disk, with the files that its ``config.json`` names.

    That is fetched first: weights of tens of gigabytes are not, where it is of another model.

    Raises:
        FileNotFoundError: `source` is no repository's id, or the repository cannot be had.
        CheckpointError: its ``config.json`` is of something else.
    """
    parts = source.split("/")
    if len(parts) != 2 or not all(parts) or source.startswith((".", "~")):
        raise FileNotFoundError(
            f"{source!r} is no file, no folder and no repository id of the form owner/name"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f"{source!r} is no file or folder here; to look for it on the Hugging Face hub, "
            "pip install 'bitdance[hub]'"
        ) from error

    def fetch(*names: str) -> Path:
        try:
            folder = snapshot_download(
                source,
                revision=revision,
                local_files_only=local_files_only,
                allow_patterns=["config.json", *names],
            )
        except Exception as error:  # whatever the kind, the repository is not available
            where = "among the files downloaded before" if local_files_only else "on the hub"
            raise FileNotFoundError(
                f"{source!r} was not found {where}: {one_line(error)}"
            ) from error
        return Path(folder)

    config = fetch() / "config.json"
    if not config.exists():
        raise CheckpointError(f"{source!r} has no config.json: it holds no model of this library")
    return fetch(model_folder.read_content(config).weights.file)
