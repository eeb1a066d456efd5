"""Estimates of memory against what models have and make."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from bitdance.cli.main import main
from bitdance.models.config import AUTOENCODER_PRESETS, HEAD_PRESETS, AutoencoderConfig
from bitdance.models.quantization import quantize_blocks
from bitdance.models.qwen3 import Qwen3Config
from bitdance.models.text_to_image_config import TextToImageConfig
from bitdance.models.live_memory import LiveMemory
from bitdance.pipelines.memory import GIB, estimate_memory
from bitdance.sampling.image_decoder import ImageDecoder
from tests.model.helpers.releases import qwen_model, write_flat
from tests.model.helpers.tiny import PACKABLE, tiny_pipeline
from tests.model.models.test_text_to_image import CONFIG, tiny

QWEN_14B = Qwen3Config(
    hidden_size=5120, num_hidden_layers=40, num_attention_heads=40, num_key_value_heads=8,
    intermediate_size=17408, vocab_size=151988,
)  # fmt: skip
MODEL_14B = TextToImageConfig(QWEN_14B, HEAD_PRESETS["t2i-14b"], AUTOENCODER_PRESETS["d16c32"], 64)


def size(module):
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_cache_are_exact(dtype):
    model = tiny().to(dtype)
    found = estimate_memory(CONFIG, dtype=dtype, height=8, width=12, batch_size=3)
    assert sum(found.weights.values()) == size(model)
    assert found.weights["autoencoder"] == size(model.ae)
    cache = model.llm_model.model.allocate(6, 512)  # 256 of a prompt, and of the image
    stored = sum(t.numel() * t.element_size() for pair in cache.layers for t in pair)
    assert found.cache == stored
    halved = estimate_memory(CONFIG, dtype=dtype, height=8, width=12, batch_size=3, guided=False)
    assert halved.cache * 2 == stored
    pipeline = tiny_pipeline()
    found = estimate_memory(pipeline.config, dtype=torch.float32)
    assert sum(found.weights.values()) == size(pipeline.model)
    config, tokens = pipeline.config, len(pipeline.model.freqs)
    assert found.cache == 2 * config.n_layer * tokens * 2 * config.dim * 4


@pytest.mark.parametrize("quantization", ["fp8_weight_only", "int8_weight_only"])
def test_weights_that_are_quantized_are_exact(quantization):
    pipeline = tiny_pipeline(**PACKABLE)
    wanted = estimate_memory(pipeline.config, quantization=quantization).weights
    quantize_blocks("quantize", pipeline._blocks, quantization)
    assert sum(wanted.values()) == size(pipeline.model)
    assert wanted["head"] == size(pipeline.model.head)


@pytest.mark.parametrize("gan_decoder", [False, True])
def test_maps_of_the_decoder_are_within_a_tenth(gan_decoder):
    """What operators make on a CPU at most at a time."""
    shape = AutoencoderConfig(
        ch=32, ch_mult=(1, 2, 2), num_res_blocks=2, z_channels=8, num_codebooks=1,
        gan_decoder=gan_decoder,
    )  # fmt: skip
    model = tiny(autoencoder=shape)
    found = estimate_memory(model.config, height=64, width=128, batch_size=2).decoding
    latents = torch.ones(2, 8, 16, 32, dtype=torch.float32, device="cpu")
    noise = torch.zeros_like(latents) if gan_decoder else None
    decode = ImageDecoder(model.ae)
    with LiveMemory() as memory:
        decode(latents, noise=noise)
    assert abs(found - memory.peak) <= memory.peak / 10
    single = estimate_memory(model.config, height=64, width=128).decoding
    assert 1.9 < found / single < 2.1


def test_live_memory_counts_what_exists_at_a_time():
    given = torch.zeros(1000, dtype=torch.float32, device="cpu")
    with LiveMemory() as memory:
        a = given + 1
        b = a * 2
        view = b[:10]
        del a
        c = given.view(10, 100) + 1
        del b
        del view
        d = c.exp()
    assert memory.peak == 8000
    assert len(d) == 10


def test_what_fits_on_a_card():
    full = estimate_memory(MODEL_14B, dtype=torch.bfloat16)
    assert [full.fits(gib) for gib in (24, 48, 80)] == [None, "resident", "resident"]
    assert 30 * GIB < sum(full.weights.values()) < 33 * GIB
    parts = estimate_memory(
        MODEL_14B, dtype=torch.bfloat16, quantization="fp8_weight_only", height=512, width=512
    )
    assert parts.fits(24) == "resident"
    assert full.fits(34) == "offloaded"
    assert full.resident > full.offloaded > full.weights["language model"]


def test_arguments_that_are_refused():
    for changes, message in (
        ({"batch_size": 0}, "estimate_memory: batch_size must be an integer of at least 1, got 0"),
        ({"height": 0}, "height must be an integer of at least 2, got 0"),
        ({"quantization": "int3"}, "quantization must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            estimate_memory(CONFIG, **changes)


def test_info_tells_of_a_text_to_image_model_without_its_weights(tmp_path, capsys):
    folder = write_flat(tmp_path / "model", qwen_model())
    for path in folder.glob("*.safetensors"):
        path.unlink()
    size = ["--height", "8", "--width", "12", "--batch-size", "2", "--dtype", "float32"]
    assert main(["info", str(folder), *size]) == 0
    text = capsys.readouterr().out
    assert "a text-to-image model" in text
    assert "card of 24 GiB fits\n" in text
    assert main(["info", str(folder), *size, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    config = dataclasses.replace(CONFIG, llm=qwen_model().config.llm)
    wanted = estimate_memory(config, height=8, width=12, batch_size=2)
    assert report["memory"] == wanted.to_dict()
    assert report["parallel_num"] == 4


def test_the_table_of_the_documents_is_what_is_computed():
    """Rows: quantization, images and pixels; columns: bytes of each part, and what fits."""
    ways = {"resident": "fits", "offloaded": "with offload", None: "no"}
    rows = []
    for quantization in (None, "fp8_weight_only"):
        for images, side in ((1, 512), (1, 1024), (4, 1024)):
            found = estimate_memory(
                MODEL_14B, dtype=torch.bfloat16, quantization=quantization, batch_size=images,
                height=side, width=side,
            )  # fmt: skip
            parts = [found.weights[name] for name in ("language model", "head", "autoencoder")]
            numbers = [*parts, found.cache, found.decoding, found.resident, found.offloaded]
            cells = [
                quantization or "none", f"{images} of {side} x {side}",
                *(f"{number / GIB:.1f}" for number in numbers),
                *(ways[found.fits(gib)] for gib in (24, 48, 80)),
            ]  # fmt: skip
            rows.append(f"| {' | '.join(cells)} |\n")
    page = (Path(__file__).parents[3] / "docs" / "text_to_image.md").read_text()
    assert "".join(rows) in page, "".join(rows)
