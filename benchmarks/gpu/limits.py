"""What the card can do: the limits that results are held against, and what designs rest on."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from benchmarks.gpu.worker import Context, Step

_HEADS = {768: 1152, 1024: 1536, 1280: 1920}  # widths of the B, L and H heads: their hidden widths
_ROWS = (2, 8, 32, 128, 768, 3072, 12288)
_WORKING_SETS_MB = (8, 16, 24, 32, 41, 50, 60)
_GATHERED_KB = (1.5, 12, 50, 100)
_LAUNCHES = 200


def steps(context: Context) -> Sequence[Step]:
    """Bandwidth, matrix rate, L2, launches, all-gather, the head's products."""
    probes: dict[str, Callable[[Context], None]] = {
        "copy": _copy,
        "matrix rate": _matrix_rate,
        "L2": _l2,
        "launch to launch": _launches,
        "all-gather": _gather,
        "head products": _products,
    }

    def step(function: Callable[[Context], None]) -> Callable[[], None]:
        return lambda: function(context)

    return [(name, step(function)) for name, function in probes.items()]


def seconds_of(context: Context, function: Callable[[], object], repeats: int = 1) -> float:
    """Median seconds of one of `repeats` calls, replayed as a graph; 1 on the CPU, unmeasured."""
    if context.dry_run:
        function()
        return 1.0
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            function()
    times = []
    for _ in range(5 if context.quick else 15):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / repeats)
    return statistics.median(times)


def _probe(context: Context, probe: str, setting: str, **figures: float | str) -> None:
    context.result["probes"].append({"probe": probe, "setting": setting, **figures})


def _copy(context: Context) -> None:
    x = torch.randn(2**10 if context.dry_run else 2**28, device=context.device)
    y = torch.empty_like(x)
    rate = 2 * 4 * x.numel() / 1e9 / seconds_of(context, lambda: y.copy_(x))
    context.result["limits"]["copy_gb_s"] = rate


def _matrix_rate(context: Context) -> None:
    size = 64 if context.dry_run else 8192
    a, b = torch.randn(2, size, size, device=context.device).bfloat16()
    seconds = seconds_of(context, lambda: torch.mm(a, b), 5)
    context.result["limits"]["bf16_tflop_s"] = 2 * size**3 / 1e12 / seconds


def _l2(context: Context) -> None:
    """Reading working sets again and again; the rate of the 32 MB set stands for the L2's."""
    from benchmarks.gpu import probes

    block, programs = 4096, 4 * _multiprocessors(context)
    out = torch.empty(programs * block, device=context.device)
    for megabytes in _WORKING_SETS_MB[:1] if context.dry_run else _WORKING_SETS_MB:
        blocks = 3 * programs if context.dry_run else megabytes * 10**6 // (4 * block)
        x = torch.randn(blocks * block, device=context.device)
        repeats = 2 if context.dry_run else max(4, 2000 // megabytes)

        def read(x: torch.Tensor = x, blocks: int = blocks, repeats: int = repeats) -> None:
            probes.read_kernel[(programs,)](x, out, blocks, repeats, BLOCK=block, num_warps=8)

        rate = repeats * blocks * block * 4 / 1e9 / seconds_of(context, read)
        _probe(context, "L2 read", f"{megabytes} MB", gb_s=rate)
        if megabytes == 32:
            context.result["limits"]["l2_gb_s"] = rate


def _launches(context: Context) -> None:
    """Time from kernel to kernel in a graph of small dependent ones."""
    from benchmarks.gpu import probes

    programs, block = _multiprocessors(context), 128
    x = torch.zeros(programs * block, device=context.device)
    count = 2 if context.dry_run else _LAUNCHES
    for name, pdl in {"plain": False, "PDL": True}.items():
        # Only where it is asked for: older versions do not know the option.
        options = {"launch_pdl": True} if pdl and not context.dry_run else {}

        def launch(pdl: bool = pdl, options: dict = options) -> None:
            on = pdl and not context.dry_run
            probes.chain_kernel[(programs,)](x, BLOCK=block, PDL=on, num_warps=4, **options)

        if pdl and not probes.PDL:
            _probe(context, "launch to launch", name, note="this Triton has no PDL")
            continue
        try:
            _probe(context, "launch to launch", name, us=1e6 * seconds_of(context, launch, count))
        except Exception as error:
            _probe(context, "launch to launch", name, note=f"{type(error).__name__}: {error}"[:200])


def _gather(context: Context) -> None:
    """An all-gather over the whole grid within one kernel: what a persistent head would pay."""
    from benchmarks.gpu import probes

    programs = 1 if context.dry_run else _multiprocessors(context)
    rounds = 3 if context.dry_run else 500
    counter = torch.zeros(1, dtype=torch.int32, device=context.device)
    for kilobytes in _GATHERED_KB[:1] if context.dry_run else _GATHERED_KB:
        words = _power_of_two(kilobytes * 1000 / 4 / programs)
        everything = _power_of_two(words * programs)
        x = torch.zeros(2, programs, words, dtype=torch.int32, device=context.device)

        def gather(x: torch.Tensor = x, words: int = words, everything: int = everything) -> None:
            counter.zero_()
            cooperative = {} if context.dry_run else {"launch_cooperative_grid": True}
            probes.gather_kernel[(programs,)](
                x, counter, rounds, WORDS=words, ALL=everything, num_warps=8, **cooperative
            )

        seconds = seconds_of(context, gather) / rounds
        if int(x.view(2, -1)[0, 0]) != rounds or not bool((x[0] == rounds).all()):
            raise AssertionError("all-gather: a program did not see what the others wrote")
        size = words * programs * 4 / 1000
        _probe(context, "all-gather", f"{size:.1f} KB, {programs} programs", us=1e6 * seconds)


def _products(context: Context) -> None:
    """torch.matmul at the head's shapes, weights warm in the L2 where they fit."""
    for width, hidden in list(_HEADS.items())[: 1 if context.dry_run else None]:
        shapes = {
            "qkv": (width, 3 * width),
            "out": (width, width),
            "w1": (width, 2 * hidden),
            "w2": (hidden, width),
            "adaLN": (width, 6 * width),
        }
        for name, (inner, outer) in shapes.items():
            weight = torch.randn(outer, inner, device=context.device).bfloat16()
            for rows in (2,) if context.dry_run else _ROWS:
                x = torch.randn(rows, inner, device=context.device).bfloat16()

                def product(x: torch.Tensor = x, weight: torch.Tensor = weight) -> torch.Tensor:
                    return torch.matmul(x, weight.T)

                seconds = seconds_of(context, product, 20)
                _probe(
                    context,
                    "head product",
                    f"{name} [{rows}, {inner}] x [{inner}, {outer}]",
                    us=1e6 * seconds,
                    tflop_s=2 * rows * inner * outer / 1e12 / seconds,
                    weight_gb_s=2 * inner * outer / 1e9 / seconds,
                )


def _multiprocessors(context: Context) -> int:
    if context.dry_run:
        return 2
    return torch.cuda.get_device_properties(context.device).multi_processor_count


def _power_of_two(least: float) -> int:
    value = 1
    while value < least:
        value *= 2
    return value
