"""Runs of text-to-image training on random codes with captions."""

import json

import numpy as np
import torch

from bitdance.data.captioned_writer import CaptionedWriter
from bitdance.io.weights import write_tensors
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.training.config import parse_run
from bitdance.training.log import Log
from bitdance.training.text_to_image import TextToImageTask
from tests.model.helpers.recorded import Recorded
from tests.model.helpers.tiny import AUTOENCODER
from tests.model.helpers.words import VOCABULARY, Letters

LLM = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 48, "vocab_size": VOCABULARY, "head_dim": 16, "tie_word_embeddings": True,
}  # fmt: skip
CAPTIONS = ("a red fox", "the blue ship at sea", "two green pears", "an owl")


def write_autoencoder(folder):
    """A random autoencoder as a file; returns its path."""
    torch.manual_seed(0)
    write_tensors(folder / "ae.safetensors", BinaryAutoencoder(AUTOENCODER).state_dict())
    (folder / "ae_config.json").write_text(json.dumps(AUTOENCODER.to_dict()))
    return folder


def write_codes(folder, count, grids=((4, 4), (2, 4), (4, 6)), captions=2):
    """Random codes of `count` images, on grids in turn."""
    rng = np.random.default_rng(0)
    with CaptionedWriter(folder, channels=8) as writer:
        for i in range(count):
            codes = rng.integers(0, 256, (*grids[i % len(grids)], 1), np.uint8)
            texts = [f"{CAPTIONS[i % 4]} {i if i > 3 else ''}{'!' * j}" for j in range(captions)]
            writer.write(f"image {i}", codes, texts)
    return folder


def run_config(folder, data, *, llm=True, shape=None, parallel=None, settings=None, **optim):
    """A short run on `data`, with an autoencoder in `folder`."""
    optim = {"steps": 6, "batch_size": 2, "warmup": 2, "lr": 1e-3, "schedule": "constant",
             "log_every": 1, "save_every": 4, "sample_every": 100, **optim}  # fmt: skip
    return parse_run({
        "data": {"path": str(data), "max_tokens": 150, "text_dropout": 0.2},
        "optim": optim, "autoencoder_path": str(folder), "num_inference_steps": 2,
        "text_to_image": {"diff_dim": 32, "diff_layers": 2, "diff_adanln_layers": 1,
                          "parallel_num": 4, **(shape or {})},
        "tokenizer_path": str(folder), "parallel": parallel or {},
        **({"llm": LLM} if llm else {}), **(settings or {}),
    })  # fmt: skip


def train(config, folder, world=None, stop_at=None):
    """The trainer of a run and the values of each step [steps, 2 + terms]."""
    Log.plot = lambda *_: None  # it takes a second
    task = TextToImageTask(config, tokenizer=Letters())
    trainer = Recorded(task, config, folder, world=world, progress=False)
    trainer.run(stop_at)
    return trainer, torch.stack(trainer.values).numpy()
