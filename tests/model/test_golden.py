"""Every golden case through our implementation; see `golden_cases` for what a case is."""

from dataclasses import replace

import pytest
import torch

from bitdance.sampling import config, packed_products, trunk_products
from bitdance.sampling.weights import PackedLinear
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels.testing import only_backend
from tests.model.helpers import golden_cases
from tests.model.helpers.golden_cases import KINDS, RUNNERS, Case, case_names, kind_of, mismatches

golden_cases.load_runners()

KIND_OF = {name: kind_of(name) for name in case_names()}


def test_there_are_cases():
    assert KIND_OF, f"no golden case in {golden_cases.GOLDEN_DIR}"


def test_every_case_is_of_a_known_kind():
    assert not [name for name, kind in KIND_OF.items() if kind is None]


def test_every_kind_has_a_runner():
    assert set(KINDS) == set(RUNNERS)


@pytest.mark.parametrize("name", [name for name, kind in KIND_OF.items() if kind in RUNNERS])
def test_golden(name):
    case = Case.load(name)
    wrong = mismatches(case, RUNNERS[KIND_OF[name]](case))
    assert not wrong, "\n".join(wrong)


# Blocks, and the smaller of the models: the interpreter takes seconds for each.
WITH_ATTENTION = [name for name, kind in KIND_OF.items() if kind == "transformer block"]
WITH_ATTENTION += [name for name in KIND_OF if name.startswith(("d4_", "e5_"))]


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_golden_with_the_kernels_of_attention(name, monkeypatch):
    """The official numbers once more, with attention in Triton (its interpreter, here)."""
    ran = set()
    ops = ("block_causal_attention", "block_causal_attention_backward")
    for op in ops:
        backend = REGISTRY[op].backend("triton")
        counted = replace(backend, run=_counted(backend.run, op, ran))
        monkeypatch.setitem(REGISTRY[op]._loaded, "triton", counted)
    case = Case.load(name)
    with only_backend("triton", ops):
        wrong = mismatches(case, RUNNERS[KIND_OF[name]](case))
    assert not wrong, "\n".join(wrong)
    assert "block_causal_attention" in ran
    assert ("block_causal_attention_backward" in ran) == (KIND_OF[name] == "model, ImageNet")


def _packable(name):
    """Whether the case samples with a head whose stream has whole parts of 16 channels."""
    if KIND_OF[name] not in SAMPLED:
        return False
    tensors = Case.load(name).tensors.items()
    return all(t.shape[0] % 16 == 0 for key, t in tensors if key.endswith("input_proj.weight"))


SAMPLED = (
    "head, ImageNet per token", "head, ImageNet parallel", "head, text-to-image",
    "model, ImageNet", "pipeline, text-to-image",
)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in KIND_OF if _packable(name)])
def test_golden_with_packed_weights(name, monkeypatch):
    """The official numbers once more, by the plan "packed" of head and trunk.

    Weights of other widths than multiples of 16, as those of bits, stay matrices here.
    """
    packed = []

    class Either:
        def __new__(cls, layers, dtype, layout="rows", head_dim=None):
            sizes = [size for layer in layers for size in layer.weight.shape]
            if any(size % 16 for size in (*sizes, head_dim or 0)):
                return _Matrix(layers, dtype)
            packed.append(layers)
            return PackedLinear(layers, dtype, layout, head_dim)

    monkeypatch.setattr(config, "_unsuited", lambda *_: None)
    for module in (packed_products, trunk_products):
        monkeypatch.setattr(module, "PackedLinear", Either)
    case = Case.load(name)
    with config.use_plans(head="packed", trunk="packed", t2i_trunk="packed"):
        wrong = mismatches(case, RUNNERS[KIND_OF[name]](case))
    assert not wrong, "\n".join(wrong)
    assert packed


class _Matrix:
    """What ``PackedLinear`` is, without packing."""

    def __init__(self, layers, dtype):
        self._layers, (first, *_) = layers, layers
        rows = sum(len(layer.weight) for layer in layers)
        self.weight = first.weight.new_empty(rows, first.weight.shape[1], dtype=dtype)
        self.bias = None if first.bias is None else first.bias.new_empty(rows, dtype=dtype)

    def load(self):
        self.weight.copy_(torch.cat([layer.weight.detach() for layer in self._layers]))
        if self.bias is not None:
            self.bias.copy_(torch.cat([layer.bias.detach() for layer in self._layers]))


def _counted(function, name, ran):
    def counted(*args):
        ran.add(name)
        return function(*args)

    return counted


def _case(**out):
    tensors = {f"out.{name}": value for name, value in out.items()}
    return Case("made up", {"sensitivity_to_1e6_relative_weight_noise": {}}, tensors)


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1])),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.nan])),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.inf])),
        (torch.tensor([1.0, -torch.inf]), torch.tensor([1.0, torch.inf])),
        (torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0]])),
        (torch.tensor([1.0, -1.0]), torch.tensor([1.0, -1.0 + 1e-6])),
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
        (torch.tensor([1, 2]), torch.tensor([1.0, 2.0])),
        (torch.tensor([True]), torch.tensor([False])),
        (torch.tensor(0.0), torch.tensor(1e-9)),
    ],
    ids=lambda tensor: str(tensor.tolist()),
)
def test_a_difference_is_seen(expected, got):
    case = _case(x=expected)
    assert mismatches(case, {"out.x": got})
    assert not mismatches(case, {"out.x": expected.clone()})


def test_an_output_the_runner_leaves_out_is_seen():
    assert mismatches(_case(x=torch.ones(2), y=torch.ones(2)), {"out.x": torch.ones(2)})
