"""The C interface: statuses become errors, and the CUDA module works without a card."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitdance_kernels import explain, pack_signs
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels._shared import native
from bitdance_kernels._shared.rows import as_rows
from bitdance_kernels.autoencode.group_norm_silu import cuda as group_norm_silu
from bitdance_kernels.denoise._shared import rows_cuda
from bitdance_kernels.denoise.adaln_norm import cuda as adaln_norm
from bitdance_kernels.denoise.gated_residual import cuda as gated_residual
from bitdance_kernels.testing import cpu_isas
from tests.cases import all_cases

needs_cpu = pytest.mark.skipif(not cpu_isas(), reason="the C++ module was not built here")
needs_cuda = pytest.mark.skipif(
    native.cuda.unavailable() is not None, reason="the CUDA module was not built here"
)
WITH_CUDA = [case for case in all_cases().values() if "cuda" in case.kernel_op.backends]
BAD_SIZES = {"rows": (-1, 8, 8), "channels": (1, 12, 12), "no channels": (1, 0, 0)}


@needs_cpu
@pytest.mark.parametrize("function", ["pack_signs", "unpack_signs"])
def test_cpu_functions_refuse_what_they_cannot_do(function):
    call = getattr(native.cpu, function)
    with pytest.raises(RuntimeError, match=rf"{function}: dtype code not handled \(status -1\)"):
        call(0, 0, 1, 8, 8, 7, 1)
    for sizes in BAD_SIZES.values():
        with pytest.raises(RuntimeError, match=rf"{function}: size or argument out of range"):
            call(0, 0, *sizes, 0, 1)
    with pytest.raises(RuntimeError, match=rf"{function}: size or argument out of range"):
        call(0, 0, 1, 8, 8, 0, 0)  # no thread
    with pytest.raises(TypeError):
        call(0, 0, 1, 8, 8, 0)  # an argument is missing


@needs_cpu
def test_tensors_stand_for_rows_and_for_addresses():
    """Rows as a tensor or as (address, stride, dtype code); a pointer as a tensor or an address."""
    x, h, gate = torch.randn(3, 4, 8), torch.randn(4, 8).expand(3, 4, 8), torch.randn(3, 4, 24)
    expected = x + gate[..., 8:16] * h
    rows = [t.reshape(12, -1)[:, :8] for t in (x, h.contiguous(), gate[..., 8:])]
    tuples = [(t.data_ptr(), t.stride(0), native.FLOAT32) for t in rows]
    for arguments in (rows, tuples, [x, h.contiguous(), gate[..., 8:16]]):
        y = torch.empty(3, 4, 8)
        native.cpu.gated_residual(*arguments, y, 12, 8, 1)
        torch.testing.assert_close(y, expected)
    assert not native.cpu.evenly_spaced(x, h)
    with pytest.raises(ValueError, match="the rows of a tensor must be evenly spaced"):
        native.cpu.gated_residual(x, h, gate, x, 12, 8, 1)
    with pytest.raises(RuntimeError, match="gated_residual: dtype code not handled"):
        native.cpu.gated_residual(x.double(), x, x, x, 12, 8, 1)
    with pytest.raises(TypeError, match="must be a tensor, an address or None"):
        native.cpu.gated_residual(x, "h", x, x, 12, 8, 1)

    signs, packed = torch.randn(2, 8), torch.zeros(2, dtype=torch.uint8)
    native.cpu.pack_signs(signs, packed.data_ptr(), 2, 8, 8, native.FLOAT32, 1)
    assert torch.equal(packed, pack_signs(signs)[:, 0])


_SIZES = st.lists(st.sampled_from([1, 1, 2, 3]), min_size=1, max_size=4)


@needs_cpu
@given(sizes=_SIZES, steps=st.lists(st.integers(0, 4), min_size=4, max_size=4), data=st.data())
def test_rows_are_read_where_they_are_as_in_python(sizes, steps, data):
    """evenly_spaced and as_rows agree on every layout, and find the same rows."""
    memory = torch.arange(200.0)
    strides = [data.draw(st.sampled_from([1, sizes[-1], steps[i]])) for i in range(len(sizes))]
    x = memory.as_strided(sizes, strides)
    view, rows, _ = as_rows(x)
    evenly = view.data_ptr() == x.data_ptr()
    assert native.cpu.evenly_spaced(x) == evenly
    if evenly:
        y = torch.empty(sizes)
        native.cpu.gated_residual(x, torch.zeros(sizes), torch.zeros(sizes), y, rows, sizes[-1], 1)
        assert torch.equal(y, x)


@needs_cpu
def test_instruction_set_limit_is_checked():
    for limit in (-1, len(native.ISAS)):
        with pytest.raises(RuntimeError, match="set_isa_limit: size or argument out of range"):
            native.cpu.set_isa_limit(limit)


@pytest.fixture(params=range(len(native.ISAS)), ids=native.ISAS)
def isa(request):
    """Every instruction set that this machine has."""
    if request.param > native.cpu.isa_detected():
        pytest.skip("this processor does not have it")
    before = native.cpu.isa()
    native.cpu.set_isa_limit(request.param)
    yield
    native.cpu.set_isa_limit(before)


@needs_cpu
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_widened_and_rounded_as_pytorch_does(dtype):
    """y = x + gate h with nothing added: every half, and the floats at and around their middles."""
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    ends = halves.float()
    middles = (ends[:-1].double() + ends[1:].double()).div(2).float()
    odd = torch.tensor([1e-45, 65519.0, 65520.0, 3.4e38, torch.inf, torch.nan]).repeat(7)
    floats = torch.cat([ends, middles, middles.nextafter(ends[1:]), odd, -odd])
    for values in (halves, floats):
        gate = torch.zeros_like(values)
        h = -gate
        y = torch.empty(values.shape, dtype=dtype)
        wide = torch.empty(values.shape)
        count = len(values)
        for out in (y, wide):
            native.cpu.gated_residual(values, h, gate, out, 1, count, 1)
        for out in (y, wide):
            expected = values.to(out.dtype)
            number = ~expected.isnan()
            assert torch.equal(out.isnan(), ~number)
            same = torch.int16 if out.dtype == dtype else torch.int32
            assert torch.equal(out.view(same)[number], expected.view(same)[number])


@needs_cuda
@pytest.mark.parametrize("function", ["pack_signs", "unpack_signs"])
def test_cuda_functions_check_before_they_launch(function):
    call = getattr(native.cuda, function)
    with pytest.raises(RuntimeError, match=rf"{function}: dtype code not handled \(status -1\)"):
        call(0, 0, 1, 8, 8, 7, 0, 0)
    for sizes in BAD_SIZES.values():
        with pytest.raises(RuntimeError, match=rf"{function}: size or argument out of range"):
            call(0, 0, *sizes, 0, 0, 0)
    call(0, 0, 0, 8, 8, 0, 0, 0)  # no row: nothing to launch, on any machine


@needs_cuda
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
@pytest.mark.parametrize("function", ["pack_signs", "unpack_signs"])
def test_cuda_functions_without_a_card_say_so(function):
    assert native.cuda.device_count() == 0
    with pytest.raises(RuntimeError, match=rf"{function}: .*(driver|no CUDA-capable device)"):
        getattr(native.cuda, function)(0, 0, 1, 8, 8, 0, 0, 0)


@needs_cuda
def test_cuda_row_functions_check_before_they_launch():
    row, odd, none = (0, 8, 0), (64, 8, 7), (0, 0, 0)

    def adaln_norm(x, rows, channels):
        native.cuda.adaln_norm(x, row, row, none, none, row, rows, channels, 1e-6, 0, 0)

    with pytest.raises(RuntimeError, match=r"adaln_norm: dtype code not handled \(status -1\)"):
        adaln_norm(odd, 1, 8)
    for rows, channels in ((-1, 8), (1, 0), (1, rows_cuda.MAX_CHANNELS + 1)):
        with pytest.raises(RuntimeError, match="adaln_norm: size or argument out of range"):
            adaln_norm(row, rows, channels)
    adaln_norm(row, 0, rows_cuda.MAX_CHANNELS)  # no row: nothing to launch, on any machine
    affine = (64, 8, 0)
    with pytest.raises(RuntimeError, match="adaln_norm_backward: size or argument out of range"):
        # There is no workspace for the sums of weight.
        native.cuda.adaln_norm_backward(
            *(row,) * 3, affine, none, *(row,) * 3, affine, none, 0, 1, 8, 0, 1e-6, 0, 0
        )


def test_kernels_are_launched_on_the_current_stream_of_the_device(monkeypatch):
    """Whatever the current device is, and not on the default stream."""
    streams = {0: 11, 1: 22}
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=streams[index])
    )
    assert native.stream(torch.device("cuda", 0)) == (0, 11)
    assert native.stream(torch.device("cuda")) == (1, 22)


@pytest.fixture
def pretended_card(monkeypatch):
    """CUDA backends take CPU tensors, up to where their functions need a card."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    monkeypatch.setattr(native, "stream", lambda device: (0, 0))
    monkeypatch.setattr(native, "cuda_unsupported", lambda *_: None)
    monkeypatch.setattr(native, "sm90_unsupported", lambda _: None)
    for op in REGISTRY.values():  # what is chosen here must not be remembered
        monkeypatch.setattr(op, "_chosen", {})


@needs_cuda
@pytest.mark.usefixtures("pretended_card")
@pytest.mark.parametrize("case", WITH_CUDA, ids=lambda case: case.name)
def test_cuda_backends_call_their_functions_as_declared(case):
    """Every argument passes the binding and the checks of the C function."""
    launched = 0
    functions = "|".join(case.kernel_op.backend("cuda").native_functions)
    for call in case.samples(torch.device("cpu")):
        reason = explain(case.op, *call.args, **call.kwargs)["cuda"]
        if reason is None and all(tensor.numel() for tensor in call.tensors()):
            with pytest.raises(RuntimeError, match=rf"({functions}): .*(driver|no CUDA-capable)"):
                case.op(*call.args, **call.kwargs, backend="cuda")
            launched += 1
    assert launched


@needs_cuda
@pytest.mark.usefixtures("pretended_card")
def test_cuda_gradients_call_their_functions_as_declared():
    x = torch.randn(3, 8)
    scale, shift, gate = torch.randn(3, 24, dtype=torch.bfloat16).chunk(3, dim=-1)
    weight = torch.randn(8, dtype=torch.float16)
    images = torch.randn(2, 8, 3, 3).to(memory_format=torch.channels_last)
    per_image = torch.randn(2, 24).chunk(3, dim=-1)
    calls = {
        adaln_norm.run_backward: (x, x, scale, shift, None, weight, 1e-6),
        gated_residual.run_backward: (x, x, x, gate),
        gated_residual.run_adaln_backward: (x, x, x, x, gate, scale, shift, weight, weight, 1e-6),
        group_norm_silu.run_backward: (
            images, images, 2, weight.float(), None, *per_image[1:], True, 1e-6
        ),
    }  # fmt: skip
    for run, arguments in calls.items():
        with pytest.raises(RuntimeError, match=r"driver|no CUDA-capable device"):
            run(*arguments)


@needs_cuda
def test_cuda_module_names_its_architectures():
    assert native.cuda.architectures.split()
