import itertools
import math

import numpy as np
import pytest
import torch

import bitdance_kernels
from bitdance_kernels import denoise_step, noise, noise_keys, use_backend
from bitdance_kernels._shared import native
from bitdance_kernels.philox import noise_words, philox4x32
from bitdance_kernels.testing import compare

# Known answers of Random123 (kat_vectors, philox4x32 with 10 rounds): counter, key, words.
KNOWN = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
)  # fmt: skip


def _hex(words):
    return [int(word, 16) for word in words.split()]


def philox_by_hand(counter, key):
    """Philox4x32-10 with Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [q >> 32 ^ c[1] ^ k[0], q & 0xFFFFFFFF, p >> 32 ^ c[3] ^ k[1], p & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    out = philox4x32(torch.tensor(_hex(counter)), torch.tensor(_hex(key)))
    assert out.tolist() == _hex(words)
    assert philox_by_hand(_hex(counter), _hex(key)) == _hex(words)


def test_the_counter_layout():
    """Every element's word, from the definition with Python's integers."""
    seeds = [0, 2**64 - 2, 0x123456789ABCDEF0]
    samples = [0, 2**32 - 1, 77]
    keys = noise_keys(seeds, samples, ar_step=2**31 - 1, stream=1)
    assert keys.dtype == torch.int64
    words = noise_words(keys, 5, 11)
    for r, (seed, sample) in enumerate(zip(seeds, samples, strict=True)):
        for e in range(11):
            counter = (e // 4, 5, 2**32 - 1, sample)
            block = philox_by_hand(counter, (seed % 2**32, seed >> 32))
            assert words[r, e].item() == block[e % 4]


@pytest.mark.parametrize("elements", [0, 1, 3, 4, 6, 511])
def test_a_prefix_of_a_longer_row(elements):
    keys = noise_keys(3, range(2))
    for draw in (noise_words, noise):
        part = draw(keys, 9, elements)
        assert part.shape == (2, elements)
        assert part.is_contiguous()
        assert torch.equal(part, draw(keys, 9, 512)[:, :elements])


def test_the_step_may_be_a_tensor():
    keys = noise_keys(3, range(2))
    for dtype in (torch.int32, torch.int64):
        for step in (torch.tensor(41, dtype=dtype), torch.tensor([41], dtype=dtype)):
            assert torch.equal(noise(keys, step, 64), noise(keys, 41, 64))


def test_a_sample_has_its_noise_in_every_batch():
    keys = noise_keys(1234, range(7), ar_step=3)
    every = noise(keys, 2, 130)
    order = torch.tensor([4, 0, 6, 2])
    assert torch.equal(noise(keys[order], 2, 130), every[order])
    for i in range(7):
        assert torch.equal(noise(noise_keys([1234], [i], ar_step=3), 2, 130)[0], every[i])


def test_the_next_autoregressive_step_is_two_further():
    keys = noise_keys(5, range(3), ar_step=8, stream=1)
    keys[:, 1] += 2
    assert torch.equal(keys, noise_keys(5, range(3), ar_step=9, stream=1))


def test_blocks_of_all_counters_differ():
    """No two of the 2^17 blocks of neighboring seeds, steps, streams and samples are equal."""
    blocks = []
    for seed, ar_step, stream in itertools.product((0, 1, 2**32, 2**33), (0, 1), (0, 1)):
        keys = noise_keys(seed, range(16), ar_step=ar_step, stream=stream)
        blocks += [noise_words(keys, step, 256).reshape(-1, 4) for step in range(8)]
    every = torch.cat(blocks)
    pairs = torch.stack((every[:, 0] << 31 ^ every[:, 1], every[:, 2] << 31 ^ every[:, 3]), -1)
    assert len(torch.unique(pairs, dim=0)) == len(every) == 2**17


def test_box_muller_word_by_word():
    words = noise_words(noise_keys(11, range(2)), 1, 64).numpy()
    normals = noise(noise_keys(11, range(2)), 1, 64, dtype=torch.float64).numpy()
    for row, z in zip(words, normals, strict=True):
        for j in range(0, 64, 2):
            u0, u1 = (float(np.float32((int(w) >> 8) + 0.5)) * 2.0**-24 for w in row[j : j + 2])
            r = math.sqrt(-2 * math.log(u0))
            expected = np.array([r * math.cos(2 * math.pi * u1), r * math.sin(2 * math.pi * u1)])
            assert np.abs(z[j : j + 2] - expected).max() <= 8 * np.finfo(np.float64).eps * r


def test_float32_normals_are_near_the_float64_ones():
    keys = noise_keys(2, range(64))
    narrow, wide = noise(keys, 3, 4096), noise(keys, 3, 4096, dtype=torch.float64)
    compare("rounded", narrow, narrow, wide, "noise")


def test_moments_and_distribution():
    n = 2**20
    z = noise(noise_keys(99, range(16)), 7, n // 16, dtype=torch.float64).flatten()
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs(z.pow(3).mean()) < 5 * math.sqrt(15 / n)
    assert abs(z.pow(4).mean() - 3) < 5 * math.sqrt(96 / n)
    # Kolmogorov-Smirnov at the level 1e-6: sup |F_n - F| < sqrt(ln(2 / 1e-6) / (2 n)).
    cdf = torch.special.ndtr(z.sort().values)
    rank = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((cdf - rank[:-1]).abs().max(), (cdf - rank[1:]).abs().max())
    assert distance < math.sqrt(math.log(2e6) / (2 * n))
    words = noise_words(noise_keys(99, range(16)), 7, n // 16).flatten()
    ones = torch.stack([(words >> bit & 1).double().mean() for bit in range(32)])
    assert (ones - 0.5).abs().max() < 5 * 0.5 / math.sqrt(n)


@pytest.mark.parametrize("neighbor", ["seed", "step", "sample", "ar_step", "stream", "element"])
def test_neighbors_are_uncorrelated(neighbor):
    n = 2**18
    base = {"seed": 41, "step": 6, "sample": 17, "ar_step": 2, "stream": 0, "element": 0}

    def draw(seed, step, sample, ar_step, stream, element):
        keys = noise_keys(seed, [sample], ar_step=ar_step, stream=stream)
        return noise(keys, step, n + 1)[0, element : element + n].double()

    a, b = draw(**base), draw(**base | {neighbor: base[neighbor] + 1})
    for x, y in ((a, b), (a.square() - 1, b.square() - 1)):
        assert abs((x * y).mean() / (x.norm() * y.norm() / n)) < 5 / math.sqrt(n)


def _triton_noise(keys, step, elements):
    with use_backend("triton"):
        return noise(keys, step, elements, backend="auto")


@pytest.mark.parametrize("elements", [0, 1, 3, 4, 6, 37, 520])
def test_normals_of_the_kernel_are_within_rounding(elements):
    keys = noise_keys([0, 2**64 - 1, 12345], [0, 2**32 - 1, 6], ar_step=2**31 - 1, stream=1)
    for step in (0, 101, 2**32 - 1):
        normals = _triton_noise(keys, step, elements)
        formula = noise(keys, step, elements)
        assert normals.is_contiguous()
        assert elements == 0 or not torch.equal(normals, formula), "the kernel's own roundings"
        wide = noise(keys, step, elements, dtype=torch.float64)
        compare("rounded", normals, formula, wide, "noise in Triton")
        assert torch.equal(_triton_noise(keys, torch.tensor([step]), elements), normals)
    columns = keys.t().contiguous().t()
    assert torch.equal(_triton_noise(columns, 2**32 - 1, elements), normals)
    assert _triton_noise(keys[:0], 0, elements).shape == (0, elements)


def test_the_kernel_draws_what_a_step_draws():
    keys, table = noise_keys([3, 8], [1, 0]), torch.tensor([[0.0, 0.0, 1.0]])
    x = torch.zeros(2, 3, 8)
    drawn = denoise_step(x, x, table, 0, keys=keys, backend="triton")
    assert torch.equal(_triton_noise(keys, 1, 24).view(2, 3, 8), drawn)


def test_what_is_traced_is_the_formula():
    keys = noise_keys(4, range(3))
    with use_backend("triton"):
        compiled = torch.compile(
            lambda keys: noise(keys, 2, 20, backend="auto"), fullgraph=True, backend="aot_eager"
        )
        assert torch.equal(compiled(keys), noise(keys, 2, 20))


NATIVE_CPU = pytest.mark.skipif(
    native.cpu.unavailable("noise") is not None, reason=str(native.cpu.unavailable("noise"))
)


def _native_noise(keys, step, elements, threads=1, words=True):
    """Normals and words of csrc/common/philox.h, in memory that held something else."""
    normals = torch.full((len(keys), elements), float("nan"))
    drawn = torch.full((len(keys), elements), -1, dtype=torch.int32)
    step = torch.tensor(step, dtype=torch.int64)
    native.cpu.noise(
        keys.data_ptr(),
        len(keys),
        elements,
        step.data_ptr(),
        normals.data_ptr(),
        drawn.data_ptr() if words else 0,
        threads,
    )
    return normals, drawn.to(torch.int64) & 0xFFFFFFFF


@NATIVE_CPU
@pytest.mark.parametrize("elements", [1, 2, 3, 4, 7, 512])
def test_native_words_are_equal_and_normals_within_rounding(elements):
    keys = noise_keys([0, 2**64 - 1, 12345], [0, 2**32 - 1, 6], ar_step=2**31 - 1, stream=1)
    for step in (0, 101, 2**32 - 1):
        normals, words = _native_noise(keys, step, elements)
        assert torch.equal(words, noise_words(keys, step, elements))
        wide = noise(keys, step, elements, dtype=torch.float64)
        compare("rounded", normals, noise(keys, step, elements), wide, "native noise")


@NATIVE_CPU
def test_native_noise_of_many_blocks():
    keys = noise_keys(8, range(300))
    alone, words = _native_noise(keys, 4, 1023)
    assert torch.equal(words, noise_words(keys, 4, 1023))
    wide = noise(keys, 4, 1023, dtype=torch.float64)
    compare("rounded", alone, noise(keys, 4, 1023), wide, "native noise")
    assert torch.equal(_native_noise(keys, 4, 1023, threads=2, words=False)[0], alone)
    assert torch.equal(_native_noise(keys, 4, 0)[0], torch.empty(300, 0))


@NATIVE_CPU
@pytest.mark.parametrize("step", [3, torch.tensor(3), torch.tensor([3], dtype=torch.int32)])
def test_noise_of_the_best_backend(step):
    keys = noise_keys([0, 9], [1, 2])
    native = _native_noise(keys, 3, 37)[0]
    assert torch.equal(noise(keys, step, 37, backend="auto"), native)
    with use_backend("reference"):
        assert torch.equal(noise(keys, step, 37, backend="auto"), noise(keys, step, 37))
    assert noise(keys, step, 5, dtype=torch.float64, backend="auto").dtype == torch.float64
    with pytest.raises(ValueError, match="noise: backend must be auto or reference, got 'cpu'"):
        noise(keys, step, 37, backend="cpu")
    with pytest.raises(ValueError, match=r"noise: keys must be of shape \[R, 3\]"):
        noise(keys[:, :2], step, 37, backend="auto")


@NATIVE_CPU
def test_native_noise_refuses_bad_sizes():
    for rows, elements, threads in ((-1, 4, 1), (1, -4, 1), (1, 2**34 + 1, 1), (1, 4, 0)):
        with pytest.raises(RuntimeError, match="noise: size or argument out of range"):
            native.cpu.noise(0, rows, elements, 0, 0, 0, threads)


def test_bad_arguments():
    keys = noise_keys(0, range(2))
    for call, error, message in (
        (lambda: noise(keys.int(), 0, 4), TypeError, "noise: keys must be int64, got int32"),
        (lambda: noise(keys[:, :2], 0, 4), ValueError, r"noise: keys must be of shape \[R, 3\]"),
        (lambda: noise(keys[0], 0, 4), ValueError, "noise: keys must be of 2 dimensions"),
        (lambda: noise(keys, -1, 4), ValueError, r"noise: step must be in \[0, 2\^32\), got -1"),
        (lambda: noise(keys, torch.zeros(()), 4), TypeError, "noise: step must be int64 or int32"),
        (lambda: noise(keys, torch.zeros(2).long(), 4), ValueError, "noise: step must be of one"),
        (lambda: noise(keys, torch.zeros((), dtype=torch.int64, device="meta"), 4), ValueError,
         "noise: step must be on cpu like keys, got meta"),
        (lambda: noise(keys, 0, -1), ValueError, "noise: elements must be in"),
        (lambda: noise(keys, 0, 4, dtype=torch.float16), TypeError, "noise: dtype must be float32"),
        (lambda: noise_keys(2**64, [0]), ValueError, r"noise_keys: seeds must be in \[0, 2\^64\)"),
        (lambda: noise_keys(-1, [0]), ValueError, "noise_keys: seeds must be in"),
        (lambda: noise_keys(0, [2**32]), ValueError, "noise_keys: sample_ids must be in"),
        (lambda: noise_keys([0, 1], [0]), ValueError, "noise_keys: seeds must be one or 1"),
        (lambda: noise_keys(0, [0], ar_step=2**31), ValueError, "noise_keys: ar_step must be in"),
        (lambda: noise_keys(0, [0], stream=2), ValueError, r"stream must be in \[0, 2\^1\)"),
        (lambda: noise_keys(0, [0.5]), TypeError, "noise_keys: sample_ids must be int, got float"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()


def test_no_row():
    assert noise_keys(0, []).shape == (0, 3)
    assert noise(noise_keys(0, []), 1, 8).shape == (0, 8)


def test_compiles_without_a_host_read():
    keys = noise_keys(4, range(3))
    torch._dynamo.reset()
    compiled = torch.compile(lambda k, s: noise(k, s, 96), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(keys, torch.tensor(12)), noise(keys, 12, 96))
    meta = noise(keys.to("meta"), torch.tensor(12, device="meta"), 96)  # has no values to read
    assert meta.shape == (3, 96)


def test_exported():
    assert {"noise", "noise_keys"} <= set(bitdance_kernels.__all__)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_noise_is_float32_whatever_the_default_dtype(dtype):
    keys = noise_keys(7, range(3))
    good = noise(keys, 1, 101, backend="auto")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        made = noise(noise_keys(7, range(3)), 1, 101, backend="auto")
    finally:
        torch.set_default_dtype(before)
    assert made.dtype == torch.float32
    assert torch.equal(made, good)
