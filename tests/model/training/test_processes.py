"""Training on two processes: the same numbers as on one."""

import numpy as np
import pytest
import torch

from bitdance.distributed import World
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance.training import checkpoint
from bitdance.training.autoencoder import AutoencoderTask
from bitdance.training.class_conditional import ClassConditionalTask
from bitdance.training.config import AutoencoderRun, parse_run
from bitdance.training.log import Log
from tests.model.helpers.processes import run_processes
from tests.model.helpers.recorded import Recorded
from tests.model.helpers.tiny_images import CLASSES, write_data_set

pytestmark = pytest.mark.slow

STEPS = 6


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


def train(config, folder, world=None, stop_at=None):
    """The values of each step [steps, 2 + terms]."""
    Log.plot = lambda *_: None  # it takes a second
    kind = AutoencoderTask if isinstance(config, AutoencoderRun) else ClassConditionalTask
    task = kind(config)
    if kind is AutoencoderTask:  # a sign that rounding flips would change all that follows
        task.module.double()
    trainer = Recorded(task, config, folder, world=world, progress=False)
    trainer.run(stop_at)
    return torch.stack(trainer.values).numpy()


def relative(found, known):
    return (np.abs(found - known) / np.abs(known)).max()


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
        assert np.array_equal(found, other)  # both know the values of all
        assert len(found) == STEPS
        assert relative(found, known) < 1e-6, name


def _state(folder):
    """Everything that a checkpoint holds but its configuration, by name."""
    found = dict(_flat(checkpoint.newest(folder)))
    return {name: value for name, value in found.items() if not name.startswith("config.")}


def _flat(content, prefix=""):
    pairs = enumerate(content) if isinstance(content, list) else content.items()
    for key, value in pairs:
        if isinstance(value, (dict, list)):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _assert_equal_bits(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        assert same, name


STRATEGIES = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp", "activation_checkpointing": True},
    "hybrid": {"strategy": "hybrid"},
}


@pytest.mark.nightly
def test_divided_weights_resume_with_any_strategy_on_any_number_of_processes(
    data, single, tmp_path
):
    folder, _, known = single
    runs = {
        name: model_run(data, folder / "autoencoder", parallel)
        for name, parallel in STRATEGIES.items()
    }
    half = {"strategy": "fsdp", "mixed_precision": "bfloat16"}
    runs["half"] = model_run(data, folder / "autoencoder", half)
    work = [("fsdp", "stopped", 3), ("fsdp", "stopped"), ("fsdp", "fsdp"), ("fsdp", "mixed", 2),
            ("ddp", "alone", 2), ("half", "half", 2)]  # fmt: skip
    values, _ = run_processes(
        _train, *((runs[run], tmp_path / name, *stop) for run, name, *stop in work)
    )
    assert relative(values[2], known) < 1e-6  # that of ddp is another test's
    rounded = relative(values[-1][:, 0], known[:2, 0])  # the gradient's norm
    assert 1e-6 < rounded < 0.02
    assert np.array_equal(np.concatenate(values[:2]), values[2])
    _assert_equal_bits(_state(tmp_path / "stopped"), _state(tmp_path / "fsdp"))
    # Two processes, then one, then two, in all pairs of strategies.
    train(runs["fsdp"], tmp_path / "mixed", stop_at=4)
    assert (tmp_path / "mixed" / "checkpoint-00000004.pt").is_file()
    train(runs["ddp"], tmp_path / "alone")
    (last,), _ = run_processes(_train, (runs["hybrid"], tmp_path / "mixed"))
    assert relative(last, known[4:]) < 1e-6
    state = checkpoint.newest(single[0] / "model")
    for name in ("mixed", "alone", "fsdp"):
        for key, value in averages(tmp_path / name).items():
            assert (value - state["average"][key]).abs().max() < 1e-5
        assert (tmp_path / name / "samples-00000006.png").is_file()
        assert len(list(tmp_path.joinpath(name).glob("checkpoint-*"))) == 2
        assert len((tmp_path / name / "log.csv").read_text().splitlines()) == 1 + STEPS
    exported = BitDancePipeline.from_pretrained(tmp_path / "fsdp" / "model").model.state_dict()
    assert all(torch.equal(exported[k], value) for k, value in averages(tmp_path / "fsdp").items())


def test_compiled_blocks_are_the_same_function(data, single, tmp_path):
    """Without the compiler, which takes a minute."""
    folder, _, known = single
    config = model_run(data, folder / "autoencoder", {"compile": True})
    task = ClassConditionalTask(config)
    trainer = Recorded(task, config, tmp_path, progress=False)
    assert all(block._compiled_call_impl is not None for block in task.blocks)
    with torch.compiler.set_stance("force_eager"):
        trainer.run(1)
    assert np.array_equal(trainer.values[0].numpy(), known[0])


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"strategy": "zero"}, "parallel.strategy must be 'ddp', 'fsdp' or 'hybrid', got 'zero'"),
        ({"mixed_precision": "bfloat16"}, "mixed_precision must be 'off' with strategy 'ddp'"),
        ({"compile": 1}, "parallel.compile must be true or false"),
        ({"shards": 2}, "unknown key parallel.shards"),
    ],
)
def test_settings_of_processes_that_do_not_fit(data, parallel, message):
    with pytest.raises(ValueError, match=message):
        autoencoder_run(data, parallel)
