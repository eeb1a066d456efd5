import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bitdance_kernels import denoise_schedule, denoise_step
from bitdance_kernels.testing import compare

GOLDEN = Path(__file__).parent / "golden"
# Every run of an official head whose states were recorded: file, prefix of its tensors, settings.
SAMPLED = [
    pytest.param(path, re.sub(r"^(p\d+\.)?", r"out.\1sample.", key), settings,
                 id=f"{path.stem}-{key}")
    for path in sorted(GOLDEN.glob("*.json"))
    for key, settings in json.loads(path.read_text())["description"].get("samples", {}).items()
    if "time_shift" in settings
]  # fmt: skip
RECORDED = pytest.mark.parametrize(("path", "label", "settings"), SAMPLED)
SCHEDULES = pytest.mark.parametrize(
    ("steps", "time_shift"),
    [(1, 1.0), (2, 3.0), (10, 0.5), (10, 0.1), (50, 1.0), (100, 1.0), (100, 1.8)],
)


def _load(path):
    return load_file(path.with_suffix(".safetensors"))


def test_there_are_recorded_runs():
    assert len(SAMPLED) >= 10


@RECORDED
def test_times_are_those_of_the_official_sampler(path, label, settings):
    _, times = denoise_schedule(settings["steps"], time_shift=settings["time_shift"])
    assert torch.equal(times, _load(path)[f"{label}.trace_t"].reshape(-1))


@RECORDED
def test_the_last_step_leads_to_the_official_result(path, label, settings):
    data, cfg = _load(path), settings["cfg"]
    official = data[label]
    prediction, x = data[f"{label}.final_net"], data[f"{label}.trace_x"][-1]
    guidance = None
    if cfg > 1:  # then both halves of the official state and result are the same
        rows = len(official) // 2
        official, x, guidance = official[:rows], x[:rows], cfg
        conditional, unconditional = prediction.double().chunk(2)
        truth = unconditional + cfg * (conditional - unconditional)
    else:
        truth = prediction.double()
    table, _ = denoise_schedule(settings["steps"], time_shift=settings["time_shift"])
    noise = torch.randn_like(x)  # has no weight in this step
    end = denoise_step(x, prediction, table, settings["steps"], cfg=guidance, noise=noise)
    compare("staged", end, official, truth, label)


@SCHEDULES
def test_coefficients_are_those_of_the_update_as_it_is_published(steps, time_shift):
    """The official step is linear in x, x0 and eps: three calls give its coefficients."""
    table, times = denoise_schedule(steps, time_shift=time_shift)
    grid = torch.linspace(0, 0.95, steps + 1)
    grid = (1 / time_shift) / ((1 / time_shift) + (1 / grid - 1))
    expected = torch.zeros(steps + 1, 3, dtype=torch.float64)
    for i in range(steps):
        t, dt = times[i].double(), (grid[i + 1] - grid[i]).double()
        for j, (x, x0, eps) in enumerate(torch.eye(3, dtype=torch.float64)):
            v = (x0 - x) / torch.clamp(1 - t, min=0.05)
            score = (t * v - x) / (1 - t)
            expected[i, j] = x + (v + (1 - t) * score) * dt + torch.sqrt(2 * (1 - t) * dt) * eps
    expected[steps, 1] = 1
    assert table.dtype == times.dtype == torch.float32
    compare("rounded", table, table, expected, "table")
    assert table[steps].tolist() == [0, 1, 0]
    assert times[steps] == torch.tensor(0.95)


def test_float32_noise_schedule_does_not_depend_on_the_defaults():
    expected = denoise_schedule(9, time_shift=1.3)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            table, times = denoise_schedule(9, time_shift=1.3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(table, expected[0])
    assert torch.equal(times, expected[1])


def test_bad_arguments():
    for call, error, message in (
        (
            lambda: denoise_schedule(0),
            ValueError,
            "denoise_schedule: steps must be at least 1, got 0",
        ),
        (
            lambda: denoise_schedule(2**64),
            ValueError,
            r"denoise_schedule: steps must be less than 2\^31, got 18446744073709551616",
        ),
        (
            lambda: denoise_schedule(2.0),
            TypeError,
            "denoise_schedule: steps must be int, got float",
        ),
        (
            lambda: denoise_schedule(4, time_shift=0.0),
            ValueError,
            "time_shift must be positive and",
        ),
        (lambda: denoise_schedule(4, time_shift=float("nan")), ValueError, "time_shift must be"),
        (lambda: denoise_schedule(4, time_shift=float("inf")), ValueError, "time_shift must be"),
    ):
        with pytest.raises(error, match=message):
            call()
