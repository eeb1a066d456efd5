"""The training loop, the same for autoencoder and model.

Everything random in step i is drawn from (seed, i), and the batch is a function of (seed, i) too.
So a checkpoint is weights, their average, the optimizer's state and the number of the step, and a
resumed run equals the uninterrupted one bit for bit on one machine. A run that is lengthened goes
on with the learning rates of the longer one.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from bitdance.data.shuffle import ShuffledBatches
from bitdance.io.files import remove_leftovers
from bitdance.io.validation import exact_int
from bitdance.io.weights import CheckpointError, write_text
from bitdance.training import checkpoint
from bitdance.training.config import RunConfig
from bitdance.training.initial_weights import load_initial
from bitdance.training.log import Log
from bitdance.training.run_folder import FolderLock, check_same_run, check_single_process, set_aside

__all__ = ["Task", "Trainer"]


class Task(Protocol):
    """What is trained on what.

    Attributes:
        module: its parameters that require gradients are trained.
        columns: names of the terms that `loss` tells.
        size: items of the data set.
        identity: what the data are, whatever path they have: a resumed run must have the same.
        exports: names of what `export` writes.
        no_decay: prefixes of parameters without weight decay, besides all vectors.
    """

    columns: tuple[str, ...]
    size: int
    no_decay: tuple[str, ...]
    identity: str
    exports: tuple[str, ...]

    @property
    def module(self) -> nn.Module:
        """The network."""
        ...

    def loss(self, items: np.ndarray) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Loss of a batch and its terms, drawing from PyTorch's random state."""
        ...

    def pictures(self, path: Path) -> None:
        """Draw what the module (with averaged weights) makes."""
        ...

    def export(self, folder: Path) -> None:
        """Write the module (with averaged weights) for use."""
        ...

    def extra_state(self) -> dict[str, Any]:
        """State outside of `module`."""
        ...

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        ...


class Trainer:
    """One run in one folder; resumes what it finds there.

    The folder is this run's until `run` returns or the object is deleted.

    Args:
        task: what is trained.
        config: of the run; saved as ``config.toml``.
        folder: for checkpoints, log and pictures.
        device: where `task` is.
        progress: show a progress bar.

    Raises:
        CheckpointError: the checkpoints there are damaged or of another model, or those that
            ``init`` names are.
        OSError: another process trains in the folder, or it cannot be written.
        RuntimeError: this is one of several processes.
        ValueError: the folder holds a run whose configuration differs in what decides the weights,
            or whose data did; or there are fewer data than a batch has.
    """

    def __init__(
        self, task: Task, config: RunConfig, folder: Path, *,
        device: torch.device | str = "cpu", progress: bool = True,
    ) -> None:  # fmt: skip
        check_single_process()
        self.task, self.config, self.folder = task, config, folder
        self._device = torch.device(device)
        self._progress = progress
        if config.optim.batch_size > task.size:
            raise ValueError(
                f"optim.batch_size must be at most the data's {task.size} items, got "
                f"{config.optim.batch_size}"
            )
        self._batches = ShuffledBatches(
            task.size, config.optim.batch_size, seed=config.optim.seed % 2**63
        )
        self._columns = ("lr", "grad_norm", "loss", *task.columns, "images_per_s")
        self._sums = torch.zeros(len(self._columns) - 2, dtype=torch.float64, device="cpu")
        self._summed = 0  # steps in these sums
        self._signal = 0
        self.step = 0
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(folder)
        try:
            self._begin()
        except BaseException:
            self._lock.release()
            if new:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise

    def _begin(self) -> None:
        """Start, or go on from the newest checkpoint."""
        folder, config, task = self.folder, self.config, self.task
        remove_leftovers(folder)
        named = dict(task.module.named_parameters())
        self._parameters = {k: p for k, p in named.items() if p.requires_grad}
        self._optimizer = _optimizer(self._parameters, config, task.no_decay)
        self._newest = checkpoint.newest_step(folder)
        state = self._newest_state()
        before = None if state is None else check_same_run(folder, config, int(state["step"]))
        if state is None and config.init:
            load_initial(task.module, config.init)
        self._average = {k: p.detach().clone() for k, p in self._parameters.items()}
        if state is not None:
            self._resume(state)
        if before is not None and before.optim.steps == self.step < config.optim.steps:
            set_aside(folder, getattr(task, "exports", ()), self.step)
        write_text(folder / "config.toml", config.to_toml())
        self._log = Log(folder / "log.csv", self._columns, self.step)

    def _newest_state(self) -> dict[str, Any] | None:
        def check(state: Mapping[str, Any]) -> None:
            checkpoint.check_state(state, self.task.module, self._optimizer, len(self._sums))

        try:
            return checkpoint.newest(self.folder, check)
        except CheckpointError:
            check_same_run(self.folder, self.config, 0)  # perhaps why none of them fits
            raise

    def run(self, stop_at: int | None = None) -> int:
        """Train up to the last step, or to `stop_at`.

        SIGTERM and SIGINT end the run after the step they find it in, with a checkpoint.

        Returns:
            0, or the number of the signal.

        Raises:
            RuntimeError: the loss or a weight is not finite; the checkpoints are as they were.
            OSError: a file could not be written, or another process has gone on with the run.
            ValueError: `stop_at` is no integer of at least 1.
        """
        optim = self.config.optim
        last = optim.steps
        if stop_at is not None:
            last = min(exact_int("Trainer.run", "stop_at", stop_at, least=1), last)
        if not self._lock.release.alive:  # an earlier call has released it
            self._lock = FolderLock(self.folder)
        try:
            # One that was there at first and is later than where this run began is damaged.
            if checkpoint.newest_step(self.folder) > max(self.step, self._newest):
                raise OSError(f"{self.folder}: another process has gone on with the run meanwhile")
            return self._train(last)
        finally:
            self._lock.release()

    def _train(self, last: int) -> int:
        optim = self.config.optim
        with self._signals(), self._bar(last) as bar:
            begin = time.perf_counter()
            while self.step < last and not self._signal:
                self._sums += self._one_step()
                self._summed += 1
                bar.update()
                if self.step % optim.log_every == 0:
                    seconds, begin = time.perf_counter() - begin, time.perf_counter()
                    self._write_log(seconds, bar)
                ends = self._signal or self.step == last
                draws = self.step % optim.picture_every == 0 or self.step == optim.steps
                saves = self.step % optim.save_every == 0 or ends
                if draws or saves:
                    self._check_finite()
                if draws:
                    with self.averaged():
                        self.task.pictures(self.folder / f"pictures-{self.step:08d}.png")
                    self._log.plot(self.folder / "log.png")
                if saves:
                    self._save()
        if self.step == optim.steps:
            with self.averaged():
                self.task.export(self.folder)
        return self._signal

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the module has the averaged weights and is in evaluation mode."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        training = self.task.module.training
        self._assign(self._average)
        self.task.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._assign(own)
            self.task.module.train(training)

    @torch.no_grad()
    def _assign(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    def _one_step(self) -> torch.Tensor:
        """Take a step; returns norm, loss and terms."""
        optim = self.config.optim
        self.task.module.train()
        for group in self._optimizer.param_groups:
            group["lr"] = optim.learning_rate(self.step)
        items = self._batches.batch(self.step)
        total = torch.zeros(len(self._sums) - 1, dtype=torch.float64, device="cpu")
        for part, some in enumerate(np.split(items, optim.accumulate)):
            _seed(optim.seed, self.step, part)
            with self._autocast():
                loss, terms = self.task.loss(some)
            (loss / optim.accumulate).backward()
            values = torch.stack([loss, *(terms[name] for name in self.task.columns)])
            total += values.detach().double().cpu() / optim.accumulate
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), optim.grad_clip)
        if not math.isfinite(float(norm)) or not math.isfinite(float(total[0])):
            raise RuntimeError(
                f"step {self.step + 1}: the loss is {float(total[0]):g} and its gradient's norm "
                f"{float(norm):g}; lower optim.lr, or raise optim.warmup"
            )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(optim.ema_decay, (1 + self.step) / (10 + self.step))
        averages, current = list(self._average.values()), list(self._parameters.values())
        torch._foreach_lerp_(averages, [p.detach() for p in current], 1 - decay)
        return torch.cat([norm.detach().double().cpu().view(1), total])

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        kind = self.config.optim.autocast
        on = kind == "bfloat16" or (kind == "auto" and self._device.type == "cuda")
        return torch.autocast(self._device.type, torch.bfloat16, enabled=on)

    def _write_log(self, seconds: float, bar: Any) -> None:
        optim = self.config.optim
        means = (self._sums / self._summed).tolist()
        self._sums.zero_()
        self._summed = 0
        rate = optim.log_every * optim.batch_size / seconds
        values = [optim.learning_rate(self.step - 1), *means, rate]
        self._log.add(self.step, dict(zip(self._columns, values, strict=True)))
        bar.set_postfix_str(f"loss {means[1]:.4f}, {rate:.0f} images/s")

    def _bar(self, last: int) -> Any:
        return tqdm(total=last, initial=self.step, disable=not self._progress, unit="step")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Note signals instead of dying from them; only the main thread may ask for that."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._signal = number

        before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _check_finite(self) -> None:
        """Of a run that has diverged nothing is kept; the checkpoint before stays the newest."""
        for name, value in (*self._parameters.items(), *self._average.items()):
            if not bool(value.detach().isfinite().all()):
                raise RuntimeError(
                    f"step {self.step}: {name} is not finite any more; lower optim.lr, or raise "
                    "optim.warmup"
                )

    def _save(self) -> None:
        state = {
            "module": self.task.module.state_dict(),
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
            "sums": self._sums,
            "summed": self._summed,
            "identity": getattr(self.task, "identity", ""),
            "extra": self.task.extra_state(),
        }
        checkpoint.save(self.folder, self.step, state, keep=self.config.optim.keep)

    def _resume(self, state: Mapping[str, Any]) -> None:
        if state["identity"] != getattr(self.task, "identity", ""):
            raise ValueError(
                f"data.path must hold the data that the run in {self.folder} began with, got "
                f"others in {self.config.data.path}"
            )
        for name, own in self.task.module.named_parameters():
            if not own.requires_grad and not torch.equal(own.cpu(), state["module"][name]):
                raise ValueError(
                    f"autoencoder_path must hold the autoencoder that {self.folder} began with, "
                    f"got another in {self.config.autoencoder_path} ({name} differs)"
                )
        self.task.module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        for name, value in state["average"].items():
            self._average[name].copy_(value)
        self._sums, self._summed = state["sums"], int(state["summed"])
        self.task.load_extra_state(state["extra"])
        self.step = int(state["step"])


def _optimizer(
    parameters: Mapping[str, nn.Parameter], config: RunConfig, no_decay: tuple[str, ...]
) -> torch.optim.AdamW:
    """AdamW with the official groups: no decay for vectors and for what the task names."""
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
        lr=config.optim.lr, betas=config.optim.betas, fused=True,
    )  # fmt: skip


def _seed(seed: int, step: int, part: int) -> None:
    """Set PyTorch's random state, on all devices, for one part of one step."""
    low, high = np.random.SeedSequence([seed, step, part]).generate_state(2)
    torch.manual_seed(int(low) << 32 | int(high))
