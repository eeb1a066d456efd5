"""`python -m benchmarks gpu --only attack` without a card: every fault it looks for, planted."""

import contextlib
import dataclasses
import functools
import itertools
import json
import stat

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import attack
from benchmarks.gpu.attack import __main__ as command
from benchmarks.gpu.attack import exhaustion, fuzz, replays, sanitizer
from benchmarks.gpu.attack.guarded import GUARD, Guards, backends_in, guarding
from benchmarks.gpu.worker import Context
from benchmarks.shapes import all_benches
from bitdance_kernels.testing import Call
from tests import draws
from tests.emulated import backends as emulated
from tests.emulated import needs_compiler

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

CPU = torch.device("cpu")
TRITON = [n for n in draws.DRAWS if "triton" in all_benches()[n].kernel_op.backends]


@triton.jit
def _store_kernel(x_ptr, index):
    tl.store(x_ptr + index, tl.load(x_ptr) * 0)


@triton.jit
def _copy_kernel(x_ptr, y_ptr, count, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kept = offsets < count
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets, mask=kept), mask=kept)


def _seeds(name="swiglu"):
    """Those that the interpreter takes, one after the other."""
    case, device = all_benches()[name], CPU
    return (s for s in range(99) if "triton" in fuzz.card_backends(case, s, device, draws.FEW))


def _context(tmp_path, names=("swiglu",), seconds=60.0):
    cases = [all_benches()[name] for name in names]
    return Context(cases, tmp_path / "run.jsonl", {"attack": seconds}, dry_run=True)


@pytest.fixture
def plant(monkeypatch):
    """Puts `fault(right, *args)` in place of a backend's run, which is `right`."""

    def plant(name, fault, backend="triton"):
        op = all_benches()[name].kernel_op
        right = op.backend(backend)
        wrong = dataclasses.replace(right, run=functools.partial(fault, right.run))
        monkeypatch.setitem(op._loaded, backend, wrong)
        monkeypatch.setattr(op, "_chosen", {})  # of calls before
        return all_benches()[name]

    return plant


def test_every_op_with_a_backend_for_cards_has_random_calls():
    for_cards = [
        name
        for name, case in all_benches().items()
        if {"triton", "cuda"} & set(case.kernel_op.backends)
    ]
    assert sorted(draws.DRAWS) == sorted(for_cards)


@pytest.mark.parametrize("name", draws.DRAWS)
def test_random_calls_are_valid_and_those_of_their_seeds(name):
    case, shapes = all_benches()[name], set()
    for seed in range(4):
        call, again, other = (draws.call_of(name, seed, repeat) for repeat in (0, 0, 1))
        for a, b, c in zip(*(each.tensors() for each in (call, again, other)), strict=True):
            assert torch.equal(*(t.contiguous().view(-1).view(torch.uint8) for t in (a, b)))
            assert (a.shape, a.dtype) == (c.shape, c.dtype)
        case.op(*call.args, **call.kwargs, backend="reference")
        shapes.add(str([(t.shape, t.dtype) for t in call.tensors()]))
    assert len(shapes) > 1


@pytest.mark.parametrize("name", TRITON)
def test_kernels_of_triton_withstand_a_seed(name):
    """The first one that the interpreter takes, which is most."""
    case = all_benches()[name]
    fuzz.check(case, "triton", next(_seeds(name)), CPU, draws.FEW)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("denoise_step_linear", marks=pytest.mark.nightly),
        "rms_norm_qkv",
        "linear_gated_residual",
    ],
)
def test_emulated_kernels_in_cuda_withstand_seeds(name, tmp_path_factory):
    with emulated.emulated_card(emulated.build_all(tmp_path_factory)) as launches:
        for seed in range(2):
            fuzz.check(all_benches()[name], "cuda", seed, CPU, draws.FEW)
    assert launches


def _stores_past_the_end(right, x):
    y = right(x)
    _store_kernel[(1,)](y, y.numel())
    return y


def _stores_before_the_start(right, x):
    y = right(x)
    _store_kernel[(1,)](y, -1)
    return y


def _changes_its_input(right, x):
    _store_kernel[(1,)](x, x.stride(-1))
    return right(x)


def _leaves_the_last_element(right, x):
    y = right(x)
    part = torch.empty_like(y)
    block = triton.next_power_of_2(y.numel())
    _copy_kernel[(1,)](y, part, y.numel() - 1, BLOCK=block)
    return part


def _reads_its_workspace(right, x):
    return right(x) + x.new_empty(1) * 0


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (_stores_past_the_end, "bytes changed, the first one 0 bytes past its end"),
        (_stores_before_the_start, r"bytes changed, the first one \d bytes before it"),
        (_changes_its_input, r"tensor 0: \d bytes changed, the first one byte \d+ of it"),
        (_leaves_the_last_element, "NaN or infinity where the truth has none"),
        (_reads_its_workspace, "NaN or infinity where the truth has none"),
        (lambda right, x: right(x) * 1.01, "over the bound"),
    ],
    ids=["past the end", "before the start", "input", "unwritten", "workspace", "inexact"],
)
def test_faults_are_found(fault, found, plant):
    case = plant("swiglu", fault)
    for seed in itertools.islice(_seeds(), 3):
        with pytest.raises(AssertionError, match=f"swiglu triton seed {seed}.*{found}"):
            fuzz.check(case, "triton", seed, CPU, draws.FEW)


def test_what_pytorch_copies_for_a_backend_lies_between_guard_bands(plant):
    """A row that is copied to be contiguous, and read past its end."""

    def reads_past_the_end(right, x):
        copy = x.clone(memory_format=torch.contiguous_format)
        _copy_kernel[(1,)](copy.view(-1)[1:], copy, copy.numel(), BLOCK=1)
        _store_kernel[(1,)](copy, copy.numel())
        return right(x)

    case = plant("swiglu", reads_past_the_end)
    with pytest.raises(AssertionError, match=r"what aten.clone.default made: \d bytes changed"):
        fuzz.check(case, "triton", next(_seeds()), CPU, draws.FEW)


def test_gradients_are_attacked_too(monkeypatch):
    from bitdance_kernels._dispatch.op import REGISTRY

    op = REGISTRY["swiglu_backward"]
    right = op.backend("triton")

    def fault(*args):
        gradient = right.run(*args)
        _store_kernel[(1,)](gradient, gradient.numel())
        return gradient

    monkeypatch.setitem(op._loaded, "triton", dataclasses.replace(right, run=fault))
    monkeypatch.setattr(op, "_chosen", {})
    with pytest.raises(AssertionError, match="past its end"):
        fuzz.check(all_benches()["swiglu"], "triton", next(_seeds()), CPU, draws.FEW)


def test_arguments_that_an_op_writes_keep_their_gaps():
    guards = Guards(CPU)
    cache = guards.hold("cache", (2, 3), (8, 1), torch.float16, offset=3, written=True)
    assert cache.isnan().all()
    assert cache.data_ptr() % 8 == 6
    cache.fill_(1)
    assert guards.problems() == []
    cache.as_strided((1,), (1,), cache.storage_offset() + 3).fill_(1)
    assert guards.problems() == ["cache: 2 bytes changed, the first one byte 12 of it"]
    assert GUARD == 4096
    guards.hold("no element", (0, 3), (3, 1), torch.int32)
    assert len(guards.problems()) == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int32, torch.bfloat16])
def test_empty_memory_is_poison(dtype):
    made = []
    with guarding(Guards(CPU)):
        made += [torch.empty(2, 3, dtype=dtype, device=CPU), torch.ones(2, dtype=dtype, device=CPU)]
        made += [made[0].new_empty(4), torch.empty_like(made[0]), made[1].clone()]
    poison = torch.full((4,), 0x7F7F7F7F, dtype=torch.int32, device=CPU).view(torch.uint8)
    expected = torch.tensor(torch.nan, dtype=dtype, device=CPU) if dtype.is_floating_point else (
        poison.view(dtype)[0] if dtype != torch.bool else torch.tensor(True, device=CPU)
    )  # fmt: skip
    for tensor in (made[0], made[2], made[3]):
        torch.testing.assert_close(tensor, expected.expand_as(tensor), equal_nan=True)
    assert (made[1] == 1).all()
    assert (made[4] == 1).all()


def test_a_card_that_breaks_is_named_with_its_seed(tmp_path, monkeypatch):
    """And the steps that follow go on: the process is replaced as for any other part."""
    context = _context(tmp_path)
    case = context.benches[0]
    seed = next(_seeds())

    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(fuzz, "check", broken)
    fuzz.record(context, case, "triton", seed)  # the card answers after it
    assert "illegal memory access" in context.result["checks"][-1]["wrong"]
    monkeypatch.setattr(fuzz, "probe", broken)
    with pytest.raises(
        RuntimeError, match=f"swiglu, triton, seed {seed}: the card no longer answers"
    ):
        fuzz.record(context, case, "triton", seed)


def test_the_probe_asks_the_device():
    fuzz.probe(CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "arange", lambda *_, **__: torch.zeros(2, dtype=torch.int64))
        with pytest.raises(RuntimeError, match="sum up to 0"):
            fuzz.probe(CPU)


def _call():
    return Call("two rows", (torch.randn(2, 8),))


def test_replays_find_what_changes(plant):
    runs = []

    def fault(right, x):
        runs.append(1)
        return right(x) + (len(runs) == 3)

    case = plant("swiglu", fault)
    with pytest.raises(AssertionError, match="of 4 replays differ output 0 in 1"):
        replays.replay(case, _call(), "triton", 4)
    replays.replay(case, _call(), "triton", 4)


def _keeps(kept):
    def fault(right, x):
        kept.append(x.clone())
        return right(x)

    return fault


def _other_error(right, x):
    try:
        return right(x)
    except torch.OutOfMemoryError:
        raise ValueError("no room") from None


def _goes_on_without(right, x):
    try:
        workspace = x.new_empty(8)
    except torch.OutOfMemoryError:
        x.zero_()
        raise
    return right(x) + 0 * len(workspace)


def _breaks_the_next_call():
    state = [0.0]

    def fault(right, x):
        try:
            return right(x) + state[0]
        except torch.OutOfMemoryError:
            state[0] = 1.0
            raise

    return fault


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (_keeps([]), "1 tensors, 0 bytes stay behind"),
        (_other_error, "allocation 0 fails: ValueError, not OutOfMemoryError"),
        (_goes_on_without, "allocation 0 fails: an argument has changed"),
        (_breaks_the_next_call(), "allocation 0 fails: the next call gives other bits"),
    ],
    ids=["leak", "other error", "argument", "next call"],
)
def test_failing_allocations_find(fault, found, plant):
    case = plant("swiglu", fault)
    with pytest.raises(AssertionError, match=found):
        exhaustion.exhaust(case, _call(), "triton")


def test_a_call_without_allocations_proves_nothing(plant):
    case = plant("pack_signs", lambda right, x: x.view(torch.uint8)[:, :1])
    with pytest.raises(AssertionError, match="nothing was allocated"):
        exhaustion.exhaust(case, _call(), "triton")


def test_every_allocation_fails_once():
    refused = []
    case = all_benches()["swiglu"]
    real = exhaustion._error_of

    def counting(*args):
        refused.append(real(*args))
        return refused[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exhaustion, "_error_of", counting)
        exhaustion.exhaust(case, _call(), "triton")
    assert refused == [torch.OutOfMemoryError] * (len(refused) - 1) + [None]
    assert len(refused) >= 3  # the result, the gradient


SANITIZER = """#!/bin/sh
echo "$@" >> {log}
echo "caching $PYTORCH_NO_CUDA_MEMORY_CACHING" >> {log}
{body}
"""
CLEAN = """echo "========= COMPUTE-SANITIZER"
echo "attack: ran"
case "$2" in
  racecheck) echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)";;
  *) echo "========= ERROR SUMMARY: 0 errors";;
esac"""
INVALID = """echo "attack: ran"
echo "========= Invalid __global__ write of size 4 bytes"
echo "=========     at swiglu_kernel"
echo "========= ERROR SUMMARY: 2 errors"
exit 86"""
HAZARD = """echo "attack: ran"
echo "========= Error: Race reported between Write access and Read access, 1 hazard"
echo "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)"
exit 86"""


def _sanitizer(tmp_path, body):
    path = tmp_path / "compute-sanitizer"
    path.write_text(SANITIZER.format(log=tmp_path / "log", body=body))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("body", "wrong", "why_not"),
    [
        (CLEAN, None, None),
        (INVALID, "2 findings; Invalid __global__ write of size 4 bytes", None),
        (HAZARD, "1 findings; Error: Race reported between Write access and Read access, 1 hazard",
         None),
        ('echo "========= Device not supported"', None, "========= Device not supported"),
        ("exit 3", None, "it printed nothing"),
        ('echo "attack: ran"', None, "it printed no summary"),
        ("exec sleep 20", None, "it took more than 1 seconds"),
    ],
    ids=["clean", "memcheck", "racecheck", "refused", "silent", "no summary", "long"],
)  # fmt: skip
def test_the_sanitizer_is_read(tmp_path, body, wrong, why_not):
    path = _sanitizer(tmp_path, body)
    seconds = 1.0 if "sleep" in body else 60.0
    assert sanitizer.run(path, "memcheck", "pack_signs", seconds) == (wrong, why_not)
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first.startswith("--tool memcheck --error-exitcode 86 ")
    assert first.endswith("-m benchmarks.gpu.attack pack_signs --backend cuda")
    assert second == "caching 1"


def test_the_sanitizer_watches_every_op_in_cuda(tmp_path, monkeypatch):
    names = ("pack_signs", "swiglu")  # which has no kernel in CUDA C++
    path = _sanitizer(tmp_path, CLEAN)
    monkeypatch.setattr(sanitizer, "find", lambda: path)
    context = _context(tmp_path, names)
    steps = dict(sanitizer.steps(context))
    assert list(steps) == ["memcheck, pack_signs", "racecheck, pack_signs"]
    for run in steps.values():
        run()
    checks = {(c["op"], c["check"], c["wrong"]) for c in context.result["checks"]}
    assert checks == {("pack_signs", tool, None) for tool in sanitizer.TOOLS}


def test_the_sanitizer_is_sought_where_toolkits_are(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(sanitizer, "_HOMES", (str(tmp_path),))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert sanitizer.find() is None
    (tmp_path / "compute-sanitizer").mkdir()
    path = _sanitizer(tmp_path / "compute-sanitizer", CLEAN)
    assert sanitizer.find() == path


def test_each_kind_has_its_share_of_the_time(tmp_path, monkeypatch):
    ran = []
    shares = {
        kind: (lambda _, kind=kind: [(kind, lambda: ran.append(kind))], share)
        for kind, share in (("fuzz", 0.5), ("replays", 0.5))
    }
    monkeypatch.setattr(attack, "SHARES", shares)
    context = _context(tmp_path, seconds=100.0)
    monkeypatch.setattr(Context, "left", lambda self, part: 40.0)
    for _, run in attack.steps(context):
        run()
    assert ran == ["replays"]
    why = "from fuzz on: its share of the time was used up"
    assert context.result["not run"] == {"attack: fuzz, process 0": why}


def test_processes_share_the_ops(tmp_path):
    names = ["swiglu", "pack_signs", "rope"]
    benches = [all_benches()[name] for name in names]
    found = []
    for i in range(2):
        context = Context(benches, tmp_path / f"{i}.jsonl", {"attack": 9.0}, share=(i, 2))
        found += [name.split(", ")[1] for name, _ in fuzz.steps(context)]
    assert sorted(set(found)) == sorted(names)
    assert len(found) == 3 * fuzz.ROUNDS


def test_dry_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sanitizer, "find", lambda: None)
    cases = [all_benches()["pack_signs"]]
    assert gpu.main(cases, tmp_path, {"attack": 60.0}, dry_run=True) == 0
    result = json.loads((tmp_path / "dry-run.json").read_text())
    seeds = sum("triton" in fuzz.card_backends(cases[0], s, CPU) for s in range(4))
    expected = {"2 replays": 1, "allocations fail": 1, "fuzz": seeds}
    assert seeds > 0
    assert result["passed"] == {f"pack_signs, triton, {k}": n for k, n in expected.items()}
    missing = "compute-sanitizer is not on this machine; it comes with the CUDA toolkit"
    assert result["not run"] == {"attack: compute-sanitizer": missing}
    assert f"not run: attack: compute-sanitizer: {missing}" in capsys.readouterr().out


def test_a_seed_is_repeated_by_a_command(plant, capsys):
    seed = 0
    base = ["swiglu", "--backend", "triton", "--device", "cpu"]
    assert command.main([*base, "--seed", str(seed)]) == 0
    assert command.main(base) == 0
    assert command.main(["swiglu", "--backend", "cuda", "--device", "cpu", "--seed", "0"]) == 2
    assert sanitizer.RAN in capsys.readouterr().out
    plant("swiglu", _stores_past_the_end)
    assert command.main([*base, "--seed", str(seed)]) == 1
    assert "past its end" in capsys.readouterr().out


def test_backends_are_as_before_afterwards():
    case = all_benches()["swiglu"]
    before = dict(case.kernel_op._loaded)
    with contextlib.suppress(ZeroDivisionError), backends_in(case, contextlib.nullcontext):
        raise ZeroDivisionError
    assert case.kernel_op._loaded == before
