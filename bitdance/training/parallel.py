"""The module of a run, spread over the processes of a world by PyTorch's own means."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from bitdance.distributed import World
from bitdance.training.config import ParallelConfig
from bitdance.training.task import Task

if TYPE_CHECKING:  # these imports take a second, which commands without divided weights save
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Parallel", "distribute_like", "is_divided", "local", "whole"]


class Parallel:
    """Prepares the module of a task, in place, and gives the task its network.

    Args:
        task: task whose module has its initial weights, equal in all processes.
        config: how.
        world: the processes.

    Attributes:
        sharded: whether parameters are divided among processes.
    """

    def __init__(self, task: Task, config: ParallelConfig, world: World) -> None:
        self._task, self._world = task, world
        self._module = module = task.module
        self.sharded = world.size > 1 and config.strategy != "ddp"
        self._whole = copy.deepcopy(module).to("meta") if self.sharded else module
        self._device = next(module.parameters()).device
        blocks = getattr(task, "blocks", ())
        for block in blocks:
            if config.activation_checkpointing:
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
            if config.compile:
                block.compile()
        if world.size == 1:
            return
        task.join(world)
        if not self.sharded:
            task.network = DistributedDataParallel(module, process_group=world.group)
            return
        self._divide(config, blocks)

    def _divide(self, config: ParallelConfig, blocks: Sequence[nn.Module]) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        module, mesh = self._module, _mesh(config.strategy, self._world)
        half = torch.bfloat16 if config.mixed_precision == "bfloat16" else None
        # Inputs keep their dtype: angles of rotations would be rounded.
        policy = MixedPrecisionPolicy(
            param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        frozen = {p for p in module.parameters() if not p.requires_grad}
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=frozen)

    @contextlib.contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        """Inside, a part of a batch is computed; gradients are averaged with the last one."""
        network = self._task.network if self._world.size > 1 else None
        if isinstance(network, DistributedDataParallel) and not last:
            with network.no_sync():
                yield
            return
        if self.sharded:
            divided: Any = network
            divided.set_requires_gradient_sync(last)
        yield

    @contextlib.contextmanager
    def whole(self, values: Mapping[str, torch.Tensor]) -> Iterator[bool]:
        """Inside, the task's module is not divided, has other values, and is evaluated.

        Args:
            values: values of the trained parameters, divided as these are.

        Yields:
            Whether this is the process that has the module; the others have it unchanged.
        """
        main = self._world.is_main
        full = {name: whole(value) for name, value in values.items()} if self.sharded else values
        if not main:
            yield False
            return
        task: Any = self._task
        module, training = self._module, self._module.training
        if self.sharded:
            task.module = self._whole.to_empty(device=self._device)
            frozen = {n: p for n, p in module.named_parameters() if n not in values}
            own: Mapping[str, torch.Tensor] = {}
            _assign(task.module, frozen)
        else:
            named = module.named_parameters()
            own = {name: p.detach().clone() for name, p in named if name in values}
        _assign(task.module, full)
        task.module.eval()
        try:
            with torch.no_grad():
                yield True
        finally:
            if self.sharded:
                task.module = module
                self._whole.to("meta")
            _assign(module, own)
            module.train(training)


def distribute_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, which all processes have, divided as another is."""
    value = value.to(like.device)
    if not is_divided(like):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def local(value: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor."""
    part: Any = value.detach()
    return part.to_local() if is_divided(value) else part


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor put together; all processes call it."""
    part: Any = value.detach()
    return part.full_tensor() if is_divided(value) else part


def is_divided(value: torch.Tensor) -> bool:
    """Whether processes have parts of a tensor."""
    return hasattr(value, "full_tensor")


@torch.no_grad()
def _assign(module: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    for name, parameter in module.named_parameters():
        if name in values:
            parameter.copy_(values[name])


def _mesh(strategy: str, world: World) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    kind = world.device.type
    if strategy == "fsdp":
        return init_device_mesh(kind, (world.size,))
    machine = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    if world.size % machine != 0:
        raise ValueError(
            f"parallel.strategy must be 'ddp' or 'fsdp' where machines have different numbers of "
            f"processes ({machine} here, {world.size} in all), got 'hybrid'"
        )
    return init_device_mesh(
        kind, (world.size // machine, machine), mesh_dim_names=("replicate", "shard")
    )
