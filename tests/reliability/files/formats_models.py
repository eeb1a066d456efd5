"""Formats of models, their parts and configurations, and of training runs."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import torch

from bitdance import BitDancePipeline, BitDanceT2IPipeline
from bitdance.distributed import World
from bitdance.evaluation.classifier import Classifier, load_classifier, save_classifier
from bitdance.integrations.official.export import write_official
from bitdance.io.files import CheckpointError
from bitdance.io.weights import read_weights, save_tensors, write_tensors
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.config import ModelConfig
from bitdance.pipelines.prompts import load_tokenizer, token_ids
from bitdance.pipelines.text_to_image_files import SamplingConfig
from bitdance.sampling import config as sampling_config
from bitdance.training import checkpoint
from bitdance.training.config import RunConfig, parse_run, read_config, write_config
from bitdance.training.log import Log
from tests.model.helpers.releases import qwen_model, write_diffusers, write_three_files
from tests.model.helpers.tiny import AUTOENCODER, tiny_config, tiny_pipeline
from tests.model.helpers.words import Letters
from tests.reliability.files.formats import Format, Unchecked, digest

__all__ = [
    "FORMATS",
    "autoencoder",
    "pipeline",
    "run_config",
    "sharded_state",
    "state_of_run",
    "text_pipeline",
    "write_sharded",
]

_CHECKPOINT = (CheckpointError, FileNotFoundError)
_CONFIG: ModelConfig = tiny_config()
_JSON = Unchecked("configurations are text for people to read and change", cuts=True)
_BARE = Unchecked("files of other programs have no checksum; one beside them is compared")


@functools.cache
def pipeline(seed: int = 0) -> BitDancePipeline:
    """A tiny class-conditional model."""
    return tiny_pipeline(seed)


@functools.cache
def text_pipeline(seed: int = 0) -> BitDanceT2IPipeline:
    """A tiny text-to-image model whose tokenizer knows letters."""
    sampling = SamplingConfig(height=8, width=8, num_inference_steps=2, guidance_scale=2.0)
    return BitDanceT2IPipeline(qwen_model(seed), Letters(), sampling)


def autoencoder(seed: int = 0) -> BinaryAutoencoder:
    """A tiny autoencoder."""
    torch.manual_seed(seed)
    return BinaryAutoencoder(AUTOENCODER).eval()


def run_config(seed: int = 0) -> RunConfig:
    """The configuration of a run."""
    content: dict[str, Any] = {
        "data": {"path": "data", "size": 8, "classes": ["a", "b"]},
        "optim": {"steps": 9, "batch_size": 2, "warmup": 1, "seed": seed},
        "autoencoder": {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": 8},
    }
    return parse_run(content)


def _load_pipeline(source: Path, **options: Any) -> str:
    found = BitDancePipeline.from_pretrained(source, **options)
    return digest(
        found.model.state_dict(), found.config.to_dict(), found.classes, found.num_inference_steps
    )


def _load_text(folder: Path) -> str:
    found = BitDanceT2IPipeline.from_pretrained(folder, tokenizer=Letters())
    return digest(found.model.state_dict(), dataclasses.asdict(found.config), found.sampling)


def _load_autoencoder(path: Path) -> str:
    found = BinaryAutoencoder.from_pretrained(path)
    return digest(found.state_dict(), found.config.to_dict())


def _make_official(folder: Path, *, legacy: bool = False) -> None:
    write_official(folder, pipeline().model.vae, pipeline().model)
    if legacy:
        content = torch.load(
            folder / "model.pt",
            weights_only=False,  # our own, with its Namespace
        )
        torch.save(content, folder / "model.pt", _use_new_zipfile_serialization=False)
    for name in ("autoencoder.pt", "ae.safetensors", "ae.safetensors.sha256", "ae_config.json"):
        (folder / name).unlink()


def _make_autoencoder(folder: Path) -> None:
    model = autoencoder()
    write_tensors(folder / "ae.safetensors", model.state_dict())
    (folder / "ae_config.json").write_text(json.dumps(model.config.to_dict()), encoding="utf-8")


def _trained(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A module of 36 weights after a step."""
    torch.manual_seed(seed)
    module = torch.nn.Linear(8, 4, dtype=torch.float32, device="cpu")
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(3, 8, dtype=torch.float32, device="cpu")).sum().backward()
    optimizer.step()
    return module, optimizer


def state_of_run(seed: int = 0) -> dict[str, Any]:
    """What a trainer saves."""
    return _state(*_trained(seed))


def _state(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    average = {name: p.detach().clone() for name, p in module.named_parameters()}
    return {
        "module": module.state_dict(), "average": average, "optimizer": optimizer.state_dict(),
        "sums": torch.zeros(3, dtype=torch.float64, device="cpu"), "summed": 2,
        "identity": "data", "extra": {},
    }  # fmt: skip


def sharded_state(seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The same as tensors by name, and everything else."""
    module, optimizer = _trained(seed)
    state = _state(module, optimizer)
    return checkpoint.named_state(state, dict(module.named_parameters()), optimizer)


def write_sharded(folder: Path, step: int, seed: int = 0) -> None:
    """Write a checkpoint as a folder, as several processes do, and remove all but it."""
    from bitdance.training.sharded_checkpoint import ShardedWriter

    checkpoint.remove_unfinished(folder)
    published = functools.partial(checkpoint.remove_old, folder, keep=1)
    writer = ShardedWriter(folder, World(), published)
    try:
        writer.begin(step, *sharded_state(seed))
        writer.finish()
    finally:
        writer.close()


def _make_run(folder: Path) -> None:
    write_config(run_config(), folder / "config.toml")
    log = Log(folder / "log.csv", ("lr", "loss"), 0)
    for step in range(1, 6):
        log.add(step, {"lr": 1e-3, "loss": 1 / step})


def _load_run(folder: Path) -> str:
    config = read_config(folder / "config.toml")
    Log(folder / "log.csv", ("lr", "loss"), 1 << 30)
    return digest(config, (folder / "log.csv").read_bytes())


def _make_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(("a", "red", "fox", "<unk>", "<|query_1|>"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|query_1|>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def _load_tokenizer(folder: Path) -> str:
    tokenizer: Any = load_tokenizer(folder)
    known = [tokenizer.token_to_id(word) for word in ("a", "red", "fox", "<|query_1|>")]
    return digest(known, token_ids(tokenizer, "a red fox"), tokenizer.get_vocab())


def _make_tables(folder: Path) -> None:
    for source in _tables():
        (folder / source.name).write_bytes(source.read_bytes())


def _tables() -> tuple[Path, ...]:
    from bitdance_kernels._shared import skinny_config
    from bitdance_kernels.attention.block_causal_attention import config

    tiles = config.MEASURED.with_name("measured.json")
    return tiles, skinny_config.MEASURED


def _load_tables(folder: Path) -> str:
    """Each of the two tables, read from the folder for every card in the original."""
    from unittest import mock

    from bitdance_kernels._shared import skinny_config
    from bitdance_kernels.attention.block_causal_attention import config

    found = []
    tables = ((config, config.measured), (skinny_config, skinny_config._measured))
    for module, read in tables:
        cards = json.loads(module.MEASURED.read_text(encoding="utf-8"))
        read.cache_clear()
        with mock.patch.object(module, "MEASURED", folder / module.MEASURED.name):
            found += [read(card) for card in cards]
        read.cache_clear()
    return digest(found)


def _load_plans(folder: Path) -> str:
    sampling_config.tables.cache_clear()
    return digest(dict(sampling_config.tables(folder / sampling_config.FILE.name)))


def _copy_plans(folder: Path) -> None:
    (folder / sampling_config.FILE.name).write_bytes(sampling_config.FILE.read_bytes())


_READERS_OF_WEIGHTS = (
    "bitdance.io.weights.read_weights",
    "bitdance.io.weights.read_checkpoint",
    "bitdance.io.weights.read_pickle",
    "bitdance.io.weights._is_safetensors",
    "bitdance.io.weights._refuse_other_content",
    "bitdance.io.weights._check_archive",
    "bitdance.pipelines.class_conditional_files.load_file",
    "bitdance.training.initial_weights._read",
)

FORMATS = (
    Format(
        "folder of a model",
        lambda folder: pipeline().save_pretrained(folder),
        _load_pipeline, _CHECKPOINT, {"config.json": _JSON},
        readers=(
            "bitdance.io.json_files.read_json", "bitdance.io.weights.read_tensors",
            "bitdance.models.loading.model_folder.read_content", "bitdance.io.files.sha256",
            "bitdance.pipelines.class_conditional_files.load_folder",
            "bitdance.models.loading.autoencoder_files._read_model",
        ),
    ),
    Format(
        "safetensors with a sidecar",
        lambda folder: write_tensors(folder / "w.safetensors", autoencoder().state_dict()),
        lambda folder: digest(read_weights(folder / "w.safetensors")), _CHECKPOINT,
        readers=("bitdance.io.weights.check_checksum",),
    ),
    Format(
        "safetensors alone",
        lambda folder: save_tensors(folder / "w.safetensors", autoencoder().state_dict()),
        lambda folder: digest(read_weights(folder / "w.safetensors")), _CHECKPOINT, {"*": _BARE},
    ),
    Format(
        "official .pt", _make_official,
        lambda folder: _load_pipeline(folder / "model.pt", config=_CONFIG),
        _CHECKPOINT, readers=_READERS_OF_WEIGHTS,
    ),
    Format(
        "official .pt in PyTorch's old format", functools.partial(_make_official, legacy=True),
        lambda folder: digest(read_weights(folder / "model.pt")), _CHECKPOINT,
        {"*": Unchecked("it has no checksums", cuts=False)},
    ),
    Format(
        "autoencoder", _make_autoencoder, lambda folder: _load_autoencoder(folder),
        _CHECKPOINT, {"ae_config.json": _JSON},
        readers=(
            "bitdance.models.loading.autoencoder_files._read_file",
            "bitdance.models.loading.autoencoder_files._read_part",
            "bitdance.models.loading.part_files.read_part",
        ),
    ),
    Format(
        "text-to-image release",
        lambda folder: text_pipeline().save_pretrained(folder), _load_text, _CHECKPOINT,
        {"*.json": _JSON},
        readers=(
            "bitdance.pipelines.release.Release",
            "bitdance.pipelines.release._language_model_config",
            "bitdance.pipelines.text_to_image_files.read_sampling",
            "bitdance.models.loading.model_files.Folder",
            "bitdance.training.text_to_image._language_model",
        ),
    ),
    Format(
        "folders of diffusers, weights in parts",
        lambda folder: write_diffusers(folder / "m", qwen_model(), shards=2),
        lambda folder: _load_text(folder / "m"), _CHECKPOINT, {"*.json": _JSON, "*": _BARE},
        readers=(
            "bitdance.models.loading.part_files._shards",
            "bitdance.pipelines.release._check_components",
            "bitdance.integrations.diffusers.base._saved_by",
        ),
    ),
    Format(
        "package in float8",
        lambda folder: write_three_files(folder / "m", qwen_model()),
        lambda folder: _load_text(folder / "m"), _CHECKPOINT, {"*": _BARE},
    ),
    Format(
        "text tokenizer", _make_tokenizer, _load_tokenizer, _CHECKPOINT,
        {"*": Unchecked("a file of Hugging Face's tokenizers, which has none")},
        readers=("bitdance.pipelines.prompts.load_tokenizer",), needs=("tokenizers",),
    ),
    Format(
        "classifier",
        lambda folder: save_classifier(_classifier(), folder / "classifier.safetensors"),
        lambda folder: digest(load_classifier(folder / "classifier.safetensors").state_dict()),
        _CHECKPOINT, {"*": _BARE}, readers=("bitdance.evaluation.classifier.load_classifier",),
    ),
    Format(
        "training checkpoint",
        lambda folder: checkpoint.save(folder, 3, state_of_run(), keep=2),
        lambda folder: digest(checkpoint.newest(folder)), _CHECKPOINT,
        readers=("bitdance.training.checkpoint._read",),
    ),
    Format(
        "training checkpoint of several processes",
        lambda folder: write_sharded(folder, 3),
        lambda folder: digest(checkpoint.newest(folder)), _CHECKPOINT,
        readers=(
            "bitdance.training.sharded_checkpoint._check_metadata",
            "bitdance.training.sharded_checkpoint._verify",
            "bitdance.training.sharded_checkpoint.read_folder",
        ),
    ),
    Format(
        "run folder", _make_run, _load_run, (ValueError, OSError),
        {"config.toml": _JSON, "log.csv": Unchecked("a table for people and plots", cuts=True)},
        readers=(
            "bitdance.io.toml_files.read_toml", "bitdance.training.log.Log",
            "bitdance.training.config.read_config",
        ),
    ),
    Format(
        "tables of kernels", _make_tables, _load_tables, (ValueError,), {"*": _JSON},
        readers=(
            "bitdance_kernels._shared.skinny_config._measured",
            "bitdance_kernels.attention.block_causal_attention.config.measured",
        ),
    ),
    Format(
        "table of plans", _copy_plans, _load_plans, (ValueError,), {"*": _JSON},
        readers=("bitdance.sampling.config.tables",),
    ),
)  # fmt: skip
"""Every format of models."""


def _classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(3, dtype=torch.float32, device="cpu")
