"""Equal bits whatever the number of threads, the batch, and the number of processes.

Every sample of every op with a C++ kernel, and the shapes of its benchmarks up to 2 MiB, runs on 1,
2, 3 and 8 threads at each instruction set that the machine has; results and gradients have equal
bits for each number of threads. Between instruction sets bits, indices and words are equal, and
what rounds stays within the rule of its op (``bitdance_kernels.testing``); AVX-512 and AMX are
checked where the processor has them. Images of classes and of texts are drawn alone, and then in
batches of random sizes and orders; and images of one seed by 1, 2, 3 and 4 processes.

Not promised, so not checked: equal bits of PyTorch's own operators on another number of threads.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.shapes import all_benches
from bitdance_kernels import explain
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels.testing import (
    Call,
    Case,
    check_backend,
    cpu_isa,
    cpu_isas,
    cpu_threads,
    expected_outputs,
)
from tests.reliability.promise import Promise

PROMISES = (
    Promise(
        "threads", "Results and gradients of C++ kernels have equal bits on 1, 2, 3 and 8 threads.",
        3000, "comparisons", "nightly",
    ),
    Promise(
        "instruction sets, exact",
        "Bits, indices and words are equal on every instruction set of the machine.", 500, "calls",
        "nightly",
    ),
    Promise(
        "instruction sets, bounded",
        "What rounds stays within the rule of its op on every instruction set of the machine.",
        800, "calls", "nightly",
    ),
    Promise(
        "batches", "An image has the bits that it has alone, in any batch, size and order.", 2000,
        "images", "nightly",
    ),
    Promise(
        "processes", "An image has the same bits whatever the number of processes that share them.",
        400, "images", "nightly",
    ),
)  # fmt: skip

THREADS = (1, 2, 3, 8)
LARGEST = 2 << 20
"""Bytes of the tensors of a benchmark's shape that is compared too."""
CPU = torch.device("cpu")
Draw = Callable[[Sequence[int], Sequence[int], Sequence[int]], torch.Tensor]


def measure(scale: float) -> Mapping[str, float]:
    """Figures of the promises; a small scale takes every so many calls."""
    step = max(round(1 / scale), 1)
    figures = compare_calls(step)
    figures["batches"] = compare_batches(max(round(2000 * scale), 20))
    figures["processes"] = compare_processes(
        max(round(100 * scale), 6), (1, 2, 3, 4) if scale >= 1 else (2,)
    )
    return figures


def compare_calls(step: int = 1) -> dict[str, float]:
    """Compare every `step`-th call over instruction sets and numbers of threads.

    Raises:
        AssertionError: with op, call, instruction set and threads.
    """
    figures = {"threads": 0.0, "instruction sets, exact": 0.0, "instruction sets, bounded": 0.0}
    if not cpu_isas():
        return {}
    for case, call in itertools.islice(_calls(), 0, None, step):
        with cpu_threads(1):
            expected = expected_outputs(case, call, gradients=_has_gradients(case))
        for isa in cpu_isas():
            with cpu_isa(isa):
                compared = _compare_threads(case, call, isa, expected)
            figures["threads"] += compared
            figures[f"instruction sets, {'exact' if case.rule == 'exact' else 'bounded'}"] += 1
    return figures


def _calls() -> Iterator[tuple[Case, Call]]:
    """Calls that the C++ backend can run: samples, and shapes that are timed if they are small."""
    torch.manual_seed(0)
    for bench in all_benches().values():
        for call in bench.samples(CPU):
            if _runs(bench, call):
                yield bench, call
        for timing in bench.timings:
            if "cpu" in timing.devices and timing.bytes <= LARGEST:
                call = timing.make(CPU)
                size = sum(t.numel() * t.element_size() for t in call.tensors())
                if size <= LARGEST and _runs(bench, call):
                    yield bench, call


def _runs(case: Case, call: Call) -> bool:
    if "cpu" not in case.kernel_op.backends:
        return False
    with contextlib.redirect_stdout(None):
        return explain(case.op, *call.args, **call.kwargs)["cpu"] is None


def _has_gradients(case: Case) -> bool:
    """Whether C++ kernels give the gradients: products of PyTorch depend on the threads."""
    backward = REGISTRY.get(f"{case.kernel_op.name}_backward")
    return backward is not None and "cpu" in backward.backends


def _compare_threads(case: Case, call: Call, isa: str, expected: Any) -> int:
    """Check the rule of the op on one thread, and equal bits on more."""
    found = []
    gradients = _has_gradients(case)
    for threads in THREADS:
        with cpu_threads(threads):
            found.append(check_backend(case, call, "cpu", gradients=gradients, expected=expected))
    for threads, other in zip(THREADS[1:], found[1:], strict=True):
        for name, tensor in other.items():
            same = torch.equal(_bits(tensor), _bits(found[0][name]))
            assert same, f"{case.name} [{call.name}] {isa}, {threads} threads: {name} differs"
    return len(THREADS) - 1


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, in which NaN equals itself."""
    flat = tensor.detach().contiguous().view(-1)
    return flat if flat.dtype == torch.bool else flat.view(torch.uint8)


def compare_batches(images: int, seed: int = 0) -> int:
    """Compare images that are drawn alone with those in batches; returns how many."""
    with cpu_threads(1):
        return _compare_batches(images, seed)


def _compare_batches(images: int, seed: int) -> int:
    draws, done = random.Random(seed), 0
    kinds = [_classes(), _texts()]
    alone: list[dict[tuple[int, int, int], torch.Tensor]] = [{} for _ in kinds]
    while done < images:
        for draw, known in zip(kinds, alone, strict=True):
            batch = [
                (draws.randrange(5), draws.choice([0, 1, 2**64 - 1]), draws.randrange(3))
                for _ in range(draws.randint(1, 12))
            ]
            found = draw(*([item[i] for item in batch] for i in range(3)))
            for item, image in zip(batch, found, strict=True):
                if item not in known:
                    known[item] = draw(*([value] for value in item))[0].clone()
                assert torch.equal(image, known[item]), f"batch {batch}, seed {seed}: {item}"
            done += len(batch)
    return done


def _classes() -> Draw:
    from tests.model.helpers.tiny import tiny_pipeline

    pipeline = tiny_pipeline()

    def draw(labels: Sequence[int], seeds: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        latents = pipeline(
            labels, seed=list(seeds), sample_ids=ids, num_inference_steps=2, output_type="latent"
        ).images  # fmt: skip
        return pipeline.decode(latents, output_type="uint8")

    return draw


def _texts() -> Draw:
    from bitdance import BitDanceT2IPipeline
    from tests.model.models.test_text_to_image import tiny
    from tests.model.pipelines.test_text_to_image import SIZE, Words

    pipeline = BitDanceT2IPipeline(tiny(), Words())
    pipeline.set_progress_bar_config(disable=True)

    def draw(labels: Sequence[int], seeds: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        texts = ["abcde"[label] * (1 + label) for label in labels]
        return pipeline(
            texts, seed=list(seeds), sample_ids=ids, num_inference_steps=2, output_type="uint8",
            **SIZE,
        ).images  # fmt: skip

    return draw


def compare_processes(images: int, sizes: Sequence[int]) -> int:
    """Compare files of images that worlds of these sizes write; returns how many images."""
    from tests.model.helpers.processes import run_processes
    from tests.model.helpers.tiny import tiny_pipeline

    labels = [i % 5 for i in range(images)]
    with cpu_threads(1):  # as in the processes
        drawn = tiny_pipeline()(
            labels, seed=3, num_inference_steps=2, batch_size=7, output_type="uint8"
        ).images
    expected = drawn.permute(0, 2, 3, 1)
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            path = Path(folder, str(size))
            run_processes(_sample, labels, path, size=size)
            with np.load(path / "samples.npz") as content:
                found = torch.from_numpy(content["arr_0"])
            assert torch.equal(found, expected), f"{size} processes"
    return images * len(sizes)


def _sample(rank: int, labels: list[int], folder: Path) -> None:
    from bitdance.distributed import World
    from bitdance.evaluation.sample import sample_classes
    from tests.model.helpers.tiny import tiny_pipeline

    with World.from_env() as world:
        sample_classes(
            tiny_pipeline(), labels, folder, seed=3, num_inference_steps=2, batch_size=2,
            world=world, progress=False,
        )  # fmt: skip
