"""Runners for the official diffusion heads: network, time functions, sampling, losses."""

from __future__ import annotations

import dataclasses
import re

import torch

from bitdance.models.config import HeadConfig
from bitdance.models.diffusion_head import (
    DiffusionHead,
    PatchAttention,
    shift_time,
    timestep_embedding,
)
from bitdance.sampling.flow_sampler import Schedule, sample_patch
from tests.model.helpers.golden_cases import Case, runner


def _config(case: Case, architecture: str) -> HeadConfig:
    ctor = {k: v for k, v in case.params["ctor"].items() if k != "parallel_num"}
    # The official text-to-image class has no SwiGLU unless it is asked for.
    ctor.setdefault("use_swiglu", architecture != "t2i")
    return HeadConfig(**ctor, architecture=architecture)


def load(case: Case, architecture: str) -> DiffusionHead:
    """The head of a case."""
    head = DiffusionHead(_config(case, architecture))
    case.load_into(head)
    return head


def patches(case: Case) -> list[str]:
    """Prefixes of a case's tensors, one for each number of tokens per patch."""
    found = (re.match(r"in\.(p\d+\.)?x$", name) for name in case.tensors)
    return sorted({match[1] or "" for match in found if match})


def _run(case: Case, architecture: str) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    head = load(case, architecture)
    for p in patches(case):
        out |= _run_tokens(case, head, p)
    return out


def _run_tokens(case: Case, head: DiffusionHead, p: str) -> dict[str, torch.Tensor]:
    """All outputs of one number of tokens per patch; their names begin with `p`."""
    out: dict[str, torch.Tensor] = {}
    x, t, cond = case[f"in.{p}x"], case[f"in.{p}t"], case[f"in.{p}cond"]
    if f"in.{p}t_probe" in case:
        probe = case[f"in.{p}t_probe"]
        for name in case.expected:
            if match := re.fullmatch(rf"out\.{p}timestep_embedding_(\d+)", name):
                out[name] = timestep_embedding(probe, int(match[1]))
            if match := re.fullmatch(rf"out\.{p}time_shift_([\d.]+)", name):
                out[name] = shift_time(probe, float(match[1]))
    with torch.no_grad():
        out[f"out.{p}net"] = head(x, t, cond[: len(x)])
        for settings in case.params["samples"]:
            name = f"{p}sample.{settings['name']}"
            if f"out.{name}" in case:
                out |= sample(case, head, cond, settings, name)
    for settings in case.params["losses"]:
        name = f"{p}loss.{settings['name']}"
        if f"out.{name}" in case:
            out |= _loss(case, head, cond[: len(x)], settings, name, case[f"in.{p}target"])
    return out


def sample(
    case: Case, head: DiffusionHead, cond: torch.Tensor, settings: dict, name: str
) -> dict[str, torch.Tensor]:
    """Outputs of the sampling that `settings` describe."""
    guided = settings["cfg"] > 1
    states, predictions = [], []

    def record(step: int, x: torch.Tensor, x0: torch.Tensor) -> None:
        states.append(torch.cat([x, x]) if guided else x)
        predictions.append(x0)

    noise = case.draws(name)
    schedule = Schedule.of(head.net, settings["steps"], settings["time_shift"])
    rows = cond if guided else cond[: len(noise[0])]
    cfg = settings["cfg"] if guided else None
    x = sample_patch(head.net, schedule, rows, cfg=cfg, noise=noise, on_step=record)
    return {
        f"out.{name}": torch.cat([x, x]) if guided else x,
        f"out.{name}.trace_x": torch.stack(states),
        f"out.{name}.trace_t": schedule.times,
        f"out.{name}.final_net": predictions[-1],
    }


def _loss(
    case: Case,
    head: DiffusionHead,
    cond: torch.Tensor,
    settings: dict,
    name: str,
    target: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Loss and gradients; the schedule belongs to the head's configuration."""
    times = {
        "time_schedule": settings["schedule"],
        "time_shift": settings["time_shift"],
        "P_mean": settings.get("P_mean", 0.0),  # the official class's own defaults
        "P_std": settings.get("P_std", 1.0),
    }
    trained = DiffusionHead(dataclasses.replace(head.config, **times))
    trained.load_state_dict(head.state_dict())
    cond = cond.clone().requires_grad_()
    time_draw, noise = case.draws(name)
    loss = trained.loss(target, cond, time_draw=time_draw, noise=noise)
    parameters = dict(trained.named_parameters())
    order = [parameters[key] for key in case.description["param_order"]]
    grads = torch.autograd.grad(loss.mean(), [cond, *order])
    return {
        f"out.{name}": loss,
        f"out.{name}.grad_cond": grads[0],
        f"out.{name}.grad_norms": torch.stack([grad.norm() for grad in grads[1:]]),
    }


runner("head, ImageNet per token")(lambda case: _run(case, "mlp"))
runner("head, ImageNet parallel")(lambda case: _run(case, "transformer"))
runner("head, text-to-image")(lambda case: _run(case, "t2i"))


@runner("head attention, text-to-image")
def run_attention(case: Case) -> dict[str, torch.Tensor]:
    attention = PatchAttention(case.params["dim"], case.params["n_head"])
    case.load_into(attention)
    with torch.no_grad():
        return {
            f"out.attn_{tokens}": attention(case[f"in.x_{tokens}"])
            for tokens in case.params["seqs"]
        }
