"""fingerprints: one number for the same bits on every instruction set, another for any change."""

import pytest
import torch

from bitdance_kernels import CpuGraph, fingerprints
from bitdance_kernels._shared import native
from bitdance_kernels.testing import cpu_isa, cpu_isas

pytestmark = pytest.mark.skipif(
    CpuGraph.unavailable() is not None, reason=str(CpuGraph.unavailable())
)


def _expected(data):
    """The hash of some bytes, by the book."""
    padded = data + bytes(-len(data) % 256)
    sums = [0] * 64
    for at in range(0, len(padded), 4):
        lane = at // 4 % 64
        word = int.from_bytes(padded[at : at + 4], "little")
        product = sums[lane] * 0x9E3779B1 % 2**32
        sums[lane] = ((product << 13 | product >> 19) + word) % 2**32
    value = len(data)
    for lane in sums:
        value = (value ^ lane) * 0x9E3779B97F4A7C15 % 2**64
        value ^= value >> 32
    return value - 2**64 if value >= 2**63 else value


@pytest.mark.parametrize("isa", cpu_isas())
def test_is_that_of_the_bytes_on_every_instruction_set(isa):
    generator = torch.Generator().manual_seed(0)
    sizes = (0, 1, 255, 256, 257, 1000, 4096)
    tensors = [torch.randint(256, (n,), generator=generator, dtype=torch.uint8) for n in sizes]
    with cpu_isa(isa):
        found = fingerprints(tensors)
    assert found.tolist() == [_expected(bytes(t.tolist())) for t in tensors]


def test_another_for_a_change_of_any_word_and_for_words_that_trade_places():
    x = torch.arange(200, dtype=torch.int32)
    changed = [x.clone() for _ in range(400)]
    for i in range(200):
        changed[i][i] ^= 1 << i % 32
        changed[200 + i][[i, (i + 64) % 200]] = changed[200 + i][[(i + 64) % 200, i]]
    hashes = fingerprints([x, *changed])
    assert len(set(hashes.tolist())) == 401
    assert not fingerprints([x.to(torch.int16), x]).diff().eq(0).any()


def test_reads_a_matrix_in_its_own_order_and_what_requires_grad():
    x = torch.randn(6, 8, requires_grad=True)
    original, transposed, copied = fingerprints([x, x.t(), x.t().contiguous()])
    assert original != transposed
    assert transposed == copied


def test_refuses_what_has_no_memory_here():
    with pytest.raises(ValueError, match="fingerprints: tensors must be on the CPU, got meta"):
        fingerprints([torch.empty(3, device="meta")])
    with pytest.raises(TypeError, match="fingerprints: tensors must be"):
        fingerprints([1.0])
    with pytest.raises(RuntimeError, match="fingerprint: size or argument out of range"):
        native.cpu.fingerprint(torch.zeros(1), -4, torch.zeros(1, dtype=torch.int64), 0)
