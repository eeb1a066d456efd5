"""Training on two processes: the same numbers as on one."""

import pytest
import torch

from bitdance.distributed import World
from bitdance.training import checkpoint
from bitdance.training.autoencoder import AutoencoderTask
from bitdance.training.class_conditional import ClassConditionalTask
from bitdance.training.config import AutoencoderRun, parse_run
from bitdance.training.log import Log
from bitdance.training.trainer import Trainer
from tests.model.helpers.processes import run_processes
from tests.model.helpers.tiny_images import CLASSES, write_data_set

STEPS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("idx"))


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def autoencoder_run(data, parallel=None, **optim):
    optim = {"steps": STEPS, "batch_size": 8, "warmup": 2, "log_every": 1, "save_every": 4,
             "sample_every": 100, **optim}  # fmt: skip
    return parse_run({
        "data": {"path": str(data), "size": 8, "classes": CLASSES, "shift": 1, "flip": True},
        "autoencoder": {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": 8,
                        "num_codebooks": 2, "gan_decoder": True},
        "optim": optim, "parallel": parallel or {},
    })  # fmt: skip


def model_run(data, autoencoder, parallel=None, **optim):
    optim = {"steps": STEPS, "batch_size": 8, "warmup": 2, "log_every": 1, "save_every": 4,
             "sample_every": 100, **optim}  # fmt: skip
    return parse_run({
        "autoencoder_path": str(autoencoder), "num_inference_steps": 2,
        "data": {"path": str(data), "size": 8, "classes": CLASSES},
        "model": {"dim": 32, "n_layer": 2, "n_head": 2, "diff_layers": 2, "diff_dim": 32,
                  "diff_adanln_layers": 1, "parallel_num": 4, "num_classes": 3,
                  "cls_token_num": 2, "perturb_rate": 0.1, "class_dropout_prob": 0.2},
        "optim": optim, "parallel": parallel or {},
    })  # fmt: skip


class Recorded(Trainer):
    """A trainer that keeps the norm of the gradient, the loss and its terms of every step."""

    def _one_step(self, batches):
        values = super()._one_step(batches)
        self.values = [*getattr(self, "values", ()), values]
        return values


def train(config, folder, world=None, stop_at=None):
    """The values of each step [steps, 2 + terms]."""
    Log.plot = lambda *_: None  # it takes a second
    kind = AutoencoderTask if isinstance(config, AutoencoderRun) else ClassConditionalTask
    trainer = Recorded(kind(config), config, folder, world=world, progress=False)
    trainer.run(stop_at)
    return torch.stack(trainer.values)


def _train(rank, *runs):
    with World.from_env() as world:
        return [train(config, folder, world, *stop_at) for config, folder, *stop_at in runs]


def averages(folder):
    return checkpoint.newest(folder)["average"]


@pytest.fixture(scope="module")
def single(data, tmp_path_factory):
    """One process: an autoencoder and a model, and the values of their steps."""
    folder = tmp_path_factory.mktemp("single")
    autoencoder = train(autoencoder_run(data), folder / "autoencoder")
    model = train(model_run(data, folder / "autoencoder"), folder / "model")
    return folder, autoencoder, model


def test_two_processes_have_the_losses_of_one(data, single, tmp_path):
    """Also in parts, and with blocks that are computed again."""
    folder, autoencoder, model = single
    again = {"activation_checkpointing": True}
    runs = {
        "autoencoder": (autoencoder_run(data), autoencoder),
        "model": (model_run(data, folder / "autoencoder"), model),
        "parts": (model_run(data, folder / "autoencoder", accumulate=2), model),
        "again": (model_run(data, folder / "autoencoder", again), model),
    }
    first, second = run_processes(
        _train, *((config, tmp_path / name) for name, (config, _) in runs.items())
    )
    for (name, (_, known)), found, other in zip(runs.items(), first, second, strict=True):
        assert torch.equal(found, other)  # both know the values of all
        assert len(found) == STEPS
        worst = ((found - known).abs() / known.abs()).max(0).values
        print(name, worst)
        assert float(worst.max()) < 1e-6, name
