"""What the ops are timed against computes the same; packages that are missing are named."""

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from benchmarks import peers
from benchmarks.model import int8, quantizer
from benchmarks.shapes import all_benches
from bitdance_kernels import (
    CodeIndex,
    lfq_entropy,
    linear,
    nearest_codes,
    pack_weight,
    quantize_rows,
)

CPU = torch.device("cpu")
RANDOM = {"flip_bits", "flip_signs", "denoise_step"}  # each draws its own numbers
ELSEWHERE = RANDOM | {"nearest_codes", "lfq_entropy"}
COMPARED = [
    (name, peer)
    for name, bench in all_benches().items()
    for peer in bench.peers
    if name not in ELSEWHERE and peer != "torch.compile"
]


def _called(function, *arguments):
    """Its result; None, if a package is missing."""
    try:
        return function(*arguments)
    except RuntimeError as error:
        if str(error) not in ("not installed", "a call for each query"):
            raise
        return None


@pytest.mark.parametrize(("name", "peer"), COMPARED)
def test_a_peer_gives_the_results_of_the_op(name, peer):
    bench = all_benches()[name]
    timings = [t for t in bench.timings if "cpu" in t.devices]
    call = min(timings, key=lambda t: ("float16" in t.name, t.bytes + t.flops)).make(CPU)
    found = _called(lambda: bench.peers[peer](*call.args, **call.kwargs))
    if found is not None:
        expected = pytree.tree_leaves(bench.op(*call.args, **call.kwargs))
        for a, b in zip(pytree.tree_leaves(found), expected, strict=True):
            torch.testing.assert_close(torch.as_tensor(a).reshape(b.shape).to(b.dtype), b)


@pytest.mark.parametrize("package", ["faiss", "usearch"])
def test_a_search_finds_the_same_distances(package):
    a, b = (torch.randint(256, (rows, 8), dtype=torch.uint8) for rows in (3, 100))
    expected = nearest_codes(a, b, 5)[1].numpy()
    for codes in (b, CodeIndex(b)):
        found = _called(all_benches()["nearest_codes"].peers[package], a, codes, 5)
        distances = getattr(found, "distances", found and found[0])
        assert found is None or np.array_equal(distances, expected)


def test_two_half_codes_have_the_entropies_of_the_op():
    for bits in (8, 5):
        x = 0.02 * torch.randn(40, 2 * bits)
        torch.testing.assert_close(peers.entropy_halves(x, bits), lfq_entropy(x, bits))


def test_words_flip_the_share_of_bits_that_is_asked_for():
    packed = torch.zeros(2**17, 8, dtype=torch.uint8)
    for rate in (0.0, 0.1, 1.0):
        flips = np.unpackbits(peers.flip_bits_words(packed, rate)).mean()
        assert abs(flips - rate / 2) <= 5 * (0.5 / 2**23) ** 0.5 * (rate > 0)


@pytest.mark.parametrize("peer", int8.peers())
def test_products_with_an_int8_weight_are_those_of_the_op_but_for_rounding(peer):
    """By peers that round the rows of x, and scales, to 8 bits."""
    x, bias, weight = torch.randn(3, 128), torch.randn(32), torch.randn(32, 128)
    values, scales = quantize_rows(weight, torch.int8)
    expected = linear(x, pack_weight(values, "panels", scales=scales), bias)
    found = _called(lambda: int8.peers()[peer](values, scales, bias)(x))
    if found is not None:
        bound = 2.0**-7 * x.abs().amax(1, keepdim=True) * (weight.abs().sum(1) + bias.abs())
        assert ((torch.as_tensor(found).float() - expected).abs() < bound).all()


def test_a_product_is_compared_with_other_packages():
    compared = int8.product(2, 64, 32)
    assert {"linear", "F.linear", *int8.peers()} < set(compared.ways)
    ours, panels, library, *_ = (way() for way in compared.ways.values())
    torch.testing.assert_close(ours, library)
    torch.testing.assert_close(panels, library)


def test_a_quantizer_is_compared_with_another_package():
    comparison = quantizer.quantization(16, 8)
    ours, theirs = comparison.ways
    assert ours == "bitdance"
    expected = comparison.ways[ours]()
    found = _called(comparison.ways[theirs])
    assert expected.shape == (16, 8)
    assert found is None or found.shape == expected.shape
