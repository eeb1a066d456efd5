"""Where a checkpoint has its weights, and how they are named: one way for all trainers.

Trainers nest a state dict ("model", "state_dict", "ema" ...), wrappers put names of their own into
the names of parameters ("module.", "_orig_mod." ..., in any order and depth), and training modules
hold the model as an attribute ("model.", "ema_model." ...). All of that is taken off here.
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
# What DDP, torch.compile, FSDP, its activation checkpointing and Lightning call what they wrap.
_WRAPPERS = {
    "module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module",
    "_forward_module",
}  # fmt: skip
# Parameters that tell where a model begins: of class-conditional models, language models, heads of
# text-to-image models and autoencoders, in this order, since the first have an autoencoder inside.
_LANDMARKS = (
    "cls_embedding.weight", "model.embed_tokens.weight", "net.input_proj.weight",
    "encoder.conv_in.weight",
)  # fmt: skip
_DEPTH = 5  # of nestings that are looked through
_MOST_SHOWN = 8

Tensors = dict[str, torch.Tensor]


def select_state_dict(content: Mapping[Any, Any], prefer: str, source: str) -> Tensors:
    """The state dict in what a trainer saved.

    Args:
        content: of the file.
        prefer: "ema" or "model"; the other is taken where one is missing.
        source: for messages.

    Raises:
        CheckpointError: there are no tensors, or not at one place that is known for weights; the
            message says where they are.
    """
    found, path = content, ""
    for _ in range(_DEPTH):
        nested = {
            key: value
            for key, value in found.items()
            if isinstance(key, str) and isinstance(value, Mapping) and any(_nests(value))
        }
        averaged = [key for key in nested if _AVERAGE.search(key.lower())]
        raw = [key for key in nested if key.lower() in _RAW]
        order = (averaged, raw) if prefer == "ema" else (raw, averaged)
        keys = next((keys for keys in order if keys), [])
        if not keys:
            break
        if len(keys) > 1:
            raise CheckpointError(
                f"{source} does not tell which of its parts are the weights: {_places(found, path)}"
            )
        # A trainer of this library averages only what it trains; the rest is as it was.
        if keys == ["average"] and "module" in raw:
            nested["average"] = {**nested["module"], **nested["average"]}
        found, path = nested[keys[0]], f"{path}{keys[0]}."
    tensors: Tensors = {}
    for key, value in found.items():
        if isinstance(value, torch.Tensor):
            _add(tensors, str(key), value, str(key), source)
    if tensors:
        return tensors
    if any(_nests(content)):
        raise CheckpointError(
            f"{source} has no weights where trainers put them; tensors are in {_places(content)}"
        )
    shown = ", ".join(list(map(str, found))[:_MOST_SHOWN])
    raise CheckpointError(f"{source} holds no tensors; its keys are {shown}")


def _nests(content: Mapping[Any, Any]) -> Iterator[str]:
    """Where mappings in `content` hold tensors, and how many."""
    seen: set[int] = set()  # a pickle can hold one mapping many times, or a mapping itself

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

    return walk(content, "", _DEPTH)


def _places(content: Mapping[Any, Any], path: str = "") -> str:
    return ", ".join(f"{path}{place}" for place in itertools.islice(_nests(content), _MOST_SHOWN))


def normalize_names(tensors: Tensors, prefer: str, source: str) -> Tensors:
    """The parameters of a model under the names that it gives them.

    Args:
        tensors: as a file names them.
        prefer: "ema" or "model", where it has both.
        source: for messages.

    Raises:
        CheckpointError: two names become one, or nothing tells which of several models is meant.
    """
    stored: dict[str, str] = {}  # the name of the model: that in the file
    averaged: Tensors = {}
    for name in tensors:
        joined = re.fullmatch(r"(?:.*\.)?model_ema\.([^.]+)", name)
        if joined:  # "model_ema." and a name without its dots
            averaged[joined.group(1)] = tensors[name]
            continue
        plain = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if plain in stored:
            raise CheckpointError(
                f"{source} has two names for one parameter: {stored[plain]} and {name}"
            )
        if plain not in ("n_averaged", "initted", "step"):  # counters of averages
            stored[plain] = name
    prefix, others = _outer(stored, prefer, source)
    stored = {
        name.removeprefix(prefix): stored[name]
        for name in stored
        if name.startswith(prefix) and not name.startswith(others)
    }
    result = {name: tensors[own] for name, own in stored.items()}
    if prefer == "ema" and averaged:
        result |= _averages(stored, prefix, averaged, source)
    return result


def _outer(names: Iterable[str], prefer: str, source: str) -> tuple[str, tuple[str, ...]]:
    """What stands before all names of the model, and what before those of further copies."""
    names = list(names)
    for landmark in _LANDMARKS:
        prefixes = [
            name.removesuffix(landmark) for name in names if f".{name}".endswith(f".{landmark}")
        ]
        if prefixes:
            break
    else:
        return _shared(names), ()
    averaged = [p for p in prefixes if _AVERAGE.search(p)]
    raw = [p for p in prefixes if p not in averaged]
    order = (averaged, raw) if prefer == "ema" else (raw, averaged)
    chosen = next(group for group in order if group)
    if len(chosen) > 1:
        raise CheckpointError(
            f"{source} holds several models: {landmark} stands below "
            + ", ".join(repr(prefix) for prefix in sorted(chosen))
        )
    prefix = chosen[0]
    return prefix, tuple(p for p in prefixes if p.startswith(prefix) and p != prefix)


def _shared(names: list[str]) -> str:
    """What stands before all names of an unknown model, if it is what trainers call it."""
    prefix = ""
    while True:
        rest = {name[len(prefix) :].partition(".")[0] for name in names}
        first = rest.pop() if len(rest) == 1 else ""
        if not (first in _RAW or _AVERAGE.search(first)) or prefix + first in names:
            return prefix
        prefix += f"{first}."


def _averages(stored: Mapping[str, str], prefix: str, averaged: Tensors, source: str) -> Tensors:
    """The averaged weights, found by the parameters' names without dots."""
    averaged = {k: t for k, t in averaged.items() if k not in ("decay", "num_updates")}
    ways = [
        {own.replace(".", ""): name for name, own in stored.items()},
        {f"{prefix}{name}".replace(".", ""): name for name in stored},
        {name.replace(".", ""): name for name in stored},
    ]
    way = max(ways, key=lambda way: len(way.keys() & averaged.keys()))
    found = {way[key]: tensor for key, tensor in averaged.items() if key in way}
    if averaged and not found:
        raise CheckpointError(
            f"{source} has averaged weights (model_ema.{next(iter(averaged))} ...) of no parameter "
            "that it has; prefer='model' passes them over"
        )
    return found


def _add(tensors: Tensors, name: str, tensor: torch.Tensor, key: str, source: str) -> None:
    if name in tensors:
        raise CheckpointError(f"{source} has two names for one parameter: {key!r} twice")
    tensors[name] = tensor
