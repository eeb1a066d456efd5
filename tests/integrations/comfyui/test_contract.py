"""The nodes keep ComfyUI's contract, and what checks this finds each way to break it."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

import bitdance
from bitdance_kernels import __version__
from tests.integrations.comfyui.contract import problems
from tests.integrations.comfyui.stub import FOLDER, ComfyUI

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[3]
NAMES = [
    "BitDanceDecode", "BitDanceEncode", "BitDanceLoadClassModel", "BitDanceLoadCodes",
    "BitDanceLoadTextModel", "BitDanceSampleClasses", "BitDanceSamplePrompt", "BitDanceSaveCodes",
]  # fmt: skip


@pytest.fixture
def comfy(tmp_path, monkeypatch):
    installed = ComfyUI(tmp_path / "ComfyUI").install(monkeypatch)
    installed.copy_nodes(monkeypatch)
    return installed


def test_every_node_keeps_the_contract(comfy):
    assert sorted(n for n in comfy.nodes if n.startswith("BitDance")) == NAMES
    assert sorted(comfy.names) == NAMES
    assert len(set(comfy.names.values())) == len(NAMES)
    for name in NAMES:
        assert problems(comfy.nodes[name]) == [], name
        assert comfy.nodes[name].DESCRIPTION
        assert comfy.nodes[name].CATEGORY == "BitDance"
    # Whoever saves a value must be able to connect it.
    sent = {kind for name in NAMES for kind in comfy.nodes[name].RETURN_TYPES} | {"IMAGE"}
    for name in NAMES:
        for entry in comfy.nodes[name].INPUT_TYPES()["required"].values():
            if isinstance(entry[0], str) and entry[0] not in ("INT", "FLOAT", "STRING", "BOOLEAN"):
                assert entry[0] in sent


class Good:
    RETURN_TYPES, RETURN_NAMES = ("IMAGE",), ("image",)
    FUNCTION, CATEGORY = "run", "test"

    @classmethod
    def INPUT_TYPES(cls):
        number = ("INT", {"default": 1, "min": 0, "max": 9})
        return {
            "required": {"number": number, "mode": (["a", "b"], {"default": "a"})},
            "optional": {"text": ("STRING", {"default": ""}), "image": ("IMAGE",)},
            "hidden": {"prompt": "PROMPT"},
        }

    @classmethod
    def IS_CHANGED(cls, number, mode, text="", image=None, prompt=None):
        return ""

    @classmethod
    def VALIDATE_INPUTS(cls, mode):
        return True

    def run(self, number, mode, text="", image=None, prompt=None):
        return (image,)


def with_input(name, entry, group="required"):
    def inputs(cls):
        types = Good.INPUT_TYPES()
        types.setdefault(group, {})[name] = entry
        return types

    return {"INPUT_TYPES": classmethod(inputs)}


BROKEN = {
    "no function": ({"FUNCTION": "walk"}, "which is no method"),
    "another parameter": ({"run": lambda self, number, mode: ()}, "run takes"),
    "an input that nobody takes": (with_input("extra", ("IMAGE",)), "run takes"),
    "an optional input without default": (
        {"run": lambda self, number, mode, text, image=None, prompt=None: ()}, "needs 'text'",
    ),
    "default out of range": (
        with_input("number", ("INT", {"default": 10, "min": 0, "max": 9})), "in its range",
    ),
    "no range": (with_input("number", ("INT", {"default": 1})), "in its range"),
    "default of another type": (
        with_input("number", ("FLOAT", {"default": 1, "min": 0, "max": 9})), "of type float",
    ),
    "no default": (with_input("text", ("STRING",), "optional"), "of type str"),
    "default that is no choice": (with_input("mode", (["a"], {"default": "c"})), "of its choices"),
    "unknown option": (
        with_input("number", ("INT", {"default": 1, "min": 0, "max": 9, "maxi": 2})), "no option",
    ),
    "option of another type": (with_input("image", ("IMAGE", {"default": 1})), "no option"),
    "step of zero": (
        with_input("number", ("INT", {"default": 1, "min": 0, "max": 9, "step": 0})), "positive",
    ),
    "type in small letters": (with_input("image", ("image",), "optional"), "in capitals"),
    "no tuple": (with_input("number", "INT"), "must be (type,)"),
    "keyword": (with_input("class", ("IMAGE",)), "no name of an argument"),
    "input twice": (with_input("number", ("IMAGE",), "optional"), "is there twice"),
    "unknown group": (with_input("number", ("INT", {}), "needed"), "has the group 'needed'"),
    "unknown hidden input": (with_input("prompt", "WEATHER", "hidden"), "there is no 'WEATHER'"),
    "inputs of an instance": ({"INPUT_TYPES": lambda self: {"required": {}}}, "a class method"),
    "results as a list": ({"RETURN_TYPES": ["IMAGE"]}, "must be a tuple"),
    "result as a name": ({"RETURN_TYPES": "IMAGE"}, "must be a tuple"),
    "two names": ({"RETURN_NAMES": ("a", "b")}, "RETURN_NAMES must have one"),
    "two tooltips": ({"OUTPUT_TOOLTIPS": ("a", "b")}, "OUTPUT_TOOLTIPS must have one"),
    "no results": ({"RETURN_TYPES": (), "RETURN_NAMES": ()}, "must have OUTPUT_NODE"),
    "no category": ({"CATEGORY": None}, "CATEGORY must be text"),
    "change of other inputs": ({"IS_CHANGED": classmethod(lambda cls, number: 0)}, "IS_CHANGED"),
    "change of an instance": ({"IS_CHANGED": lambda self: 0}, "IS_CHANGED must be a class method"),
    "check of no input": (
        {"VALIDATE_INPUTS": classmethod(lambda cls, other: True)}, "VALIDATE_INPUTS takes",
    ),
    "arguments to be made": ({"__init__": lambda self, model: None}, "without arguments"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BROKEN))
def test_a_node_that_breaks_the_contract_is_found(case):
    changes, words = BROKEN[case]
    assert problems(Good) == []
    found = problems(type("Broken", (Good,), changes))
    assert any(words in problem for problem in found), found


def test_a_node_must_be_a_class_with_all_attributes():
    assert problems(Good()) != []
    assert problems(type("Empty", (), {})) == [
        f"{name} is missing" for name in ("INPUT_TYPES", "RETURN_TYPES", "FUNCTION", "CATEGORY")
    ]


def imported(path):
    """Modules that a file imports, and names of those it imports from bitdance."""
    modules, names = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(node.module)
            if node.module == "bitdance":
                names |= {alias.name for alias in node.names}
    return modules, names


def test_the_folder_needs_only_public_names():
    """It is copied, and may meet another version of the library."""
    outside = {"bitdance", "comfy", "comfy.utils", "folder_paths", "safetensors", "torch",
               "safetensors.torch"}  # fmt: skip
    for path in FOLDER.glob("*.py"):
        modules, names = imported(path)
        assert {m for m in modules if m.split(".")[0] not in sys.stdlib_module_names} <= outside
        assert names <= set(bitdance.__all__)


def test_the_packages_import_nothing_of_comfyui():
    for package in ("bitdance", "bitdance_kernels"):
        for path in (ROOT / package).rglob("*.py"):
            roots = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
            assert not {*roots} & {"comfy", "folder_paths", "nodes", "integrations"}, path


def test_it_asks_for_this_version():
    """Of managers that read either file."""
    needed = f"bitdance[models,hub]=={__version__}"
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    assert project["project"]["version"] == __version__
    assert project["project"]["dependencies"] == [needed]
    assert (FOLDER / "requirements.txt").read_text().split() == [needed]


def test_examples_name_every_input(comfy):
    """A value left out would get its default only in the browser."""
    used = set()
    for path in (FOLDER / "examples").glob("*.json"):
        prompt = json.loads(path.read_text())
        assert comfy.executor.validate(prompt) == {}
        for entry in prompt.values():
            node = comfy.nodes[entry["class_type"]]
            types = node.INPUT_TYPES()
            assert set(entry["inputs"]) == {*types["required"], *types.get("optional", {})}
            used.add(entry["class_type"])
    assert used >= set(NAMES) - {"BitDanceLoadCodes"}
