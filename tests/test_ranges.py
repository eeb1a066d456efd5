"""Ranges, their builders, and the masks of the official code."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils import _pytree as pytree

from bitdance_kernels import Ranges, block_causal_ranges, dense_mask, packed_document_ranges
from bitdance_kernels.attention._shared import intervals

GOLDEN = Path(os.environ.get("BITDANCE_GOLDEN_DIR", Path(__file__).parent / "golden"))
DESCRIPTIONS = {
    path: json.loads(path.read_text())["description"] for path in sorted(GOLDEN.glob("*.json"))
}


def golden_cases(holds):
    """Golden cases by description."""
    cases = [(path, text) for path, text in DESCRIPTIONS.items() if holds(text)]
    assert cases
    return pytest.mark.parametrize(("path", "description"), cases, ids=[p.stem for p, _ in cases])


def _int32(values):
    return torch.tensor(values, dtype=torch.int32)


@st.composite
def monotone_ranges(draw, batch=False):
    """Ranges with empty ones and ones that start after they end, and a number of keys."""
    T, keys = draw(st.integers(1, 12)), draw(st.integers(0, 15))
    rows = draw(st.sampled_from([None, 1, 3])) if batch else None

    def ends():
        return sorted(draw(st.lists(st.integers(0, keys), min_size=T, max_size=T)))

    if rows is None:
        start, end = ends(), ends()
    else:
        start, end = [ends() for _ in range(rows)], [ends() for _ in range(rows)]
    return Ranges(_int32(start), _int32(end), keys=keys), keys


@given(monotone_ranges(batch=True))
def test_dense_mask_and_seen_keys_against_loops(drawn):
    ranges, keys = drawn
    mask = dense_mask(ranges, keys)
    assert mask.shape == (*ranges.start.shape, keys)
    for index, start in _values(ranges.start):
        end = int(ranges.end[index])
        assert mask[index].tolist() == [start <= j < end for j in range(keys)]
    seen = intervals.seen(ranges.start, ranges.end, keys)
    assert torch.equal(seen, mask.any(-2))


def _values(tensor):
    return [(tuple(i), int(tensor[tuple(i)])) for i in torch.ones_like(tensor).nonzero().tolist()]


@given(
    prefix=st.integers(0, 9), patches=st.integers(0, 5), P=st.integers(1, 7), missing=st.integers(0)
)
def test_block_causal_ranges_against_loops(prefix, patches, P, missing):
    total = prefix + patches * P - (missing % P if patches else 0)
    ranges = block_causal_ranges(prefix, patches, P, tokens=total)
    Ranges(ranges.start, ranges.end, keys=total)  # validates
    mask = dense_mask(ranges)
    assert mask.shape == (total, total)
    for i in range(total):
        for j in range(total):
            same_patch = i >= prefix and j >= prefix and (i - prefix) // P == (j - prefix) // P
            assert bool(mask[i, j]) == (j <= i or same_patch), (i, j)


def test_patches_of_one_token_are_causal():
    assert torch.equal(dense_mask(block_causal_ranges(3, 4, 1)), torch.ones(7, 7).tril().bool())


@golden_cases(lambda text: "attn_mask" in text.get("official", "") and "configs" in text)
def test_masks_of_the_official_imagenet_models(path, description):
    tensors = load_file(path.with_suffix(".safetensors"))
    for n, config in enumerate(description["configs"]):
        blocks = config["hw"] ** 2 // config["P"]
        ranges = block_causal_ranges(config["cls"] - 1, blocks, config["P"])
        assert torch.equal(dense_mask(ranges), tensors[f"out.c{n}.attn_mask"] == 0)


@golden_cases(lambda text: "document_lens" in next(iter(text.get("masks", [])), {}))
def test_masks_of_the_official_packed_sequences(path, description):
    tensors = load_file(path.with_suffix(".safetensors"))
    for n, mask in enumerate(description["masks"]):
        segments = zip(mask["split_lens"], mask["attn_modes"], strict=True)
        ranges = packed_document_ranges(
            mask["document_lens"], segments, patch_tokens=mask["parallel_num"]
        )
        assert torch.equal(dense_mask(ranges), tensors[f"out.sparse_mask{n}"])


@st.composite
def _packed(draw):
    segments = draw(
        st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["causal", "parallel"])), max_size=6)
    )
    total = sum(length for length, _ in segments)
    cuts = sorted(draw(st.lists(st.integers(0, total), max_size=3)))
    documents = [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]
    return documents, segments, draw(st.integers(1, 5))


@given(_packed())
def test_packed_document_ranges_against_loops(drawn):
    documents, segments, P = drawn
    ranges = packed_document_ranges(documents, segments, patch_tokens=P)
    total = sum(documents)
    Ranges(ranges.start, ranges.end, keys=total)  # validates
    document = [n for n, length in enumerate(documents) for _ in range(length)]
    block = []  # one name for the tokens of each bidirectional block
    for n, (length, mode) in enumerate(segments):
        for i in range(length):
            inside = mode == "parallel" and i >= 2
            block.append((n, (i - 2) // P) if inside else ("alone", len(block)))
    expected = [
        [document[i] == document[j] and (j <= i or block[i] == block[j]) for j in range(total)]
        for i in range(total)
    ]
    assert dense_mask(ranges).tolist() == expected


def test_memory_grows_with_the_tokens_only():
    """A mask of 65,536 tokens would take 4 GB as bool."""
    T = 65536
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for leaf in pytree.tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    largest = max(largest, leaf.numel())
            return result

    with Watch():
        for ranges in (
            block_causal_ranges(64, (T - 64) // 64, 64),
            packed_document_ranges([1000] * 60 + [5536], [(T, "parallel")], patch_tokens=64),
        ):
            Ranges(ranges.start, ranges.end, keys=T)
            assert intervals.seen(ranges.start, ranges.end, T).all()
    assert T <= largest <= 2 * T


GOOD = _int32([0, 0, 1])


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "match"),
    [
        ((GOOD.long(), GOOD), {}, TypeError, "start must be int32, got int64"),
        ((GOOD, [1, 2, 3]), {}, TypeError, "end must be an int32 tensor, got <class 'list'>"),
        ((GOOD[0], GOOD[0]), {}, ValueError, "start must be of 1 to 2 dimensions"),
        ((GOOD, GOOD[:2]), {}, ValueError, r"end must be of shape \[3\], got \[2\]"),
        ((GOOD, GOOD.to("meta")), {}, ValueError, "end must be on cpu like start, got meta"),
        (
            (GOOD, _int32([2, 3, 1])),
            {},
            ValueError,
            r"end must be never decreasing, got end\[2\] = 1 after end\[1\] = 3",
        ),
        (
            (_int32([[0, 0], [2, 1]]), _int32([[1, 2], [3, 3]])),
            {},
            ValueError,
            r"start must be never decreasing, got start\[1, 1\] = 1 after start\[1, 0\] = 2",
        ),
        (
            (_int32([-1, 0]), _int32([1, 2])),
            {},
            ValueError,
            r"start must be 0 or more, got start\[0\] = -1",
        ),
        (
            (_int32([0, 0]), _int32([1, 3])),
            {"keys": 2},
            ValueError,
            r"end must be from 0 to 2, the number of keys, got end\[1\] = 3",
        ),
    ],
)
def test_wrong_ranges_are_refused(args, kwargs, error, match):
    with pytest.raises(error, match=f"^Ranges: {match}"):
        Ranges(*args, **kwargs)


def test_values_are_not_read_when_validation_is_off():
    wrong = _int32([5, -3])
    Ranges(wrong, wrong, validate=False)
    Ranges(wrong.to("meta"), wrong.to("meta"), validate=False)  # has no values to read
    with pytest.raises(TypeError, match="Ranges: start must be int32"):
        Ranges(wrong.long(), wrong, validate=False)


def test_ranges_that_are_empty_or_end_before_they_start_see_nothing():
    ranges = Ranges(_int32([2, 2, 3]), _int32([0, 2, 3]), keys=3)
    assert not dense_mask(ranges).any()


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (
            lambda: block_causal_ranges(-1, 1, 1),
            ValueError,
            "block_causal_ranges: prefix must be 0 or more, got -1",
        ),
        (
            lambda: block_causal_ranges(1, 1, 0),
            ValueError,
            "block_causal_ranges: patch_tokens must be 1 or more, got 0",
        ),
        (
            lambda: block_causal_ranges(1, 2.0, 1),
            TypeError,
            "block_causal_ranges: patches must be an integer, got 2.0",
        ),
        (
            lambda: block_causal_ranges(1, 2, 4, tokens=5),
            ValueError,
            "block_causal_ranges: tokens must be from 6 to 9, .* got 5",
        ),
        (
            lambda: block_causal_ranges(1, 2, 4, tokens=10),
            ValueError,
            "must be from 6 to 9, .* got 10",
        ),
        (
            lambda: packed_document_ranges([3], [(2, "causal")], patch_tokens=1),
            ValueError,
            "packed_document_ranges: segments must be 3 tokens long like the documents, got 2",
        ),
        (
            lambda: packed_document_ranges([3], [(3, "full")], patch_tokens=1),
            ValueError,
            r"segments\[0\]\[1\] must be 'causal' or 'parallel', got 'full'",
        ),
        (
            lambda: packed_document_ranges([4, -1], [(3, "causal")], patch_tokens=1),
            ValueError,
            r"packed_document_ranges: document_lengths\[1\] must be 0 or more, got -1",
        ),
        (lambda: dense_mask(GOOD), TypeError, "dense_mask: ranges must be Ranges, got Tensor"),
        (
            lambda: dense_mask(block_causal_ranges(1, 1, 1), -1),
            ValueError,
            "dense_mask: keys must be 0 or",
        ),
    ],
)
def test_wrong_arguments_of_the_builders(build, error, match):
    with pytest.raises(error, match=match):
        build()


def test_ranges_are_a_pytree_and_immutable():
    ranges = block_causal_ranges(1, 2, 2)
    moved = pytree.tree_map(lambda t: t.to("meta"), ranges)
    assert isinstance(moved, Ranges)
    assert moved.end.is_meta
    with pytest.raises(AttributeError):
        ranges.start = ranges.end


def test_ranges_can_be_built_in_a_compiled_function():
    def mask(x):
        return x + dense_mask(block_causal_ranges(1, 2, 2, device=x.device))

    compiled = torch.compile(mask, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(5, 5)), mask(torch.zeros(5, 5)))
