"""The discriminator of autoencoder training: its losses, its optimizer, its checkpoints."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from bitdance.training import checkpoint
from bitdance.training.adversarial import Adversary, Discriminator
from bitdance.training.autoencoder import AutoencoderTask
from bitdance.training.config import AdversarialConfig, parse_run, run_to_dict
from bitdance.training.log import Log
from bitdance.training.trainer import Trainer
from tests.model.helpers.processes import run_processes
from tests.model.helpers.tiny_images import write_data_set
from tests.model.training.test_processes import (
    _assert_equal_bits,
    _state,
    _train,
    autoencoder_run,
    relative,
    train,
)

pytestmark = pytest.mark.slow

SETTINGS = {"weight": 0.5, "start": 2, "channels": 8, "layers": 1, "lr": 1e-3, "warmup": 2}


class Contrast(torch.nn.Module):
    """A perceptual loss of the user's own, with weights that are not trained."""

    def __init__(self):
        super().__init__()
        self.features = torch.nn.Conv2d(3, 4, 3)
        with torch.no_grad():
            self.features.weight.copy_(torch.linspace(-1, 1, 108).view(4, 3, 3, 3))
        self.requires_grad_(False)

    def forward(self, x, y):
        return (self.features(x) - self.features(y.float())).square().mean()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("idx"))


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setattr(Log, "plot", lambda *_: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(data, **changes):
    content = run_to_dict(autoencoder_run(data))
    content["adversarial"] = {**SETTINGS, **changes}
    content["loss"]["extra"] = {f"{__name__}:Contrast": 0.5}
    return parse_run(content)


def test_logits_are_of_patches_and_of_one_image():
    for layers, side in ((1, 31), (2, 14), (3, 6)):
        config = AdversarialConfig(weight=1.0, channels=8, layers=layers)
        network = Discriminator(config, dtype=torch.float64)
        images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
        logits = network(images)
        assert logits.shape == (3, 1, side - 1 if layers == 1 else side, logits.shape[3])
        assert torch.allclose(network(images[1:2]), logits[1:2], rtol=1e-10, atol=1e-12)


def adversary(data, **changes):
    torch.manual_seed(0)
    last = torch.nn.Parameter(torch.randn(3, 3, 1, 1))
    return Adversary(run(data, **changes), last, torch.device("cpu")), last


def test_the_term_has_as_large_a_gradient_as_the_reconstruction(data):
    made, last = adversary(data, weight=1.0)
    x, h = torch.randn(2, 4, 3, 8, 8)
    y = F.conv2d(h, last)
    reconstruction = 7 * (x - y).square().mean()
    term, values = made.loss(2, x, y, reconstruction)
    assert made.network.layers[0].weight.requires_grad
    (wanted,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (found,) = torch.autograd.grad(term, last)
    assert float(found.norm()) == pytest.approx(float(wanted.norm()), rel=0.02)
    logits = made.network(torch.cat([x, y.detach()])).chunk(2)
    own = 0.5 * (F.relu(1 - logits[0]).mean() + F.relu(1 + logits[1]).mean())
    assert float(values["discriminator"]) == pytest.approx(own.item(), rel=1e-5)
    assert float(values["adversarial"]) == pytest.approx(-logits[1].mean().item(), rel=1e-4)
    term, values = made.loss(1, x, y, reconstruction)  # before its first step
    assert float(term) == 0
    assert all(float(value) == 0 for value in values.values())


def test_the_discriminator_learns_and_only_by_its_own_loss(data):
    made, last = adversary(data, warmup=0, start=0)
    images = torch.arange(8).remainder(2).float().expand(4, 3, 8, 8)
    losses = []
    for step in range(30):
        y = F.conv2d(torch.randn(4, 3, 8, 8), last)
        term, values = made.loss(step, images, y, y.square().mean())
        before = [p.grad.clone() for p in made.network.parameters()]
        term.backward()
        assert all(map(torch.equal, before, (p.grad for p in made.network.parameters())))
        made.step(step)
        assert all(p.grad is None for p in made.network.parameters())
        losses.append(float(values["discriminator"]))
    assert losses[-1] < 0.5 * losses[0]
    made.network.layers[0].weight.grad = torch.full_like(
        made.network.layers[0].weight, float("nan")
    )
    with pytest.raises(RuntimeError, match="step 31: the discriminator's gradient is not finite"):
        made.step(30)


def test_two_processes_resume_with_their_discriminator(data, tmp_path):
    config = run(data)
    known = train(config, tmp_path / "alone", stop_at=4)
    assert "adaptive_weight" in (tmp_path / "alone" / "log.csv").read_text().splitlines()[0]
    runs = [(config, tmp_path / "whole", 4), (config, tmp_path / "parts", 3)]
    (whole, begun), _ = run_processes(_train, *runs)
    (rest,), _ = run_processes(_train, (config, tmp_path / "parts", 4))
    assert relative(whole[:, :2], known[:, :2]) < 1e-6
    assert (begun == whole[:3]).all()
    assert (rest == whole[3:]).all()
    _assert_equal_bits(_state(tmp_path / "parts"), _state(tmp_path / "whole"))
    own = checkpoint.newest(tmp_path / "whole")["extra"]
    assert own["adversary"]["optimizer"]["state"][0]["step"] == 2
    alone = checkpoint.newest(tmp_path / "alone")["extra"]["adversary"]["network"]
    for name, value in own["adversary"]["network"].items():
        assert (value - alone[name]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": 0.0, "start": 5}, "adversarial.start must be left out .*no discriminator"),
        ({"weight": 1.0, "layers": 2}, "adversarial.layers must be fewer for data.size = 8, got 2"),
        ({"weight": -1.0}, "adversarial.weight must be at least 0"),
        ({"weight": 1.0, "lr": 0.0}, "adversarial.lr must be greater than 0"),
    ],
)
def test_settings_that_do_not_fit(data, changes, message):
    content = run_to_dict(autoencoder_run(data))
    with pytest.raises(ValueError, match=message):
        parse_run({**content, "adversarial": changes})


def test_divided_weights_have_no_adversary(data):
    content = {**run_to_dict(autoencoder_run(data)), "adversarial": {"weight": 1.0, "layers": 1}}
    with pytest.raises(ValueError, match=r"strategy must be 'ddp' with an adversarial term, got"):
        parse_run({**content, "parallel": {"strategy": "fsdp"}})


def test_parts_of_a_batch_add_up(data, tmp_path):
    """Two parts give the discriminator the gradient of the whole."""
    found = []
    for accumulate in (1, 2):
        config = run(data, start=0, adaptive=False)
        optim = dataclasses.replace(config.optim, accumulate=accumulate)
        config = dataclasses.replace(
            config, optim=optim, loss=dataclasses.replace(config.loss, entropy=0.0)
        )
        task = AutoencoderTask(config)
        task.module.double()
        Trainer(task, config, tmp_path / str(accumulate), progress=False).run(1)
        state = checkpoint.newest(tmp_path / str(accumulate))["extra"]["adversary"]
        found.append(state["optimizer"]["state"][0]["exp_avg"])
    torch.testing.assert_close(*found)
