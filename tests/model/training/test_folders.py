"""Training on folders of image files: flat ones, and ones with damaged files."""

import numpy as np
import pytest
from PIL import Image

from bitdance.training.autoencoder import AutoencoderTask
from bitdance.training.class_conditional import ClassConditionalTask
from bitdance.training.config import read_config
from bitdance.training.draws import Draws
from bitdance.training.trainer import Trainer
from tests.model.training.test_training import (
    assert_same,
    autoencoder_config,
    final,
    model_config,
    write_config,
)


@pytest.fixture
def flat(tmp_path):
    """Eleven images and a damaged one, in no class."""
    draw = np.random.default_rng(0)
    (tmp_path / "flat").mkdir()
    for i in range(12):
        image = Image.fromarray(draw.integers(0, 256, (8, 10, 3), dtype=np.uint8))
        image.save(tmp_path / "flat" / f"{i}.png")
    damaged = tmp_path / "flat" / "5.png"
    damaged.write_bytes(damaged.read_bytes()[:90])
    return tmp_path / "flat"


def configured(config, tmp_path, *changes):
    path = write_config(config, tmp_path / "config.toml")
    return read_config(path, ["data.classes=[]", "data.size=8", *changes])


def test_an_autoencoder_trains_on_a_flat_folder_and_resumes_without_skipped_files(flat, tmp_path):
    config = configured(autoencoder_config(flat, steps=5), tmp_path, "data.on_error=skip")
    for stops, name in (((2, None), "resumed"), ((None,), "whole")):
        for stop in stops:
            task = AutoencoderTask(config)
            assert task.size == 11
            Trainer(task, config, tmp_path / name, progress=False).run(stop)
    assert_same(final(tmp_path / "resumed"), final(tmp_path / "whole"))


def test_damaged_images_are_found_before_the_first_step(flat, tmp_path):
    config = configured(autoencoder_config(flat), tmp_path, "data.on_error=check")
    with pytest.raises(ValueError, match=r"5\.png is not a complete image"):
        AutoencoderTask(config)


def test_a_model_without_classes_trains_on_a_flat_folder(flat, tmp_path):
    """A model with classes does not."""
    (flat / "5.png").unlink()
    config = configured(autoencoder_config(flat, steps=3), tmp_path)
    Trainer(AutoencoderTask(config), config, tmp_path / "autoencoder", progress=False).run()
    config = configured(
        model_config(flat, tmp_path / "autoencoder"), tmp_path, "model.num_classes=1"
    )
    task = ClassConditionalTask(config)
    assert (task.size, task.classes) == (11, ("",))
    loss, _ = task.loss(task.load(np.arange(4), 0), Draws(0, 0, range(4)))
    assert np.isfinite(float(loss.detach()))
    config = configured(model_config(flat, tmp_path / "autoencoder"), tmp_path)
    with pytest.raises(ValueError, match="num_classes must be the data's 1, got 3"):
        ClassConditionalTask(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.background=glass", "background must be an opaque color .*, got 'glass'"),
        ("data.on_error=ignore", "on_error must be 'raise', 'check' or 'skip', got 'ignore'"),
    ],
)
def test_wrong_settings_of_images(flat, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        configured(autoencoder_config(flat), tmp_path, change)
