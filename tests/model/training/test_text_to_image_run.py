"""Training of the text-to-image model, in one process and in two."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bitdance.data.captioned_dataset import CaptionedDataset
from bitdance.data.captioned_writer import CaptionedWriter
from bitdance.data.packed_files import PackedDatasetError
from bitdance.distributed import World
from bitdance.io.files import CheckpointError
from bitdance.io.weights import write_tensors
from bitdance.models.token_order import generation_order
from bitdance.pipelines.prompts import PROMPT
from bitdance.pipelines.text_to_image import BitDanceT2IPipeline
from bitdance.training.config import read_config, run_to_dict
from bitdance.training.text_to_image import TextToImageTask
from bitdance.training.trainer import Trainer
from tests.model.helpers.processes import run_processes
from tests.model.helpers.text_to_image_run import (
    LLM,
    run_config,
    train,
    write_autoencoder,
    write_codes,
)
from tests.model.helpers.words import VOCABULARY, Letters


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_autoencoder(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def data(folder):
    return write_codes(folder / "data", 13)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load(folder):
    pipeline = BitDanceT2IPipeline.from_pretrained(folder, tokenizer=Letters())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_four_captions_are_learnt_by_heart(folder, tmp_path):
    """Every bit of their images is generated, without guidance."""
    path = write_codes(tmp_path / "four", 4, captions=1)
    source = {"path": str(path), "max_tokens": 400, "text_dropout": 0.0}
    config = run_config(
        folder, path, steps=150, batch_size=1, lr=3e-3, ema_decay=0.99, weight_decay=0.0,
        save_every=1000, log_every=100, sample_every=1000,
        shape={"diff_dim": 64, "diff_batch_mul": 4}, settings={"data": source},
    )  # fmt: skip
    train(config, tmp_path / "run")
    pipeline, codes = load(tmp_path / "run" / "model"), CaptionedDataset(path)
    for i in range(4):
        height, width = (int(side) for side in codes.grids[i])
        found = pipeline(
            codes.captions(i), height=2 * height, width=2 * width, guidance_scale=1.0,
            num_inference_steps=10, output_type="latent",
        ).images  # fmt: skip
        order = generation_order((height, width), 4, "patch").numpy()
        assert np.array_equal(found[0].numpy(), codes.codes(i)[order])


def test_a_resumed_run_equals_an_uninterrupted_one(folder, data, tmp_path):
    config = run_config(folder, data, sample_every=6)
    whole, values = train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_at=3)
    parts, later = train(config, tmp_path / "parts")
    assert np.array_equal(values[3:], later)
    for ours, theirs in zip(whole._average.values(), parts._average.values(), strict=True):
        assert torch.equal(ours, theirs)
    assert (tmp_path / "parts" / "samples-00000006.png").exists()
    header, *lines = (tmp_path / "parts" / "log.csv").read_text().splitlines()
    assert header == "step,lr,grad_norm,loss,text,vision,packs_per_s"
    assert [float(line.split(",")[1]) for line in lines] == [5e-4, *[1e-3] * 5]
    tensors = load_file(tmp_path / "parts" / "model" / "model.safetensors")
    name = "model.embed_tokens.weight"
    assert torch.equal(tensors[name], parts._average[f"llm_model.{name}"])
    saved = read_config(tmp_path / "parts" / "config.toml")
    assert run_to_dict(saved) == run_to_dict(config)
    with pytest.raises(ValueError, match="another configuration: text_to_image"):
        train(run_config(folder, data, shape={"text_weight": 0.5}), tmp_path / "parts")


def test_numbers_of_a_document_do_not_depend_on_its_pack(folder, data):
    task = TextToImageTask(run_config(folder, data), tokenizer=Letters())
    images = np.array([7, 2, 6, 5])
    of_pack, step = task._draws(images, 3), 3
    patches = (task._data.grids[images].prod(1) // 4).tolist()
    start = 0
    for image, count in zip(images, patches, strict=True):
        alone = task._draws(np.array([image]), step)
        rows = slice(start, start + count)
        assert torch.equal(alone.time, of_pack.time[rows])
        assert torch.equal(alone.noise, of_pack.noise[rows])
        bits = slice(4 * rows.start, 4 * rows.stop)
        assert torch.equal(alone.flips[1], of_pack.flips[1][bits])
        start += count
    assert not torch.equal(task._draws(images, 4).time, of_pack.time)


def test_captions_and_dropout_are_drawn(folder, data):
    task = TextToImageTask(run_config(folder, data), tokenizer=Letters())
    found, letters = {image: [] for image in range(13)}, Letters()
    dropped, drops = letters.encode("<|im_start|>assistant\n"), []
    for step in range(20):
        for pack, images in task.load(np.arange(task.size), step):
            assert len(pack.token_ids) <= 150
            assert len(pack.grids) == len(images)
            starts = np.flatnonzero(pack.position_ids.numpy() == 0).tolist()
            for image, start in zip(images.tolist(), starts, strict=True):
                ids = pack.token_ids[start:].tolist()
                drops.append(ids[: len(dropped)] == dropped)
                prompts = [PROMPT.format(text) for text in task._data.captions(image)]
                texts = [letters.encode(prompt) for prompt in prompts]
                found[image] += [i for i, text in enumerate(texts) if ids[: len(text)] == text]
    assert all(set(numbers) == {0, 1} for numbers in found.values())
    assert 0.1 < np.mean(drops) < 0.3  # of 260


def test_without_a_weight_words_are_not_trained(folder, data, tmp_path):
    llm = {"llm": {**LLM, "tie_word_embeddings": False}}
    config = run_config(folder, data, shape={"text_weight": 0.0}, settings=llm)
    trainer, values = train(config, tmp_path / "run")
    task = TextToImageTask(config, tokenizer=Letters())
    own = task.module.llm_model.lm_head.weight
    assert torch.equal(own, trainer.task.module.llm_model.lm_head.weight)
    assert (values[:, 2] == 0).all()


def test_a_language_model_alone_is_a_start(folder, data, tmp_path):
    """Tokens that it does not know, and all but the language model, are drawn."""
    first, _ = train(run_config(folder, data), tmp_path / "first")
    for name in ("vision_head_config.json", "vision_head.safetensors"):
        (tmp_path / "first" / "model" / name).unlink()
    config = json.loads((tmp_path / "first/model/config.json").read_text())
    state = load_file(tmp_path / "first/model/model.safetensors")
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][:-6].clone()
    write_tensors(tmp_path / "first/model/model.safetensors", state)
    config["vocab_size"] -= 6
    (tmp_path / "first/model/config.json").write_text(json.dumps(config))
    init = {"init": str(tmp_path / "first/model")}
    run = run_config(folder, data, llm=False, settings=init)
    task = TextToImageTask(run, tokenizer=Letters())
    assert task.module.config.llm.vocab_size == VOCABULARY
    drawn = task.module.llm_model.model.embed_tokens.weight[-6:].clone()
    Trainer(task, run, tmp_path / "second", progress=False)
    module, average = task.module, first._average
    embedding = module.llm_model.model.embed_tokens.weight
    assert torch.equal(embedding[:-6], average["llm_model.model.embed_tokens.weight"][:-6])
    assert torch.equal(embedding[-6:], drawn)
    assert torch.equal(module.llm_model.model.norm.weight, average["llm_model.model.norm.weight"])


@pytest.mark.parametrize("inside", ["", "model"])
def test_a_run_and_what_it_exported_are_a_start(folder, data, tmp_path, inside):
    first, _ = train(run_config(folder, data), tmp_path / "first")
    init = {"init": str(tmp_path / "first" / inside)}
    second, _ = train(run_config(folder, data, steps=3, llm=False, lr=1e-12, warmup=0,
                                 settings=init), tmp_path / "second")  # fmt: skip
    for name, value in first._average.items():
        torch.testing.assert_close(second._average[name], value, rtol=0, atol=1e-10)


def test_what_does_not_fit_is_refused(folder, data, tmp_path):
    def task(settings=None, shape=None, source=data, **changes):
        config = run_config(folder, source, settings=settings, shape=shape)
        return TextToImageTask(config, tokenizer=changes.get("tokenizer", Letters()))

    small = {"data": {"path": str(data), "max_tokens": 60}}
    with pytest.raises(ValueError, match=r"data.max_tokens must be at least \d+, the tokens of"):
        task(small)
    with pytest.raises(ValueError, match=f"llm.vocab_size must be at least {VOCABULARY}"):
        task({"llm": {**LLM, "vocab_size": 90}})
    with pytest.raises(ValueError, match="patch_tokens must be a square whose root divides"):
        task(shape={"parallel_num": 16})
    other = tmp_path / "other"
    with CaptionedWriter(other, channels=16) as writer:
        writer.write("a", np.zeros((2, 2, 2), np.uint8), ["a"])
    with pytest.raises(ValueError, match="must hold codes of 8 bits, as the autoencoder"):
        task(source=other)
    with CaptionedWriter(tmp_path / "marks", channels=8) as writer:
        writer.write("name", np.zeros((2, 2, 1), np.uint8), ["a", "b<|im_end|>"])
    with pytest.raises(ValueError, match="image 'name': caption must not have special tokens"):
        task(source=tmp_path / "marks")
    with CaptionedWriter(tmp_path / "big", channels=8) as writer:
        writer.write("name", np.zeros((8, 2, 1), np.uint8), ["a"])
    with pytest.raises(ValueError, match=r"tokenizer must have <\|res_8\|> for images of 8 x 2"):
        task(source=tmp_path / "big")
    damaged = tmp_path / "damaged"
    shutil.copytree(data, damaged)
    shard = next(damaged.glob("codes-*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(PackedDatasetError, match=rf"{shard.name} is (altered|damaged)"):
        task(source=damaged)
    with pytest.raises(CheckpointError, match="tokenizer"):
        TextToImageTask(run_config(folder, data))
    for broken, message in (
        ({"llm": LLM, "tokenizer_path": ""}, "tokenizer_path must be given where init is not"),
        ({"model": {}}, r"one section of \[autoencoder\], \[model\] and \[text_to_image\]"),
    ):
        with pytest.raises(ValueError, match=message):
            run_config(folder, data, settings=broken)
    for shape, message in (
        ({"parallel_num": 6}, "parallel_num must be a square number"),
        ({"text_weight": 0, "vision_weight": 0}, "vision_weight must be over 0"),
        ({"time_schedule": "uniform", "P_std": 1.0}, "P_std must be left out"),
    ):
        with pytest.raises(ValueError, match=message):
            run_config(folder, data, shape=shape)


def _train_in_world(rank, config, path):
    torch.set_num_threads(1)
    with World.from_env() as world:
        return train(config, path, world)[1]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one(folder, data, tmp_path, strategy):
    shape = {"diff_batch_mul": 2, "perturb_rate": 0.3}
    _, alone = train(run_config(folder, data, shape=shape), tmp_path / "one")
    config = run_config(
        folder, data, shape=shape,
        parallel={"strategy": strategy, "activation_checkpointing": strategy == "fsdp"},
    )  # fmt: skip
    ours, theirs = run_processes(_train_in_world, config, tmp_path / "two")
    np.testing.assert_array_equal(ours[:, 1:], theirs[:, 1:])
    np.testing.assert_allclose(ours, alone, rtol=1e-6)
    one, two = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")
    )
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6)


def _begin_in_world(rank, config, path):
    torch.set_num_threads(1)
    with World.from_env() as world:
        train(config, path, world, stop_at=3)


@pytest.mark.slow
def test_one_process_continues_what_two_began(folder, data, tmp_path):
    _, alone = train(run_config(folder, data), tmp_path / "one")
    config = run_config(folder, data, parallel={"strategy": "fsdp"})
    run_processes(_begin_in_world, config, tmp_path / "two")
    _, later = train(run_config(folder, data), tmp_path / "two")
    np.testing.assert_allclose(later, alone[3:], rtol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_parts_of_a_batch_and_checkpointing_change_nothing(folder, data, tmp_path, accumulate):
    _, plain = train(run_config(folder, data, steps=3), tmp_path / "plain")
    config = run_config(
        folder, data, steps=3, accumulate=accumulate, parallel={"activation_checkpointing": True}
    )
    _, values = train(config, tmp_path / "other")
    np.testing.assert_allclose(values, plain, rtol=1e-6)
