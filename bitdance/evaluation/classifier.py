"""A small classifier of images, whose features the Fréchet distances are taken in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bitdance.data.images import LabeledImages, to_float
from bitdance.data.shuffle import ShuffledBatches
from bitdance.io.files import CheckpointError, replace_file
from bitdance.io.progress import progress_bar
from bitdance.io.weights import load_weights, read_tensors, save_tensors

__all__ = ["Classifier", "load_classifier", "save_classifier", "train_classifier"]

_CHANNELS, _WIDTHS = 3, (32, 64, 128)
_FEATURES = 128


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


class Classifier(nn.Module):
    """Three convolutions and a hidden layer, whose 128 values are the features.

    Args:
        classes: number of logits.
        patch: pixels a side whose channels are one pixel of the first convolution.
        factory: dtype and device of the parameters.
    """

    def __init__(self, classes: int, *, patch: int = 1, **factory: Any) -> None:
        super().__init__()
        self.patch = patch
        widths = (_CHANNELS * patch**2, *_WIDTHS)
        blocks = [
            [
                nn.Conv2d(a, b, 3, padding=1, **factory), nn.BatchNorm2d(b, **factory),
                nn.ReLU(), nn.MaxPool2d(2),
            ]
            for a, b in itertools.pairwise(widths)
        ]  # fmt: skip
        self.body = nn.Sequential(
            *itertools.chain.from_iterable(blocks),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.3),
            nn.Linear(16 * _WIDTHS[-1], _FEATURES, **factory), nn.ReLU(),
        )  # fmt: skip
        self.last = nn.Linear(_FEATURES, classes, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes] of images [B, 3, H, W] in [-1, 1]."""
        return self.last(self._features(x))

    @torch.no_grad()
    def features(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 128] features of images [B, 3, H, W] in [-1, 1]."""
        return self._features(x)

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(F.pixel_unshuffle(x, self.patch))

    @torch.no_grad()
    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes] of features [B, 128]."""
        return self.last(features)

    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """int64 [B] classes of features [B, 128], on the CPU."""
        return self.logits(features).argmax(1).cpu()


def train_classifier(
    images: LabeledImages, classes: int | Sequence[int], *, epochs: int, seed: int,
    device: torch.device, patch: int = 1, augment: Callable[[torch.Tensor], torch.Tensor] = _same,
    progress: bool = True,
) -> Classifier:  # fmt: skip
    """A classifier trained on labeled images, in evaluation mode.

    Args:
        images: the data set, whose labels are int64 [N], or [N, K] for K numbers of classes; a
            label of -100 is not learned.
        classes: number of classes, or several, whose logits lie side by side.
        epochs: times that each image is seen.
        seed: seed of the initial weights, the order and, through PyTorch's generator, `augment`.
        device: device of the classifier.
        patch: see ``Classifier``.
        augment: changes a batch, float32 [B, 3, H, W] in [-1, 1], before it is seen.
        progress: show a progress bar.
    """
    torch.manual_seed(seed)
    heads = [classes] if isinstance(classes, int) else list(classes)
    model = Classifier(sum(heads), patch=patch, dtype=torch.float32, device="cpu")
    model.to(device).train()
    labels = torch.from_numpy(images.labels).view(len(images), len(heads))
    batches = ShuffledBatches(len(images), min(128, len(images)), seed=seed)
    steps = epochs * batches.per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for step in progress_bar(range(steps), desc="classifier", disable=not progress):
        items = batches.batch(step)
        logits = model(augment(to_float(images.take(items)).to(device))).split(heads, 1)
        optimizer.zero_grad()
        losses = [
            F.cross_entropy(of_head, wanted, label_smoothing=0.05)
            for of_head, wanted in zip(logits, labels[items].to(device).unbind(1), strict=True)
        ]
        torch.stack(losses).sum().backward()
        with torch.device(device):  # AdamW makes its step counters here
            optimizer.step()
        schedule.step()
    return model.eval()


def save_classifier(classifier: Classifier, path: Path) -> None:
    """Write a classifier to a safetensors file, completely or not at all."""
    with replace_file(path) as temporary:
        save_tensors(temporary, classifier.state_dict())


def load_classifier(path: Path, device: torch.device | str = "cpu") -> Classifier:
    """The classifier in a file of `save_classifier`, in evaluation mode.

    Raises:
        CheckpointError: the file is damaged, or has something else.
        FileNotFoundError: there is no such file.
    """
    tensors = read_tensors(path)
    first, last = tensors.get("body.0.weight"), tensors.get("last.weight")
    if first is None or last is None or first.dim() != 4 or last.dim() != 2:
        raise CheckpointError(f"{path} has no classifier of `bitdance evaluate`")
    patch = math.isqrt(first.shape[1] // _CHANNELS)
    classifier = Classifier(len(last), patch=patch, dtype=torch.float32, device="cpu")
    load_weights(classifier, tensors, str(path))
    return classifier.to(device).eval()
