"""The layout of the kernels hub: what it holds, that it loads, and that copies do not clash."""

import ast
import base64
import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

import bitdance_kernels
from bitdance_kernels import swiglu
from bitdance_kernels._dispatch.op import REGISTRY
from tests.cases import all_cases

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "integrations" / "kernels_hub" / "build.py"
VARIANTS = ("torch-cpu", "torch-cuda")


def imported(name, path):
    """The module of a file, imported under a name as the package ``kernels`` does it."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    """The script, which reads the package once."""
    module = imported("kernels_hub_build", SCRIPT)
    files = module._files()
    module._files = lambda: dict(files)
    yield module
    sys.modules.pop("kernels_hub_build")


@pytest.fixture(scope="module")
def hub(script, tmp_path_factory):
    """A build, and the ids of its variants."""
    folder = tmp_path_factory.mktemp("hub") / "out"
    return folder, script.build(folder, "first")


def load(hub, variant="torch-cpu"):
    folder, ids = hub
    name = ids[variant]
    return sys.modules.get(name) or imported(name, folder / "build" / variant / "__init__.py")


@pytest.fixture(scope="module")
def copy(hub):
    return load(hub)


def test_a_variant_has_all_that_the_hub_asks_for(hub):
    folder, ids = hub
    assert list(ids) == list(VARIANTS)
    for variant, name in ids.items():
        path = folder / "build" / variant
        metadata = json.loads((path / "metadata.json").read_text())
        assert metadata["id"] == name
        assert name.isidentifier()
        assert metadata["name"].replace("-", "_") == "bitdance_kernels"
        assert metadata["backend"] == {"type": variant.partition("-")[2]}
        assert metadata["license"] == "Apache-2.0"
        assert metadata["python-depends"] == []
        files = {
            file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).digest()
            for file in path.rglob("*")
            if file.is_file() and "__pycache__" not in file.parts and file.name != "metadata.json"
        }
        hashes = metadata["digest"]["files"]
        assert {name: base64.b64encode(h).decode() for name, h in files.items()} == hashes
        assert {Path(name).suffix for name in files} == {".py", ".json"}
        assert f"{metadata['name'].replace('-', '_')}/__init__.py" in files
    project = {path.name for path in folder.iterdir()}
    assert project == {"build.toml", "flake.nix", "CARD.md", "LICENSE", "torch-ext", "build"}


def test_code_imports_itself_by_relative_names(hub):
    """Others: the standard library, PyTorch, Triton and numpy."""
    allowed = {*sys.stdlib_module_names, "torch", "triton", "numpy"}
    paths = list((hub[0] / "build" / "torch-cpu").rglob("*.py"))
    assert len(paths) > 150
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module)
            assert {name.partition(".")[0] for name in names} <= allowed, path


def test_the_project_for_the_builder_and_all_variants_are_the_same_code(hub):
    folder, _ = hub

    def files(path):
        found = (p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        return {p.relative_to(path).as_posix(): p.read_bytes() for p in found}

    project = files(folder / "torch-ext/bitdance_kernels")
    added = {"_ops.py", "metadata.json", "bitdance_kernels/__init__.py"}
    for variant in VARIANTS:
        built = files(folder / "build" / variant)
        assert built.keys() - project.keys() == added
        assert all(built[name] == content for name, content in project.items())


def test_a_copy_has_every_public_name(copy):
    assert copy.__all__ == bitdance_kernels.__all__
    for name in copy.__all__:
        assert getattr(copy, name) is not None
    assert copy.pack_signs is not bitdance_kernels.pack_signs


def cases():
    """Ops with samples, but for backward passes, which are no public names."""
    return [name for name in all_cases() if name in bitdance_kernels.__all__]


def moved(value, copy):
    """An argument for the ops of a copy, whose classes are its own."""
    kind = type(value)
    if kind.__module__.partition(".")[0] != "bitdance_kernels":
        return value.clone() if isinstance(value, torch.Tensor) else value
    return getattr(copy, kind.__name__)(**{k: moved(v, copy) for k, v in vars(value).items()})


@pytest.mark.parametrize("name", cases())
def test_ops_of_a_copy_give_the_bits_of_the_reference(copy, name):
    case = all_cases()[name]
    call = next(iter(case.samples(torch.device("cpu"))))

    def results(op, convert):
        args = [convert(a) for a in call.args]
        kwargs = {k: convert(v) for k, v in call.kwargs.items()}
        returned = op(*args, **kwargs, backend="reference")
        flat = torch.utils._pytree.tree_leaves(returned)
        written = [args[i] for i in case.mutates]
        return [t for t in [*flat, *written] if isinstance(t, torch.Tensor)]

    expected = results(case.op, lambda a: a.clone() if isinstance(a, torch.Tensor) else a)
    found = results(getattr(copy, name), lambda a: moved(a, copy))
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["pack_signs", "hamming_distance", "swiglu", "finalize_bits"])
def test_triton_kernels_of_a_copy_run(copy, name):
    """In the interpreter."""
    call = next(iter(all_cases()[name].samples(torch.device("cpu"))))
    expected = all_cases()[name].op(*call.args, **call.kwargs, backend="triton")
    found = getattr(copy, name)(*call.args, **call.kwargs, backend="triton")
    for a, b in zip(*map(torch.utils._pytree.tree_leaves, (found, expected)), strict=True):
        assert torch.equal(a, b)


def test_copies_and_the_package_have_namespaces_of_their_own(script, hub, copy, tmp_path):
    """Two builds of the same code, both variants of one, and the installed package."""
    other = load((tmp_path, script.build(tmp_path, "second")))
    for_cards = load(hub, "torch-cuda")
    names = ["bitdance", *hub[1].values(), "_bitdance_kernels_cpu_second"]
    x = torch.randn(4, 8)
    expected = bitdance_kernels.pack_signs(x)
    for name, module in zip(names, (bitdance_kernels, copy, for_cards, other), strict=True):
        op = getattr(torch.ops, name).pack_signs.default
        assert torch.equal(op(x, "reference"), expected)
        assert torch.equal(module.pack_signs(x), expected)
    compiled = torch.compile(copy.pack_signs, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), expected)
    with copy.use_backend("reference"):
        assert copy.default_backend() == "reference"
        assert bitdance_kernels.default_backend() == other.default_backend() == "auto"
    assert set(REGISTRY) == set(sys.modules[f"{copy.__name__}._dispatch.op"].REGISTRY)


def test_gradients_and_checks_of_a_copy(copy):
    x = torch.randn(3, 8, requires_grad=True)
    gradients = []
    for op in (copy.swiglu, swiglu):
        x.grad = None
        op(x).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    with pytest.raises(ValueError, match="pack_signs: x must be"):
        copy.pack_signs(torch.randn(3, 7))
    with pytest.raises(TypeError, match=r"bitdance_kernels\.binary\.numpy\.pack_signs takes"):
        copy.pack_signs(x.detach().numpy())


def test_a_copy_has_no_compiled_code_and_says_so(copy):
    with pytest.raises(copy.BackendError, match="it was not built"):
        copy.pack_signs(torch.randn(4, 8), backend="cpu")
    text = copy.explain(copy.pack_signs, torch.randn(4, 8))
    assert "not built" in str(text)


def test_masks_of_copies_pass_through_trees(copy):
    """PyTorch knows the class of each by a name of its own."""
    leaves = torch.utils._pytree.tree_leaves
    for module in (copy, bitdance_kernels):
        ranges = module.block_causal_ranges(2, 3, 4)
        assert len(leaves(ranges)) == 2
        assert module.dense_mask(ranges).any()


def test_older_loaders_find_the_folder_below(script, tmp_path):
    (name, *_) = script.build(tmp_path, "older").values()
    path = tmp_path / "build/torch-cpu/bitdance_kernels/__init__.py"
    module = imported("bitdance_kernels_of_some_hash", path)
    assert module.__all__ == bitdance_kernels.__all__
    x = torch.randn(2, 16)
    assert torch.equal(module.pack_signs(x), bitdance_kernels.pack_signs(x))
    assert hasattr(getattr(torch.ops, name), "pack_signs")


def test_the_id_is_a_hash_of_the_code(script, tmp_path, monkeypatch):
    first = script.build(tmp_path / "a")
    assert script.build(tmp_path / "b") == first
    files = script._files()
    files["binary/pack_signs/op.py"] += "\n"
    monkeypatch.setattr(script, "_files", lambda: files)
    changed = script.build(tmp_path / "a")  # in place of the first
    assert set(changed.values()).isdisjoint(first.values())


def test_other_folders_and_ids_are_refused(script, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="out must be empty, or of an earlier build"):
        script.build(tmp_path)
    with pytest.raises(ValueError, match="unique_id must be of a-z, 0-9 and _, got 'A-1'"):
        script.build(tmp_path / "new", "A-1")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(SystemExit):
        script.main(["--out", str(tmp_path)])
    assert "out must be empty" in capsys.readouterr().err
    script.main(["--out", str(tmp_path / "new"), "--id", "x1"])
    assert "torch-cpu: torch.ops._bitdance_kernels_cpu_x1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("from bitdance_kernels import noise\n", (), "from . import noise\n"),
        ("from bitdance_kernels.philox import noise\n", (), "from .philox import noise\n"),
        ("from bitdance_kernels.a import (\n    c,\n)\n", ("b",), "from ..a import (\n    c,\n)\n"),
        ("if x:\n    from bitdance_kernels.a import *\n", ("a", "b"),
         "if x:\n    from ...a import *\n"),
        ("import bitdance_kernels_of_others\n", (), "import bitdance_kernels_of_others\n"),
        ("x = 'from bitdance_kernels import y'\n", (), "x = 'from bitdance_kernels import y'\n"),
    ],
)  # fmt: skip
def test_imports_become_relative(script, source, package, expected):
    assert script.relative_imports(source, package) == expected


@pytest.mark.parametrize(
    "source", ["import bitdance_kernels.philox\n", "from  bitdance_kernels import x\n"]
)
def test_imports_without_a_relative_form_are_refused(script, source):
    with pytest.raises(ValueError, match="line 1 must be"):
        script.relative_imports(source, ())


def test_the_same_build_in_two_folders_has_one_set_of_ops(script, tmp_path):
    ids = script.build(tmp_path / "a", "twice")
    script.build(tmp_path / "b", "twice")
    first = load((tmp_path / "a", ids))
    again = imported(ids["torch-cpu"], tmp_path / "b/build/torch-cpu/__init__.py")
    assert again is not first
    assert again.pack_signs is first.pack_signs


def test_the_package_kernels_loads_it(script, tmp_path):
    """Its contract, at the version of constraints.txt."""
    kernels = pytest.importorskip("kernels")
    ids = script.build(tmp_path, "hub")
    module = kernels.get_local_kernel(tmp_path, backend="cpu")
    assert module.__name__ == ids["torch-cpu"]
    x = torch.randn(4, 64)
    packed = module.pack_signs(x)
    assert torch.equal(packed, bitdance_kernels.pack_signs(x, backend="reference"))
    assert torch.equal(getattr(torch.ops, ids["torch-cpu"]).pack_signs(x, "reference"), packed)


def test_the_package_kernels_accepts_its_files(script, tmp_path):
    """By the parsers that it shares with the builder and the tool that signs."""
    parsers = pytest.importorskip("kernels._rust")
    script.build(tmp_path, "files")
    backends = parsers.Build.open(tmp_path).general.backends
    assert [str(backend) for backend in backends] == ["cpu", "cuda"]
    for backend in backends:
        variant = tmp_path / "build" / f"torch-{backend}"
        metadata = parsers.Metadata.read_from_file(variant / "metadata.json")
        assert metadata.backend.backend_type == backend
        metadata.digest.validate(parsers.Digest.hash_variant(metadata.digest.algorithm, variant))
