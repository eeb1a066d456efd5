"""Every tensor and layer that the library makes names its dtype and device.

``torch.set_default_dtype``, ``torch.set_default_device`` and an active ``torch.device`` then change
nothing. ``test_defaults`` runs a part of the library under foreign ones; this reads all of it.
"""

import ast
import inspect
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path for package in ("bitdance", "bitdance_kernels") for path in (ROOT / package).rglob("*.py")
)

TENSORS = frozenset(
    {
        "arange",
        "as_tensor",
        "asarray",
        "bartlett_window",
        "blackman_window",
        "complex",
        "empty",
        "empty_permuted",
        "empty_quantized",
        "empty_strided",
        "eye",
        "frombuffer",
        "full",
        "hamming_window",
        "hann_window",
        "kaiser_window",
        "linspace",
        "logspace",
        "normal",
        "ones",
        "rand",
        "randint",
        "randn",
        "randperm",
        "range",
        "scalar_tensor",
        "sparse_coo_tensor",
        "sparse_csr_tensor",
        "tensor",
        "tril_indices",
        "triu_indices",
        "vander",
        "zeros",
    }
)
# These take their dtype from a tensor, or have none.
WITHOUT_DTYPE = {"Generator"}
LEGACY = {"Tensor"} | {name for name in dir(torch) if name.endswith("Tensor") and name != "Tensor"}
STATE = {
    "get_default_dtype",
    "set_default_dtype",
    "get_default_device",
    "set_default_device",
    "set_default_tensor_type",
}
LAYERS = {
    name
    for name, kind in vars(torch.nn).items()
    if inspect.isclass(kind) and "device" in inspect.signature(kind.__init__).parameters
}
OWN_LAYERS = {
    node.name
    for path in FILES
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.ClassDef)
    for function in node.body
    if isinstance(function, ast.FunctionDef)
    and function.name == "__init__"
    and function.args.kwarg is not None
    and function.args.kwarg.arg == "factory"
} | {"Linear"}  # its constructor is that of nn.Linear


def _of_torch(node, module="torch"):
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == module
    )


class _Finder(ast.NodeVisitor):
    def __init__(self):
        self.found = []
        self.called = set()
        self.on_meta = 0

    def visit_With(self, node):
        meta = any(
            isinstance(item.context_expr, ast.Call)
            and ast.unparse(item.context_expr) == "torch.device('meta')"
            for item in node.items
        )
        self.on_meta += meta
        self.generic_visit(node)
        self.on_meta -= meta

    def visit_Call(self, node):
        function, names = node.func, {keyword.arg for keyword in node.keywords}
        self.called.add(id(function))
        named = {"dtype", "device"} <= names or None in names  # None is a `**`
        if _of_torch(function):
            wanted = {"device"} if function.attr in WITHOUT_DTYPE else {"dtype", "device"}
            if function.attr in TENSORS | WITHOUT_DTYPE and not wanted <= names:
                self.found.append(node)
            if function.attr in LEGACY | STATE:
                self.found.append(node)
        layer = (_of_torch(function, "nn") and function.attr in LAYERS) or (
            isinstance(function, ast.Name) and function.id in OWN_LAYERS
        )
        # A layer on the meta device gets its values and dtype later.
        without = {"affine", "elementwise_affine"} & names
        if layer and not named and not self.on_meta and not without:
            self.found.append(node)
        self.generic_visit(node)

    def visit_Attribute(self, node):
        # A factory passed as a value is called where this test cannot see its arguments.
        if _of_torch(node) and node.attr in TENSORS and id(node) not in self.called:
            self.found.append(node)
        self.generic_visit(node)

    def visit_ImportFrom(self, node):
        if node.module == "torch" and {name.name for name in node.names} & TENSORS:
            self.found.append(node)


def _unnamed(source):
    finder = _Finder()
    finder.visit(ast.parse(source))
    return [f"line {node.lineno}: {ast.unparse(node)}" for node in finder.found]


def test_factories_name_dtype_and_device():
    found = [
        f"{path.relative_to(ROOT)} {unnamed}"
        for path in FILES
        for unnamed in _unnamed(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.empty(3)",
        "torch.empty(3, dtype=torch.float32)",
        "torch.zeros(3, device=x.device)",
        "torch.tensor([1.0])",
        "torch.full((), 1.0, dtype=torch.float32)",
        "draw = torch.randn if normal else torch.rand",
        "partial(torch.zeros, 3)",
        "from torch import zeros",
        "torch.Tensor(3)",
        "torch.FloatTensor(3)",
        "torch.Generator()",
        "torch.set_default_dtype(torch.float32)",
        "nn.Linear(2, 2)",
        "nn.Linear(2, 2, dtype=torch.float32)",
        "BitDanceModel(config)",
        "with torch.device('cpu'):\n    BitDanceModel(config)",
    ],
)
def test_a_factory_without_dtype_or_device_is_found(source):
    assert _unnamed(source)


@pytest.mark.parametrize(
    "source",
    [
        "torch.empty(3, dtype=torch.float32, device='cpu')",
        "x.new_empty(3)",
        "torch.zeros_like(x)",
        "torch.from_numpy(array)",
        "torch.Generator(device='cpu')",
        "nn.Linear(2, 2, **factory)",
        "nn.SiLU()",
        "with torch.device('meta'):\n    BitDanceModel(config)",
        "BitDanceModel(config, dtype=torch.float32, device='cpu')",
    ],
)
def test_what_names_both_or_takes_them_from_a_tensor_is_not_found(source):
    assert not _unnamed(source)
