"""The model that comes with the library."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance import BitDancePipeline
from bitdance.cli.main import main
from bitdance.evaluation.compare import Metrics
from bitdance.evaluation.evaluate import Evaluation
from bitdance.io.json_files import read_json
from bitdance.models.loading.hub import locate
from bitdance_kernels.testing import cpu_isas

ROOT = Path(__file__).parent.parent.parent.parent
FOLDER = ROOT / "bitdance_models/fashion"


@pytest.fixture(scope="module")
def pipeline():
    return BitDancePipeline.from_pretrained("fashion")


def test_it_is_small_and_complete(pipeline):
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 12e6
    assert len(pipeline.classes) == 10
    assert pipeline.label("ankle boot") == 9
    assert pipeline.num_inference_steps == 20


def test_it_is_in_a_package_of_its_own():
    assert locate("fashion") == FOLDER


def test_without_its_package_the_error_names_the_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = "'fashion' is a model of the package bitdance_models, .*: pip install bitdance-models"
    with pytest.raises(FileNotFoundError, match=message):
        locate("fashion")


def test_its_pictures_are_of_their_kind(pipeline):
    """Without the data no classifier can judge them; but trousers are narrow and bags are wide."""
    pixels = pipeline(["trouser"] * 8 + ["bag"] * 8, output_type="uint8").images
    pixels = pixels.permute(0, 2, 3, 1).numpy()
    bright = (pixels.mean(-1) > 64).mean(axis=1)  # [16, 32]: share of bright pixels in each column
    trousers, bags = ((bright[part] > 0.1).sum(-1) for part in (slice(8), slice(8, 16)))
    assert np.median(trousers) < 20 < np.median(bags)
    assert pixels.std(axis=0).mean() > 10  # not the same picture again and again


def test_one_command_makes_sixteen_pictures(tmp_path, capsys):
    begin = time.process_time()
    arguments = ["--class", "sneaker", "--num-images", "16", "--seed", "0", "--quiet"]
    assert main(["generate", *arguments, "--out", str(tmp_path / "x.png")]) == 0
    assert Image.open(tmp_path / "x.png").size == (4 * 32 + 6, 4 * 32 + 6)
    # 4 seconds of a core's time, which others on the machine do not add to as they do to the clock.
    assert time.process_time() - begin < 30


def test_every_class_at_once(tmp_path, capsys):
    arguments = [
        "--class",
        "all",
        "--num-images",
        "2",
        "--num-inference-steps",
        "2",
        "--quiet",
        "--zoom",
        "2",
    ]
    assert main(["generate", *arguments, "--out", str(tmp_path / "x.png")]) == 0
    assert Image.open(tmp_path / "x.png").size == (2 * 64 + 2, 10 * 64 + 18)


def test_it_is_what_the_recipe_makes(pipeline):
    """Weights are the run's, rounded to half precision; its configuration is the recipe's."""
    from bitdance.training.config import read_config

    recipe = read_config(ROOT / "recipes/fashion/model.toml")
    assert recipe.model_config(pipeline.config.autoencoder) == pipeline.config
    autoencoder = read_config(ROOT / "recipes/fashion/autoencoder.toml").autoencoder
    assert autoencoder == pipeline.config.autoencoder
    last = (ROOT / "recipes/fashion/model-log.csv").read_text().splitlines()[-1]
    assert int(last.split(",")[0]) == recipe.optim.steps
    assert all(torch.equal(p, p.half().float()) for p in pipeline.model.state_dict().values())


def test_the_documents_have_the_evaluation():
    values = read_json(ROOT / "recipes/fashion/evaluation.json")
    found = Evaluation(**values)
    assert found.table() == (ROOT / "recipes/fashion/evaluation.md").read_text()
    assert found.table() in (ROOT / "docs/training.md").read_text()
    assert found.psnr_db >= 23
    assert found.classifier_accuracy >= 0.91
    assert found.sample_accuracy >= 0.85
    real, made = np.array(found.bits_real), np.array(found.bits_samples)
    assert np.abs(real - made).max() <= 0.02
    # docs/training.md says why two channels of the autoencoder are constant.
    assert sorted(np.minimum(real, 1 - real))[2] >= 0.05


def test_the_documents_have_the_metrics():
    """Of the samples of the evaluation, whose distance they find again."""
    found = Metrics(**read_json(ROOT / "recipes/fashion/metrics.json"))
    assert found.table() == (ROOT / "recipes/fashion/metrics.md").read_text()
    assert found.table() in (ROOT / "docs/metrics.md").read_text()
    assert f"| fashion | 4 | 5.5 M | {found.frechet:.1f} " in (ROOT / "README.md").read_text()
    evaluation = Evaluation(**read_json(ROOT / "recipes/fashion/evaluation.json"))
    assert found.samples == evaluation.samples
    assert found.frechet == pytest.approx(evaluation.frechet, rel=1e-6)


def test_loading_and_generating_import_no_compiler_and_draw_no_random_numbers():
    """PyTorch's compiler and what it brings take seconds to import; steps are captured here too."""
    heavy = ("sympy", "torch._dynamo", "torch._inductor", "torch.onnx", "triton", "matplotlib")
    code = f"""
import sys, torch
from bitdance import BitDancePipeline
before, state = set(sys.modules), torch.get_rng_state()
pipeline = BitDancePipeline.from_pretrained("fashion")
print(sorted(set({heavy}) & set(sys.modules) - before))
for _ in range(4):
    pipeline([0, 1], num_inference_steps=2)
print(sorted(set({heavy}) & set(sys.modules) - before))
if {bool(cpu_isas())}:
    (workspace,) = pipeline.sampler.workspaces.idle
    (run,) = workspace.runs.values()
    assert any(kind.captured for kind in run._run_next._kinds.values())
print(torch.equal(state, torch.get_rng_state()), len(set(sys.modules) - before) < 150)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.splitlines() == ["[]", "[]", "True True"], done.stderr
