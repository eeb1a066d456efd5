"""What is timed of the models: every way does the same work."""

import dataclasses
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cpu, limits, plots, products, tables, timing
from benchmarks.model import decode, paths, recipes, training
from benchmarks.model.published import Published
from bitdance.sampling.class_conditional import ClassConditionalSampler
from bitdance.training.config import parse_run
from bitdance_kernels import swiglu


def test_images_against_their_multiply_adds(tmp_path):
    model = paths.random_model(paths.TINY, torch.device("cpu"))
    rows = cpu.images("tiny", model, 2, 2, rounds=2, seconds=0.0)
    bound = [tables.BOUND] if limits.unavailable() is None else []
    assert [row["path"] for row in rows] == ["fast", "published", *bound]
    fast = rows[0]
    assert fast["gflop"] > 0
    assert set(fast["parts_ms"]) == {"trunk", "head", "decoder"}
    run = {"machine": {"device": "cpu"}, "limits": {}, "rows": [], "images": rows}
    for alone in rows[2:]:
        assert f"| {fast['ms'] / alone['ms']:.1f} |" in tables.images(run)
    plots.draw(run, tmp_path / "tiny")
    assert "published" in (tmp_path / "tiny.images.svg").read_text()
    for factor in (1, 100, 0.001):  # whichever of the two is the faster one
        fast["ms"] *= factor
        plots.draw(run, tmp_path / "tiny")
        summary = (tmp_path / "tiny.summary.svg").read_text()
        assert "published" in summary
        assert f" {tables.milliseconds(fast['ms'])}<" in summary


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_operations_of_products_are_counted(mode):
    weight = torch.randn(5, 3)
    out = torch.empty(2, 5)

    @mode()
    def work():
        x = torch.randn(2, 3)
        torch.addmm(torch.zeros(5), x, weight.t(), out=out)
        F.conv2d(torch.randn(1, 2, 4, 4), torch.randn(3, 2, 1, 1))
        swiglu(x.repeat(1, 2) @ torch.randn(6, 4)) + 1

    assert products.flops(work) == 2 * (2 * 3 * 5 + 16 * 2 * 3 + 2 * 6 * 4)


def test_the_published_sampler_gives_the_models_tokens():
    model = paths.random_model(paths.TINY, torch.device("cpu"))
    for P in (1, 4):
        config = dataclasses.replace(paths.TINY, parallel_num=P)
        model = paths.random_model(config, torch.device("cpu"))
        draw = torch.Generator().manual_seed(P)
        patch = () if P == 1 else (P,)
        noise = [
            [torch.randn(4 if i == 0 else 2, *patch, 8, generator=draw) for _ in range(4)]
            for i in range(config.ar_steps)
        ]
        labels = torch.tensor([0, 2])
        sampler = ClassConditionalSampler(model)
        expected = sampler.sample(labels, num_inference_steps=3, guidance_scale=2.0, noise=noise)
        actual = Published(model, compiled=False).sample(
            labels, num_inference_steps=3, guidance_scale=2.0, noise=noise
        )
        assert len(expected.unique()) == 2
        assert (
            actual == expected
        ).float().mean() > 0.99  # a value next to 0 may round to the other
        decoded = Published(model, compiled=False).decode(expected.to(torch.float32))
        torch.testing.assert_close(decoded, model.decode(expected.to(torch.float32)))


@pytest.mark.parametrize("runtime", ["ONNX Runtime", "OpenVINO"])
def test_every_way_to_decode_gives_the_same_pixels(runtime):
    model = paths.random_model(paths.TINY, torch.device("cpu")).vae
    comparison = decode.decoding(model, "tiny", images=2, cells=4)
    assert comparison.shape == "tiny, 2 images"
    assert comparison.flops > 0
    expected = comparison.ways["bitdance"]().int()
    found = [comparison.ways["PyTorch"]()]
    if importlib.util.find_spec(runtime.lower().replace(" ", "")):
        found.append(comparison.ways[runtime]())
    else:
        with pytest.raises(RuntimeError, match=r"^not installed$"):
            comparison.ways[runtime]()
    for pixels in found:
        assert (pixels.int() - expected).abs().max() <= 1


def test_the_start_is_split_into_parts(monkeypatch):
    program = 'import json; print("hello"); print(json.dumps([["load", 2.0, 1.0]]))'
    monkeypatch.setattr(cpu.start, "_PROGRAM", program.replace("{", "{{").replace("}", "}}"))
    (row,) = cpu.start.rows(3)
    assert (row["shape"], row["median_us"], row["wall_us"], row["rounds"]) == ("load", 1e6, 2e6, 3)


def test_training_step_is_the_same_every_way():
    """What is timed against each other computes the same loss and gradients."""
    torch.manual_seed(0)
    model = paths.random_model(paths.TINY, torch.device("cpu")).requires_grad_(True).train()
    tokens, draws = paths.random_tokens(model, 2), training.draws(model, 2)
    weights = [w for w in model.parameters() if w.requires_grad]
    results = {}
    for way in training.WAYS:
        with training.going(way, model):
            loss = model(tokens, torch.tensor([0, 1]), draws)
            results[way] = [loss, *torch.autograd.grad(loss, weights, allow_unused=True)]
    for way in ("plain", "published"):
        torch.testing.assert_close(results[way], results["fast"])


def test_training_steps_are_compared():
    model = paths.random_model(paths.TINY, torch.device("cpu")).requires_grad_(True)
    comparison = training.training(model, 2)
    assert list(comparison.ways) == ["bitdance", "PyTorch", "torch.compile"]
    losses = []
    for way in ("bitdance", "PyTorch"):
        torch.manual_seed(1)
        losses.append(comparison.ways[way]())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert comparison.flops > 0


AUTOENCODER = {
    "data": {"path": "none", "size": 16},
    "autoencoder": {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 16,
                    "num_codebooks": 2},
    "loss": {"l2": 1.0, "chroma": 1.0, "entropy": 0.5, "temperature": 0.5, "commitment": 0.1},
}  # fmt: skip
MODEL = {
    "autoencoder_path": "none", "tokenizer_path": "none",
    "data": {"path": "none", "max_tokens": 300},
    "llm": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48, "vocab_size": 40},
    "text_to_image": {"parallel_num": 4, "diff_dim": 128, "diff_layers": 2,
                      "diff_adanln_layers": 1, "diff_batch_mul": 2, "perturb_rate": 0.2},
}  # fmt: skip


def configured(values, **loss):
    optim = {"steps": 2, "batch_size": 2, "warmup": 1, "lr": 1e-3}
    return parse_run(values | {"optim": optim} | ({"loss": values["loss"] | loss} if loss else {}))


def gradients(weights, way):
    """Loss and gradients of a way."""
    for weight in weights:
        weight.grad = None
    return [torch.tensor(way()), *(w.grad for w in weights if w.grad is not None)]


@pytest.mark.parametrize("per_group", [False, True])
def test_an_autoencoders_step_is_the_same_every_way(monkeypatch, per_group):
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    tasks = []
    task_of = recipes.AutoencoderTask
    monkeypatch.setattr(
        recipes, "AutoencoderTask", lambda *a, **k: tasks.append(task_of(*a, **k)) or tasks[-1]
    )
    comparison = recipes.of_autoencoder(configured(AUTOENCODER, per_group=per_group), 3)
    assert list(comparison.ways) == ["bitdance", "PyTorch", "torch.compile"]
    weights = list(tasks[0].module.parameters())
    results = [gradients(weights, way) for way in comparison.ways.values()]
    assert len(results[0]) == len(weights) + 1
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-5)
    assert comparison.flops > 0


def test_a_text_to_image_step_is_the_same_every_way(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    models = []
    model_of = recipes.TextToImageModel
    monkeypatch.setattr(
        recipes, "TextToImageModel", lambda *a, **k: models.append(model_of(*a, **k)) or models[-1]
    )
    comparison = recipes.of_model(configured(MODEL), configured(AUTOENCODER), 300)
    with torch.no_grad():
        for parameter in models[0].parameters():  # some begin as zeros
            parameter.normal_(std=0.1)
    weights = [w for w in models[0].parameters() if w.requires_grad]
    results = [gradients(weights, way) for way in comparison.ways.values()]
    assert len(results[0]) == len(weights) + 1
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-4, atol=1e-5)
    with FlopCounterMode(display=False) as counter:
        comparison.ways["PyTorch"]()
    # Dense attention computes pairs that no token sees, and nobody needs the first gradients.
    assert comparison.flops == pytest.approx(counter.get_total_flops(), rel=0.25)


def test_the_peak_of_the_memory_is_in_the_table():
    def work():
        half = torch.ones(250, 1000, dtype=torch.float32, device="cpu") * 2  # twice a megabyte
        return half.sum()

    assert timing.peak_bytes(work) == pytest.approx(2e6, rel=0.01)
    result = cpu.new_result()
    way = recipes.Comparison("training step", "small", {"bitdance": work, "x": work}, memory=True)
    cpu.compare(result, way, 0.0)
    text = tables.models(result)
    assert "| MB at the peak | times as fast as |" in text
    assert "| 2; x: 2 |" in text


def test_the_emoji_recipe_is_compared(monkeypatch):
    """With its own sizes; the rest is as at small ones."""
    monkeypatch.setattr(recipes, "of_autoencoder", lambda run, batch: (run.data.size, batch))
    monkeypatch.setattr(recipes, "of_model", lambda run, _, tokens: (run.llm.hidden_size, tokens))
    assert list(recipes.comparisons()) == [(64, 64), (256, 2560)]
