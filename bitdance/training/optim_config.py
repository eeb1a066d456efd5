"""Configuration of the optimization of a run, and of its processes."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from bitdance.io.settings import (
    Bool,
    Count,
    Integer,
    ListOrTuple,
    NonNegative,
    Number,
    Positive,
    Size,
    invalid,
    settings,
)

__all__ = ["OptimConfig", "ParallelConfig", "Step"]

Step = Annotated[Integer, Field(ge=0, le=99_999_999)]  # names of files have eight digits
BelowOne = Annotated[Number, Field(ge=0, lt=1)]


@settings
class OptimConfig:
    """Optimization of a run; steps are optimizer steps.

    Args:
        steps: number of steps.
        batch_size: images per step, on all processes together.
        accumulate: number of parts of a process's share whose gradients are accumulated.
        lr: peak learning rate of AdamW.
        schedule: "cosine" down to `lr_end`, or "constant" after the warm-up.
        lr_end: learning rate at the end of the cosine.
        warmup: steps of linear warm-up.
        decay_start: step at which the cosine begins, after a constant `lr`; 0: the end of the
            warm-up.
        betas: betas of AdamW.
        eps: what AdamW adds to the root of the second moment.
        weight_decay: weight decay of matrices and convolutions; vectors and a few embeddings have
            none.
        grad_clip: largest norm of the gradient.
        ema_decay: decay of the averaged weights.
        ema_warmup: let the decay rise to `ema_decay`, as (1 + step) / (10 + step).
        autocast: "off", "bfloat16", or "auto": bfloat16 on CUDA, off on the CPU.
        seed: seed of initial weights, order, augmentation and noise.
        log_every: steps that a line of the log averages over.
        save_every: steps between checkpoints.
        sample_every: steps between sample images.
        keep: number of checkpoints to keep.
    """

    steps: Annotated[Integer, Field(ge=1, le=99_999_999)]  # names of files have eight digits
    batch_size: Size = 64
    accumulate: Size = 1
    lr: Positive = 6e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    lr_end: NonNegative = 1e-5
    warmup: Annotated[Integer, Field(ge=0)] = 100
    decay_start: Annotated[Integer, Field(ge=0)] = 0
    betas: Annotated[tuple[BelowOne, BelowOne], ListOrTuple] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.05
    grad_clip: Positive = 1.0
    ema_decay: BelowOne = 0.9999
    ema_warmup: Bool = True
    autocast: Literal["auto", "off", "bfloat16"] = "auto"
    seed: Annotated[Integer, Field(ge=0, le=2**64 - 1)] = 0
    log_every: Count = 20
    save_every: Count = 200
    sample_every: Count = 500
    keep: Count = 2

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulate != 0:
            raise invalid(self, "accumulate", f"a divisor of batch_size = {self.batch_size}")
        if self.warmup >= self.steps:
            raise invalid(self, "warmup", f"less than steps = {self.steps}")
        if self.schedule == "constant":
            for name in ("lr_end", "decay_start"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise invalid(self, name, "left out (schedule 'constant' does not use it)")
            return
        if self.lr_end > self.lr:
            raise invalid(self, "lr_end", f"at most lr = {self.lr:g}")
        if self.decay_start and not self.warmup <= self.decay_start < self.steps:
            expected = f"0, or from warmup = {self.warmup} to less than steps = {self.steps}"
            raise invalid(self, "decay_start", expected)

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0: linear warm-up, then what `schedule` says."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        start = self.decay_start or self.warmup
        if self.schedule == "constant" or step < start:
            return self.lr
        done = (step - start) / (self.steps - start)
        return self.lr_end + (self.lr - self.lr_end) * 0.5 * (1 + math.cos(math.pi * done))

    def average_decay(self, step: int) -> float:
        """Decay of the averaged weights after `step` steps."""
        return min(self.ema_decay, (1 + step) / (10 + step)) if self.ema_warmup else self.ema_decay


@settings
class ParallelConfig:
    """How a run uses its processes and their memory.

    Args:
        strategy: "ddp": every process has all weights; "fsdp": weights, averages and moments are
            divided among the processes; "hybrid": divided within each machine. With one process
            they are the same.
        mixed_precision: "bfloat16": divided weights are put together, and used, in bfloat16, and
            gradients are averaged in float32.
        activation_checkpointing: keep the inputs of blocks alone for the backward pass, which
            computes the rest again.
        compile: compile the blocks with torch.compile.

    Raises:
        ValueError: `mixed_precision` without divided weights, where ``optim.autocast`` has its
            effect.
    """

    strategy: Literal["ddp", "fsdp", "hybrid"] = "ddp"
    mixed_precision: Literal["off", "bfloat16"] = "off"
    activation_checkpointing: Bool = False
    compile: Bool = False

    def __post_init__(self) -> None:
        if self.strategy == "ddp" and self.mixed_precision != "off":
            raise invalid(self, "mixed_precision", "'off' with strategy 'ddp' (see optim.autocast)")
