"""Extra terms of the autoencoder's loss that are refused."""

import dataclasses

import numpy as np
import pytest

from bitdance.training.autoencoder import AutoencoderTask
from bitdance.training.draws import Draws
from tests.model.helpers.tiny_images import write_data_set
from tests.model.training.test_runs import config


def not_scalar(x, y):
    return x


def no_tensor(x, y):
    return 1.0


def raises(x, y):
    return {}["key"]


CONSTANT = 3


class Broken:
    def __init__(self):
        raise ZeroDivisionError("for the test")


HERE = "tests.model.training.test_extra_losses"


def _first_loss(run):
    task = AutoencoderTask(run)
    return task.loss(task.load(np.arange(2), 0), Draws(0, 0, [0, 1]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "is not module:function: ModuleNotFoundError"),
        (f"{HERE}:nothing", "is not module:function: AttributeError"),
        (f"{HERE}:CONSTANT", "must be a function or a class, got 3"),
        (f"{HERE}:Broken", "ZeroDivisionError: for the test"),
        ("os:getcwd", "must accept images and reconstructions: too many positional arguments"),
        (f"{HERE}:raises", "raises KeyError: 'key'"),
        (f"{HERE}:not_scalar", r"must return a scalar tensor, got tensor\("),
        (f"{HERE}:no_tensor", "must return a scalar tensor, got 1.0"),
    ],
)
def test_invalid_extra_losses_are_refused(tmp_path, name, message):
    run = config(str(write_data_set(tmp_path)))
    run = dataclasses.replace(run, loss=dataclasses.replace(run.loss, extra={name: 1.0}))
    with pytest.raises(ValueError, match=rf"^loss\.extra: '{name}' .*{message}"):
        _first_loss(run)
