"""NaN and infinity never become a picture: the pictures concerned are named."""

import pytest
import torch

from bitdance import BitDanceT2IPipeline, NotFiniteError
from bitdance.sampling.finite import check_predictions, largest
from bitdance.sampling.image_decoder import ImageDecoder
from tests.model.helpers.tiny import tiny_pipeline
from tests.model.models.test_text_to_image import tiny as tiny_text_to_image
from tests.model.pipelines.test_text_to_image import SIZE, Words

OPTIONS = {"num_inference_steps": 2, "guidance_scale": 1.0}


def spoil(parameter, value=float("nan")):
    with torch.no_grad():
        parameter.fill_(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("use_kernels", [True, False])
@pytest.mark.parametrize("part", ["proj_in.w2.weight", "head.net.final_layer.linear.bias"])
def test_a_model_that_is_not_finite_draws_no_picture(part, use_kernels, cfg, value):
    pipeline = tiny_pipeline()
    spoil(pipeline.model.get_parameter(part), value)
    with pytest.raises(
        NotFiniteError, match="BitDancePipeline: predictions must be finite"
    ) as error:
        pipeline([0, 1], use_kernels=use_kernels, **OPTIONS | {"guidance_scale": cfg})
    # Tokens are fed back from the second step on.
    assert error.value.images == dict.fromkeys([0, 1], 1 if part.startswith("proj_in") else 0)


def test_the_pictures_and_their_steps_are_named():
    """One class and one position of its own are spoilt; batches do not change the numbers."""
    pipeline = tiny_pipeline()
    spoil(pipeline.model.cls_embedding.weight[3])
    with pytest.raises(NotFiniteError, match=r"image 1 \(from AR step 0\), 4 \(from") as error:
        pipeline([0, 3, 1, 1, 3], **OPTIONS)
    assert error.value.images == {1: 0, 4: 0}
    with pytest.raises(NotFiniteError) as error:
        pipeline([0, 1, 1, 1, 3], batch_size=2, **OPTIONS)
    assert error.value.images == {4: 0}
    assert len(pipeline([0, 1, 2], **OPTIONS).images) == 3  # the others draw on
    spoil(pipeline.model.pos_for_diff.weight[9])  # of a token that is drawn in step 2
    with pytest.raises(NotFiniteError) as error:
        pipeline([0, 3, 1], **OPTIONS)
    assert error.value.images == {0: 2, 1: 0, 2: 2}


def test_a_spoilt_unconditional_row_is_the_pictures():
    pipeline = tiny_pipeline()
    spoil(pipeline.model.cls_embedding.weight[pipeline.config.num_classes])  # no class
    assert len(pipeline([0, 1], **OPTIONS).images) == 2
    with pytest.raises(NotFiniteError) as error:
        pipeline([0, 1], **OPTIONS | {"guidance_scale": 2.0})
    assert error.value.images == {0: 0, 1: 0}


def test_an_overflow_of_half_precision_is_reported():
    pipeline = tiny_pipeline()
    pipeline.model.half()
    spoil(pipeline.model.layers[0].feed_forward.w2.weight, 6e4)
    with pytest.raises(NotFiniteError, match="overflow of float16"):
        pipeline([0], **OPTIONS)


@pytest.mark.parametrize("times", [1, 8])  # the later ones from a graph
def test_a_decoder_that_is_not_finite_draws_no_picture(times):
    pipeline = tiny_pipeline()
    packed = pipeline([0, 1, 2], output_type="latent", **OPTIONS).images
    for _ in range(times):
        pipeline.decode(packed, batch_size=2)
    spoil(pipeline.model.vae.decoder.conv_out.bias[1:2])
    with pytest.raises(NotFiniteError, match=r"decode: .* image 0 \(the decoder\), 1") as error:
        pipeline.decode(packed, batch_size=2)
    assert error.value.images == {0: None, 1: None}
    with pytest.raises(NotFiniteError, match="decode"):
        ImageDecoder(pipeline.model.vae)(pipeline.model.to_latents(torch.ones(1, 16, 8)))


def test_texts_are_named_too():
    class Marked(Words):
        def encode(self, text):
            return super().encode(text) + ([35] if "zebra" in text else [])

    model = tiny_text_to_image()
    pipeline = BitDanceT2IPipeline(model, Marked())
    spoil(model.llm_model.model.embed_tokens.weight[35])
    with pytest.raises(NotFiniteError) as error:
        pipeline(["a dog", "zebra", "snow"], batch_size=2, **SIZE, **OPTIONS)
    assert error.value.images == {1: 0}
    spoil(model.ae.decoder.conv_out.bias)
    with pytest.raises(NotFiniteError, match=r"\(the decoder\)"):
        pipeline("a dog", **SIZE, **OPTIONS)


def test_large_numbers_are_finite():
    x = torch.tensor([[1.0, -3e38], [float("nan"), 1.0], [2.0, float("-inf")], [0.0, 0.0]])
    peaks = largest(x)
    assert peaks[0] == 3e38
    assert peaks[1].isnan()
    assert peaks[2] == float("inf")
    predictions = x.view(1, 4, 1, 2)
    check_predictions("f", predictions[:, :1], 1)
    with pytest.raises(NotFiniteError) as error:
        check_predictions("f", predictions, 4)
    assert error.value.images == {1: 0, 2: 0}
    many = torch.full((1, 20, 1, 1), float("nan"))
    with pytest.raises(NotFiniteError, match=r"7 \(from AR step 0\) and 12 more; look for NaN"):
        check_predictions("f", many, 20)
