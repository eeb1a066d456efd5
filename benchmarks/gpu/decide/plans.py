"""The plans of the head and of the trunk side by side: evaluations, steps of the trunk, images."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.decide import common, tables
from benchmarks.gpu.worker import Context, Step
from benchmarks.model import paths
from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import PRESETS, ModelConfig
from bitdance.sampling import config
from bitdance.sampling.flow_sampler import Schedule, denoise, make_head
from bitdance_kernels import noise_keys, use_backend

_HEADS = {"B-1x": (1, 4, 16, 32, 64), "B-16x": (1, 2, 4, 8, 64)}
"""Batches: 2 to 128 rows of a head of single tokens, 32 to 2048 of one of patches."""
_TRUNKS = {"B-1x": (1, 8, 32, 64), "B-16x": (1, 2, 4)}
_IMAGES = (("B-16x", 1), ("B-1x", 1), ("B-16x", 8), ("B-1x", 8), ("B-1x", 64), ("B-16x", 64))
_TABLES = (32, 64, 128)
"""Batches of B-1x with 64, 128 and 256 rows."""
_EVALUATIONS = 101
_STEPS_OF_TRUNK = 20
_REPEATS = 20
_TINY = dataclasses.replace(  # with bits that fill a tile
    paths.TINY, latent_dim=16,
    autoencoder=dataclasses.replace(paths.TINY.autoencoder, z_channels=16),
)  # fmt: skip
_TINIES = {"tiny": _TINY, "tiny-1x": dataclasses.replace(_TINY, parallel_num=1)}


def head_steps(context: Context) -> Sequence[Step]:
    """A step per model and batch."""
    return _steps(context, _HEADS, "head", _head)


def trunk_steps(context: Context) -> Sequence[Step]:
    """A step per model and batch."""
    return _steps(context, _TRUNKS, "trunk", _trunk)


def table_steps(context: Context) -> Sequence[Step]:
    """A step per number of rows."""
    return _steps(context, {"B-1x": _TABLES}, "modulations", _table)


def image_steps(context: Context) -> Sequence[Step]:
    """A step per model and batch, the targets first."""
    pairs = (("tiny", 2),) if context.dry_run else _IMAGES
    return [
        common.unless_wrong(
            context, f"images, {name}, batch {batch}",
            functools.partial(_images, context, name, batch, len(pairs) - i),
        )
        for i, (name, batch) in enumerate(pairs)
    ]  # fmt: skip


def _steps(
    context: Context, models: Mapping[str, Sequence[int]], part: str,
    function: Callable[[Context, str, int], None],
) -> list[Step]:  # fmt: skip
    chosen = dict.fromkeys(_TINIES, (2,)) if context.dry_run else models
    return [
        common.unless_wrong(
            context, f"{part}, {name}, batch {batch}",
            functools.partial(function, context, name, batch),
        )
        for name, batches in chosen.items()
        for batch in batches
    ]  # fmt: skip


def _config(name: str) -> ModelConfig:
    return _TINIES.get(name) or PRESETS[name]


@functools.lru_cache(maxsize=1)
def _model(name: str, device: torch.device, dtype: torch.dtype) -> BitDanceModel:
    """A model with random weights; the last one is kept for the steps that follow."""
    torch.manual_seed(0)
    return paths.random_model(_config(name), device).to(dtype)


def model(context: Context, name: str) -> BitDanceModel:
    """A model with random weights in the dtype of the run."""
    return _model(name, context.device, torch.float32 if context.dry_run else torch.bfloat16)


def _available(make: Callable[[], Any]) -> Any | None:
    """What `make` returns; None if a plan cannot run this."""
    try:
        return make()
    except ValueError as error:
        if "plan must be" not in str(error):
            raise
        return None


class _Evaluations:
    """An AR step of the head: all evaluations of its patches, guided."""

    def __init__(self, context: Context, name: str, batch: int) -> None:
        self.context, self.count = context, 3 if context.dry_run else _EVALUATIONS
        whole, patch = model(context, name), _config(name).parallel_num
        self.network = whole.head.net
        self.architecture = self.network.config.architecture
        self.rows = 2 * batch * patch
        torch.manual_seed(1)
        shape = (2 * batch, *(() if patch == 1 else (patch,)), self.network.config.ch_cond)
        self.cond = torch.randn(shape, device=context.device).to(whole.norm.weight.dtype)
        self.keys = noise_keys(0, range(batch), device=context.device)
        self.cfg = torch.full((), 3.0, device=context.device)
        self.schedule = Schedule.of(self.network, self.count - 1)

    def predictions(self, use_kernels: bool = True) -> Callable[[], Tensor]:
        """A function that denoises with the plan that holds now."""
        patch = self.cond.shape[1] if self.cond.dim() > 2 else None
        head = make_head(self.network, self.schedule, len(self.cond), patch, use_kernels)
        head.load()
        return lambda: denoise(head, self.schedule, self.cond, cfg=self.cfg, keys=self.keys)

    def of_pytorch(self) -> Tensor:
        """Predictions of the network as published, by PyTorch's own operators."""
        with use_backend("reference"):
            return self.predictions(use_kernels=False)()


def _head(context: Context, name: str, batch: int) -> None:
    """Microseconds of an evaluation by every plan, and the share of bits that differ."""
    with common.no_grad():
        evaluations = _Evaluations(context, name, batch)
        plans: dict[str, Callable[[], Tensor]] = {}
        for plan in common.plans(context):
            with config.use_plans(head=plan):
                run = _available(evaluations.predictions)
                if run is not None:
                    plans[plan] = run
        compare(
            context, "head", plans, evaluations.of_pytorch(), bits=True,
            model=name, rows=evaluations.rows, architecture=evaluations.architecture,
            parts=evaluations.count,
        )  # fmt: skip


def _trunk(context: Context, name: str, batch: int) -> None:
    """Microseconds of the transformer's part of an AR step by every plan, and how far they are."""
    whole = model(context, name)
    with common.no_grad():
        plans: dict[str, Callable[[], Tensor]] = {}
        for plan in common.plans(context):
            with config.use_plans(trunk=plan):
                torch.manual_seed(1)  # of the step's input
                step = _available(lambda: paths.trunk_step(whole, batch))
                if step is not None:
                    plans[plan] = lambda step=step: step()[0]  # type: ignore[misc]
        torch.manual_seed(1)
        with use_backend("reference"), config.use_plans(trunk="library"):
            truth = paths.trunk_step(whole, batch)()[0]
        compare(
            context, "trunk", plans, truth, bits=False, model=name,
            rows=2 * batch * _config(name).parallel_num, architecture="", parts=1,
        )  # fmt: skip


def compare(
    context: Context, part: str, plans: dict[str, Callable[[], Tensor]], of_pytorch: Tensor,
    *, bits: bool, model: str, rows: int, architecture: str, parts: int,
) -> None:  # fmt: skip
    """A record per plan: how fast, and how far from the library's plan, as PyTorch's ops are."""
    found = {plan: run().clone() for plan, run in plans.items()}
    usual = found["library"]
    replays = {}
    for plan, run in plans.items():
        replays[plan] = common.captured(context, run)
    times = common.microseconds(context, replays, calls=1 if part == "head" else _STEPS_OF_TRUNK)
    for plan, us in times.items():
        us = [value / parts for value in us]
        # Launches that overlap and read too early would differ from run to run.
        same = all(torch.equal(replays[plan](), found[plan]) for _ in range(_REPEATS))
        common.add(
            context, "plan", part=part, architecture=architecture, model=model, rows=rows,
            plan=plan, us=statistics.median(us), all_us=us, repeatable=same,
            different=difference(found[plan], usual, bits=bits),
            different_pytorch=difference(of_pytorch, usual, bits=bits),
        )  # fmt: skip
    tables.save(context)


def difference(a: Tensor, b: Tensor, *, bits: bool) -> float:
    """Share of signs that differ, or the rms difference relative to `b`."""
    if bits:
        return float(((a > 0) != (b > 0)).double().mean())
    a, b = a.double(), b.double()
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


def _table(context: Context, name: str, batch: int) -> None:
    """Microseconds of an evaluation, with a table of modulations for all or one for each."""
    with common.no_grad():
        evaluations = _Evaluations(context, name, batch)
        ways = {}
        for one_table, rows in ((True, evaluations.rows), (False, 0)):
            with config.use_plans(head="library", max_table_rows=rows):
                ways[one_table] = common.captured(context, evaluations.predictions())
        for one_table, us in common.microseconds(context, ways).items():
            us = [value / evaluations.count for value in us]
            common.add(
                context, "table", model=name, rows=evaluations.rows, one_table=one_table,
                us=statistics.median(us), all_us=us,
            )  # fmt: skip
    tables.save(context)


def _images(context: Context, name: str, batch: int, share: int) -> None:
    """Milliseconds an image with every plan for head and trunk, and the share of equal bits."""
    whole, denoising = model(context, name), 2 if context.dry_run else _EVALUATIONS - 1
    end = time.monotonic() + max(context.left("decide"), 0.0) / max(share, 2)
    labels = torch.arange(batch, device=whole.freqs.device) % whole.config.num_classes
    clock, ways = paths.Clock(context.device), {}
    for plan in common.plans(context):
        way = paths.library(whole, denoising)
        run = functools.partial(_sample, way, labels, plan)
        if _available(run) is not None:  # the first call compiles and allocates
            run()  # and the second one captures
            ways[plan] = way, run
    tokens = {plan: run() for plan, (_, run) in ways.items()}
    times: dict[str, list[float]] = {plan: [] for plan in ways}
    rounds = 1 if context.dry_run else common.ROUNDS
    for i in range(rounds):
        if i and time.monotonic() > end:
            break
        for plan, (way, run) in ways.items():
            seconds = clock.seconds(lambda way=way, run=run: way.decode(run()))  # type: ignore[misc]
            times[plan].append(1e3 * seconds / batch)
    for plan, ms in times.items():
        common.add(
            context, "image", model=name, batch=batch, plan=plan, ms=statistics.median(ms),
            all_ms=ms, different=difference(tokens[plan], tokens["library"], bits=True),
        )  # fmt: skip


def _sample(way: paths.Path, labels: Tensor, plan: str) -> Tensor:
    """Tokens of a batch, sampled with `plan` wherever it can run."""
    with config.use_plans(head=plan, trunk="packed" if plan == "persistent" else plan):
        return way.sample(labels, None)
