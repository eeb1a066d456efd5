"""The training loop, shared by all tasks and by all processes of a run.

The batch and all random numbers of step i are functions of (seed, i). So a checkpoint consists of
the weights, their average, the optimizer's state and the number of the step, and a resumed run
equals the uninterrupted one bit for bit on one machine with as many processes. Every process takes
its share of each batch; rank 0 alone writes log, pictures and exports.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from bitdance.data.prefetch import Prefetcher
from bitdance.data.shuffle import ShuffledBatches
from bitdance.distributed import World
from bitdance.io.files import CheckpointError, remove_leftovers
from bitdance.io.folder_lock import FolderLock
from bitdance.io.progress import progress_bar
from bitdance.io.validation import exact_int
from bitdance.training import checkpoint
from bitdance.training.config import RunConfig, run_to_dict, write_config
from bitdance.training.draws import Draws
from bitdance.training.initial_weights import load_initial_weights
from bitdance.training.log import Log
from bitdance.training.parallel import Parallel, distribute_like, local, whole
from bitdance.training.run_folder import check_same_run, check_single_process, rename_exports
from bitdance.training.signals import STOPPING, SignalRecorder
from bitdance.training.task import Task

if TYPE_CHECKING:  # its imports take a second, which one process saves
    from bitdance.training.sharded_checkpoint import ShardedWriter

__all__ = ["Trainer"]


class Trainer:
    """One run in one folder; resumes from the newest checkpoint there.

    The folder is locked until `run` returns or the object is deleted.

    Args:
        task: module, data and loss.
        config: configuration of the run; saved as ``config.toml``.
        folder: folder for checkpoints, log and sample images.
        device: device of `task`.
        world: the processes of the run; by default this one alone.
        progress: show a progress bar.

    Raises:
        CheckpointError: the checkpoints in the folder, or the one that ``init`` names, are damaged
            or belong to another model.
        OSError: another run trains in the folder, or it cannot be written.
        RuntimeError: this is one of several processes, and `world` is not given.
        ValueError: the folder holds a run with other data, or with other settings that affect the
            weights; there are fewer items than a batch needs; or the processes differ.
        WorldError: another process raises one of these.
    """

    def __init__(
        self, task: Task, config: RunConfig, folder: Path, *,
        device: torch.device | str = "cpu", world: World | None = None, progress: bool = True,
    ) -> None:  # fmt: skip
        if world is None:
            check_single_process()
        self.world = world = world or World(device=device)
        self.task, self.config, self.folder = task, config, folder
        self._identity: str = getattr(task, "identity", "")
        self._device = torch.device(device)
        self._progress = progress and world.is_main
        world.check_equal("the configuration", run_to_dict(config))
        world.check_equal("the data", (task.size, self._identity))
        self._batches = _batches(task.size, config, world)
        self._unit: str = getattr(task, "unit", "images")
        self._columns = ("lr", "grad_norm", "loss", *task.columns, f"{self._unit}_per_s")
        self._sums = torch.zeros(len(self._columns) - 2, dtype=torch.float64, device="cpu")
        self._summed = 0  # steps in these sums
        self._signals = SignalRecorder()
        self._stop = 0  # number of the signal that ends the run
        self._written = False  # all processes have written their shares of a checkpoint
        self.step = 0
        new = not folder.exists()
        with world.together():
            if world.is_main:
                folder.mkdir(parents=True, exist_ok=True)
                self._lock = FolderLock(folder)
        try:
            self._begin()
        except BaseException:
            if world.is_main:
                self._lock.release()
                if new:
                    with contextlib.suppress(OSError):
                        folder.rmdir()
            raise

    def _begin(self) -> None:
        """Start, or resume from the newest checkpoint."""
        folder, config, task, world = self.folder, self.config, self.task, self.world
        with world.together():
            if world.is_main:
                remove_leftovers(folder)
                checkpoint.remove_unfinished(folder)
        earlier = None
        with world.together():
            self._newest = checkpoint.newest_step(folder)
            self._optimizer = _optimizer(_trained(task), config, task.no_decay)
            state = self._newest_state()
            if state is not None:
                earlier = check_same_run(folder, config, int(state["step"]))
                self._check_content(state)
                task.module.load_state_dict(state["module"])
            elif config.init:
                load_initial_weights(task.module, config.init)
        world.check_equal("the checkpoint", None if state is None else state["step"])
        with world.watched("start"):
            self._parallel = Parallel(task, config.parallel, world)
        self._parameters = _trained(task)
        self._average = {k: p.detach().clone() for k, p in self._parameters.items()}
        self._optimizer = _optimizer(self._parameters, config, task.no_decay)
        self._writer = _writer(folder, world, config.optim.keep)
        if state is not None:
            self._resume(state)
        with world.together():
            if world.is_main:
                if earlier is not None and earlier.optim.steps == self.step < config.optim.steps:
                    rename_exports(folder, getattr(task, "exports", ()), self.step)
                write_config(config, folder / "config.toml")
                self._log = Log(folder / "log.csv", self._columns, self.step)

    def _newest_state(self) -> dict[str, Any] | None:
        def check(state: Mapping[str, Any]) -> None:
            checkpoint.check_state(state, self.task.module, self._optimizer, len(self._sums))

        try:
            return checkpoint.newest(self.folder, check)
        except CheckpointError:
            check_same_run(self.folder, self.config, 0)  # perhaps another model: says so
            raise

    def run(self, stop_at: int | None = None) -> int:
        """Train to the last step, or to `stop_at`.

        SIGTERM and SIGINT end the run after the current step, with a checkpoint.

        Returns:
            0, or the number of the signal that ended the run.

        Raises:
            RuntimeError: the loss or a weight is not finite; checkpoints are unchanged.
            OSError: a file cannot be written, or another process has resumed the run.
            ValueError: `stop_at` is not an integer of at least 1.
        """
        optim = self.config.optim
        last = optim.steps
        if stop_at is not None:
            last = min(exact_int("Trainer.run", "stop_at", stop_at, minimum=1), last)
        with self.world.together():
            if self.world.is_main:
                self._lock_again()
        try:
            return self._train(last)
        finally:
            if self._writer is not None:
                self._writer.close()
            if self.world.is_main:
                self._lock.release()

    def _lock_again(self) -> None:
        if not self._lock.release.alive:  # an earlier call has released it
            self._lock = FolderLock(self.folder)
        # Checkpoints that were newer than the start of this run are damaged ones.
        if checkpoint.newest_step(self.folder) > max(self.step, self._newest):
            self._lock.release()
            raise OSError(f"{self.folder}: another process has resumed the run meanwhile")

    def _train(self, last: int) -> int:
        optim = self.config.optim
        self._stop = 0
        batches = Prefetcher(self._load, stop=last * optim.accumulate)
        with self._signals, batches, self._bar(last) as bar:
            start = time.perf_counter()
            while self.step < last and not self._stop:
                with self.world.watched(f"step {self.step + 1}"):
                    self._sums += self._one_step(batches)
                self._summed += 1
                bar.update()
                if self._written:
                    self._finish_checkpoint()
                if self.step % optim.log_every == 0:
                    seconds, start = time.perf_counter() - start, time.perf_counter()
                    self._write_log(seconds, bar)
                ends = self._stop or self.step == last
                sample = self.step % optim.sample_every == 0 or self.step == optim.steps
                save = self.step % optim.save_every == 0 or ends
                if sample or save:
                    self._check_finite()
                if sample:
                    self._save_samples()
                if save:
                    self._save()
            self._finish_checkpoint()
        if self.step == optim.steps:
            with self.world.together(), self.averaged() as main:
                if main:
                    self.task.export(self.folder)
        return self._stop

    def _save_samples(self) -> None:
        with self.world.together(), self.averaged() as main:
            if main:
                self.task.save_samples(self.folder / f"samples-{self.step:08d}.png")
                self._log.plot(self.folder / "log.png")

    def averaged(self) -> contextlib.AbstractContextManager[bool]:
        """Inside, rank 0's module is whole, has averaged weights and is in evaluation mode.

        All processes enter it; the value tells whether this is rank 0.
        """
        return self._parallel.whole(self._average)

    def _load(self, part: int) -> tuple[np.ndarray, Any]:
        """Items of part `part` of all parts of all batches, loaded; called in another thread."""
        step, of_step = divmod(part, self.config.optim.accumulate)
        items = np.split(self._batches.batch(step), self.config.optim.accumulate)[of_step]
        return items, self.task.load(items, step)

    def _one_step(self, batches: Prefetcher[Any]) -> torch.Tensor:
        """Take a step; returns the gradient's norm, the loss and its terms."""
        optim = self.config.optim
        self.task.module.train()
        for group in self._optimizer.param_groups:
            group["lr"] = optim.learning_rate(self.step)
        total = torch.zeros(len(self._sums) - 1, dtype=torch.float64, device="cpu")
        for part in range(optim.accumulate):
            items, batch = batches.get(self.step * optim.accumulate + part)
            _seed(optim.seed, self.step, self.world.rank * optim.accumulate + part)
            draws = Draws(optim.seed, self.step, items, self._device)
            with self._parallel.part(last=part == optim.accumulate - 1):
                with self._autocast():
                    loss, terms = self.task.loss(batch, draws)
                (loss / optim.accumulate).backward()
            values = torch.stack([loss, *(terms[name] for name in self.task.columns)])
            total += values.detach().double().cpu() / optim.accumulate
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), optim.grad_clip)
        norm = whole(norm)
        total = self._exchange(total)
        if not math.isfinite(float(norm)) or not math.isfinite(float(total[0])):
            raise RuntimeError(
                f"step {self.step + 1}: the loss is {float(total[0]):g} and its gradient's norm "
                f"{float(norm):g}; lower optim.lr, or raise optim.warmup"
            )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if hasattr(self.task, "end_step"):
            self.task.end_step(self.step)
        self.step += 1
        averages, current = list(self._average.values()), list(self._parameters.values())
        torch._foreach_lerp_(
            averages, [p.detach() for p in current], 1 - optim.average_decay(self.step)
        )
        return torch.cat([norm.double().cpu().view(1), total])

    def _exchange(self, total: torch.Tensor) -> torch.Tensor:
        """The means of the values over the processes.

        With them the processes learn of each other's signals, and of shares of checkpoints.
        """
        flags = torch.zeros(len(STOPPING) + 1, dtype=torch.float64, device="cpu")
        if self._signals.number:
            flags[STOPPING.index(self._signals.number)] = 1
        flags[-1] = self._writer is not None and self._writer.ready
        sums = self.world.reduce_sum(torch.cat([total, flags])).tolist()
        received = [n for n, count in zip(STOPPING, sums[len(total) :], strict=False) if count]
        self._stop = received[0] if received else 0
        self._written = sums[-1] == self.world.size
        return torch.tensor(sums[: len(total)], dtype=torch.float64, device="cpu") / self.world.size

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        mode = self.config.optim.autocast
        enabled = mode == "bfloat16" or (mode == "auto" and self._device.type == "cuda")
        return torch.autocast(self._device.type, torch.bfloat16, enabled=enabled)

    def _write_log(self, seconds: float, bar: Any) -> None:
        optim = self.config.optim
        means = (self._sums / self._summed).tolist()
        self._sums.zero_()
        self._summed = 0
        rate = optim.log_every * optim.batch_size / seconds
        values = [optim.learning_rate(self.step - 1), *means, rate]
        with self.world.together():
            if self.world.is_main:
                self._log.add(self.step, dict(zip(self._columns, values, strict=True)))
        bar.set_postfix_str(f"loss {means[1]:.4f}, {rate:.0f} {self._unit}/s", refresh=False)

    def _bar(self, last: int) -> Any:
        return progress_bar(total=last, initial=self.step, disable=not self._progress, unit="step")

    def _check_finite(self) -> None:
        """Check the weights, so that a run that has diverged keeps its last good checkpoint."""
        values = (*self._parameters.items(), *self._average.items())
        bad = [name for name, p in values if not bool(local(p).isfinite().all())]
        for name in filter(None, self.world.gather(bad[0] if bad else "")):
            raise RuntimeError(
                f"step {self.step}: {name} is not finite; lower optim.lr, or raise optim.warmup"
            )

    def _save(self) -> None:
        state = {
            "module": self.task.module.state_dict(),
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
            "sums": self._sums,
            "summed": self._summed,
            "identity": self._identity,
            "extra": self.task.extra_state(),
        }
        if self._writer is None:
            checkpoint.save(self.folder, self.step, state, keep=self.config.optim.keep)
            return
        self._finish_checkpoint()
        tensors, rest = checkpoint.named_state(state, self._parameters, self._optimizer)
        rest["config"] = run_to_dict(self.config)
        self._writer.begin(self.step, tensors, rest)

    def _finish_checkpoint(self) -> None:
        """Wait for the last checkpoint, if there is one that is being written."""
        if self._writer is not None:
            self._writer.finish()

    def _check_content(self, state: Mapping[str, Any]) -> None:
        """Check that a checkpoint is of the same data and the same frozen weights."""
        if state["identity"] != self._identity:
            raise ValueError(
                f"data.path must be the data that the run in {self.folder} began with, got other "
                f"data in {self.config.data.path}"
            )
        for name, own in self.task.module.named_parameters():
            if not own.requires_grad and not torch.equal(own.cpu(), state["module"][name]):
                raise ValueError(
                    f"autoencoder_path must be the autoencoder that {self.folder} began with, got "
                    f"another ({name} differs)"
                )

    def _resume(self, state: Mapping[str, Any]) -> None:
        """Restore everything but the module."""
        moments, saved = state["optimizer"]["state"], state["optimizer"]
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        for number, parameter in enumerate(parameters):
            own = moments[number]
            likes = {"exp_avg": parameter, "exp_avg_sq": parameter}
            own |= {key: distribute_like(own[key], like) for key, like in likes.items()}
        self._optimizer.load_state_dict(saved)
        for name, value in state["average"].items():
            self._average[name].copy_(distribute_like(value, self._average[name]))
        self._sums, self._summed = state["sums"], int(state["summed"])
        self.task.load_extra_state(state["extra"])
        self.step = int(state["step"])


def _batches(size: int, config: RunConfig, world: World) -> ShuffledBatches:
    """The order of the data; each process gets a contiguous share of every batch."""
    batch, parts = config.optim.batch_size, world.size * config.optim.accumulate
    if batch > size:
        raise ValueError(f"optim.batch_size must be at most the data's {size} items, got {batch}")
    if batch % parts != 0:
        raise ValueError(
            f"optim.batch_size must be a multiple of {parts} ({world.size} processes, accumulate = "
            f"{config.optim.accumulate}), got {batch}"
        )
    return ShuffledBatches(
        size, batch // world.size, seed=config.optim.seed % 2**63, rank=world.rank,
        world_size=world.size,
    )  # fmt: skip


def _writer(folder: Path, world: World, keep: int) -> ShardedWriter | None:
    """What writes checkpoints of several processes."""
    if world.size == 1:
        return None
    from bitdance.training.sharded_checkpoint import ShardedWriter

    return ShardedWriter(folder, world, functools.partial(checkpoint.remove_old, folder, keep=keep))


def _trained(task: Task) -> dict[str, nn.Parameter]:
    return {k: p for k, p in task.module.named_parameters() if p.requires_grad}


def _optimizer(
    parameters: Mapping[str, nn.Parameter], config: RunConfig, no_decay: tuple[str, ...]
) -> torch.optim.AdamW:
    """AdamW with the official groups: no decay of vectors and of `no_decay` prefixes."""
    decayed = {k: p.dim() > 1 and not k.startswith(no_decay) for k, p in parameters.items()}
    groups = [
        {
            "params": [p for k, p in parameters.items() if decayed[k] == wanted],
            "weight_decay": config.optim.weight_decay if wanted else 0.0,
        }
        for wanted in (True, False)
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.optim.lr, betas=config.optim.betas, eps=config.optim.eps, fused=True,
    )  # fmt: skip


def _seed(seed: int, step: int, part: int) -> None:
    """Seed PyTorch's generators on all devices for one part of one step."""
    low, high = np.random.SeedSequence([seed, step, part]).generate_state(2)
    torch.manual_seed(int(low) << 32 | int(high))
