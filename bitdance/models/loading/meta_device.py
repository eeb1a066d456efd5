"""Models on the meta device, built only after their configuration was compared with the file.

A configuration may come from anywhere: the numbers of blocks in it are compared with the names in
the file before any module is built. Modules on the meta device need no memory, and no random
numbers are drawn for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bitdance.io.files import CheckpointError, one_line
from bitdance.models.config import AutoencoderConfig, HeadConfig, ModelConfig

__all__ = [
    "BlockCount",
    "autoencoder_block_counts",
    "build_on_meta",
    "check_block_counts",
    "head_block_counts",
    "model_block_counts",
]

Built = TypeVar("Built", bound=nn.Module)

_INITIALIZERS = {"normal_", "uniform_", "trunc_normal_", "zero_", "fill_", "random_", "bernoulli_"}


class BlockCount(NamedTuple):
    """A number of blocks in a configuration.

    Attributes:
        prefix: prefix of the blocks' numbers in parameter names.
        number: number of blocks.
        field: field of the configuration.
    """

    prefix: str
    number: int
    field: str


def model_block_counts(config: ModelConfig) -> Iterator[BlockCount]:
    """Numbers of blocks in a ``BitDanceModel``."""
    yield BlockCount("layers.", config.n_layer, "n_layer")
    yield from head_block_counts(config.head, "head.", ("diff_layers", "diff_adanln_layers"))
    yield from autoencoder_block_counts(config.autoencoder, "vae.", "autoencoder.")


def head_block_counts(
    config: HeadConfig, prefix: str = "", fields: tuple[str, str] = ("depth_latent", "depth_adanln")
) -> Iterator[BlockCount]:
    """Numbers of blocks in a ``DiffusionHead``."""
    yield BlockCount(f"{prefix}net.res_blocks.", config.depth_latent, fields[0])
    yield BlockCount(f"{prefix}net.ada_ln_blocks.", config.depth_adanln, fields[1])


def autoencoder_block_counts(
    config: AutoencoderConfig, prefix: str = "", field: str = ""
) -> Iterator[BlockCount]:
    """Numbers of blocks in a ``BinaryAutoencoder``."""
    levels = f"{prefix}encoder.down."
    yield BlockCount(levels, len(config.ch_mult), f"{field}ch_mult")
    for level in range(len(config.ch_mult)):
        blocks = f"{levels}{level}.block."
        yield BlockCount(blocks, config.num_res_blocks, f"{field}num_res_blocks")
    if config.architecture == "conv_attention":
        blocks = f"{prefix}encoder.mid_attn_blocks."
        yield BlockCount(blocks, config.attn_blocks, f"{field}attn_blocks")


def count(names: Iterable[str], prefix: str) -> int:
    """Number of different components that follow `prefix` in names."""
    return len({name[len(prefix) :].split(".", 1)[0] for name in names if name.startswith(prefix)})


def check_block_counts(
    tensors: Mapping[str, Any], counts: Iterable[BlockCount], kind: str, source: str
) -> None:
    """Compare numbers of blocks in a configuration with the names in a file.

    Raises:
        CheckpointError: they differ.
    """
    for prefix, expected, field in counts:
        found = count(tensors, prefix)
        if found != expected:
            which = "missing" if found < expected else "unexpected"
            raise CheckpointError(
                f"{source} does not fit {kind}, nothing was loaded; "
                f"{_number(abs(expected - found))} {which}: {prefix}{min(found, expected)} ... "
                f"({field} says {_number(expected)}, the file has {found})"
            )


def _number(value: int) -> str:
    return str(value) if value < 10**18 else "more than 10^18"


def build_on_meta(build: Callable[[], Built], source: str) -> Built:
    """Call `build` on the meta device; returns the model.

    Raises:
        CheckpointError: there is no model with this configuration.
    """
    try:
        with torch.device("meta"), _SkipInitialization():
            return build()
    except (RuntimeError, TypeError, ValueError, OverflowError, MemoryError) as error:
        message = f"{source}: there is no model with this configuration: {one_line(error)}"
        raise CheckpointError(message) from error


class _SkipInitialization(TorchFunctionMode):
    """Skips the initialization of parameters.

    For random numbers on the meta device PyTorch imports its compiler, which takes seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        initial = getattr(func, "__module__", None) == "torch.nn.init"
        if initial or getattr(func, "__name__", "") in _INITIALIZERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
