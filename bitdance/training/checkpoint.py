"""Checkpoints of a run: written completely or not at all, and checked when they are read."""

from __future__ import annotations

import itertools
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitdance.io.files import CheckpointError, one_line, replace_file
from bitdance.io.weights import check_weights, is_finite, read_pickle

__all__ = [
    "check_state",
    "named_state",
    "newest",
    "newest_step",
    "remove_old",
    "remove_unfinished",
    "save",
]

_NAME = re.compile(r"checkpoint-(\d{8})(\.pt)?")
"""A file of one process, or a folder of several."""
_UNFINISHED = re.compile(r"checkpoint-\d{8}\.tmp")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def save(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest `keep`.

    Raises:
        OSError: the folder cannot be written or the disk is full; older checkpoints are untouched.
    """
    path = folder / f"checkpoint-{step:08d}.pt"
    with replace_file(path) as temporary:
        try:
            torch.save({"step": step, **state}, temporary)
        except RuntimeError as error:  # torch's error for a failed write
            raise OSError(f"cannot write {path}: {error}") from error
    if _is_sharded(path.with_suffix("")):  # damaged, or it would not be written again
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    remove_old(folder, step, keep=keep)
    return path


def remove_old(folder: Path, step: int, *, keep: int) -> None:
    """Delete all checkpoints up to `step` but the newest `keep`."""
    files = _steps(folder)
    # Later ones are damaged, since this run resumed before them: they do not count.
    for old in sorted(number for number in files if number <= step)[:-keep]:
        if files[old].is_file():
            files[old].unlink()
        elif _is_sharded(files[old]):
            shutil.rmtree(files[old], ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the folders that killed processes have left half written."""
    for path in folder.iterdir():
        if _UNFINISHED.fullmatch(path.name) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def newest(
    folder: Path, check: Callable[[Mapping[str, Any]], None] | None = None
) -> dict[str, Any] | None:
    """The newest intact checkpoint of a folder, None where there are no checkpoints.

    Args:
        folder: folder of a run.
        check: function that raises an error where a checkpoint cannot be used.

    Raises:
        CheckpointError: all checkpoints are damaged.
    """
    files = _steps(folder)
    problem = ""
    for step in sorted(files, reverse=True):
        try:
            state = _read(files[step], step)
            if check is not None:
                check(state)
            return state
        except Exception as error:  # an earlier checkpoint may be intact, whatever is damaged
            problem = one_line(error)
            warnings.warn(f"{files[step]}: {problem}; trying the one before", stacklevel=2)
    if files:
        raise CheckpointError(f"no checkpoint of {folder} is intact: {problem}")
    return None


def check_state(
    state: Mapping[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer, terms: int
) -> None:
    """Check that a run can resume from a checkpoint; nothing is changed.

    Args:
        state: content of the checkpoint.
        module: the module that is trained.
        optimizer: optimizer of its trained parameters.
        terms: number of values that the log averages.

    Raises:
        CheckpointError: something is missing, or does not fit.
    """
    kinds = {
        "module": Mapping, "average": Mapping, "optimizer": Mapping, "extra": Mapping,
        "sums": torch.Tensor, "summed": int, "identity": str,
    }  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(state.get(name), kind):
            got = type(state.get(name)).__name__ if name in state else "nothing"
            raise CheckpointError(f"{name} must be a {kind.__name__}, got {got}")
    check_weights(module, state["module"], "module")
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    _check_like("average", state["average"], trained)
    if state["sums"].shape != (terms,) or state["sums"].dtype != torch.float64:
        raise CheckpointError(f"sums must be float64 [{terms}], got {list(state['sums'].shape)}")
    saved = state["optimizer"]
    groups = [[*group["params"]] for group in saved["param_groups"]]
    own = [group["params"] for group in optimizer.param_groups]
    if [len(group) for group in groups] != [len(group) for group in own]:
        raise CheckpointError("optimizer has other parameter groups")
    chain = itertools.chain.from_iterable
    for number, parameter in zip(chain(groups), chain(own), strict=True):
        moments = saved["state"][number]
        like = {"exp_avg": parameter, "exp_avg_sq": parameter}
        _check_like(f"optimizer.{number}", {k: moments[k] for k in like}, like)


def _check_like(what: str, tensors: Mapping[str, Any], like: Mapping[str, torch.Tensor]) -> None:
    if tensors.keys() != like.keys():
        raise CheckpointError(f"{what} must be of the trained parameters, got others")
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or tensor.shape != like[name].shape:
            raise CheckpointError(f"{what}: {name} must be of shape {list(like[name].shape)}")
        if not is_finite(tensor):
            raise CheckpointError(f"{what}: {name} is not finite")


def newest_step(folder: Path) -> int:
    """Step of the newest checkpoint of a folder, intact or not; 0 without any."""
    return max(_steps(folder), default=0)


def _steps(folder: Path) -> dict[int, Path]:
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match.group(1)): path for match, path in matches if match}


def _is_sharded(path: Path) -> bool:
    return path.suffix == "" and path.is_dir() and not path.is_symlink()


def _read(path: Path, step: int) -> dict[str, Any]:
    content = _read_folder(path) if _is_sharded(path) else read_pickle(path)
    if not isinstance(content, dict) or content.get("step") != step:
        raise CheckpointError(f"{path} must be the checkpoint of step {step}, got something else")
    return content


def _read_folder(path: Path) -> dict[str, Any]:
    from bitdance.training.sharded_checkpoint import read_folder  # takes a second to import

    return _from_names(*read_folder(path))


def named_state(
    state: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state of a run as tensors by name, for several processes, and everything else."""
    tensors = {f"module.{name}": value for name, value in state["module"].items()}
    tensors |= {f"average.{name}": value for name, value in state["average"].items()}
    name_of = {parameter: name for name, parameter in parameters.items()}
    order = [name_of[p] for group in optimizer.param_groups for p in group["params"]]
    for name in order:
        moments = optimizer.state[parameters[name]]
        tensors |= {f"{key}.{name}": moments[key] for key in _MOMENTS}
    rest = {k: v for k, v in state.items() if k not in ("module", "average", "optimizer")}
    groups = state["optimizer"]["param_groups"]
    return tensors, {**rest, "order": order, "param_groups": groups}


def _from_names(tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse: as a file of one process has it."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    state = {k: v for k, v in rest.items() if k not in ("order", "param_groups")}
    moments = {
        number: {key: parts[key][name] for key in _MOMENTS}
        for number, name in enumerate(rest["order"])
    }
    optimizer = {"state": moments, "param_groups": rest["param_groups"]}
    return {
        **state, "module": parts["module"], "average": parts["average"], "optimizer": optimizer
    }  # fmt: skip
