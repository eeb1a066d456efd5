"""What is timed of the models: every way does the same work."""

import dataclasses
import importlib.util

import pytest
import torch
import torch.nn.functional as F

from benchmarks import cpu, limits, plots, products, tables
from benchmarks.model import decode, paths, training
from benchmarks.model.published import Published
from bitdance.sampling.class_conditional import ClassConditionalSampler
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
