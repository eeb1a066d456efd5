"""Extra terms of the autoencoder's loss that are refused."""

import dataclasses

import numpy as np
import pytest
import torch

from bitdance.training.autoencoder import AutoencoderTask
from bitdance.training.draws import Draws
from bitdance.training.losses import chroma_error
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


def test_the_chroma_term_is_that_of_the_color_differences(tmp_path):
    error = torch.randn(2, 3, 5, 4)
    # Full-range Y'CbCr of ITU-R BT.601, as JPEG has it.
    cb = -0.168736 * error[:, 0] - 0.331264 * error[:, 1] + 0.5 * error[:, 2]
    cr = 0.5 * error[:, 0] - 0.418688 * error[:, 1] - 0.081312 * error[:, 2]
    expected = 0.5 * (cb.square().mean() + cr.square().mean())
    torch.testing.assert_close(chroma_error(error), expected, rtol=1e-4, atol=0)
    assert float(chroma_error(error[:, :1].expand(2, 3, 5, 4))) < 1e-12


def test_the_chroma_term_has_its_weight(tmp_path):
    run = config(str(write_data_set(tmp_path)))
    plain, terms = _first_loss(run)
    assert "chroma" not in terms
    weighed = dataclasses.replace(run, loss=dataclasses.replace(run.loss, chroma=3.0))
    loss, with_chroma = _first_loss(weighed)
    assert with_chroma["chroma"] > 0
    torch.testing.assert_close(loss, plain + 3 * with_chroma["chroma"])
    assert AutoencoderTask(weighed).columns[:3] == ("l1", "l2", "chroma")
