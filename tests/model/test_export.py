"""Exported, traced and compiled parts of the models give what eager ones give."""

import copy
import io
import warnings

import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.config import AutoencoderConfig
from bitdance.models.kv_cache import KVCache
from bitdance.models.qwen3 import Qwen3Config, Qwen3Model, rope_frequencies, rope_table
from bitdance.sampling.flow_sampler import Schedule, sample_patch
from bitdance.sampling.image_decoder import ImageDecoder
from bitdance_kernels import noise_keys, use_backend
from tests.model.helpers.tiny import AUTOENCODER, tiny_config, tiny_head, tiny_model, tiny_patch

ATTENTION = AutoencoderConfig(
    ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=8, num_codebooks=1,
    architecture="conv_attention", gan_decoder=True, attn_blocks=1, n_heads=2,
)  # fmt: skip
QWEN = Qwen3Config(
    hidden_size=24, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=40, vocab_size=50, head_dim=8,
)  # fmt: skip


class Of(nn.Module):
    """A module whose forward is a function of another one and its arguments."""

    def __init__(self, module, function):
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *arguments):
        return self.function(self.module, *arguments)


def _rand(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _signs(*shape, seed):
    return torch.where(_rand(*shape, seed=seed) > 0, 1.0, -1.0)


def _autoencoder(config):
    torch.manual_seed(0)
    return BinaryAutoencoder(config).eval()


def _step(model, x, lengths, *memory):
    """One step of the transformer: what the cache holds then belongs to the result."""
    cache = KVCache(tuple(zip(memory[::2], memory[1::2], strict=True)), lengths)
    hidden = model.layers.decode(model.emb_norm(model.embed(x)), model.freqs, cache)
    return model.norm(hidden), lengths.clone(), *(tensor.clone() for tensor in memory)


def _model():
    return tiny_model(n_layer=1)


def _step_inputs(rows, seed):
    config = tiny_config(n_layer=1)
    shape = (rows, config.prefix + config.tokens - 4, 2, config.dim // 2)
    memory = (_rand(*shape, seed=seed + i) for i in range(2 * config.n_layer))
    lengths = torch.arange(3, 3 + rows, dtype=torch.int32) + seed % 2
    return _signs(rows, 4, config.token_bits, seed=seed), lengths, *memory


def _language_step(trunk, x, lengths, keys, values):
    freqs = rope_table(12, rope_frequencies(8, 1e6))
    return trunk.decode(x, freqs, KVCache(((keys, values),), lengths)), keys.clone()


def _language_trunk():
    torch.manual_seed(0)
    return Qwen3Model(QWEN).eval()


def _patch(head, cond, *noise):
    return sample_patch(head.net, Schedule.of(head.net, 1), cond, noise=noise)


def _drawn_patch(head, cond, keys):
    return sample_patch(head.net, Schedule.of(head.net, 1), cond, keys=keys)


def _head(architecture):
    return tiny_head(architecture, depth_latent=1, depth_adanln=1)


def _head_inputs(architecture, rows, seed):
    patch = () if tiny_patch(architecture) is None else (4,)
    x, cond = _signs(rows, *patch, 8, seed=seed), _rand(rows, *patch, 24, seed=seed)
    return x, torch.linspace(0.1, 0.9, rows) / (1 + seed), cond


# By name: a fresh module, and arguments of so many rows for a seed.
PARTS = {
    "decoder of packed latents to pixels": (
        lambda: Of(_autoencoder(AUTOENCODER), lambda m, codes: ImageDecoder(m)(codes)),
        lambda rows, seed: (_rand(rows, 4, 4, 1, seed=seed).mul(99).to(torch.uint8),),
    ),
    "decoder with attention and noise": (
        lambda: Of(_autoencoder(ATTENTION), lambda m, codes, noise: m.decode(codes, noise=noise)),
        lambda rows, seed: (_signs(rows, 8, 4, 4, seed=seed), _rand(rows, 8, 4, 4, seed=seed)),
    ),
    "encoder": (
        lambda: Of(_autoencoder(AUTOENCODER), lambda m, images: m.encode(images, packed=True)),
        lambda rows, seed: (_rand(rows, 3, 8, 8, seed=seed),),
    ),
    "trunk": (
        lambda: Of(_model(), lambda m, tokens, labels: m.conditions(tokens, labels)),
        lambda rows, seed: (
            _signs(rows, 16, 8, seed=seed), (torch.arange(rows) + seed) % 5
        ),
    ),
    "step of the transformer": (lambda: Of(_model(), _step), _step_inputs),
    "step of the language model": (
        lambda: Of(_language_trunk(), _language_step),
        lambda rows, seed: (
            _rand(rows, 4, 24, seed=seed), torch.arange(rows, dtype=torch.int32) + seed,
            _rand(rows, 12, 2, 8, seed=seed), _rand(rows, 12, 2, 8, seed=seed + 1),
        ),
    ),
    "head for a token": (lambda: _head("mlp"), lambda *a: _head_inputs("mlp", *a)),
    "head": (lambda: _head("transformer"), lambda *a: _head_inputs("transformer", *a)),
    "head of text to image": (lambda: _head("t2i"), lambda *a: _head_inputs("t2i", *a)),
    "sampler of a patch that draws": (
        lambda: Of(_head("transformer"), _drawn_patch),
        lambda rows, seed: (
            _rand(rows, 4, 24, seed=seed), noise_keys(seed, range(rows))
        ),
    ),
    "sampler of a patch": (
        lambda: Of(_head("transformer"), _patch),
        lambda rows, seed: (
            _rand(rows, 4, 24, seed=seed), *(_rand(rows, 4, 8, seed=seed + i) for i in range(2))
        ),
    ),
}  # fmt: skip
MAIN = ("decoder of packed latents to pixels", "step of the transformer", "head")
EVERY = pytest.mark.parametrize("name", PARTS)


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def _of(arguments):
    return tuple(argument.clone() for argument in arguments)


def _check(found, expected):
    found, expected = (r if isinstance(r, (tuple, list)) else (r,) for r in (found, expected))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        if a.dtype == torch.uint8:  # pixels, of which rounding may move one by 1
            a, b = a.int(), b.int()
            assert (a - b).abs().max() <= 1
        else:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def _operators(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@EVERY
def test_exported_it_is_equal(name):
    """Also for other arguments than those of the example, more of them, saved, decomposed."""
    make, arguments = PARTS[name]
    module, rows = make(), Dim("rows", min=2, max=64)
    example = arguments(2, 0)
    shapes = tuple({0: rows} for _ in example)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(side effects|leaked).*")
        program = torch.export.export(
            module, _of(example), dynamic_shapes=(shapes,) if isinstance(module, Of) else shapes
        )
    assert any(operator.startswith("bitdance.") for operator in _operators(program))
    programs = [program]
    if name in MAIN:
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        programs += [torch.export.load(file), program.run_decompositions()]
    for given in (example, arguments(2, 1), arguments(5, 2)):
        expected = make()(*_of(given))
        for exported in programs:
            _check(exported.module()(*_of(given)), expected)
        _check(module(*_of(given)), expected)  # exporting has left nothing in the module


@pytest.mark.parametrize("name", [*MAIN, "trunk"])
def test_exported_with_the_reference_it_holds_pytorchs_operators_alone(name):
    make, arguments = PARTS[name]
    with use_backend("reference"):
        program = torch.export.export(make(), _of(arguments(2, 0)))
    assert not any("bitdance" in operator for operator in _operators(program))
    others = arguments(2, 1)
    _check(program.module()(*_of(others)), make()(*_of(others)))


@pytest.mark.parametrize(
    "name", [n if n == "head" else pytest.param(n, marks=pytest.mark.nightly) for n in MAIN]
)
def test_in_onnx_it_is_equal(name, tmp_path):
    make, arguments = PARTS[name]
    file = tmp_path / "part.onnx"
    torch.onnx.export(make(), _of(arguments(2, 0)), str(file), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    others = arguments(2, 1)
    given = {i.name: a.numpy() for i, a in zip(session.get_inputs(), others, strict=True)}
    found = [torch.from_numpy(result) for result in session.run(None, given)]
    _check(found, make()(*_of(others)))


@pytest.mark.parametrize("name", [*MAIN, "trunk", "sampler of a patch that draws"])
def test_traced_it_is_equal(name):
    """By TorchScript and by FX, and run on other arguments."""
    make, arguments = PARTS[name]
    example, others = arguments(2, 0), arguments(2, 1)
    expected = make()(*_of(others))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (torch.jit.TracerWarning, DeprecationWarning))
        traced = torch.jit.trace(make(), _of(example), check_trace=False)
    _check(traced(*_of(others)), expected)
    module = make()
    _check(make_fx(lambda *a: module(*a))(*_of(example))(*_of(others)), expected)
    _check(module(*_of(others)), expected)


def test_a_cache_of_buffers_is_written_by_the_exported_step():
    class Step(nn.Module):
        def __init__(self, model, lengths, *memory):
            super().__init__()
            self.model, self.count = model, len(memory)
            self.register_buffer("lengths", lengths.clone())
            for i, tensor in enumerate(memory):
                self.register_buffer(f"memory{i}", tensor.clone())

        def forward(self, x):
            memory = (getattr(self, f"memory{i}") for i in range(self.count))
            return _step(self.model, x, self.lengths, *memory)[0]

    x, *state = _step_inputs(2, 0)
    eager = Step(_model(), *state)
    exported = torch.export.export(copy.deepcopy(eager), (x,)).module()
    for step in range(2):
        given = _signs(*x.shape, seed=step)
        _check(exported(given), eager(given))
        _check(list(exported.buffers()), list(eager.buffers()))
    assert eager.lengths.tolist() == [11, 12]


def test_it_does_not_matter_what_was_captured_before_or_after():
    autoencoder = _autoencoder(AUTOENCODER)
    module = Of(autoencoder, lambda m, codes: ImageDecoder(m)(codes))
    codes, decode = [_signs(1, 8, 4, 4, seed=seed) for seed in range(7)], ImageDecoder(autoencoder)
    before = torch.export.export(module, (codes[0],)).module()
    expected = [decode(c) for c in codes]  # the later ones from a graph
    after = torch.export.export(module, (codes[0],)).module()
    for c, pixels in zip(codes, expected, strict=True):
        _check(before(c), pixels)
        _check(after(c), pixels)
        _check(decode(c), pixels)


def test_tiles_are_exported_too():
    module = Of(_autoencoder(AUTOENCODER), lambda m, codes: m.decode_tiled(codes, tile_size=2))
    codes, others = _signs(1, 8, 1, 2, seed=0), _signs(1, 8, 1, 2, seed=1)
    program = torch.export.export(module, (codes,))
    _check(program.module()(others), module.module.decode(others))
