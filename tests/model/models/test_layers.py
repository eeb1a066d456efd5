import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bitdance.models.layers import Linear


class Names(TorchDispatchMode):
    """Of what is called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def called(layer, x):
    with Names() as seen:
        return layer(x), "bitdance::linear" in seen.names


def test_sampling_has_the_product_for_few_rows_and_training_the_librarys():
    layer, x = Linear(24, 10), torch.randn(2, 3, 24)
    expected = F.linear(x, layer.weight, layer.bias)
    trained, ours = called(layer, x)
    assert not ours
    assert torch.equal(trained, expected)
    trained.sum().backward()
    assert layer.weight.grad is not None
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            y, ours = called(layer, x)
            assert ours
            torch.testing.assert_close(y, expected)
            with torch.autocast("cpu"):
                y, ours = called(layer, x)
            assert not ours
            assert y.dtype == torch.bfloat16
