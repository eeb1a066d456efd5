"""Images become a packed data set, whatever the number of batches that they are encoded in."""

import numpy as np
import pytest
import torch

from bitdance.data import tokenize as module
from bitdance.data.images import open_images, to_float
from bitdance.data.packed_dataset import PackedDataset
from tests.model.helpers.tiny import tiny_model
from tests.model.helpers.tiny_images import pictures, write_idx


@pytest.mark.parametrize(("count", "batch"), [(300, None), (5, 2), (4, 2), (1, 2)])
def test_the_images_of_all_batches_are_encoded(tmp_path, monkeypatch, count, batch):
    if batch is not None:
        monkeypatch.setattr(module, "_BATCH_SIZE", batch)
    made, labels = pictures(count, seed=0)
    write_idx(tmp_path / "train-images-idx3-ubyte", made)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    images, autoencoder = open_images(tmp_path, 8), tiny_model().vae
    module.tokenize(images, autoencoder, tmp_path / "codes", metadata={}, progress=False)
    data = PackedDataset(tmp_path / "codes")
    assert len(data) == count
    codes, found = data.take(np.arange(count))
    assert found.tolist() == labels.tolist()
    for part in (slice(0, 8), slice(max(count - 8, 0), count)):  # the first and the last ones
        pixels = to_float(images.take(np.arange(count)[part]))
        with torch.no_grad():
            expected = autoencoder.encode(pixels, packed=True).flatten(1, 2)
        assert torch.equal(codes[part], expected)
