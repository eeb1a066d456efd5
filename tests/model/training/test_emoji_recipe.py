"""The emoji recipe: data from packages, captions and split, text tokenizer, sizes."""

import importlib.util
import io
import json
import sys
import tarfile
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.data.captioned_images import iterate_captioned_images
from bitdance.data.images import open_images
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.text_to_image import TextToImageModel
from bitdance.pipelines.prompts import NO_PROMPT, PROMPT, load_tokenizer, token_ids
from bitdance.training.config import read_config
from bitdance.training.documents import DocumentMaker
from tests.reliability.files.formats_models import text_pipeline

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "recipes" / "emoji"
TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")


def load(name):
    specification = importlib.util.spec_from_file_location(f"emoji_{name}", RECIPE / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module
    specification.loader.exec_module(module)
    return module


dataset, averages = load("dataset"), load("average")


def entry(unified, category, tones=()):
    """An emoji as the packages describe it; a tone follows its first code point."""
    first, *rest = unified.split("-")
    variations = {
        tone: {"unified": "-".join([first, tone, *rest]),
               "image": "-".join([first, tone, *rest]).lower() + ".png"}
        for tone in tones
    }  # fmt: skip
    found = {"unified": unified, "category": category, "image": unified.lower() + ".png"}
    return {**found, **({"skin_variations": variations} if variations else {})}


PEOPLE = "People & Body"
ENTRIES = [
    *[entry(f"{person}-200D-{thing}", PEOPLE, TONES)
      for thing in ("1F3A8", "1F33E") for person in ("1F468", "1F469", "1F9D1")],
    entry("1F482", PEOPLE, TONES),
    *[entry(f"1F482-200D-{gender}-FE0F", PEOPLE, TONES) for gender in ("2640", "2642")],
    entry("1F91A", PEOPLE, TONES),
    entry("1F469-200D-2764-FE0F-200D-1F468", PEOPLE, ("1F3FB-1F3FF", "1F3FC-1F3FC")),
    entry("2640-FE0F", "Symbols"),
    *[entry(f"{point:X}", "Animals & Nature") for point in range(0x1F400, 0x1F440)],
]  # fmt: skip
LABELS = {
    "1F468-200D-1F3A8": "man artist", "1F482-200D-2640": "woman guard", "1F91A": "raised hand",
    "1F469-200D-1F33E": "woman farmer", "1F469-200D-2764-200D-1F468": "couple",
}  # fmt: skip


def names():
    for one in ENTRIES:
        hexcode = one["unified"].replace("-FE0F", "")
        label = LABELS.get(hexcode, f"thing {hexcode.lower()}")
        tags = [f"tag{i} of {label}" for i in range(7)] if hexcode != "1F91A" else []
        yield {"hexcode": one["unified"], "label": label, "tags": tags}


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Packages as the recipe reads them, with transparent pictures."""
    folder = tmp_path_factory.mktemp("packages")
    google, twitter, base = (folder / name for name in dataset.PACKAGES)
    for path, style, level in ((google, "google", 90), (twitter, "twitter", 180)):
        picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        picture.paste((level, 0, 0, 255), (0, 0, 32, 64))
        file = io.BytesIO()
        picture.save(file, "png")
        with tarfile.open(path, "w:gz") as tar:
            add(tar, "package/emoji.json", json.dumps(ENTRIES).encode())
            for one in ENTRIES:
                for variant in (one, *one.get("skin_variations", {}).values()):
                    name = f"package/img/{style}/64/{variant['image']}"
                    add(tar, name, file.getvalue())
    with tarfile.open(base, "w:gz") as tar:
        add(tar, "package/en/data.json", json.dumps(list(names())).encode())
    return folder


@pytest.fixture(scope="module")
def data(packages, tmp_path_factory):
    """Emoji, and the folder of their data set."""
    emoji, files = dataset.read_packages(packages)
    out = tmp_path_factory.mktemp("data")
    dataset.write(emoji, files, out)
    for name in dataset.COPIES:
        dataset.write_copies(emoji, out, name)
    return emoji, out


def test_captions_name_what_a_picture_shows(data):
    emoji, _ = data
    captions = {(one.unified, one.style): one.caption() for one in emoji}
    assert len(set(captions.values())) == len(emoji) == 2 * (10 * 6 + 3 + 1 + 64)
    assert captions["1F468-1F3FF-200D-1F3A8", "noto"] == "man artist, dark skin tone, noto style"
    assert captions["1F91A", "twemoji"] == "raised hand, twemoji style"
    couple = "1F469-{}-200D-2764-FE0F-200D-1F468"
    both, same = (captions[couple.format(t), "noto"] for t in ("1F3FB-1F3FF", "1F3FC-1F3FC"))
    assert both == "couple, light and dark skin tone, noto style"
    assert same == "couple, medium-light skin tone, noto style"


def test_training_captions_are_mixed(data):
    for one in data[0]:
        captions = one.captions()
        assert len(captions) == 20
        assert captions.count(one.caption()) >= 12
        assert all(caption.strip() for caption in captions)
        counts = Counter(captions)
        if not one.tags:
            assert counts[one.caption()] == 15
        else:
            assert counts[one.caption()] == 12
            assert counts[f"{one.style} style: {one.label}{one.tone_text()}"] == 3
            assert sum(count for text, count in counts.items() if one.style not in text) == 2
            assert sum(count for text, count in counts.items() if "tag" in text) == 3


def test_combinations_are_held_out(data):
    emoji, _ = data
    held = {(one.unified, one.style): one.held_out for one in emoji}
    # All of the men who are artists in one style, and of the women who are guards in the other.
    blocks = Counter((one.label, one.style) for one in emoji if one.held_out == "B")
    assert blocks == {("man artist", "twemoji"): 6, ("woman guard", "noto"): 6}
    assert held["1F469-1F3FB-200D-1F33E", "noto"] == held["1F91A-1F3FF", "noto"] == "A"
    trained = [one for one in emoji if not one.held_out]
    for one in emoji:
        others = {(t.style, t.tones) for t in trained if t.base == one.base}
        if one.held_out == "A":
            assert len(one.tones) == 1
            assert any(style == one.style for style, _ in others)
            assert any(tones == one.tones for _, tones in others)
        elif one.held_out:
            assert {style for style, _ in others} == set(dataset.STYLES) - {one.style}
    kinds = Counter(one.held_out for one in emoji)
    assert kinds["C"] > 1
    assert all(not one.tones for one in emoji if one.held_out == "C")


def test_pictures_and_captions_are_written(data):
    emoji, out = data
    counts = Counter(bool(one.held_out) for one in emoji)
    for split, count in (("train", counts[False]), ("test", counts[True])):
        found = list(iterate_captioned_images(out / f"{split}.jsonl"))
        assert len(found) == count == len(open_images(out, 64, split=split))
        by_file = {one.file: one for one in emoji}
        for image in found:
            one = by_file[image.id]
            expected = one.captions() if split == "train" else [one.caption()]
            assert list(image.captions) == expected
            level = {"noto": 90, "twemoji": 180}[one.style]
            pixels = np.array(image.read("white"))
            assert (pixels[:, :32] == (level, 0, 0)).all()
            assert (pixels[:, 32:] == 255).all()
    assert open_images(out, 64).classes == ("animals-nature", "people-body", "symbols")


def test_captions_of_roles_tell_the_gender_apart(data):
    of = {(one.label, one.style, one.tones): one for one in data[0]}
    woman = of["woman farmer", "twemoji", ("dark",)]
    changed = Counter(woman.role_captions()) - Counter(woman.captions())
    assert changed == {"some woman, dark skin tone, twemoji style": 2}
    neutral = of["thing 1f482", "noto", ()]
    changed = Counter(neutral.role_captions()) - Counter(neutral.captions())
    assert changed == {"some person, noto style": 2, "person thing 1f482, noto style": 4}
    hand = of["raised hand", "twemoji", ()]
    assert hand.role_captions() == hand.captions()


def test_training_pictures_are_written_again_shifted(data):
    emoji, out = data
    found = list(iterate_captioned_images(out / "shifted.jsonl"))
    trained = [one for one in emoji if not one.held_out]
    assert len(found) == 6 * len(trained)
    for i, one in enumerate(trained):
        copies = found[6 * i : 6 * (i + 1)]
        assert all(list(image.captions) == one.role_captions() for image in copies)
        level = {"noto": 90, "twemoji": 180}[one.style]
        places = set()
        for image in copies:
            red = (np.array(image.read("white")) == (level, 0, 0)).all(-1)  # left half as drawn
            rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
            assert (np.diff(rows) == 1).all()
            assert 62 <= len(rows) <= 64
            places.add((rows[0], rows[-1], columns[0], columns[-1]))
        assert (0, 63, 0, 31) in places
        assert len(places) > 3


def test_training_pictures_are_written_again_in_other_sizes_and_places(data):
    emoji, out = data
    found = list(iterate_captioned_images(out / "varied.jsonl"))
    trained = [one for one in emoji if not one.held_out]
    assert len(found) == 14 * len(trained)
    sides = set()
    for i, one in enumerate(trained):
        copies = found[14 * i : 14 * (i + 1)]
        assert all(list(image.captions) == one.role_captions() for image in copies)
        corners = set()
        for image in copies:
            pixels = np.array(image.read("white"))
            drawn = pixels[..., 1] < 128  # the left half, red
            rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
            assert 54 <= len(rows) <= 64
            assert 26 <= len(columns) <= 32
            sides.add(len(rows))
            corners.add((len(rows), rows[0], columns[0]))
        assert len(corners) > 7
    assert sides > {56, 64}


def test_a_copy_is_in_its_place_on_white():
    pixels = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(5, 5, 3)
    moved = np.array(dataset.placed(Image.fromarray(pixels), 5, 1, -2))
    assert (moved[1:, :3] == pixels[:-1, 2:]).all()
    assert (moved[0] == 255).all()
    assert (moved[:, 3:] == 255).all()
    black = Image.new("RGB", (8, 8))
    small = np.array(dataset.placed(black, 6, 1, 2))
    assert (small[1:7, 2:] == 0).all()
    assert small.sum() == 255 * 3 * (64 - 36)


def test_other_packages_are_refused(packages, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["x", "--packages", str(packages), "--out", str(out)])
    with pytest.raises(SystemExit):
        dataset.main()
    assert "16.0.0.tgz is another file than that of the recipe" in capsys.readouterr().err
    assert not out.exists()


def test_the_text_tokenizer_makes_one_token_of_each_chat_word(data, tmp_path):
    pytest.importorskip("tokenizers")
    module = load("text_tokenizer")
    tokenizer = module.make(module.words(data[1] / "train.jsonl"), 600)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.get_vocab_size() <= 600
    ids = token_ids(tokenizer, PROMPT.format("Woman guard"))
    chat = token_ids(tokenizer, NO_PROMPT)
    assert len(chat) == 2
    start, user, *caption, end, line, again, assistant = ids
    assert [again, assistant] == chat
    assert start == again
    assert [tokenizer.id_to_token(i) for i in (start, user, end, line)] == [
        "<|im_start|>", "user\n", "<|im_end|>", "\n"
    ]  # fmt: skip
    assert caption == token_ids(tokenizer, "woman guard")
    assert tokenizer.decode(caption) == " woman guard"
    for text in ("ثعلب 🦊", "\x00\n<|res", "Ünïcode"):  # words that it has not seen
        assert token_ids(tokenizer, text)
    documents = DocumentMaker(tokenizer, 4, text_loss=True)
    assert documents.length(documents.caption("woman guard"), (4, 4)) == len(ids) + 6 + 16 + 2


def test_an_average_is_of_every_weight():
    first, second = text_pipeline(0), text_pipeline(1)
    states = [{k: t.clone() for k, t in p.model.state_dict().items()} for p in (first, second)]
    averaged = averages.average(first, second, 0.25).model.state_dict()
    assert averaged.keys() == states[0].keys()
    for name, tensor in averaged.items():
        expected = 0.75 * states[0][name].double() + 0.25 * states[1][name].double()
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
    other = mock.Mock(config=None)
    with pytest.raises(ValueError, match="both models must have one configuration"):
        averages.average(first, other, 0.5)


def test_tokenizer_and_model_fit_each_other_and_the_size_of_a_package():
    first, second = (read_config(RECIPE / f"{name}.toml") for name in ("autoencoder", "model"))
    assert second.autoencoder_path == "runs/emoji/autoencoder"
    autoencoder = BinaryAutoencoder(first.autoencoder, device="meta")
    model = TextToImageModel(second.model_config(second.llm, first.autoencoder), device="meta")
    of_autoencoder, both = (
        sum(p.numel() for p in module.parameters()) for module in (autoencoder, model)
    )
    assert of_autoencoder <= 4_000_000
    assert 2 * both <= 23_500_000  # bytes in float16
    grid = first.data.size // first.autoencoder.downsampling
    assert (grid, first.autoencoder.z_channels, second.text_to_image.parallel_num) == (4, 128, 4)
    assert not first.data.flip
