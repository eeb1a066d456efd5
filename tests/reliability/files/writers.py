"""Every writer of the library: two states of its target, and how to see which one is there."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bitdance import BitDancePipeline, BitDanceT2IPipeline
from bitdance.data.captioned_dataset import CaptionedDataset
from bitdance.data.captioned_writer import CaptionedWriter
from bitdance.data.packed_dataset import PackedDataset
from bitdance.evaluation import compare, evaluate
from bitdance.evaluation.classifier import Classifier, load_classifier
from bitdance.integrations.official.export import write_official
from bitdance.io import files
from bitdance.io.npz import ImageArray, read_arrays, write_images
from bitdance.io.outputs import check_file, save_array, save_image
from bitdance.io.weights import read_weights, write_tensors
from bitdance.training import checkpoint
from bitdance.training.config import read_config, write_config
from bitdance.training.log import Log
from bitdance_kernels import CodeIndex
from tests.model.helpers.words import Letters
from tests.reliability.files.formats_data import codes, open_samples, write_packed
from tests.reliability.files.formats_models import (
    autoencoder,
    pipeline,
    run_config,
    state_of_run,
    text_pipeline,
    write_sharded,
)
from tests.reliability.files.writer import Writer

__all__ = ["warm", "writers"]


def warm() -> None:
    """Make the states of all writers, so that forks have them."""
    for number in (0, 1):
        _model_state(number)
        text_pipeline(number)
        _weights(number)
        _evaluation(number)
        if importlib.util.find_spec("pyarrow"):
            _packed_data(number)


def writers() -> tuple[Writer, ...]:
    """All writers whose packages are installed."""
    return tuple(w for w in _WRITERS if all(importlib.util.find_spec(name) for name in w.needs))


def _state(*values: tuple[bool, bool]) -> tuple[int, ...]:
    """The number of each state that values equal, by whether they equal 0 and 1."""
    for of_0, of_1 in values:
        assert of_0 != of_1, "neither state is there"
    return tuple(0 if of_0 else 1 for of_0, _ in values)


def _same(found: dict[str, torch.Tensor], seed: int, states: Callable[[int], Any]) -> bool:
    expected = states(seed)
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


def _of_tensors(
    found: dict[str, torch.Tensor], states: Callable[[int], dict[str, torch.Tensor]]
) -> int:
    return _state((_same(found, 0, states), _same(found, 1, states)))[0]


@functools.cache
def _model_state(seed: int) -> dict[str, torch.Tensor]:
    return pipeline(seed).model.state_dict()


def _read_model(folder: Path) -> tuple[int | None, ...]:
    if not (folder / "model").exists() or not any((folder / "model").iterdir()):
        return (None,)
    if not (folder / "model" / "config.json").exists():
        return (None,)  # killed before the first model was named
    found = BitDancePipeline.from_pretrained(folder / "model")
    return (_of_tensors(found.model.state_dict(), _model_state),)


def _read_release(folder: Path) -> tuple[int | None, ...]:
    if not (folder / "m").exists():
        return (None,)
    found = BitDanceT2IPipeline.from_pretrained(folder / "m", tokenizer=Letters())
    return (_of_tensors(found.model.state_dict(), lambda s: text_pipeline(s).model.state_dict()),)


_OFFICIAL = ("model.pt", "autoencoder.pt", "ae.safetensors")


def _write_official(folder: Path, number: int) -> None:
    write_official(folder / "m", pipeline(number).model.vae, pipeline(number).model)


def _read_official(folder: Path) -> tuple[int | None, ...]:
    found: list[int | None] = []
    for name in _OFFICIAL:
        path = folder / "m" / name
        part = "" if name == "model.pt" else "vae."
        found.append(
            _of_tensors(read_weights(path), functools.partial(_part, part))
            if path.exists() else None
        )  # fmt: skip
    found.append(1 if (folder / "m" / "ae_config.json").exists() else None)  # of both states
    return tuple(found)


def _part(prefix: str, seed: int) -> dict[str, torch.Tensor]:
    whole = _model_state(seed)
    return {k.removeprefix(prefix): t for k, t in whole.items() if k.startswith(prefix)}


@functools.cache
def _weights(seed: int) -> dict[str, torch.Tensor]:
    return autoencoder(seed).state_dict()


def _read_tensors(folder: Path) -> tuple[int | None, ...]:
    path = folder / "w.safetensors"
    return (_of_tensors(read_weights(path), _weights) if path.exists() else None,)


def _write_checkpoint(folder: Path, number: int) -> None:
    files.remove_leftovers(folder)  # as a trainer does when it begins
    checkpoint.remove_unfinished(folder)
    checkpoint.save(folder, number + 1, state_of_run(number), keep=1)


def _write_sharded(folder: Path, number: int) -> None:
    files.remove_leftovers(folder)
    write_sharded(folder, number + 1, number)


def _read_checkpoint(folder: Path) -> tuple[int | None, ...]:
    found = checkpoint.newest(folder)
    if found is None:
        return (None,)
    states = functools.cache(lambda seed: state_of_run(seed)["module"])
    number = _of_tensors(found["module"], states)
    assert found["step"] == number + 1
    return (number,)


def _read_packed(folder: Path) -> tuple[int | None, ...]:
    if not (folder / "codes").exists():
        return (None,)
    data = PackedDataset(folder / "codes")
    found = data.take(np.arange(len(data)))[0].numpy()
    return _state((np.array_equal(found, codes(0)), np.array_equal(found, codes(1))))


def _write_captions(folder: Path, number: int) -> None:
    with CaptionedWriter(folder / "codes", channels=12, shard_size=3) as writer:
        for i, code in enumerate(codes(number, 8)):
            writer.write(f"{i}", code.reshape(2, 2, 2), [f"caption {number}"])


def _read_captions(folder: Path) -> tuple[int | None, ...]:
    if not (folder / "codes").exists():
        return (None,)
    data = CaptionedDataset(folder / "codes")
    assert len(data) == 8
    texts = {data.caption(i, 0) for i in range(8)}
    return _state((texts == {"caption 0"}, texts == {"caption 1"}))


def _write_index(folder: Path, number: int) -> None:
    CodeIndex(torch.from_numpy(codes(number, 150)).flatten(1)).save(folder / "codes.index")


def _read_index(folder: Path) -> tuple[int | None, ...]:
    if not (folder / "codes.index").exists():
        return (None,)
    found = CodeIndex.load(folder / "codes.index").codes().numpy().reshape(150, 4, 2)
    return _state((np.array_equal(found, codes(0, 150)), np.array_equal(found, codes(1, 150))))


def _pixels(number: int, count: int = 10) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def _of_pixels(found: np.ndarray, count: int = 1) -> int:
    of_0, of_1 = (np.array_equal(found, _pixels(number, count)) for number in (0, 1))
    return _state((of_0, of_1))[0]


def _write_pictures(folder: Path, number: int) -> None:
    for name in ("a.png", "b.webp", "c.bmp"):
        check_file(folder / "out" / name)  # as commands do before their work
        image = Image.fromarray(_pixels(number, 1)[0])
        if name == "b.webp":  # with losses it would be neither state
            image = Image.fromarray(np.full((4, 4, 3), 40 + 160 * number, np.uint8))
        save_image(image, folder / "out" / name)
    save_array(_pixels(number, 1), folder / "bits.npy")


def _read_pictures(folder: Path) -> tuple[int | None, ...]:
    found: list[int | None] = []
    for name in ("a.png", "b.webp", "c.bmp"):
        path = folder / "out" / name
        if not path.exists():
            found.append(None)
            continue
        pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
        if name == "b.webp":
            found.append(int(pixels.mean() > 100))
        else:
            found.append(_of_pixels(pixels[None]))
    bits = folder / "bits.npy"
    found.append(_of_pixels(np.load(bits)) if bits.exists() else None)
    return tuple(found)


def _write_samples(folder: Path, number: int) -> None:
    """The blocks and the result of ``bitdance sample``, from where a killed process ended."""
    with open_samples(folder / "s") as samples:
        if samples.result.exists():
            samples.remove_blocks()
            return
        for items in samples.missing():
            samples.write(items, _pixels(1)[items.start : items.stop])
        write_images(samples.result, samples.read(), np.arange(10), (4, 4))
        samples.remove_blocks()


def _read_npz(folder: Path) -> tuple[int | None, ...]:
    path = folder / "samples.npz"
    if not path.exists() and not (path := folder / "s" / "samples.npz").exists():
        return (None,)
    with ImageArray(path) as images:
        number = _of_pixels(images.read(0, len(images)), 10)
    found = read_arrays(path, ("arr_1",))
    assert found is not None
    (labels,) = found
    assert np.array_equal(labels, np.arange(10) + (100 if path.parent == folder else 0))
    return (number,)


def _write_npz(folder: Path, number: int) -> None:
    blocks = np.split(_pixels(number), 2)
    write_images(folder / "samples.npz", blocks, np.arange(10) + 100, (4, 4))


def _metrics(number: int) -> compare.Metrics:
    return compare.Metrics(samples=5, reference=3, features=f"state {number}", frechet=1.0)


def _text_state(path: Path) -> int | None:
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return _state(("state 0" in text, "state 1" in text))[0]


@functools.cache
def _evaluation(number: int) -> tuple[evaluate.Evaluation, Image.Image, Classifier]:
    torch.manual_seed(number)
    names = evaluate.Evaluation.__dataclass_fields__
    lists: dict[str, Any] = {
        "sample_accuracy_by_class": {"a": 0.5}, "bits_real": [0.5], "bits_samples": [0.5],
        "split": f"state {number}",
    }  # fmt: skip
    values = {name: lists.get(name, 1) for name in names}
    image = Image.fromarray(_pixels(number, 1)[0])
    return evaluate.Evaluation(**values), image, Classifier(3, dtype=torch.float32, device="cpu")


def _read_evaluation(folder: Path) -> tuple[int | None, ...]:
    found = [_text_state(folder / "e" / f"evaluation.{end}") for end in ("json", "md")]
    picture, weights = folder / "e/evaluation.png", folder / "e/classifier.safetensors"
    if picture.exists():
        found.append(_of_pixels(np.asarray(Image.open(picture).convert("RGB"))[None]))
    if weights.exists():
        state = load_classifier(weights).state_dict()
        found.append(_of_tensors(state, lambda seed: _evaluation(seed)[2].state_dict()))
    return tuple(found)


_COLUMNS, _LINES = ("lr", "loss"), 4


def _write_run(folder: Path, number: int) -> None:
    (folder / "run").mkdir(exist_ok=True)
    files.remove_leftovers(folder / "run")
    write_config(run_config(number), folder / "run" / "config.toml")
    log = Log(folder / "run" / "log.csv", _COLUMNS, 0)
    for step in range(1, _LINES + 1):
        log.add(step, {"lr": number, "loss": step})


def _read_run(folder: Path) -> tuple[int | None, ...]:
    """The configuration, and a log whose lines are all of one state, the last perhaps not whole."""
    config, log = folder / "run" / "config.toml", folder / "run" / "log.csv"
    found = [read_config(config).optim.seed if config.exists() else None]
    if log.exists():
        text = log.read_text(encoding="utf-8")
        expected = [
            "step,lr,loss\n" + "".join(f"{s},{number},{s}\n" for s in range(1, _LINES + 1))
            for number in (0, 1)
        ]
        assert any(whole.startswith(text) for whole in expected), text
        found.append(1 if expected[1].startswith(text) else 0)
    return tuple(found)


def _write_parquet(folder: Path, number: int) -> None:
    from bitdance.data.parquet import to_parquet

    to_parquet(_packed_data(number), folder / "codes.parquet", row_group_size=10)


@functools.cache
def _packed_data(number: int) -> PackedDataset:
    import tempfile

    place = Path(tempfile.mkdtemp())
    write_packed(place / "codes", number)
    data = PackedDataset(place / "codes")
    shutil.rmtree(place)  # it stays mapped
    return data


def _read_parquet(folder: Path) -> tuple[int | None, ...]:
    from bitdance.data.parquet import from_parquet

    if not (folder / "codes.parquet").exists():
        return (None,)
    with _beside(folder) as other:
        data = from_parquet(folder / "codes.parquet", other / "codes")
        found = data.take(np.arange(len(data)))[0].numpy()
    return _state((np.array_equal(found, codes(0)), np.array_equal(found, codes(1))))


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    other = folder.parent / f"{folder.name}-read"
    other.mkdir()
    try:
        yield other
    finally:
        shutil.rmtree(other)


def _save_release(folder: Path, number: int) -> None:
    text_pipeline(number).save_pretrained(folder / "m")


_FILES = "bitdance.io.files"

_WRITERS = (
    Writer(
        "folder of a model", lambda f, n: pipeline(n).save_pretrained(f / "model"), _read_model,
        sites=(
            "bitdance.models.loading.model_folder.write_folder", "bitdance.io.weights.save_tensors",
            f"{_FILES}.temporary_file", f"{_FILES}.replace_file", f"{_FILES}.write_text",
            f"{_FILES}.make_locked_folder",
        ),
    ),
    Writer(
        "text-to-image release", _save_release, _read_release, replaces=False,
        sites=(
            "bitdance.pipelines.text_to_image.BitDanceT2IPipeline",
            "bitdance.pipelines.text_to_image_files.save_release",
            "bitdance.io.staging.StagedFolder",
        ),
    ),
    Writer(
        "official files", _write_official, _read_official, replaces=False,
        clear=lambda f: shutil.rmtree(f / "m", ignore_errors=True),
        sites=(
            "bitdance.integrations.official.export.write_official",
            "bitdance.integrations.official.export._save",
        ),
    ),
    Writer(
        "weights with a sidecar", lambda f, n: write_tensors(f / "w.safetensors", _weights(n)),
        _read_tensors,
        sites=(
            "bitdance.io.weights.write_tensors", "bitdance.io.weights.publish_tensors",
            "bitdance.training.autoencoder.AutoencoderTask",
        ),
    ),
    Writer(
        "training checkpoint", _write_checkpoint, _read_checkpoint,
        sites=("bitdance.training.checkpoint.save",),
    ),
    Writer(
        "training checkpoint of several processes", _write_sharded, _read_checkpoint,
        overwrites=False,
        sites=(
            "bitdance.training.sharded_checkpoint.ShardedWriter",
            "bitdance.training.sharded_checkpoint._publish",
        ),
    ),
    Writer(
        "packed codes", lambda f, n: write_packed(f / "codes", n), _read_packed, replaces=False,
        sites=(
            "bitdance.data.packed_files.save_array", "bitdance.data.packed_files.write_index",
            "bitdance.data.shard_writer.ShardWriter",
        ),
    ),
    Writer("packed codes with captions", _write_captions, _read_captions, replaces=False),
    Writer(
        "index of codes", _write_index, _read_index,
        sites=(
            "bitdance_kernels.binary.hamming_distance._index.CodeIndex",
            "bitdance_kernels.binary.hamming_distance._index._new_file",
        ),
    ),
    Writer(
        "pictures and bits of generate", _write_pictures, _read_pictures,
        sites=(
            "bitdance.io.outputs.save_image", "bitdance.io.outputs.save_array",
            "bitdance.cli.generate.run", "bitdance.cli.generate._save_bits",
            "bitdance.cli.reconstruct.run", "bitdance.evaluation.sample_prompts._save",
            "bitdance.training.autoencoder.AutoencoderTask",
            "bitdance.training.class_conditional.ClassConditionalTask",
            "bitdance.training.text_to_image.TextToImageTask",
        ),
    ),
    Writer(
        "samples in blocks", _write_samples, _read_npz, replaces=False, resumes=True,
        sites=(
            "bitdance.evaluation.sample_folder.SampleFolder", "bitdance.io.folder_lock._lock",
            "bitdance.evaluation.sample_settings.write_settings",
            "bitdance.evaluation.sample._write", "bitdance.evaluation.sample_prompts._begin",
        ),
    ),
    Writer(
        "images as .npz", _write_npz, _read_npz,
        sites=("bitdance.io.npz.write_images", "bitdance.io.npz._member"),
    ),
    Writer(
        "metrics", lambda f, n: compare.write_metrics(_metrics(n), f / "m"),
        lambda f: tuple(_text_state(f / "m" / f"metrics.{end}") for end in ("json", "md")),
        sites=("bitdance.evaluation.compare.write_metrics",),
    ),
    Writer(
        "evaluation", lambda f, n: evaluate.write(*_evaluation(n), f / "e"), _read_evaluation,
        sites=(
            "bitdance.evaluation.evaluate.write", "bitdance.evaluation.classifier.save_classifier",
        ),
    ),
    Writer(
        "configuration and log of a run", _write_run, _read_run,
        sites=("bitdance.training.config.write_config", "bitdance.training.log.Log"),
    ),
    Writer(
        "Parquet", _write_parquet, _read_parquet,
        sites=("bitdance.data.parquet.to_parquet",), needs=("pyarrow",),
    ),
)  # fmt: skip
