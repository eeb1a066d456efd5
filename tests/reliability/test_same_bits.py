"""Equal bits at a small size, and differences that are planted and found."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from bitdance_kernels.testing import check_backend, cpu_isas
from tests.reliability import same_bits


@pytest.mark.skipif(not cpu_isas(), reason="no C++ kernels")
def test_calls_have_equal_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_bits, "LARGEST", 1 << 16)
    figures = same_bits.compare_calls(step=40)
    sets = sum(count for name, count in figures.items() if name != "threads")
    assert figures["threads"] == 3 * sets
    assert sets >= 10 * len(cpu_isas())


@pytest.mark.skipif(not cpu_isas(), reason="no C++ kernels")
def test_a_result_that_depends_on_the_threads_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = itertools.count()

    def altered(*arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        outputs = check_backend(*arguments, **options)
        if next(counter) == 2:  # on 3 threads
            name = next(iter(outputs))
            outputs[name] = outputs[name].clone()
            same_bits._bits(outputs[name])[0] ^= 1
        return outputs

    monkeypatch.setattr(same_bits, "check_backend", altered)
    with pytest.raises(AssertionError, match=r"scalar, 3 threads: output 0 differs"):
        same_bits.compare_calls(step=10**6)


def test_images_have_equal_bits_in_batches() -> None:
    assert same_bits.compare_batches(12) >= 12


def test_an_image_of_another_batch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(labels: list[int], seeds: list[int], ids: list[int]) -> torch.Tensor:
        values = [seed % 7 + len(labels) for seed in seeds]
        return torch.tensor(values, dtype=torch.uint8, device="cpu")

    monkeypatch.setattr(same_bits, "_classes", lambda: draw)
    monkeypatch.setattr(same_bits, "_texts", lambda: draw)
    with pytest.raises(AssertionError, match=r"batch \[.*seed 0"):
        same_bits.compare_batches(40)


def test_images_have_equal_bits_on_two_processes() -> None:
    assert same_bits.compare_processes(6, (2,)) == 6
