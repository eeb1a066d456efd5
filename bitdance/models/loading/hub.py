"""Location of a model: on this disk, in bitdance-models, or on the Hugging Face Hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bitdance.io.files import CheckpointError, one_line
from bitdance.models.loading import model_folder

__all__ = ["AUTOENCODER_FILES", "BUNDLED", "download", "locate", "locate_release"]

BUNDLED = ("fashion",)
"""Models of the package ``bitdance_models``."""


AUTOENCODER_FILES = (
    ("autoencoder.safetensors", "autoencoder.json"), ("ae.safetensors", "ae_config.json"),
)  # fmt: skip
"""Weights and configuration of an autoencoder in a run's folder, and in a text-to-image release."""

RELEASE_CONFIGS = ("config.json", "ae_config.json", "vision_head_config.json")
"""Configurations of a text-to-image release."""


def locate(
    source: str | Path, *, revision: str | None = None, local_files_only: bool = False,
    autoencoder: bool = False,
) -> Path:  # fmt: skip
    """The file or folder of a model; what it needs of a repository is downloaded.

    Args:
        source: a path; the name of a bundled model; the id "owner/name" of a repository; or
            "owner/name/file" for one file of it, with its configuration.
        revision: revision of the repository.
        local_files_only: use only files that were downloaded before.
        autoencoder: an autoencoder is enough: of a repository that has one apart, only that is
            downloaded.

    Raises:
        FileNotFoundError: there is none, or it is bundled and bitdance-models is not installed.
        CheckpointError: a repository contains something else.
    """
    path = Path(source)
    if path.exists():
        return path
    if str(source) in BUNDLED:
        return _bundled(str(source))
    return download(str(source), revision, local_files_only, autoencoder=autoencoder)


def _bundled(name: str) -> Path:
    """The folder of a bundled model."""
    found = importlib.util.find_spec("bitdance_models")
    for parent in (found and found.submodule_search_locations) or ():
        if (folder := Path(parent, name)).is_dir():
            return folder
    raise FileNotFoundError(
        f"{name!r} is a model of the package bitdance_models, which was not found: "
        "pip install bitdance-models"
    )


def locate_release(
    source: str | Path, *, revision: str | None = None, local_files_only: bool = False,
    language_model: bool = False,
) -> Path:  # fmt: skip
    """The folder of a text-to-image release; a repository is downloaded.

    The configurations are fetched first, and the weights only if those of a release are among them.

    Args:
        source: folder, or the id "owner/name" of a repository.
        revision: revision of the repository.
        local_files_only: use only files that were downloaded before.
        language_model: a language model alone is enough.

    Raises:
        FileNotFoundError: there is no such folder or repository.
        CheckpointError: the repository contains something else.
    """
    path = Path(source)
    if path.exists():
        return path
    fetch = _Repository(str(source), revision, local_files_only)
    folder = fetch("*.json", "*.txt", "*.jinja")
    needed = RELEASE_CONFIGS[:1] if language_model else RELEASE_CONFIGS
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        raise CheckpointError(
            f"{str(source)!r} has no {missing[0]}: it is not a text-to-image release"
        )
    return fetch("*.safetensors", "*.json", "*.txt", "*.jinja")


def download(
    source: str, revision: str | None, local_files_only: bool, *, autoencoder: bool = False
) -> Path:
    """Download a model of a repository; see ``locate`` for the arguments.

    Configurations are downloaded first, so that no weights are downloaded for other models.

    Returns:
        The local folder with the files of its ``config.json``, or the local file.

    Raises:
        FileNotFoundError: `source` is not a repository id, or the repository or its file is not
            available.
        CheckpointError: its ``config.json`` belongs to something else.
    """
    owner, name, file = [*source.split("/", 2), "", ""][:3]
    if Path(file).suffix in _WEIGHTS and owner and name:
        try:
            fetch = _Repository(f"{owner}/{name}", revision, local_files_only)
            return _fetch_file(fetch, file)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{source!r} is not a file here; {error}") from error
    fetch = _Repository(source, revision, local_files_only)
    pairs = AUTOENCODER_FILES if autoencoder else ()
    folder = fetch("config.json", *(settings for _, settings in pairs))
    for weights, settings in pairs:
        if (folder / settings).exists():
            return fetch(settings, weights, f"{weights}.sha256")
    config = folder / "config.json"
    if not config.exists():
        raise CheckpointError(f"{source!r} has no config.json: it has no model of this library")
    return fetch("config.json", model_folder.read_content(config).weights.file)


def _fetch_file(fetch: _Repository, file: str) -> Path:
    """A file of a repository, downloaded with its checksum and the configuration beside it."""
    beside = [file.removesuffix(Path(file).suffix) + end for end in ("_config.json", ".json")]
    found = fetch(file, f"{file}.sha256", *beside) / file
    if not found.is_file():
        raise FileNotFoundError(f"the repository has no file {file!r}")
    return found


_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


class _Repository:
    """Downloader of files of a Hugging Face repository.

    Args:
        source: id "owner/name".
        revision: branch, tag or commit.
        local_files_only: use only files that were downloaded before.

    Raises:
        FileNotFoundError: `source` is not a repository id, or huggingface_hub is not installed.
    """

    def __init__(self, source: str, revision: str | None, local_files_only: bool) -> None:
        parts = source.split("/")
        if len(parts) != 2 or not all(parts) or source.startswith((".", "~")):
            raise FileNotFoundError(
                f"{source!r} is not a file, a folder or a repository id of the form owner/name"
            )
        try:
            import huggingface_hub
        except ImportError as error:
            raise FileNotFoundError(
                f"{source!r} is not a file or folder here; to look for it on the Hugging Face hub, "
                "pip install 'bitdance[hub]'"
            ) from error
        self._hub, self._source = huggingface_hub, source
        self._revision, self._local_files_only = revision, local_files_only

    def __call__(self, *patterns: str) -> Path:
        """Download the files that match; returns the local folder of the repository.

        Raises:
            FileNotFoundError: the repository is not available.
        """
        try:
            folder = self._hub.snapshot_download(
                self._source,
                revision=self._revision,
                local_files_only=self._local_files_only,
                allow_patterns=list(patterns),
            )
        except Exception as error:  # whatever the kind, the repository is not available
            where = "among the files downloaded before" if self._local_files_only else "on the hub"
            raise FileNotFoundError(
                f"{self._source!r} was not found {where}: {one_line(error)}"
            ) from error
        return Path(folder)
