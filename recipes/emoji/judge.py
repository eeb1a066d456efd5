"""The classifier that judges pictures of emoji: which one, in which style and with which skin tone.

It is trained on the pictures of both splits, since it is to tell what a picture shows and not to
draw it, with shifts, sizes, colors, blur and noise that vary.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from dataset import Emoji

from bitdance.data.images import to_float
from bitdance.evaluation.classifier import (
    Classifier,
    load_classifier,
    save_classifier,
    train_classifier,
)
from bitdance.io.files import CheckpointError
from bitdance.io.image_files import read_image

EPOCHS = 24
STYLES = ("noto", "twemoji")
UNKNOWN = -100  # a label that is neither learned nor judged
_BATCH_SIZE = 250


class Pictures:
    """The pictures of a data set, in memory.

    Args:
        folder: as ``dataset.py`` writes it.

    Attributes:
        emoji: what they show, those held out last.
        pixels: uint8 [N, 3, H, W].
        labels: int64 [N, 2]: which emoji in which style, as ``len(STYLES)`` times the one plus the
            other, and which skin tones. Emoji with equal pictures in a style are one; where these
            have several skin tones, theirs are UNKNOWN.
        heads: number of classes of each.
        roles: for each emoji the roles that it may be, without skin tone and gender.
        genders: for each emoji the genders that it may have.
    """

    def __init__(self, folder: Path) -> None:
        lines = [
            line
            for split in ("train", "test")
            for line in (folder / f"{split}.jsonl").read_text().splitlines()
        ]
        contents = [json.loads(line) for line in lines]
        files = [folder / content["image"] for content in contents]
        arrays = np.stack([np.asarray(read_image(file)) for file in files])
        names = {field.name for field in fields(Emoji)}
        self.emoji = [Emoji(**{name: content[name] for name in names}) for content in contents]
        self.pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()
        self._name_classes([array.tobytes() for array in arrays])

    def _name_classes(self, contents: list[bytes]) -> None:
        first: dict[tuple[str, bytes], str] = {}
        tones, same = defaultdict(set), {emoji.base: emoji.base for emoji in self.emoji}

        def name(base: str) -> str:
            while same[base] != base:
                base = same[base]
            return base

        for emoji, content in zip(self.emoji, contents, strict=True):
            picture = (emoji.style, content)
            same[name(emoji.base)] = name(first.setdefault(picture, emoji.base))
            tones[picture].add(emoji.tone_text())
        names = sorted({name(base) for base in same})
        of_tone = sorted({emoji.tone_text() for emoji in self.emoji})
        self.heads = (len(names) * len(STYLES), len(of_tone))
        self.labels = np.array(
            [
                (
                    names.index(name(emoji.base)) * len(STYLES) + STYLES.index(emoji.style),
                    of_tone.index(emoji.tone_text())
                    if len(tones[emoji.style, content]) == 1
                    else UNKNOWN,
                )
                for emoji, content in zip(self.emoji, contents, strict=True)
            ],
            np.int64,
        )
        self.roles: list[set[str]] = [set() for _ in names]
        self.genders: list[set[str]] = [set() for _ in names]
        for emoji, number in zip(self.emoji, self.labels[:, 0] // len(STYLES), strict=True):
            self.roles[number].add(emoji.family)
            self.genders[number].add(emoji.gender)

    def __len__(self) -> int:
        return len(self.emoji)

    def take(self, items: np.ndarray) -> torch.Tensor:
        """Pictures by their numbers, uint8 [n, 3, H, W]."""
        return self.pixels[items]


@dataclass(frozen=True)
class Verdict:
    """Whether pictures show what they are to show.

    Attributes:
        right: bool [n] by "top-1", "style", "tone", "role" and "gender".
        asked: bool [n] by the same names: whether it is to be judged. Tone, role and gender are
            where the emoji has them.
    """

    right: dict[str, np.ndarray]
    asked: dict[str, np.ndarray]

    def share(self, name: str, where: np.ndarray) -> float | None:
        """Share of the pictures `where`, bool [n], that are right; None if there is none."""
        chosen = self.right[name][where & self.asked[name]]
        return float(chosen.mean()) if len(chosen) else None


class Judge:
    """Tells what pictures show.

    Args:
        classifier: of `train` or of a file.
        pictures: what it was trained on.
    """

    def __init__(self, classifier: Classifier, pictures: Pictures) -> None:
        self._classifier, self._pictures = classifier, pictures

    @classmethod
    def train(cls, pictures: Pictures, *, epochs: int = EPOCHS, progress: bool = True) -> Judge:
        """Train on all pictures."""
        classifier = train_classifier(
            pictures, pictures.heads, epochs=epochs, seed=0, device=torch.device("cpu"), patch=2,
            augment=vary, progress=progress,
        )  # fmt: skip
        return cls(classifier, pictures)

    @classmethod
    def load(cls, file: Path, pictures: Pictures) -> Judge:
        """The classifier of a file.

        Raises:
            CheckpointError: the file has another one.
        """
        classifier = load_classifier(file)
        if classifier.last.out_features != sum(pictures.heads):
            raise CheckpointError(
                f"{file} must have {sum(pictures.heads)} classes, got "
                f"{classifier.last.out_features}"
            )
        return cls(classifier, pictures)

    def save(self, file: Path) -> None:
        """Write the classifier, completely or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        save_classifier(self._classifier, file)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 128] of pictures uint8 [n, 3, H, W]."""
        batches = pixels.split(_BATCH_SIZE)
        return torch.cat([self._classifier.features(to_float(x)) for x in batches])

    def judge(self, pixels: torch.Tensor, items: np.ndarray) -> Verdict:
        """Whether pictures show the emoji of some numbers.

        Args:
            pixels: uint8 [n, 3, H, W].
            items: int64 [n], numbers of the emoji.
        """
        return self.judge_features(self.features(pixels), items)

    def judge_features(self, features: torch.Tensor, items: np.ndarray) -> Verdict:
        """The same, of features [n, 128]."""
        pictures = self._pictures
        emoji, wanted = [pictures.emoji[i] for i in items], pictures.labels[items]
        logits = self._classifier.logits(features).split(pictures.heads, 1)
        found = torch.stack([of_head.argmax(1) for of_head in logits], 1).cpu().numpy()
        shown, asked_for = found[:, 0], wanted[:, 0]
        right = {
            "top-1": shown // len(STYLES) == asked_for // len(STYLES),
            "style": shown % len(STYLES) == asked_for % len(STYLES),
            "tone": found[:, 1] == wanted[:, 1],
        }
        for name, of_class in (("role", pictures.roles), ("gender", pictures.genders)):
            attribute = "family" if name == "role" else name
            right[name] = np.array([
                getattr(one, attribute) in of_class[number]
                for one, number in zip(emoji, shown // len(STYLES), strict=True)
            ])  # fmt: skip
        always = np.ones(len(emoji), bool)
        person = np.array([one.gender != "none" for one in emoji])
        toned = np.array([bool(one.tones) for one in emoji]) & (wanted[:, 1] != UNKNOWN)
        asked = {"top-1": always, "style": always, "tone": toned, "role": always, "gender": person}
        return Verdict(right, asked)

    def accuracy(self, *, spoiled: bool) -> dict[str, float | None]:
        """Shares of real pictures that are recognized, as they are or with blur and noise."""
        pictures, everything = self._pictures, np.arange(len(self._pictures))
        torch.manual_seed(1)
        change = spoil if spoiled else torch.nn.Identity()
        batches = (change(to_float(x)) for x in pictures.pixels.split(_BATCH_SIZE))
        features = torch.cat([self._classifier.features(x) for x in batches])
        verdict = self.judge_features(features, everything)
        where = np.ones(len(everything), bool)
        return {name: verdict.share(name, where) for name in ("top-1", "style", "tone")}


def vary(x: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, H, W] in [-1, 1] with other places, sizes and colors, blur and noise.

    Not mirrored: there are letters, flags and people who face right.
    """

    def draw(*shape: int) -> torch.Tensor:  # uniform in [-1, 1]
        return 2 * torch.rand(shape, dtype=x.dtype, device=x.device) - 1

    count = len(x)
    place = torch.zeros(count, 2, 3, dtype=x.dtype, device=x.device)
    place[:, [0, 1], [0, 1]] = 1 + 0.1 * draw(count, 1)
    place[:, :, 2] = draw(count, 2) * 3 / 32  # 3 pixels of 64
    points = F.affine_grid(place, list(x.shape), align_corners=False)
    x = F.grid_sample(x - 1, points, align_corners=False) + 1  # white is what lies outside
    gray = x.mean(1, keepdim=True)
    x = gray + (x - gray) * (1 + 0.25 * draw(count, 1, 1, 1))
    x = 1 - (1 - x) * (1 + 0.15 * draw(count, 1, 1, 1))
    blurred = count * 2 // 3
    sigma = 0.95 + 0.55 * float(draw())
    x = torch.cat([blur(x[:blurred], sigma), x[blurred:]])
    return x + 0.1 * (1 + draw(count, 1, 1, 1)) * torch.randn_like(x)


def spoil(x: torch.Tensor) -> torch.Tensor:
    """Pictures in [-1, 1] with a blur of one pixel and noise of a twentieth of the range."""
    return blur(x, 1.0) + 0.1 * torch.randn_like(x)


def blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of pictures [B, C, H, W] by `sigma` pixels, over five."""
    channels = x.shape[1]
    steps = torch.arange(-2, 3, dtype=x.dtype, device=x.device)
    line = (-(steps**2) / (2 * sigma**2)).softmax(0).expand(channels, 1, 1, 5)
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    x = F.conv2d(x, line, groups=channels)
    return F.conv2d(x, line.transpose(2, 3), groups=channels)
