"""Several codes of each image in a packed data set, and the draw of one of them in training."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.cli.main import main
from bitdance.data.augmentation import Augmentation
from bitdance.data.images import open_images, to_float
from bitdance.data.packed_dataset import PackedDataset, PackedDatasetError, Variants, index_digest
from bitdance.data.packed_writer import PackedWriter
from bitdance.data.parquet import to_parquet
from bitdance.training.config import DataConfig
from bitdance.training.datasets import open_codes
from tests.model.helpers.tiny import tiny_model
from tests.model.helpers.tiny_images import write_data_set

VARIANTS = Variants(crops=2, flips=True, min_crop=0.8)


def write(folder, count=11, shard_size=4, variants=VARIANTS):
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 256, (count, len(variants), 4, 2), dtype=np.uint8)
    with PackedWriter(
        folder, tokens=4, channels=16, shard_size=shard_size, variants=variants
    ) as writer:
        writer.write(codes, np.arange(count))
    return codes


@pytest.mark.parametrize("shard_size", [4, 100])
def test_variants_are_written_and_read_back(tmp_path, shard_size):
    codes = write(tmp_path, shard_size=shard_size)
    data = PackedDataset(tmp_path)
    assert (len(data), data.tokens, data.variants) == (11, 4, VARIANTS)
    items, chosen = np.array([9, 0, 10, 3]), np.array([5, 0, 2, 1])
    found, labels = data.take(items, chosen)
    assert np.array_equal(found, codes[items, chosen])
    assert labels.tolist() == items.tolist()
    assert np.array_equal(data.take(items)[0], codes[items, 0])
    assert np.array_equal(data[7][0], codes[7, 0])
    with pytest.raises(ValueError, match="data must have one code of each image, got 6"):
        to_parquet(data, tmp_path / "x.parquet")


def test_one_variant_has_the_format_of_before(tmp_path):
    with PackedWriter(tmp_path, tokens=4, channels=16) as writer:
        writer.write(np.ones((3, 4, 2), np.uint8), [0, 1, 2])
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["format"] == "bitdance-packed-1"
    assert "variants" not in index
    assert np.load(tmp_path / "codes-00000.npy").shape == (3, 4, 2)
    assert PackedDataset(tmp_path).variants == Variants()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "bitdance-packed-1"}, "variants must be of a format other than"),
        ({"variants": {"crops": -1}}, "crops must be at least 0"),
        ({"variants": {"crops": 3, "flips": True}}, r"must be uint8 \[11, 8, 4, 2\]"),
        ({"format": "bitdance-packed-3"}, "format must be 'bitdance-packed-1' or"),
    ],
)  # fmt: skip
def test_an_index_that_contradicts_itself_is_refused(tmp_path, change, message):
    write(tmp_path, shard_size=100)
    index = json.loads((tmp_path / "index.json").read_text()) | change
    del index["sha256"]
    (tmp_path / "index.json").write_text(json.dumps(index | {"sha256": index_digest(index)}))
    with pytest.raises(PackedDatasetError, match=message):
        PackedDataset(tmp_path)


def test_codes_of_another_number_of_variants_are_not_written(tmp_path):
    with (
        pytest.raises(ValueError, match=r"packed must be \['N', 6, 4, 2\]"),
        PackedWriter(tmp_path, tokens=4, channels=16, variants=VARIANTS) as writer,
    ):
        writer.write(np.ones((3, 4, 2), np.uint8), [0, 1, 2])


def test_one_variant_of_each_item_is_drawn():
    items = np.arange(3000)

    def drawn(step=5, **settings):
        return Augmentation(1, **settings).choose(VARIANTS, items, step)

    def shares(chosen):
        return np.bincount(chosen, minlength=6) / len(chosen)

    assert not drawn().any()
    assert set(drawn(flip=True)) == {0, 1}
    assert set(drawn(min_crop=0.8)) == {2, 4}
    every = drawn(min_crop=0.8, flip=True)
    assert np.abs(shares(every) - [0, 0, 0.25, 0.25, 0.25, 0.25]).max() < 0.03
    some = Augmentation(1, min_crop=0.8, flip=True).choose(VARIANTS, items[70:80], 5)
    assert np.array_equal(some, every[70:80])
    assert not np.array_equal(drawn(6, min_crop=0.8, flip=True), every)
    half = drawn(50, min_crop=0.8, crop_decay=(0, 100))
    assert np.abs(shares(half) - [0.5, 0, 0.25, 0, 0.25, 0]).max() < 0.03
    assert not drawn(100, min_crop=0.8, crop_decay=(0, 100)).any()
    both = drawn(
        50, min_crop=0.8, flip=True, crop_decay=(0, 100)
    )  # crops and flips are independent
    assert np.abs(shares(both) - [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]).max() < 0.03


def test_settings_that_the_codes_cannot_follow_are_refused(tmp_path):
    write(tmp_path / "all")
    write(tmp_path / "flips", variants=Variants(flips=True))
    both = DataConfig(path=tmp_path / "all", size=8, flip=True, min_crop=0.8, crop_decay=(1, 2))
    assert len(open_codes(both)[0].variants) == 6
    assert open_codes(DataConfig(path=tmp_path / "all", size=8))[0].variants == VARIANTS
    for change, message in (
        ({"min_crop": 0.7}, "data.min_crop must be 1 or 0.8, as in"),
        ({"shift": 1}, "data.shift must be left out"),
        ({"path": str(tmp_path / "flips")}, "data.min_crop must be left out"),
    ):
        with pytest.raises(ValueError, match=message):
            open_codes(dataclasses.replace(both, **change))


def test_tokenize_encodes_crops_and_flips(tmp_path, capsys):
    images, released = tmp_path / "images", tmp_path / "ae"
    images.mkdir()
    for i, size in enumerate(((20, 12), (9, 31), (8, 8))):
        noise = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / f"{i}.png")
    autoencoder = tiny_model().vae
    released.mkdir()
    torch.save({"state_dict": autoencoder.state_dict()}, released / "ae.pt")
    command = ["tokenize", "--autoencoder", str(released / "ae.pt"), "--size", "8", "--quiet"]
    out = ["--crops", "2", "--flips", "--seed", "4", "--out"]
    assert main([*command, str(images), *out, str(tmp_path / "codes")]) == 0
    assert "3 images of 16 codes of 8 bits, each 6 times" in capsys.readouterr().out
    data, source = PackedDataset(tmp_path / "codes"), open_images(images, 8)
    items = np.arange(3)
    for crop in range(3):
        pixels = source.take(items)
        if crop:
            pixels = Augmentation(4, min_crop=0.8).take(source, items, crop)
        for mirrored in range(2):
            x = to_float(pixels.flip(-1) if mirrored else pixels)
            expected = autoencoder.encode(x, packed=True).flatten(1, 2)
            found, _ = data.take(items, np.full(3, 2 * crop + mirrored))
            assert torch.equal(found, expected)
    (tmp_path / "idx").mkdir()
    idx = write_data_set(tmp_path / "idx")
    assert main([*command, str(idx), "--crops", "1", "--out", str(tmp_path / "no")]) == 1
    assert "--crops must be left out for IDX files" in capsys.readouterr().err
    assert main([*command, str(images), "--crops", "-1", "--out", str(tmp_path / "no")]) == 1
    assert "crops must be at least 0, got -1" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
