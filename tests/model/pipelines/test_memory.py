"""Estimates of memory against what models have and make."""

import ctypes
import dataclasses
import gc
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from bitdance import BitDancePipeline, BitDanceT2IPipeline
from bitdance.cli.main import main
from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import (
    AUTOENCODER_PRESETS,
    HEAD_PRESETS,
    AutoencoderConfig,
    HeadConfig,
    ModelConfig,
)
from bitdance.models.live_memory import LiveMemory
from bitdance.models.quantization import quantize_blocks
from bitdance.models.qwen3 import Qwen3Config
from bitdance.models.text_to_image import TextToImageModel
from bitdance.models.text_to_image_config import TextToImageConfig
from bitdance.pipelines.memory import GIB, estimate_memory
from bitdance.pipelines.prompts import PROMPT
from bitdance.sampling.image_decoder import ImageDecoder
from tests.forked import READY
from tests.model.helpers.releases import qwen_model, write_flat
from tests.model.helpers.tiny import PACKABLE, tiny_pipeline
from tests.model.models.test_text_to_image import CONFIG, tiny
from tests.model.pipelines.test_text_to_image import Words

DOCS = Path(__file__).parents[3] / "docs"

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
    assert full.fits(36) == "offloaded"
    assert full.resident > full.offloaded > full.weights["language model"]


def test_arguments_that_are_refused():
    for changes, message in (
        ({"batch_size": 0}, "estimate_memory: batch_size must be an integer of at least 1, got 0"),
        ({"height": 0}, "height must be an integer of at least 2, got 0"),
        ({"quantization": "int3"}, "quantization must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            estimate_memory(CONFIG, **changes)
    room = CONFIG.llm.max_position_embeddings - 8 * 8 // CONFIG.autoencoder.downsampling**2 - 2
    small = {"height": 8, "width": 8}
    estimate_memory(CONFIG, **small, prompt_tokens=room)
    with pytest.raises(ValueError, match=f"estimate_memory: prompt_tokens must be at most {room}"):
        estimate_memory(CONFIG, **small, prompt_tokens=room + 1)


def test_the_size_is_by_default_the_models_own(capsys):
    """One of 1024 x 1024 pixels is more than the positions of the bundled model."""
    pytest.importorskip("tokenizers")
    assert main(["info", "emoji", "--json"]) == 0
    own = json.loads(capsys.readouterr().out)["memory"]
    assert main(["info", "emoji", "--height", "64", "--width", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"] == own
    assert main(["info", "emoji", "--height", "1024", "--width", "1024"]) == 1
    assert "256 positions have room for, got 1024 x 1024 pixels" in capsys.readouterr().err


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
    sys.path.insert(0, str(DOCS))
    try:
        import memory_plan
    finally:
        sys.path.remove(str(DOCS))
    assert memory_plan.MODEL == MODEL_14B
    page = (DOCS / "memory.md").read_text()
    for row in memory_plan.rows(memory_plan.PICTURES[:1]):  # others take seconds
        assert memory_plan.line(row) in page, "run `make docs`"


class Names(Words):
    """Knows every special token."""

    def convert_tokens_to_ids(self, token):
        return 100 + sum(token.encode()) % 3000


AUTOENCODER = AutoencoderConfig(
    ch=32, ch_mult=(1, 1, 2), num_res_blocks=1, z_channels=16, num_codebooks=1
)
MEASURED = {
    "classes": ModelConfig(
        dim=512, n_layer=12, n_head=8, diff_layers=4, diff_dim=512, diff_adanln_layers=2,
        parallel_num=16, latent_dim=16, down_size=4, resolution=64, num_classes=5,
        cls_token_num=16, cfg_scale=2.0, autoencoder=AUTOENCODER,
    ),
    "prompts": TextToImageConfig(
        Qwen3Config(
            hidden_size=512, num_hidden_layers=12, num_attention_heads=8, num_key_value_heads=4,
            intermediate_size=1536, vocab_size=4096, head_dim=64,
        ),
        HeadConfig(
            ch_target=16, ch_cond=512, ch_latent=512, depth_latent=4, depth_adanln=2,
            architecture="t2i",
        ),
        AUTOENCODER, parallel_num=64,
    ),
}  # fmt: skip
"""Models whose weights are some 200 MB."""
CALL = {"num_inference_steps": 2, "output_type": "uint8"}
SIZE = {"height": 128, "width": 128}
WORDS = ("a red fox", "an owl")


def generate(kind, config):
    if kind == "classes":
        pipeline, arguments = BitDancePipeline(BitDanceModel(config), ("",) * 5), ([0, 1],)
    else:
        pipeline = BitDanceT2IPipeline(TextToImageModel(config), Names())
        arguments = (WORDS,)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(*arguments, **CALL, **(SIZE if kind == "prompts" else {}))


_M_MMAP_THRESHOLD = -3  # of malloc.h


def status(name):
    """A figure of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _measure(kind, answer):
    """Bytes by which a process grows at most while it makes a model and two images."""
    torch.set_num_threads(1)
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 16)  # what is freed goes back to the system
    small = {"classes": {"dim": 64, "n_layer": 1}, "prompts": {}}[kind]
    config = dataclasses.replace(MEASURED[kind], **small)
    if kind == "prompts":
        llm = dataclasses.replace(config.llm, num_hidden_layers=1)
        config = dataclasses.replace(config, llm=llm)
    generate(kind, config)  # what PyTorch and its libraries make at their first use
    gc.collect()
    libc.malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
    generate(kind, MEASURED[kind])
    answer.put(status("VmHWM") - before)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", ["classes", pytest.param("prompts", marks=pytest.mark.nightly)])
def test_a_process_grows_by_what_is_estimated(kind):
    """Within a tenth, weights, cache, buffers and maps together."""
    answer = READY.Queue()
    process = READY.Process(target=_measure, args=(kind, answer))
    process.start()
    measured = answer.get(timeout=300)
    process.join()
    tokens = max(len(PROMPT.format(words)) for words in WORDS)
    found = estimate_memory(
        MEASURED[kind], batch_size=2, num_inference_steps=2, prompt_tokens=tokens, **SIZE
    )
    assert abs(found.on_cpu - measured) < measured / 10, (found.to_dict(), measured)
