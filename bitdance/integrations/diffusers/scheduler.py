"""The times and steps of denoising a patch, as a scheduler of diffusers."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

from bitdance_kernels import denoise_schedule

__all__ = ["BitDanceScheduler", "BitDanceSchedulerOutput", "with_time_shift"]

_Module = TypeVar("_Module", bound=Any)


@dataclass
class BitDanceSchedulerOutput(BaseOutput):
    """What a step returns.

    Attributes:
        prev_sample: state of the next step, of the shape of the sample.
    """

    prev_sample: torch.Tensor


class BitDanceScheduler(SchedulerMixin, ConfigMixin):
    """Steps from noise to the bits of a patch, see ``bitdance_kernels.denoise_schedule``.

    A pipeline samples patches with kernels that do all steps; of its scheduler it takes the
    configuration. ``set_timesteps`` and ``step`` give the same steps one by one.

    Args:
        time_shift: over 0; values over 1 move the times towards the noise.

    Attributes:
        timesteps: float32 [S + 1], times of the network's calls, from 0, noise, to 0.95, after
            `set_timesteps`.
        num_inference_steps: S, None before.
    """

    config_name = "scheduler_config.json"
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, time_shift: float = 1.0) -> None:
        denoise_schedule(1, time_shift=time_shift)  # raises for what is no shift
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0, dtype=torch.float32, device="cpu")
        self._table = torch.empty(0, 3, dtype=torch.float32, device="cpu")
        self._at: int | None = None

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Set the number of steps, and begin with the first.

        Args:
            num_inference_steps: noisy steps S, at least 1; the network is called S + 1 times.
            device: device of `timesteps`, by default the CPU.

        Raises:
            TypeError: `num_inference_steps` is not an int.
            ValueError: it is under 1.
        """
        shift = self.config.time_shift
        self._table, times = denoise_schedule(num_inference_steps, time_shift=shift)
        self.timesteps = times.to(device or "cpu")
        self.num_inference_steps, self._at = int(num_inference_steps), 0

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample: the network takes states as they are."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> BitDanceSchedulerOutput | tuple[torch.Tensor]:
        """The state after a step, x' = a x + b x0 + s eps.

        Args:
            model_output: prediction x0 of the bits, guidance included.
            timestep: one of `timesteps`; the first call begins there, the others follow.
            sample: state x, of the shape, dtype and device of `model_output`.
            generator: draws eps.
            return_dict: whether an output is returned, rather than the tuple (prev_sample,).

        Raises:
            ValueError: there are no timesteps, all are done, `timestep` is another one, or the
                tensors differ in shape.
        """
        if self._at is None:
            raise ValueError("BitDanceScheduler.step: set_timesteps must be called first")
        if self._at == len(self.timesteps):
            raise ValueError(
                f"BitDanceScheduler.step: all {self._at} steps are done; set_timesteps begins again"
            )
        expected = float(self.timesteps[self._at])
        if float(timestep) != expected:
            raise ValueError(
                f"BitDanceScheduler.step: timestep must be {expected}, the next of timesteps, got "
                f"{float(timestep)}"
            )
        if model_output.shape != sample.shape:
            raise ValueError(
                f"BitDanceScheduler.step: model_output must have the sample's shape "
                f"{list(sample.shape)}, got {list(model_output.shape)}"
            )
        a, b, s = self._table[self._at].tolist()
        reached = a * sample + b * model_output
        if s:
            noise = torch.randn(
                sample.shape, generator=generator, dtype=torch.float32,
                device=sample.device if generator is None else generator.device,
            )  # fmt: skip
            reached = reached + s * noise.to(sample)
        self._at += 1
        return BitDanceSchedulerOutput(prev_sample=reached) if return_dict else (reached,)

    def __len__(self) -> int:
        """Number of the network's calls."""
        return len(self.timesteps)


def with_time_shift(module: _Module, name: str, time_shift: float) -> _Module:
    """A module that samples with another shift, on the same parameters; itself if it is the same.

    Args:
        module: a network whose ``config`` has a ``time_shift``, or a module around one.
        name: path of the network in it, ``"head.net"``; the modules on it get the shift, too.
        time_shift: the shift.
    """
    if module.config.time_shift == time_shift:
        return module
    other = copy.copy(module)
    other.config = replace(module.config, time_shift=time_shift)
    child, _, rest = name.partition(".")
    if child:
        changed = with_time_shift(module.get_submodule(child), rest, time_shift)
        other._modules = {**module._modules, child: changed}
    return other
