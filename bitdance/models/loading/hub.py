"""Location of a model: on this disk, in bitdance-models, or on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from bitdance.io.files import NoModelError
from bitdance.models.loading import model_folder
from bitdance.models.loading.bundled import bundled_folder
from bitdance.models.loading.model_files import ModelFiles, Repository
from bitdance.models.loading.part_files import weight_files
from bitdance.models.loading.release_layout import autoencoder_part, release_layout

__all__ = ["download", "locate"]

_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_MAX_NAMES = 6  # files listed in an error


def locate(
    source: str | Path, *, revision: str | None = None, local_files_only: bool = False,
    autoencoder: bool = False, subfolder: str | None = None,
) -> Path:  # fmt: skip
    """The file or folder of a model; what it needs of a repository is downloaded.

    Args:
        source: a path; the name of a bundled model; the id "owner/name" of a repository; or
            "owner/name/file" for one file of it, with its configuration.
        revision: revision of the repository.
        local_files_only: use only files that were downloaded before.
        autoencoder: an autoencoder is enough: of a model that has one apart, only that is
            downloaded.
        subfolder: folder of the model in `source`.

    Raises:
        FileNotFoundError: there is none, or it is bundled and bitdance-models is not installed.
        CheckpointError: a repository contains something else.
    """
    path = Path(source)
    if path.exists():
        path = path if subfolder is None else path / subfolder
        if not path.exists():
            raise FileNotFoundError(f"no such folder: {path}")
        return path
    bundled = bundled_folder(source)
    if bundled is not None:
        return bundled
    return download(str(source), revision, local_files_only, autoencoder, subfolder)


def download(
    source: str,
    revision: str | None = None,
    local_files_only: bool = False,
    autoencoder: bool = False,
    subfolder: str | None = None,
) -> Path:
    """Download a model of a repository; see ``locate`` for the arguments.

    Names of files are listed first, then the configuration is downloaded and judged, then the
    weights that it needs.

    Returns:
        The local folder with the model's files, or the local file.

    Raises:
        FileNotFoundError: `source` is not a repository id, or the repository or its file is not
            available.
        CheckpointError: the repository contains something else.
    """
    owner, name, file = [*source.split("/", 2), "", ""][:3]
    if Path(file).suffix in _WEIGHTS and owner and name:
        try:
            files = Repository(f"{owner}/{name}", revision, local_files_only)
            return _fetch_file(files, file)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{source!r} is not a file here; {error}") from error
    files = Repository(source, revision, local_files_only, subfolder)
    part = autoencoder_part(files.names, files.source) if autoencoder else None
    if part is not None:
        folder = files.fetch(part.settings) if part.settings else Path()
        return files.fetch([*part.settings, *weight_files(folder, part, files.names)])
    if "config.json" not in files.names or release_layout(files.names, files.source) is not None:
        raise NoModelError(_other_content(files))
    content = model_folder.read_content(files.fetch(["config.json"]) / "config.json")
    return files.fetch(["config.json", content.weights.file])


def _other_content(files: ModelFiles) -> str:
    """Says what a repository without a class-conditional model contains."""
    if release_layout(files.names, files.source) is not None:
        return (
            f"{files.source} has a text-to-image model: load it with BitDanceT2IPipeline, or "
            "generate with --prompt"
        )
    text = f"{files.source} has no config.json: it has no model of this library"
    weights = sorted(name for name in files.names if Path(name).suffix in _WEIGHTS)
    if not weights:
        return text
    more = f" and {len(weights) - _MAX_NAMES} more" if len(weights) > _MAX_NAMES else ""
    return (
        f"{text}, but the files {', '.join(weights[:_MAX_NAMES])}{more}; to load one give "
        f"'owner/name/{weights[0]}'"
    )


def _fetch_file(files: Repository, file: str) -> Path:
    """A file of a repository, downloaded with its checksum and the configuration beside it."""
    if file not in files.names:
        raise FileNotFoundError(f"the repository has no file {file!r}")
    stem = file.removesuffix(Path(file).suffix)
    beside = [f"{file}.sha256", f"{stem}_config.json", f"{stem}.json"]
    return files.fetch([file, *(name for name in beside if name in files.names)]) / file
