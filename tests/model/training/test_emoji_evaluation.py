"""The evaluation of the emoji recipe: its classes, its judge, its figures, its command."""

import dataclasses
import importlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.io.files import CheckpointError
from bitdance.io.weights import write_tensors
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from tests.model.helpers.tiny import AUTOENCODER

RECIPE = Path(__file__).parents[3] / "recipes" / "emoji"
MODULES = ("dataset", "judge", "evaluate")


@pytest.fixture(scope="module")
def recipe():
    """The recipe's modules, which import each other by their names, as a script does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPE))
        yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        del sys.modules[name]


SIZE = 32
COLORS = np.array(
    [(200, 30, 30), (30, 160, 30), (30, 30, 200), (200, 180, 0), (0, 170, 180), (160, 0, 160)],
    np.uint8,
)
GENDERS, TONES = ("man", "woman", "person"), ((), ("light",), ("dark",))
ROLES, THINGS, FLAGS = ("farmer", "cook"), ("apple", "pear"), ("flag one", "flag two")


def draw(what, gender, tone, style):
    """A picture with a bar for each of its attributes."""
    pixels = np.full((SIZE, SIZE, 3), 255, np.uint8)
    for i, number in enumerate((what, gender, tone)):
        pixels[4 + 8 * i : 11 + 8 * i, 4:28] = COLORS[number]
    pixels[:, :3] = (0, 255)[style == "noto"]
    return pixels


def everything(Emoji):
    """Emoji with their pictures: two roles, two things, two flags that look alike."""
    for style in ("noto", "twemoji"):
        for i, role in enumerate(ROLES):
            for j, gender in enumerate(GENDERS):
                for k, tones in enumerate(TONES):
                    held = ""
                    if (role, gender, style) == ("farmer", "man", "twemoji"):
                        held = "B"
                    elif (role, gender, tones, style) == ("cook", "woman", ("dark",), "noto"):
                        held = "A"
                    base = f"{gender} {role}"
                    code = f"{base}{k}"
                    yield Emoji(
                        f"{code}.png", style, code, base, role, gender, tones, base, (),
                        "People & Body", held,
                    ), draw(i, j, k, style)  # fmt: skip
        for i, thing in enumerate((*THINGS, *FLAGS), 2):
            held = "C" if (thing, style) == ("pear", "noto") else ""
            category = "Flags" if thing in FLAGS else "Food & Drink"
            # The flags are different pictures in one of the styles.
            color = 4 if thing in FLAGS and style == "noto" else i
            yield Emoji(
                f"{thing}.png", style, thing, thing, thing, "none", (), thing, (), category, held
            ), draw(color, 3, 3, style)  # fmt: skip


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory):
    emoji, files = [], {}
    for one, pixels in everything(recipe["dataset"].Emoji):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        emoji.append(one)
        files[f"{one.style}-{one.image}"] = file.getvalue()
    out = tmp_path_factory.mktemp("emoji") / "data"
    recipe["dataset"].write(emoji, files, out)
    return out


@pytest.fixture(scope="module")
def pictures(recipe, folder):
    return recipe["judge"].Pictures(folder)


@pytest.fixture(scope="module")
def judge(recipe, pictures):
    """A judge that knows all pictures."""
    judge = recipe["judge"].Judge.train(pictures, epochs=70, progress=False)
    for spoiled in (False, True):
        assert judge.accuracy(spoiled=spoiled) == {"top-1": 1.0, "style": 1.0, "tone": 1.0}
    return judge


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return BinaryAutoencoder(AUTOENCODER).eval().requires_grad_(False)


def number(pictures, *, style, base, tones=()):
    return next(
        i for i, one in enumerate(pictures.emoji)
        if (one.style, one.base, tuple(one.tones)) == (style, base, tones)
    )  # fmt: skip


def test_emoji_with_equal_pictures_are_one_class(pictures):
    assert len(pictures) == 2 * (2 * 9 + 4)
    assert pictures.heads == (2 * (2 * 3 + 2 + 1), 3)
    flags = [
        pictures.labels[number(pictures, style=style, base=flag)].tolist()
        for style in ("noto", "twemoji") for flag in FLAGS
    ]  # fmt: skip
    first, last = flags[0][0], flags[-1][0]  # one emoji in two styles
    assert {flag[0] for flag in flags} == {first, last}
    assert (first // 2, first % 2, last % 2) == (last // 2, 0, 1)
    assert pictures.roles[first // 2] == set(FLAGS)
    man = pictures.labels[number(pictures, style="noto", base="man cook", tones=("dark",))]
    assert pictures.roles[man[0] // 2] == {"cook"}
    assert pictures.genders[man[0] // 2] == {"man"}
    assert [one.held_out for one in pictures.emoji[-5:]] == ["A", "C", "B", "B", "B"]


def test_tones_of_equal_pictures_are_not_judged(recipe, folder, tmp_path):
    """As those of a snowboarder who is all clothes."""
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    chosen = [line for line in lines if (line["base"], line["style"]) == ("man cook", "noto")]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, chosen)))
    (tmp_path / "test.jsonl").write_text("")
    for line in chosen:
        target = tmp_path / line["image"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((folder / chosen[0]["image"]).read_bytes())
    pictures = recipe["judge"].Pictures(tmp_path)
    assert pictures.labels.tolist() == [[0, recipe["judge"].UNKNOWN]] * 3


def figures_of(recipe, pictures, judge, show):
    """Figures of samples that show other emoji than their prompts: `show` finds them."""
    made = {one.caption(): show(one) for one in pictures.emoji}
    items = np.arange(len(pictures) // 2, len(pictures))  # those held out are last
    pixels = pictures.take(np.array([made[pictures.emoji[i].caption()] for i in items]))
    return recipe["evaluate"].of_samples(pixels, items, judge, pictures)[0]


def test_real_pictures_are_all_right(recipe, pictures, judge):
    def same(one):
        return number(pictures, style=one.style, base=one.base, tones=tuple(one.tones))

    figures = figures_of(recipe, pictures, judge, same)
    for kind, of_kind in figures["kinds"].items():
        assert of_kind["prompts"] > 0, kind
        assert {of_kind[name] for name in recipe["evaluate"].NAMES} <= {1.0, None}
    assert figures["gap"] == 0
    assert figures["frechet"] == figures["frechet_real"] > 0
    near = figures["nearest"]
    assert near["samples"] == pytest.approx(near["real"], rel=1e-3)
    assert near["real"] > 10
    assert figures["nearest"]["nearer_than_own"] == 0


def test_what_is_wrong_is_told_apart(recipe, pictures, judge):
    """Women in place of men, and none is dark: role and style stay right."""

    def other(one):
        base = one.base.replace("man ", "woman ") if one.gender == "man" else one.base
        tones = ("light",) if one.tones == ["dark"] else tuple(one.tones)
        return number(pictures, style=one.style, base=base, tones=tones)

    kinds = figures_of(recipe, pictures, judge, other)["kinds"]
    assert kinds["B"]["top-1"] == kinds["B"]["gender"] == 0
    assert kinds["B"]["role"] == kinds["B"]["style"] == 1
    assert kinds["training"]["role"] == kinds["training"]["style"] == 1
    assert 0 < kinds["training"]["gender"] < 1  # there are others
    assert 0 < kinds["training"]["tone"] < 1
    assert kinds["C"] == {
        "prompts": 1, "top-1": 1.0, "style": 1.0, "tone": None, "role": 1.0, "gender": None
    }  # fmt: skip


def test_copies_of_training_pictures_are_seen(recipe, pictures, judge):
    def other_style(one):
        style = one.style
        if one.held_out:
            style = "noto" if style == "twemoji" else "twemoji"
        return number(pictures, style=style, base=one.base, tones=tuple(one.tones))

    figures = figures_of(recipe, pictures, judge, other_style)
    assert figures["nearest"]["samples"] == pytest.approx(0, abs=0.1)
    assert figures["nearest"]["nearer_than_own"] == 1
    assert figures["kinds"]["B"]["style"] == 0
    assert figures["kinds"]["B"]["top-1"] == 1


def test_error_and_saturation_of_reconstructions(recipe, pictures, judge, autoencoder, monkeypatch):
    module = recipe["evaluate"]

    def gray(_, pixels):  # half as far from their mean
        x = pixels.double()
        mean = x.mean(1, keepdim=True)
        return (mean + (x - mean) / 2).round().to(torch.uint8)

    monkeypatch.setattr(module, "reconstruct", gray)
    figures, made = module.of_autoencoder(autoencoder, judge, pictures)
    assert figures["held-out"]["pictures"] == len(made) == 5
    assert figures["training"]["pictures"] == len(pictures) - 5
    assert list(figures["saturation"]) == ["Flags", "Food & Drink", "People & Body"]
    for ratio in figures["saturation"].values():
        assert ratio == pytest.approx(0.5, abs=0.01)
    real = pictures.take(np.arange(len(pictures) - 5, len(pictures)))
    error = (real.double() - gray(None, real).double()).square().mean()
    expected = 10 * np.log10(255**2 / float(error))
    assert figures["held-out"]["psnr_db"] == pytest.approx(expected)


def test_augmentation_keeps_white_and_makes_no_mirror_images(recipe):
    vary = recipe["judge"].vary
    torch.manual_seed(0)
    x = torch.ones(32, 3, 64, 64, dtype=torch.float32, device="cpu")
    assert abs(float(vary(x).mean()) - 1) < 0.01
    x[:, :, 20:44, 16:24] = -1
    columns = vary(x).mean((1, 2))
    assert (columns[:, :32].mean(1) < columns[:, 32:].mean(1) - 0.1).all()
    assert len(columns.argmin(1).unique()) > 3


def run(recipe, monkeypatch, folder, out, *options):
    arguments = ["evaluate.py", "--data", str(folder), "--out", str(out), *map(str, options)]
    monkeypatch.setattr(sys, "argv", arguments)
    recipe["evaluate"].main()


def test_the_command(recipe, folder, judge, autoencoder, tmp_path, monkeypatch, capsys):
    module = recipe["evaluate"]
    write_tensors(tmp_path / "ae.safetensors", autoencoder.state_dict())
    config = json.dumps(dataclasses.asdict(AUTOENCODER))
    (tmp_path / "ae_config.json").write_text(config)
    file, out = tmp_path / "judge" / "classifier.safetensors", tmp_path / "out"
    monkeypatch.setattr(module.Judge, "train", lambda _: judge)
    options = ["--classifier", file, "--autoencoder", tmp_path / "ae.safetensors"]
    run(recipe, monkeypatch, folder, out, *options)
    text = (out / "evaluation.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert "| with blur and noise | 100.0% | 100.0% | 100.0% |" in text
    assert "generated" not in text
    figures = json.loads((out / "evaluation.json").read_text())
    assert figures["autoencoder"]["held-out"]["pictures"] == len(figures["shown"]) == 5
    assert Image.open(out / "evaluation.png").size == (4 * 66 - 2, 3 * 66 - 2)

    # The classifier that was written is read, and one that is not good enough judges nothing.
    monkeypatch.setattr(module.Judge, "train", None)
    pictures = recipe["judge"].Pictures(folder)

    class Pipeline:
        def __init__(self):
            self.model = type("Model", (), {"ae": autoencoder})

        def __call__(self, prompts, **_):
            made = {one.caption(): i for i, one in enumerate(pictures.emoji)}
            pixels = pictures.take(np.array([made[prompt] for prompt in prompts]))
            return type("Output", (), {"images": pixels})

    monkeypatch.setattr(module.BitDanceT2IPipeline, "from_pretrained", lambda _: Pipeline())
    options = ["--classifier", file, "--prompts", 12]
    run(recipe, monkeypatch, folder, out, *options, "--model", "folder")
    text = (out / "evaluation.md").read_text()
    assert "| training prompts | 12 | 100.0% | 100.0% |" in text
    assert "| top-1, training prompts less held-out prompts | 0.0% |" in text
    assert Image.open(out / "evaluation.png").size == (8 * 66 - 2, 3 * 66 - 2)
    judge._classifier.last.weight.data.zero_()
    judge.save(file)
    with pytest.raises(SystemExit):
        run(recipe, monkeypatch, folder, out, *options, "--model", "folder")
    assert (
        "of real pictures under blur and noise, and must recognize 95%" in capsys.readouterr().err
    )


def test_a_classifier_of_other_pictures_is_refused(recipe, pictures, judge, tmp_path):
    judge.save(tmp_path / "x.safetensors")
    other = type("Other", (), {"heads": (3, 2, 1)})
    with pytest.raises(CheckpointError, match="must have 6 classes, got 21"):
        recipe["judge"].Judge.load(tmp_path / "x.safetensors", other)
