"""Images to packed latents: the inverse of ``decode``."""

import numpy as np
import pytest
import torch

from bitdance.sampling.flow_sampler import binarize
from tests.model.helpers.tiny import tiny_pipeline
from tests.model.pipelines.test_previews import text_pipeline

# A pipeline, height and width of its images, and what decoding takes.
CASES = {
    "classes": lambda: (tiny_pipeline(), 8, 8, {}),
    "several cells a token": lambda: (
        tiny_pipeline(resolution=16, patch_size=2, latent_dim=8), 16, 16, {}
    ),
    "text": lambda: (text_pipeline(), 8, 12, {"height": 8, "width": 12}),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_decoding_gives_what_the_autoencoder_reconstructs(case):
    pipeline, height, width, size = CASES[case]()
    images = torch.rand(2, 3, height, width)
    packed = pipeline.encode(images)
    assert packed.dtype == torch.uint8
    assert len(packed) == 2
    with torch.no_grad():
        expected = pipeline._autoencoder(images * 2 - 1)[0]
    decoded = pipeline.decode(packed, output_type="pt", **size)
    np.testing.assert_allclose(decoded, ((expected + 1) / 2).clamp(0, 1), atol=0.51 / 255)


def test_bits_are_those_of_the_tokens_in_any_dtype():
    pipeline = tiny_pipeline()
    images = torch.rand(2, 3, 8, 8)
    expected = binarize(pipeline.model.encode(images * 2 - 1))[1]
    assert torch.equal(pipeline.encode(images), expected)
    assert torch.equal(pipeline.encode(images.double()), expected)
    with torch.inference_mode():
        assert torch.equal(pipeline.encode(images), expected)
    assert pipeline.encode(images[:0]).shape == (0, *expected.shape[1:])


IMAGE = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("make", "images", "error", "message"),
    [
        (tiny_pipeline, [1], TypeError, "encode: images must be floating point"),
        (tiny_pipeline, IMAGE.byte(), TypeError, "in [0, 1], got torch.uint8"),
        (tiny_pipeline, IMAGE[0], ValueError, "encode: images must be [n, 3, H, W], got [3, 8, 8]"),
        (tiny_pipeline, IMAGE[:, :2], ValueError, "images must be [B, 3, 8, 8], got [1, 2, 8, 8]"),
        (tiny_pipeline, IMAGE[..., :4], ValueError, "must be [B, 3, 8, 8], got [1, 3, 8, 4]"),
        (tiny_pipeline, IMAGE / 0, ValueError, "encode: images must be finite"),
        (text_pipeline, IMAGE[..., :7], ValueError, "width must be a multiple of"),
        (text_pipeline, IMAGE[:, :1], ValueError, "images must be [B, 3, H, W], got [1, 1, 8, 8]"),
    ],
    ids=["list", "bytes", "one image", "channels", "size", "NaN", "width", "gray"],
)
def test_other_images_are_refused(make, images, error, message):
    with pytest.raises(error) as raised:
        make().encode(images)
    assert message in str(raised.value)
