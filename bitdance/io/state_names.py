"""The state dict in a checkpoint of any common trainer, under the model's own names.

Trainers nest state dicts ("model", "state_dict", "ema" ...), wrappers add prefixes to the names of
parameters ("module.", "_orig_mod." ..., in any order and depth), and training modules have the
model as an attribute ("model.", "ema_model." ...). All of these are removed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from bitdance.io.files import CheckpointError

__all__ = ["normalize_names", "select_state_dict"]

_RAW = (
    "model", "state_dict", "model_state_dict", "module", "net", "network", "generator", "params",
    "weights", "model_state", "student", "g", "autoencoder", "tokenizer", "vae_state_dict",
    "first_stage_model",
)  # fmt: skip
_AVERAGE = re.compile(r"(?:^|[_.])(?:ema|swa|average|averaged|shadow)(?:$|[_.])")
# Prefixes of DDP, torch.compile, FSDP, activation checkpointing and Lightning.
_WRAPPERS = {
    "module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module",
    "_forward_module",
}  # fmt: skip
# Parameters that show where a model begins: class-conditional models, language models, heads of
# text-to-image models and autoencoders, in this order, since the first contain an autoencoder.
_LANDMARKS = (
    "cls_embedding.weight", "model.embed_tokens.weight", "net.input_proj.weight",
    "encoder.conv_in.weight",
)  # fmt: skip
_MAX_DEPTH = 5  # nested dicts to search
_MAX_NAMES = 8  # names listed in a message

Tensors = dict[str, torch.Tensor]


def select_state_dict(content: Mapping[Any, Any], prefer: str, source: str) -> Tensors:
    """The state dict in the content of a trainer's checkpoint.

    Args:
        content: content of the file.
        prefer: "ema" or "model"; a missing one is replaced by the other.
        source: origin of the content, for errors.

    Raises:
        CheckpointError: there are no tensors, or none under a key that is known for weights; the
            message says where they are.
    """
    section, path = content, ""
    for _ in range(_MAX_DEPTH):
        nested = {
            key: value
            for key, value in section.items()
            if isinstance(key, str) and isinstance(value, Mapping) and any(_find_tensors(value))
        }
        averaged = [key for key in nested if _AVERAGE.search(key.lower())]
        raw = [key for key in nested if key.lower() in _RAW]
        order = (averaged, raw) if prefer == "ema" else (raw, averaged)
        keys = next((keys for keys in order if keys), [])
        if not keys:
            break
        if len(keys) > 1:
            raise CheckpointError(
                f"{source} has several candidates for its weights: {_list_places(section, path)}"
            )
        # This library's trainer only averages trained parameters; the others are in "module".
        if keys == ["average"] and "module" in raw:
            nested["average"] = {**nested["module"], **nested["average"]}
        section, path = nested[keys[0]], f"{path}{keys[0]}."
    tensors: Tensors = {}
    for key, value in section.items():
        if isinstance(value, torch.Tensor):
            _add(tensors, str(key), value, str(key), source)
    if tensors:
        return tensors
    if any(_find_tensors(content)):
        raise CheckpointError(
            f"{source} has no weights where trainers put them; its tensors are in "
            f"{_list_places(content)}"
        )
    keys = list(map(str, section))[:_MAX_NAMES]
    raise CheckpointError(f"{source} has no tensors; its keys are {', '.join(keys)}")


def _find_tensors(content: Mapping[Any, Any]) -> Iterator[str]:
    """Paths of nested mappings with tensors, and the number of these."""
    seen: set[int] = set()  # a mapping may occur many times, or contain itself

    def walk(content: Mapping[Any, Any], path: str, depth: int) -> Iterator[str]:
        if id(content) in seen:
            return
        seen.add(id(content))
        count = sum(isinstance(value, torch.Tensor) for value in content.values())
        if count:
            yield f"{path or 'the file itself'} ({count})"
        for key, value in content.items() if depth else ():
            if isinstance(value, Mapping):
                yield from walk(value, f"{path}.{key}".lstrip("."), depth - 1)

    return walk(content, "", _MAX_DEPTH)


def _list_places(content: Mapping[Any, Any], path: str = "") -> str:
    places = itertools.islice(_find_tensors(content), _MAX_NAMES)
    return ", ".join(f"{path}{place}" for place in places)


def normalize_names(tensors: Tensors, prefer: str, source: str) -> Tensors:
    """The parameters of a model by the names that the model uses.

    Args:
        tensors: tensors by the names in the file.
        prefer: "ema" or "model", where there are both.
        source: origin of the tensors, for errors.

    Raises:
        CheckpointError: two names become the same, or there are several models.
    """
    stored: dict[str, str] = {}  # name in the model -> name in the file
    averaged: Tensors = {}
    for name in tensors:
        joined = re.fullmatch(r"(?:.*\.)?model_ema\.([^.]+)", name)
        if joined:  # "model_ema." and the name without its dots
            averaged[joined.group(1)] = tensors[name]
            continue
        plain = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if plain in stored:
            raise CheckpointError(
                f"{source} has two names for one parameter: {stored[plain]} and {name}"
            )
        if plain not in ("n_averaged", "initted", "step"):  # counters of averages
            stored[plain] = name
    prefix, others = _model_prefix(stored, prefer, source)
    stored = {
        name.removeprefix(prefix): stored[name]
        for name in stored
        if name.startswith(prefix) and not name.startswith(others)
    }
    result = {name: tensors[own] for name, own in stored.items()}
    if prefer == "ema" and averaged:
        result |= _match_averages(stored, prefix, averaged, source)
    return result


def _model_prefix(names: Iterable[str], prefer: str, source: str) -> tuple[str, tuple[str, ...]]:
    """The prefix of all names of the model, and the prefixes of further copies inside it."""
    names = list(names)
    for landmark in _LANDMARKS:
        prefixes = [
            name.removesuffix(landmark) for name in names if f".{name}".endswith(f".{landmark}")
        ]
        if prefixes:
            break
    else:
        return _common_prefix(names), ()
    averaged = [p for p in prefixes if _AVERAGE.search(p)]
    raw = [p for p in prefixes if p not in averaged]
    order = (averaged, raw) if prefer == "ema" else (raw, averaged)
    chosen = next(group for group in order if group)
    if len(chosen) > 1:
        raise CheckpointError(
            f"{source} has several models: {landmark} is below "
            + ", ".join(repr(prefix) for prefix in sorted(chosen))
        )
    prefix = chosen[0]
    return prefix, tuple(p for p in prefixes if p.startswith(prefix) and p != prefix)


def _common_prefix(names: list[str]) -> str:
    """The prefix of all names of an unknown model, as far as it is one of trainers."""
    prefix = ""
    while True:
        rest = {name[len(prefix) :].partition(".")[0] for name in names}
        first = rest.pop() if len(rest) == 1 else ""
        if not (first in _RAW or _AVERAGE.search(first)) or prefix + first in names:
            return prefix
        prefix += f"{first}."


def _match_averages(
    stored: Mapping[str, str], prefix: str, averaged: Tensors, source: str
) -> Tensors:
    """The averaged weights, matched by the parameters' names without dots."""
    averaged = {k: t for k, t in averaged.items() if k not in ("decay", "num_updates")}
    candidates = [
        {own.replace(".", ""): name for name, own in stored.items()},
        {f"{prefix}{name}".replace(".", ""): name for name in stored},
        {name.replace(".", ""): name for name in stored},
    ]
    names = max(candidates, key=lambda names: len(names.keys() & averaged.keys()))
    matched = {names[key]: tensor for key, tensor in averaged.items() if key in names}
    if averaged and not matched:
        raise CheckpointError(
            f"{source}: its averaged weights (model_ema.{next(iter(averaged))} ...) match none of "
            "its parameters; weights='model' ignores them"
        )
    return matched


def _add(tensors: Tensors, name: str, tensor: torch.Tensor, key: str, source: str) -> None:
    if name in tensors:
        raise CheckpointError(f"{source} has two names for one parameter: {key!r} twice")
    tensors[name] = tensor
