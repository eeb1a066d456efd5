"""The CUDA kernel without a card: its device code as C++, on tests/emulated."""

import functools

import pytest
import torch

from bitdance_kernels._shared import native
from bitdance_kernels.testing import compare
from tests.cases.rope_append import CASES, samples
from tests.emulated import build, drivers, needs_compiler

pytestmark = needs_compiler
CASE = CASES[0]
CALLS = [call for call in samples(torch.device("cpu")) if call.args[1].shape[3] % 8 == 0]


@pytest.fixture(scope="module")
def rope_append(tmp_path_factory):
    library = build("rope_append", tmp_path_factory.mktemp("emulated"))
    return functools.partial(drivers.rope_append, library)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_against_the_reference(rope_append, call):
    actual, plain, truth = (call.map(lambda t: t.clone()) for _ in range(3))
    truth = truth.map(lambda t: t.double() if t.is_floating_point() else t)
    # The caches as views of wider tensors, as those of all layers in one are; and of different
    # ones, so that none of the strides of k is that of v.
    k = torch.nn.functional.pad(actual.args[1], (0, 8))
    v = torch.nn.functional.pad(actual.args[2].transpose(1, 2), (0, 16, 0, 3))
    Tmax = k.shape[1]
    args = (actual.args[0], k[..., :-8], v.transpose(1, 2)[:, :Tmax, :, :-16], *actual.args[3:])
    assert all(a != b for a, b in zip(args[1].stride()[:3], args[2].stride()[:3], strict=True))
    out = rope_append(*args, **actual.kwargs)
    expected = CASE.op(*plain.args, **plain.kwargs, backend="reference")
    exact = CASE.op(*truth.args, **truth.kwargs, backend="reference")
    caches = zip(args[1:3], plain.args[1:3], truth.args[1:3], strict=True)
    results = [(out, expected, exact), *caches]
    for name, (a, b, c) in zip(("q", "k_cache", "v_cache"), results, strict=True):
        compare(CASE.rule, a, b, c, name)
    assert torch.equal(args[2], plain.args[2]), "values are copied"
    for beside in (k[..., -8:], v[..., -16:], v[:, :, Tmax:]):
        assert not beside.any(), "written beside the cache"


class _LastRows:
    """A tensor that has memory for its last rows only.

    Args:
        rows: these rows, [..., T, .., D], each D elements behind the one before.
        missing: number of rows before them.
    """

    def __init__(self, rows, missing):
        self._rows, self._missing = rows, missing
        self.dtype, self.shape = rows.dtype, rows.shape

    def stride(self):
        return self._rows.stride()

    def data_ptr(self):
        row = self._rows.shape[-1] * self._rows.element_size()
        return self._rows.data_ptr() - self._missing * row


def test_rows_past_2_to_the_31_elements(rope_append):
    """Of the caches and of the table of angles."""
    missing, D = 2**27, 64
    qkv, freqs = torch.randn(1, 2, 3 * D), torch.randn(2, D)
    position, heads = torch.zeros(1, dtype=torch.int32), {"num_heads": 1, "num_kv_heads": 1}
    k, v, k_wanted, v_wanted = torch.zeros(4, 1, 2, 1, D)
    wanted = rope_append(qkv, k_wanted, v_wanted, position, freqs, **heads)
    k_wide, v_wide, freqs_wide = (_LastRows(rows, missing) for rows in (k, v, freqs))
    out = rope_append(qkv, k_wide, v_wide, position + missing, freqs_wide, **heads)
    for actual, expected in zip((out, k, v), (wanted, k_wanted, v_wanted), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.skipif(
    native.cuda.unavailable("rope_append") is not None, reason="the CUDA module was not built here"
)
def test_c_function_checks_before_it_launches():
    def call(*, B=1, P=1, H=4, Hkv=2, D=64, dtypes=(native.FLOAT16,) * 4):
        sizes = (B, P, H, Hkv, D)
        native.cuda.rope_append(*(0,) * 8, *sizes, *(0,) * 8, 1e-6, True, *dtypes, 0, 0)

    with pytest.raises(RuntimeError, match="dtype code not handled"):
        call(dtypes=(0, 0, 0, 9))
    for sizes in ({"B": -1}, {"H": 0}, {"Hkv": 0}, {"D": 12}, {"D": 264}, {"P": 2**28}):
        with pytest.raises(RuntimeError, match="size or argument out of range"):
            call(**sizes)
    call(B=0)  # nothing to launch, on any machine
    call(P=0)
