"""Layouts in which text-to-image models and autoencoders are published, by names of their files.

* "flat": the authors'. The language model lies in the folder itself, as Hugging Face saves it,
  beside ``vision_head``, ``projector`` and ``ae`` with a configuration of their own.
* "diffusers": ``model_index.json`` and a folder for each component.
* "files": three files without configurations, as for ComfyUI: the language model; head and
  projector; the autoencoder.

Weights may be one file, or several with an index.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from bitdance.io.files import CheckpointError

__all__ = [
    "MODEL_INDEX",
    "Part",
    "ReleaseLayout",
    "autoencoder_part",
    "language_model_part",
    "release_layout",
    "tokenizer_files",
]

MODEL_INDEX = "model_index.json"
_INDEX = ".index.json"
_DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
_TOKENIZER_FILES = frozenset({
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
})  # fmt: skip
# Parts of the names of the three files, without "_" and "-", the most telling first.
_THREE = {
    "language_model": ("textencoder", "clip"),
    "autoencoder": ("vae", "autoencoder"),
    "main": ("mainmodel", "diffusionmodel", "unet"),
}


@dataclass(frozen=True)
class Part:
    """Files of a part of a model, by their names below its folder.

    Attributes:
        weights: a ``.safetensors`` file, or the index of several.
        config: JSON file with its configuration, None where shapes tell it.
        prefixes: beginnings of the names of its tensors, which are removed, in a file that may
            have another part too.
        bare: beginnings of the names of its tensors in a file without such prefixes.
    """

    weights: str
    config: str | None = None
    prefixes: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()

    @property
    def is_sharded(self) -> bool:
        """Whether `weights` is an index."""
        return self.weights.endswith(_INDEX)

    @property
    def settings(self) -> tuple[str, ...]:
        """Files to read before the weights: the configuration and the index."""
        names = (self.config, self.weights if self.is_sharded else None)
        return tuple(name for name in names if name is not None)


@dataclass(frozen=True)
class ReleaseLayout:
    """Files of a text-to-image model.

    Attributes:
        kind: name of the layout.
        language_model: the language model.
        head: the diffusion head.
        projector: the projector; its configuration is that of the others.
        autoencoder: the image autoencoder.
        tokenizer: folder of the text tokenizer, "" for the model's own.
    """

    kind: Literal["flat", "diffusers", "files"]
    language_model: Part
    head: Part
    projector: Part
    autoencoder: Part
    tokenizer: str = ""

    @property
    def settings(self) -> tuple[str, ...]:
        """Files to read before any weights."""
        parts = (self.language_model, self.head, self.projector, self.autoencoder)
        names = [name for part in parts for name in part.settings]
        return tuple([MODEL_INDEX, *names] if self.kind == "diffusers" else names)


def release_layout(names: Collection[str], source: str) -> ReleaseLayout | None:
    """The layout of a text-to-image model; None if there is none.

    Args:
        names: names of the files of a folder and of the folders in it.
        source: their origin, for errors.

    Raises:
        CheckpointError: several files may be the same one of three.
    """
    if MODEL_INDEX in names:
        llm = _component(names, "text_encoder", "model.safetensors")  # as transformers saves it
        own = _component(names, "text_encoder")
        return ReleaseLayout(
            "diffusers",
            own if own.weights in names else llm,
            _component(names, "diffusion_head"),
            _component(names, "projector"),
            _component(names, "autoencoder"),
            "tokenizer",
        )
    if "vision_head_config.json" in names:
        return ReleaseLayout(
            "flat",
            _component(names, "", "model.safetensors"),
            Part(_file(names, "vision_head.safetensors"), "vision_head_config.json"),
            Part(_file(names, "projector.safetensors")),
            Part(_file(names, "ae.safetensors"), "ae_config.json"),
        )
    three = _three_files(names, source)
    if three.keys() != _THREE.keys():
        return None
    tokenizer = "tokenizer" if any(name.startswith("tokenizer/") for name in names) else ""
    return ReleaseLayout(
        "files",
        _below(three["language_model"], ("text_encoder",), ("model.", "lm_head.")),
        _below(three["main"], ("diffusion_head", "vision_head"), ("net.",)),
        _below(three["main"], ("projector",), ("fc1.", "fc2.")),
        _autoencoder_file(three["autoencoder"]),
        tokenizer,
    )


def language_model_part(names: Collection[str]) -> Part | None:
    """The language model of a folder that may have nothing else; None if there is none."""
    return _component(names, "", "model.safetensors") if "config.json" in names else None


def autoencoder_part(names: Collection[str], source: str) -> Part | None:
    """The autoencoder of a training run, a text-to-image model or a folder of its own.

    Args:
        names: as for ``release_layout``.
        source: as for ``release_layout``.

    Returns:
        None if there is none, or only a class-conditional model, which has one inside.

    Raises:
        CheckpointError: as for ``release_layout``.
    """
    for weights, config in (
        ("autoencoder.safetensors", "autoencoder.json"), ("ae.safetensors", "ae_config.json"),
    ):  # fmt: skip
        if config in names:
            return Part(_file(names, weights), config)
    if _file(names, _DIFFUSERS_WEIGHTS) in names and "config.json" in names:
        return _component(names, "")
    if "autoencoder/config.json" in names:
        return _component(names, "autoencoder")
    if "config.json" in names:
        return None
    alone = _three_files(names, source).get("autoencoder")
    return None if alone is None else _autoencoder_file(alone)


def tokenizer_files(names: Collection[str], folder: str) -> list[str]:
    """The files of a text tokenizer, its chat template among them."""
    inside = {name: PurePosixPath(name) for name in names}
    return sorted(
        name
        for name, path in inside.items()
        if path.name in _TOKENIZER_FILES and path.parent == PurePosixPath(folder)
    )


def _component(names: Collection[str], folder: str, weights: str = _DIFFUSERS_WEIGHTS) -> Part:
    path = PurePosixPath(folder)
    return Part(_file(names, str(path / weights)), str(path / "config.json"))


def _file(names: Collection[str], name: str) -> str:
    """The index of a file in several parts, if there is one; else the file."""
    return f"{name}{_INDEX}" if f"{name}{_INDEX}" in names else name


def _below(weights: str, names: tuple[str, ...], bare: tuple[str, ...]) -> Part:
    above = ("", "model.", "main_model.")
    return Part(weights, None, tuple(f"{a}{name}." for name in names for a in above), bare)


def _autoencoder_file(weights: str) -> Part:
    return _below(weights, ("vae", "autoencoder"), ("encoder.", "decoder."))


def _three_files(names: Collection[str], source: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in sorted(names):
        if not name.endswith(".safetensors"):
            continue
        role = next(_roles(name), None)
        if role is not None and found.setdefault(role, name) != name:
            raise CheckpointError(
                f"{source} has two files that may be its {role.replace('_', ' ')}: {found[role]} "
                f"and {name}; leave one"
            )
    return found


def _roles(name: str) -> Iterator[str]:
    """Which of three files a name may mean, by the file's name and then by its folder's."""
    for part in reversed(PurePosixPath(name.lower()).parts):
        plain = part.replace("_", "").replace("-", "")
        yield from (role for role, words in _THREE.items() if any(w in plain for w in words))
