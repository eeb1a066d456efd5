"""How well the emoji model draws what it has not seen, and how well its autoencoder can.

    python recipes/emoji/evaluate.py --data runs/emoji/data --autoencoder runs/emoji/autoencoder
    python recipes/emoji/evaluate.py --data runs/emoji/data --model runs/emoji/final/model

The first measures the autoencoder alone. Writes ``evaluation.json``, ``.md`` and ``.png``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judge import Judge, Pictures

from bitdance.data.images import to_float
from bitdance.evaluation.distances import frechet_distance
from bitdance.evaluation.metrics import psnr
from bitdance.io.files import write_text
from bitdance.io.image_grid import grid, to_images
from bitdance.io.outputs import save_image
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.pipelines.text_to_image import BitDanceT2IPipeline
from bitdance.sampling.image_decoder import ImageDecoder

MIN_ACCURACY = 0.95
"""Share of real pictures under blur and noise that a classifier must recognize to judge others."""
KINDS = {
    "training": "training prompts",
    "A": "A: another skin tone",
    "B": "B: all of a role's gender and style",
    "C": "C: the other style of a thing",
}
NAMES = ("top-1", "style", "tone", "role", "gender")
_OF_CATEGORY = 200  # pictures whose saturation is compared
_BATCH_SIZE = 64
_SHOWN = 16
Figures = dict[str, Any]


@torch.inference_mode()
def reconstruct(autoencoder: BinaryAutoencoder, pixels: torch.Tensor) -> torch.Tensor:
    """Pictures uint8 [n, 3, H, W] through an autoencoder and back."""
    decoder = ImageDecoder(autoencoder)
    return torch.cat([
        decoder(autoencoder.encode(to_float(x), packed=True)) for x in pixels.split(_BATCH_SIZE)
    ])  # fmt: skip


def saturation(pixels: torch.Tensor) -> float:
    """Difference of a pixel's largest and smallest channel, on average.

    It is HSV's saturation times its value: of pixels that are all but black, saturation is noise.
    """
    x = pixels.double()
    return float((x.amax(1) - x.amin(1)).mean())


def of_autoencoder(
    autoencoder: BinaryAutoencoder, judge: Judge, pictures: Pictures
) -> tuple[Figures, torch.Tensor]:
    """Figures of reconstructions, and those of the pictures that are held out."""
    held = np.array([bool(emoji.held_out) for emoji in pictures.emoji])
    categories = np.array([emoji.category for emoji in pictures.emoji])
    chosen = {
        name: _spread(np.flatnonzero(categories == name), _OF_CATEGORY)
        for name in sorted(set(categories))
    }
    items = np.union1d(np.flatnonzero(held), np.concatenate(list(chosen.values())))
    real, made = pictures.take(items), reconstruct(autoencoder, pictures.take(items))
    verdict, figures = judge.judge(made, items), {}
    for name, where in (("held-out", held[items]), ("training", ~held[items])):
        error = float((real[where].double() - made[where].double()).square().mean())
        figures[name] = {
            "pictures": int(where.sum()), "psnr_db": psnr(error, peak=255),
            "recognized": verdict.share("top-1", where),
        }  # fmt: skip
    ratios = {}
    for name, of_category in chosen.items():
        where = np.isin(items, of_category)
        before, after = saturation(real[where]), saturation(made[where])
        ratios[name] = after / before if before else None
    return figures | {"saturation": ratios}, made[held[items]]


def _spread(items: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of some items, evenly spaced."""
    return items[
        np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    ]


def of_samples(
    made: torch.Tensor, items: np.ndarray, judge: Judge, pictures: Pictures
) -> tuple[Figures, torch.Tensor]:
    """Figures of generated pictures, and the training picture nearest to each.

    Args:
        made: uint8 [n, 3, H, W].
        items: int64 [n], numbers of the emoji that they are to show.
        judge: who judges.
        pictures: the data set.
    """
    kinds = np.array([pictures.emoji[i].held_out or "training" for i in items])
    features = judge.features(made)
    verdict = judge.judge_features(features, items)
    figures: Figures = {"kinds": {}}
    for kind in KINDS:
        shares = {name: verdict.share(name, kinds == kind) for name in NAMES}
        figures["kinds"][kind] = {"prompts": int((kinds == kind).sum()), **shares}
    held = kinds != "training"
    trained, others = verdict.share("top-1", ~held), verdict.share("top-1", held)
    if trained is not None and others is not None:
        figures["gap"] = trained - others

    # The baseline is the distance of the real pictures of the same prompts to all others.
    real = judge.features(pictures.take(items))
    rest = np.setdiff1d(np.arange(len(pictures)), items)
    reference = judge.features(pictures.take(rest))
    figures["frechet"] = frechet_distance(features, reference)
    figures["frechet_real"] = frechet_distance(real, reference)

    training = np.array([i for i, emoji in enumerate(pictures.emoji) if not emoji.held_out])
    known, own = pictures.take(training), pictures.take(items)
    distances, nearest = _nearest(made, known)
    to_own = _rms(made.float() - own.float())
    figures["nearest"] = {
        "samples": _median(distances[held]),
        "real": _median(_nearest(own[held], known)[0]),
        "nearer_than_own": float((distances[held] < to_own[held]).mean()) if held.any() else None,
    }
    return figures, known[nearest]


def _rms(difference: torch.Tensor) -> np.ndarray:
    return difference.flatten(1).square().mean(1).sqrt().numpy()


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None


def _nearest(pixels: torch.Tensor, known: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    """Root mean squared differences of pictures to the nearest of others, and its numbers."""
    others = known.flatten(1).float()
    found = [torch.cdist(x.flatten(1).float(), others).min(1) for x in pixels.split(_BATCH_SIZE)]
    values = torch.cat([one.values for one in found]) if found else torch.empty(0)
    indices = torch.cat([one.indices for one in found])
    return (values / others.shape[1] ** 0.5).numpy(), indices


def table(figures: Figures) -> str:
    """The figures as tables in Markdown."""

    def rows(names: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
        cells = [list(names), *map(list, lines)]
        cells.insert(1, ["---"] * len(cells[0]))
        return "".join(f"| {' | '.join(line)} |\n" for line in cells)

    of_judge, ratios = figures["classifier"], figures["autoencoder"]["saturation"]
    parts = [
        rows(
            ("classifier, real pictures", "top-1", "style", "tone"),
            [(title, *map(_percent, of_judge[key].values()))
             for title, key in (("as they are", "real"), ("with blur and noise", "spoiled"))],
        ),
        rows(
            ("reconstructions", "pictures", "PSNR", "recognized"),
            [(f"{name} pictures", str(one["pictures"]), f"{one['psnr_db']:.2f} dB",
              _percent(one["recognized"]))
             for name in ("held-out", "training") for one in [figures["autoencoder"][name]]],
        ),
        rows(
            ("saturation of reconstructions", "of that of the pictures"),
            [(name, _percent(ratio)) for name, ratio in ratios.items()],
        ),
    ]  # fmt: skip
    if samples := figures.get("samples"):
        near = samples["nearest"]
        parts += [
            rows(
                ("generated pictures", "prompts", *NAMES),
                [(title, str(of_kind["prompts"]), *(_percent(of_kind[name]) for name in NAMES))
                 for kind, title in KINDS.items() for of_kind in [samples["kinds"][kind]]],
            ),
            rows(
                ("measure", "value"),
                [
                    ("top-1, training prompts less held-out prompts", _percent(samples.get("gap"))),
                    ("Fréchet distance to real pictures", f"{samples['frechet']:.2f}"),
                    ("the same of the prompts' real pictures", f"{samples['frechet_real']:.2f}"),
                    ("distance to the nearest training picture, held-out prompts",
                     _levels(near["samples"])),
                    ("the same of the prompts' real pictures", _levels(near["real"])),
                    ("held-out prompts whose picture is nearer to a training picture than to "
                     "its own", _percent(near["nearer_than_own"])),
                ],
            ),
        ]  # fmt: skip
    shown = [f"{i}. {prompt}" for i, prompt in enumerate(figures["shown"], 1)]
    columns = "real, reconstructed" + (", generated, nearest training picture" if samples else "")
    parts.append(f"Two prompts a row, each {columns}:\n\n" + "\n".join(shown) + "\n")
    return "\n".join(parts)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _levels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} of 255"


def sheet(columns: Iterable[torch.Tensor]) -> Any:
    """An image of pictures uint8 [n, 3, H, W], those of one number side by side, two a row."""
    columns = list(columns)
    pixels = torch.stack(columns, 1).flatten(0, 1)
    return grid(to_images(pixels), 2 * len(columns), 2)


def evaluate(
    pictures: Pictures, judge: Judge, autoencoder: BinaryAutoencoder,
    generate: Callable[[list[str]], torch.Tensor] | None = None, *, prompts: int = 400,
) -> tuple[Figures, Any]:  # fmt: skip
    """All figures but the judge's own, and the sheet of some held-out pictures.

    Args:
        pictures: the data set.
        judge: who judges.
        autoencoder: what is measured.
        generate: from prompts to pictures uint8 [n, 3, H, W].
        prompts: training prompts to draw, besides all that are held out.
    """
    figures: Figures = {}
    figures["autoencoder"], reconstructed = of_autoencoder(autoencoder, judge, pictures)
    held = np.array([i for i, emoji in enumerate(pictures.emoji) if emoji.held_out])
    random = np.random.default_rng(0)
    shown = np.sort(random.permutation(len(held))[:_SHOWN])
    columns = [pictures.take(held[shown]), reconstructed[shown]]
    if generate is not None:
        training = np.setdiff1d(np.arange(len(pictures)), held)
        items = np.concatenate([held, random.permutation(training)[:prompts]])
        made = generate([pictures.emoji[i].caption() for i in items])
        figures["samples"], nearest = of_samples(made, items, judge, pictures)
        columns += [made[shown], nearest[shown]]
    figures["shown"] = [pictures.emoji[i].caption() for i in held[shown]]
    return figures, sheet(columns)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="data set of dataset.py")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--autoencoder", help="an autoencoder, to measure it alone")
    source.add_argument("--model", help="folder of a model, which has its own autoencoder")
    parser.add_argument(
        "--classifier", type=Path, default=Path("runs/emoji/classifier.safetensors"),
        help="the classifier, trained and written if it is not there (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--prompts", type=int, default=400, help="training prompts to draw")
    parser.add_argument("--guidance-scale", type=float, help="default: the model's own")
    parser.add_argument("--num-inference-steps", type=int, help="default: the model's own")
    parser.add_argument("--seed", type=int, default=0, help="of the generated pictures")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/emoji/evaluation"), help="folder to write"
    )
    options = parser.parse_args()
    pictures = Pictures(options.data)
    if options.classifier.exists():
        judge = Judge.load(options.classifier, pictures)
    else:
        judge = Judge.train(pictures)
        judge.save(options.classifier)
    of_judge = {name: judge.accuracy(spoiled=name == "spoiled") for name in ("real", "spoiled")}
    accuracy = of_judge["spoiled"]["top-1"] or 0.0
    if accuracy < MIN_ACCURACY:
        parser.error(
            f"{options.classifier} recognizes {accuracy:.1%} of real pictures under blur and "
            f"noise, and must recognize {MIN_ACCURACY:.0%}"
        )
    generate = None
    if options.model:
        pipeline = BitDanceT2IPipeline.from_pretrained(options.model)
        autoencoder = pipeline.model.ae

        def generate(prompts: list[str]) -> torch.Tensor:
            return pipeline(
                prompts, seed=options.seed, num_inference_steps=options.num_inference_steps,
                guidance_scale=options.guidance_scale, batch_size=_BATCH_SIZE,
                output_type="uint8",
            ).images  # fmt: skip
    else:
        autoencoder = BinaryAutoencoder.from_pretrained(options.autoencoder)
    figures, image = evaluate(pictures, judge, autoencoder, generate, prompts=options.prompts)
    figures["classifier"] = of_judge
    text = table(figures)
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "evaluation.json", json.dumps(figures, indent=2) + "\n")
    write_text(options.out / "evaluation.md", text)
    save_image(image, options.out / "evaluation.png")
    print(text)


if __name__ == "__main__":
    main()
