"""Training of every kind, watched step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bitdance.data.prefetch import Prefetcher
from bitdance.training.autoencoder import AutoencoderTask
from bitdance.training.class_conditional import ClassConditionalTask
from bitdance.training.config import parse_run, run_to_dict
from bitdance.training.text_to_image import TextToImageTask
from bitdance.training.trainer import Trainer
from tests.model.helpers.text_to_image_run import run_config, write_autoencoder, write_codes
from tests.model.helpers.tiny_images import write_data_set
from tests.model.helpers.words import Letters
from tests.model.training.test_processes import autoencoder_run, model_run
from tests.reliability.long_runs.growth import Watch, settled

KINDS = ("autoencoder", "adversarial autoencoder", "model", "model in parts", "text to image")
WARM_UP, POINTS = 80, 9


class _Watched(Trainer):
    """A trainer that takes a point after each of `ends`, counted from the first."""

    watch: Watch
    ends: list[int]

    def _one_step(self, batches: Prefetcher[Any]) -> torch.Tensor:
        values = super()._one_step(batches)
        if self.step in self.ends:
            self.watch.take(self.step - self.ends[0])
        return values


def watch_training(folder: Path, steps: int) -> int:
    """Check that runs of every kind leave nothing behind, `steps` in all, with checkpoints.

    Args:
        folder: an empty folder for data and runs.
        steps: steps after those of warm-up; divided among the kinds.

    Returns:
        The number of steps that were watched.

    Raises:
        AssertionError: memory, objects, files or threads grow.
    """
    images, files = folder / "images", folder / "files"
    for made in (images, files):
        made.mkdir()
    write_data_set(images)
    write_autoencoder(files)
    codes = write_codes(files / "data", 13)
    share = max(steps // len(KINDS), POINTS - 1)
    last = WARM_UP + share
    optim = {"steps": last, "save_every": 20, "log_every": 5, "sample_every": 10**6}

    def trained(name: str, config: Any, task: Callable[[], Any]) -> None:
        trainer = _Watched(task(), config, folder / name, progress=False)
        trainer.watch = Watch(f"training, {name}")
        trainer.ends = [WARM_UP + share * i // (POINTS - 1) for i in range(POINTS)]
        with settled():
            trainer.run()
        trainer.watch.check()

    autoencoder = autoencoder_run(images, **optim)
    content = run_to_dict(autoencoder)
    content["adversarial"] = {"weight": 0.5, "start": 2, "channels": 8, "layers": 1}
    adversarial: Any = parse_run(content)
    trained(KINDS[0], autoencoder, lambda: AutoencoderTask(autoencoder))
    trained(KINDS[1], adversarial, lambda: AutoencoderTask(adversarial))
    model = model_run(images, folder / KINDS[0], **optim)
    trained(KINDS[2], model, lambda: ClassConditionalTask(model))
    parts = model_run(
        images, folder / KINDS[0], {"activation_checkpointing": True}, accumulate=2,
        autocast="bfloat16", **optim,
    )  # fmt: skip
    trained(KINDS[3], parts, lambda: ClassConditionalTask(parts))
    texts = run_config(files, codes, **optim)
    trained(KINDS[4], texts, lambda: TextToImageTask(texts, tokenizer=Letters()))
    return share * len(KINDS)
