import pytest
import torch

from bitdance_kernels import flip_bits, flip_signs, pack_signs, unpack_signs
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels._shared import native
from bitdance_kernels.binary.flip_bits.reference import DOMAIN
from bitdance_kernels.philox import philox4x32
from bitdance_kernels.testing import Call, Invalid, cpu_isa, cpu_isas

P = torch.zeros(3, 4, dtype=torch.uint8)
X = torch.ones(3, 32)
_U = torch.rand(3, 32)


def _shared(tensor, argument):
    return (
        Invalid("dtype", Call("integer uniforms", (tensor, 0.5), {"uniforms": (_U.int(), _U)}),
                TypeError, r"uniforms\[0\] must be float32 .*, got int32"),
        Invalid("dtype", Call("float seed", (tensor, 0.5), {"seed": torch.tensor(1.0)}),
                TypeError, "seed must be int64, got float32"),
        Invalid("size", Call("short uniforms", (tensor, 0.5), {"uniforms": (_U, _U[:2])}),
                ValueError, r"uniforms\[1\] must be of shape \[..., C\] = \[3, 32\], got"),
        Invalid("size", Call("two seeds", (tensor, 0.5), {"seed": torch.tensor([1, 2])}),
                ValueError, r"seed must be of one element, got shape \[2\]"),
        Invalid("device", Call("uniforms elsewhere", (tensor, 0.5),
                               {"uniforms": (_U.to("meta"), _U)}),
                ValueError, "uniforms must be on cpu like the input, got meta"),
        Invalid("value", Call("rate", (tensor, 1.5)), ValueError, r"rate must be in \[0, 1\], got"),
        Invalid("value", Call("NaN rate", (tensor, float("nan"))), ValueError,
                r"rate must be in \[0, 1\], got nan"),
        Invalid("value", Call("seed", (tensor, 0.5), {"seed": -1}), ValueError,
                r"seed must be in \[0, 2\^64\), got -1"),
        Invalid("value", Call("offset", (tensor, 0.5), {"offset": 2**32}), ValueError,
                r"offset must be in \[0, 2\^32\), got 4294967296"),
    )  # fmt: skip


INVALID = {
    "flip_bits": (
        *_shared(P, "packed"),
        Invalid("dtype", Call("float", (X, 0.5)), TypeError, "packed must be uint8, got float32"),
        Invalid("rank", Call("scalar", (P[0, 0], 0.5)), ValueError, "packed must be of at least 1"),
        Invalid(
            "size", Call("no byte", (P[:, :0], 0.5)), ValueError, r"packed must be \[..., C / 8"
        ),
    ),
    "flip_signs": (
        *_shared(X, "x"),
        Invalid("dtype", Call("packed", (P, 0.5)), TypeError, "x must be float32 .*, got uint8"),
        Invalid("rank", Call("scalar", (X[0, 0], 0.5)), ValueError, "x must be of at least 1 dim"),
        Invalid("size", Call("C = 12", (X[:, :12], 0.5)), ValueError, "multiple of 8, got shape"),
    ),
}


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0.0), (0.1, 0.05), (0.5, 0.25), (1.0, 0.5)])
def test_rate(rate, expected):
    packed = torch.zeros(2**15, 8, dtype=torch.uint8)
    flips = unpack_signs(flip_bits(packed, rate, seed=3)) > 0
    n = flips.numel()
    sigma = (expected * (1 - expected) / n) ** 0.5
    assert abs(flips.double().mean().item() - expected) <= 5 * sigma
    # Every channel alone, and neighbours together: flips are independent.
    columns = flips.double().mean(0) - expected
    assert columns.abs().max() <= 6 * sigma * 64**0.5
    together = (flips[:, 1:] & flips[:, :-1]).double().mean().item()
    assert abs(together - expected**2) <= 6 * (expected**2 / n) ** 0.5


def test_a_position_flips_alike_in_every_shape():
    packed = torch.randint(256, (6, 20), dtype=torch.uint8)
    flipped = flip_bits(packed, 0.4, seed=9, offset=2)
    assert torch.equal(flip_bits(packed.view(-1), 0.4, seed=9, offset=2).view(6, 20), flipped)
    assert torch.equal(flip_bits(packed[:3], 0.4, seed=9, offset=2), flipped[:3])


def test_seeds_and_offsets_differ():
    packed = torch.zeros(64, 8, dtype=torch.uint8)
    draws = [flip_bits(packed, 1.0, seed=s, offset=o) for s in (0, 1, 2**32) for o in (0, 1)]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            agreement = (unpack_signs(a) == unpack_signs(b)).double().mean()
            assert 0.45 < agreement < 0.55


def test_words_are_the_documented_ones():
    packed = torch.zeros(3, dtype=torch.uint8)
    seed, offset = 2**40 + 7, 5
    flipped = flip_bits(packed, 0.5, seed=seed, offset=offset)
    for byte in range(3):
        counter = torch.tensor([byte, 0, offset, DOMAIN])
        words = philox4x32(counter, torch.tensor([seed & 0xFFFFFFFF, seed >> 32])).tolist()
        halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
        expected = sum(1 << bit for bit, half in enumerate(halves) if half < 2**14)
        assert flipped[byte].item() == expected


@pytest.mark.slow
def test_a_compiled_program_takes_every_seed():
    """Its integers have 64 bits with a sign, a seed has none."""
    x = torch.randn(3, 16)
    compiled = torch.compile(
        lambda x, seed: flip_signs(x * 1, 0.5, seed=seed) * 1, fullgraph=True, dynamic=True
    )
    for seed in (2**63, 5, 2**64 - 1, 2**63 - 1):
        assert torch.equal(compiled(x, seed), flip_signs(x, 0.5, seed=seed)), seed


def test_seed_may_be_an_int_or_a_tensor():
    packed = torch.randint(256, (5, 8), dtype=torch.uint8)
    for seed in (0, 7, 2**63 + 1):
        signed = seed - 2**64 if seed >= 2**63 else seed
        tensor = torch.tensor([signed])
        a = flip_bits(packed, 0.5, seed=seed, offset=3)
        assert torch.equal(flip_bits(packed, 0.5, seed=tensor, offset=torch.tensor(3)), a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_signs_flip_with_their_bits(dtype):
    x = torch.randn(7, 48).sign().to(dtype)
    flipped = flip_signs(x, 0.6, seed=4, offset=1)
    packed = flip_bits(pack_signs(x), 0.6, seed=4, offset=1)
    assert torch.equal(flipped, unpack_signs(packed, dtype))


def test_given_uniforms_are_the_official_draw():
    x = torch.randn(6, 16).sign()
    r1, r2 = torch.rand(6, 16), torch.rand(6, 16)
    expected = torch.where(r1 < 0.7 * r2, -x, x)
    assert torch.equal(flip_signs(x, 0.7, uniforms=(r1, r2)), expected)
    packed = flip_bits(pack_signs(x), 0.7, uniforms=(r1, r2))
    assert torch.equal(unpack_signs(packed), expected)


@pytest.mark.parametrize("backend", REGISTRY["flip_bits"].backends)
def test_the_key_tensor_is_read_as_it_lies_and_modulo_2_to_the_32(backend):
    packed = torch.randint(256, (5, 8), dtype=torch.uint8)
    if REGISTRY["flip_bits"].reason(backend, (packed, 0.5, torch.tensor([7, 3]), None, None)):
        return
    gaps = torch.tensor([7, -1, 2**32 + 3])[::2]  # offset 3, its upper bits are not read
    flipped = torch.ops.bitdance.flip_bits(packed, 0.5, gaps, None, None, backend)
    assert torch.equal(flipped, flip_bits(packed, 0.5, seed=7, offset=3, backend="reference"))


def expected_flips(first, count, seed, offset, threshold):
    """Of `count` bytes from `first` on, by the documented words."""
    byte = first + torch.arange(count)
    counter = torch.stack([byte & 0xFFFFFFFF, byte >> 32, 0 * byte + offset, 0 * byte + DOMAIN], -1)
    words = philox4x32(counter, torch.tensor([seed & 0xFFFFFFFF, seed >> 32]))
    halves = torch.stack([words & 0xFFFF, words >> 16], dim=-1).flatten(1)
    return ((halves < threshold) * 2 ** torch.arange(8)).sum(1).to(torch.uint8)


FIRSTS = [0, 2**32 - 32, 2**32, 2**32 + 96, 2**34 + 5 * 2**32]


@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("isa", cpu_isas())
def test_bytes_past_2_to_the_32_flip_by_words_of_their_own(first, isa):
    key, packed = torch.tensor([2**40 + 7, 5]), torch.zeros(64, dtype=torch.uint8)
    flipped = torch.empty_like(packed)
    with cpu_isa(isa):
        native.cpu.flip_bits(packed, flipped, 64, first, key, 2**14, 2)
    assert torch.equal(flipped, expected_flips(first, 64, 2**40 + 7, 5, 2**14))
