"""Image files on the command line: names of inputs and outputs, and skipped files."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.cli.main import main
from bitdance.data.images import to_float
from bitdance.data.packed_dataset import PackedDataset
from bitdance.io import weights
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.pipelines.class_conditional import BitDancePipeline
from tests.model.helpers.tiny import AUTOENCODER, tiny_pipeline
from tests.model.helpers.tiny_images import write_idx

RED, BLUE = (250, 10, 10), (10, 10, 250)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "model"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A folder as training writes it, with random weights."""
    folder = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(0)
    weights.write_tensors(
        folder / "autoencoder.safetensors", BinaryAutoencoder(AUTOENCODER).state_dict()
    )
    (folder / "autoencoder.json").write_text(json.dumps(AUTOENCODER.to_dict()))
    return folder


def picture(path, color=RED, size=(8, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def reconstruct(saved, *arguments):
    return main(["reconstruct", "--model", str(saved), *map(str, arguments)])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def original(path):
    """Color in the middle of the left half, which is the original."""
    pair = Image.open(path).convert("RGB")
    return pair.getpixel((pair.width // 4, pair.height // 2))


def test_two_inputs_never_write_one_output(saved, tmp_path, capsys):
    inputs = [
        picture(tmp_path / "a" / "x.png", RED),
        picture(tmp_path / "b" / "x.png", BLUE),
        picture(tmp_path / "b" / "X.bmp", (0, 0, 0)),
        picture(tmp_path / "a" / "x-2.png", (9, 9, 9)),
    ]
    out = tmp_path / "out"
    assert reconstruct(saved, *inputs, "--out", out) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len({name.casefold() for name in names(out)}) == 4  # on any file system
    for path, line in zip(inputs, printed, strict=True):
        target = line.rsplit(": ", 1)[1]
        assert line.startswith(f"{path}: ")
        assert original(target) == Image.open(path).convert("RGB").getpixel((4, 4))


def test_no_output_replaces_an_input(saved, tmp_path):
    first = picture(tmp_path / "x.png", RED)
    second = picture(tmp_path / "x-reconstructed.png", BLUE)
    before = second.read_bytes()
    assert reconstruct(saved, first, second, "--out", tmp_path) == 0
    assert second.read_bytes() == before
    assert len(names(tmp_path)) == 4


def test_a_refused_run_leaves_nothing_behind(saved, tmp_path, capsys):
    good, small = picture(tmp_path / "a.png"), picture(tmp_path / "b.png", size=(8, 1))
    (tmp_path / "c.png").write_bytes(good.read_bytes()[:50])
    os.mkfifo(tmp_path / "d.png")
    before, out = names(tmp_path), tmp_path / "new" / "out"
    for bad, message in (
        (small, "b.png is smaller than 2 pixels; use --size"),
        (tmp_path / "c.png", "c.png is not a complete image"),
        (tmp_path / "d.png", "d.png is not an image file but a pipe"),
        (tmp_path / "none.png", "none.png is not an image file: No such file"),
    ):
        assert reconstruct(saved, good, bad, "--out", out) == 1
        errors = capsys.readouterr().err
        assert message in errors
        assert errors.count("\n") == 1
        assert names(tmp_path) == before
    generate = ["generate", "--model", str(saved), "--quiet", "--class", "dragon"]
    for target in ("new/x.png", "new/folder"):
        assert main([*generate, "--out", str(tmp_path / target)]) == 1
        assert names(tmp_path) == before
    evaluate = ["evaluate", str(tmp_path), "--model", str(saved), "--quiet"]
    assert main([*evaluate, "--out", str(out)]) == 1
    assert names(tmp_path) == before


def test_outputs_that_cannot_be_written_are_refused_before_the_work(
    saved, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(BitDancePipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "d.png").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe.png")
    generate = ["generate", "--model", str(saved), "--class", "0"]
    x = str(tmp_path / "x.png")
    for options, message in (
        (["--out", str(tmp_path / "d.png")], "d.png exists and is not a file"),
        (["--out", str(tmp_path / "pipe.png")], "pipe.png exists and is not a file"),
        (["--out", str(tmp_path / "file")], "file exists and is not a folder"),
        (["--out", str(tmp_path / "file" / "deep" / "x.png")], "file exists and is not a folder"),
        (["--out", x, "--bits", str(tmp_path / "d.png")], "d.png exists and is not a file"),
        (["--out", x, "--bits", x], "--bits must be another file than --out"),
    ):
        assert main([*generate, *options]) == 1
        assert message in capsys.readouterr().err
    image = picture(tmp_path / "a.png")
    assert reconstruct(saved, image, "--out", tmp_path / "file") == 1
    assert main(["evaluate", str(tmp_path), "--out", str(tmp_path / "file")]) == 1
    assert names(tmp_path) == ["a.png", "d.png", "file", "pipe.png"]


def test_concurrent_checks_of_one_folder(saved, tmp_path, monkeypatch):
    """A check creates no name that another process could remove."""
    from bitdance.io import outputs

    outputs.check_folder(tmp_path)
    seen = []
    temporary = outputs.tempfile.TemporaryFile

    def meanwhile(**options):
        with temporary(**options):
            seen.append(names(tmp_path))
            outputs.tempfile.TemporaryFile = temporary
            outputs.check_file(tmp_path / "x.png")
        return temporary(**options)

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", meanwhile)
    outputs.check_file(tmp_path / "x.png")
    assert len(seen) == 1
    assert names(tmp_path) == []


def test_files_have_the_permissions_of_the_umask(saved, tmp_path):
    image = picture(tmp_path / "a.png")
    for mask in (0o022, 0o077):
        before = os.umask(mask)
        try:
            assert reconstruct(saved, image, "--out", tmp_path / f"{mask}") == 0
        finally:
            os.umask(before)
        (made,) = (tmp_path / f"{mask}").iterdir()
        assert made.stat().st_mode & 0o777 == 0o666 & ~mask


def test_reconstruct_shows_an_image_as_a_viewer_does(saved, tmp_path):
    pixels = np.zeros((8, 16, 4), np.uint8)
    pixels[:, :8], pixels[:, 8:] = (*RED, 255), (0, 0, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise: the left is above
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    for background, color in (("white", (255, 255, 255)), ("#102030", (16, 32, 48))):
        options = ("--size", 4, "--background", background, "--out", tmp_path / "out")
        assert reconstruct(saved, tmp_path / "a.png", *options) == 0
        pair = Image.open(tmp_path / "out" / "a-reconstructed.png").convert("RGB")
        assert pair.size == (2 * 4 + 2, 8)
        assert pair.getpixel((1, 0)) == RED
        assert pair.getpixel((1, 7)) == color


def test_reconstruct_says_what_the_model_is_made_for(tmp_path, capsys):
    """The bundled model is made for small grey clothes."""
    x, y = np.meshgrid(np.arange(200), np.arange(200))
    pixels = np.stack([x, y, 255 - x], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    assert reconstruct("fashion", tmp_path / "photo.png", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert " dB: " in printed.out
    assert printed.err.splitlines() == [
        f"bitdance reconstruct: {tmp_path}/photo.png has 200 x 200 pixels, but the model is made "
        "for 32 x 32 pixels of t-shirt, trouser, pullover, dress, ...; --size 32 resizes",
        f"bitdance reconstruct: {tmp_path}/photo.png is reconstructed poorly; the model is made "
        "for 32 x 32 pixels of t-shirt, trouser, pullover, dress, ...",
    ]
    sleeve = np.zeros((32, 32), np.uint8)
    sleeve[4:28, 8:24] = 180
    Image.fromarray(sleeve).save(tmp_path / "shirt.png")
    assert reconstruct("fashion", tmp_path / "shirt.png", "--out", tmp_path / "out") == 0
    assert capsys.readouterr().err == ""


def test_reconstruct_takes_folders_and_skips_with_a_count(saved, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    picture(data / "b" / "x.png")
    picture(data / "a.png")
    (data / "notes.txt").write_text("")
    (data / "._a.png").write_bytes(b"\0\5")
    assert reconstruct(saved, data, "--out", out) == 0
    assert names(out) == ["a-reconstructed.png", "x-reconstructed.png"]
    assert "skipped: 1 files that are not images (.txt 1)" in capsys.readouterr().err
    (data / "c.png").write_bytes(b"no image")
    (data / "d.png").symlink_to("nowhere")
    assert reconstruct(saved, data, "--out", tmp_path / "new") == 1
    assert not (tmp_path / "new").exists()
    assert reconstruct(saved, data, "--on-error", "skip", "--out", tmp_path / "new") == 0
    assert names(tmp_path / "new") == names(out)
    errors = capsys.readouterr().err
    assert "skipped: " + str(data / "c.png") + " is not a complete image" in errors
    assert "skipped: " + str(data / "d.png") + " is not an image file" in errors
    (tmp_path / "empty").mkdir()
    assert reconstruct(saved, tmp_path / "empty") == 1
    assert "empty: there are no images" in capsys.readouterr().err


def test_reconstruct_limits_the_resized_image(saved, tmp_path, capsys, monkeypatch):
    strip = picture(tmp_path / "a.png", size=(600, 1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert reconstruct(saved, strip, "--size", "8", "--out", tmp_path / "out") == 1
    assert "a.png: resized to 4800 x 8, it has more than 2000 pixels" in capsys.readouterr().err


def test_tokenize_encodes_every_image_of_more_than_a_batch(autoencoder, tmp_path, capsys):
    """300 images: each has the same codes as alone."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 8, 8), dtype=np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte", pixels)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(300) % 7)
    out = tmp_path / "codes"
    arguments = ["tokenize", str(tmp_path), "--autoencoder", str(autoencoder), "--size", "8"]
    assert main([*arguments, "--out", str(out), "--quiet"]) == 0
    assert "300 images of 16 codes of 8 bits" in capsys.readouterr().out
    data = PackedDataset(out)
    assert len(data) == 300
    codes, labels = data.take(np.arange(300))
    assert labels.tolist() == [i % 7 for i in range(300)]
    torch.manual_seed(0)
    alone = BinaryAutoencoder(AUTOENCODER).eval()
    with torch.inference_mode():
        for i in range(300):
            x = to_float(torch.from_numpy(pixels[i]).expand(1, 3, 8, 8))
            assert torch.equal(alone.encode(x, packed=True).flatten(1, 2)[0], codes[i]), i


def test_tokenize_keeps_codes_and_labels_together_when_it_skips(autoencoder, tmp_path, caplog):
    colors = {"a/0": 0, "a/1": 80, "b/0": 160, "b/1": 250}
    for name, level in colors.items():
        picture(tmp_path / "data" / f"{name}.png", (level, 0, 255 - level))
    (tmp_path / "data" / "a" / "0.png").write_bytes(b"no image")
    os.mkfifo(tmp_path / "data" / "b" / "pipe.png")
    arguments = [
        "tokenize",
        str(tmp_path / "data"),
        "--autoencoder",
        str(autoencoder),
        "--size",
        "8",
    ]
    for on_error in ("raise", "check"):
        out = ["--out", str(tmp_path / "codes"), "--quiet", "--on-error", on_error]
        assert main([*arguments, *out]) == 1
        assert names(tmp_path) == ["data"]
    assert main([*arguments, *out[:-1], "skip"]) == 0
    assert "skipped: 2 that cannot be read" in caplog.text
    (tmp_path / "data" / "a" / "0.png").unlink()
    (tmp_path / "data" / "b" / "pipe.png").unlink()
    assert main([*arguments, "--out", str(tmp_path / "clean"), "--quiet"]) == 0
    skipped, clean = (PackedDataset(tmp_path / name).take([0, 1, 2]) for name in ("codes", "clean"))
    assert torch.equal(skipped[0], clean[0])
    assert skipped[1].tolist() == clean[1].tolist() == [0, 1, 1]


def test_tokenize_takes_a_flat_folder_and_refuses_a_size_that_does_not_fit(
    autoencoder, tmp_path, capsys
):
    for i in range(3):
        picture(tmp_path / "data" / f"{i}.png", (80 * i, 0, 0))
    arguments = ["tokenize", str(tmp_path / "data"), "--autoencoder", str(autoencoder), "--quiet"]
    out = ["--out", str(tmp_path / "codes")]
    assert main([*arguments, *out, "--size", "9"]) == 1
    assert "--size must be a multiple of the autoencoder's 2, got 9" in capsys.readouterr().err
    assert main([*arguments, *out, "--size", "8"]) == 0
    data = PackedDataset(tmp_path / "codes")
    assert data.labels.tolist() == [0, 0, 0]
    assert data.metadata["classes"] == [""]
    assert main([*arguments, *out, "--size", "8"]) == 1  # it has something in it
    assert len(PackedDataset(tmp_path / "codes")) == 3


def test_evaluate_accepts_the_training_folder(saved, tmp_path, capsys):
    """In the order of the model's classes, and on the training images where there are no others."""
    classes = BitDancePipeline.from_pretrained(saved).classes
    for label, name in enumerate(classes):
        for i in range(3):
            picture(tmp_path / "data" / name / f"{i}.png", (50 * label, 80 * i, 0))
    judge = ["evaluate", str(tmp_path / "data"), "--model", str(saved), "--quiet",
             "--num-inference-steps", "1", "--samples", "10",
             "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(judge) == 1
    assert "has no sub-folder 'test' or 'val', only the split 'train'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*judge, "--split", "train"]) == 0
    printed = capsys.readouterr()
    assert "| reconstruction of 15 training images |" in printed.out
    assert "test images" not in printed.out
    assert printed.err == ""
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(found["sample_accuracy_by_class"]) == list(classes)
    assert found["split"] == "train"
    (tmp_path / "data" / "bag").rename(tmp_path / "data" / "case")
    assert main([*judge, "--split", "train"]) == 1
    assert "classes must be class folders" in capsys.readouterr().err


def test_evaluate_says_when_classes_are_matched_by_their_order(saved, tmp_path, capsys):
    for name in ("n1", "n2", "n3", "n4", "n5"):
        picture(tmp_path / "data" / name / "0.png")
    judge = ["evaluate", str(tmp_path / "data"), "--model", str(saved), "--quiet",
             "--num-inference-steps", "1", "--samples", "10",
             "--out", str(tmp_path / "out"), "--split", "train"]  # fmt: skip
    assert main(judge) == 0
    assert "'n1' is taken for 'boot'" in capsys.readouterr().err
