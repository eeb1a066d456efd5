"""Runs workflows as ComfyUI 0.38.1 does: validation, the cache, errors, cancelling."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch


class PromptError(Exception):
    """A workflow was refused before anything ran; its argument has the errors by node."""


@dataclass
class Outcome:
    """How a workflow ended.

    Attributes:
        status: "success", "error" or "interrupted".
        executed: nodes that ran, in order; the others were cached.
        outputs: results of nodes by id.
        ui: what output nodes show, by id.
        node: the node that raised `error`.
    """

    status: str = "success"
    executed: list[str] = field(default_factory=list)
    outputs: dict[str, tuple] = field(default_factory=dict)
    ui: dict[str, Any] = field(default_factory=dict)
    node: str | None = None
    error: BaseException | None = None


def _is_link(value):
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _entry(node, name):
    """Group, type and options of an input."""
    for group in ("required", "optional"):
        entry = node.INPUT_TYPES().get(group, {}).get(name)
        if entry is not None:
            return group, entry[0], entry[1] if len(entry) == 2 else {}
    return None, None, {}


class Executor:
    """Keeps results between workflows.

    Args:
        nodes: classes of nodes by name.
        management: the module ``comfy.model_management``.
    """

    def __init__(self, nodes, management):
        self.nodes, self.management = nodes, management
        self._cache, self._objects = {}, {}

    def run(self, prompt):
        """Run the output nodes of a workflow and what they need.

        Raises:
            PromptError: it is invalid.
        """
        errors = self.validate(prompt)
        if errors:
            raise PromptError(errors)
        self.management.interrupt_current_processing(False)
        outcome, changed = Outcome(), {}
        outputs = [i for i, n in prompt.items() if getattr(self._node(n), "OUTPUT_NODE", False)]
        with torch.inference_mode():
            keys = {i: self._key(prompt, i, changed) for i in prompt}
            self._cache = {k: v for k, v in self._cache.items() if k in keys.values()}
            for name in outputs:
                if not self._run_node(prompt, name, keys, outcome):
                    break
        return outcome

    def _node(self, node):
        return self.nodes[node["class_type"]]

    def _run_node(self, prompt, name, keys, outcome):
        """Run a node, after those it is linked to; whether all went well."""
        if name in outcome.outputs:
            return True
        if keys[name] in self._cache:
            outcome.outputs[name], outcome.ui[name] = self._cache[keys[name]]
            return True
        inputs, node = {}, self._node(prompt[name])
        for key, value in prompt[name]["inputs"].items():
            if _is_link(value):
                if not self._run_node(prompt, value[0], keys, outcome):
                    return False
                value = outcome.outputs[value[0]][value[1]]
            inputs[key] = value
        try:
            self.management.throw_exception_if_processing_interrupted()
            made = self._objects.setdefault((name, prompt[name]["class_type"]), node())
            result = getattr(made, node.FUNCTION)(**inputs)
            values, shown = _checked(node, result)
        except self.management.InterruptProcessingException as error:
            outcome.status, outcome.node, outcome.error = "interrupted", name, error
            return False
        except Exception as error:  # as ComfyUI, which reports it to the browser
            outcome.status, outcome.node, outcome.error = "error", name, error
            return False
        outcome.executed.append(name)
        outcome.outputs[name], outcome.ui[name] = values, shown
        self._cache[keys[name]] = values, shown
        return True

    def _key(self, prompt, name, changed):
        """What a node's results depend on: its class, its inputs, and those of all before it."""
        node, inputs = prompt[name], prompt[name]["inputs"]
        if name not in changed:
            changed[name] = self._is_changed(node)
        links = tuple(
            (key, (self._key(prompt, value[0], changed), value[1]) if _is_link(value) else value)
            for key, value in sorted(inputs.items())
        )
        return (node["class_type"], changed[name], links)

    def _is_changed(self, node):
        function = getattr(self._node(node), "IS_CHANGED", None)
        if function is None:
            return False
        constants = {k: None if _is_link(v) else v for k, v in node["inputs"].items()}
        try:
            return function(**constants)
        except Exception:
            return float("nan")  # equal to nothing: the node runs again

    def validate(self, prompt):
        """Errors by node."""
        errors = {}
        for name, entry in prompt.items():
            node = self.nodes.get(entry["class_type"])
            found = ["no such node"] if node is None else self._input_errors(prompt, entry, node)
            if found:
                errors[name] = found
        if not any(getattr(self._node(n), "OUTPUT_NODE", False) for n in prompt.values()):
            errors[""] = ["Prompt has no outputs"]
        return errors

    def _input_errors(self, prompt, entry, node):
        given, errors = entry["inputs"], []
        validate = getattr(node, "VALIDATE_INPUTS", None)
        own = inspect.getfullargspec(validate).args[1:] if validate else []
        errors += [f"{n}: required" for n in node.INPUT_TYPES()["required"] if n not in given]
        for name, value in given.items():
            group, kind, options = _entry(node, name)
            if group is None:
                continue
            if _is_link(value):
                sent = self._node(prompt[value[0]]).RETURN_TYPES[value[1]]
                if not {*sent.split(",")} & {*str(kind).split(",")}:
                    errors.append(f"{name}: got {sent}, not {kind}")
                continue
            convert = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}.get(str(kind))
            if isinstance(kind, str) and convert is None and kind != "COMBO":
                errors.append(f"{name}: {kind} must be a link")
                continue
            given[name] = value = convert(value) if convert else value
            if name in own:
                continue
            if value < options.get("min", value) or value > options.get("max", value):
                errors.append(f"{name}: {value} is out of range")
            choices = kind if isinstance(kind, list) else options.get("options")
            if choices is not None and value not in choices:
                errors.append(f"{name}: {value!r} not in {choices}")
        if validate:
            values = {n: None if _is_link(v) else v for n, v in given.items() if n in own}
            answer = validate(**values)
            if answer is not True:
                errors.append(str(answer))
        return errors


def _checked(node, result):
    """Results and what is shown, if they are those that the node declares."""
    shown = None
    if isinstance(result, dict):
        assert set(result) <= {"ui", "result"}, f"{node.__name__} returned {sorted(result)}"
        assert all(isinstance(value, list) for value in result["ui"].values())
        shown, result = result["ui"], result.get("result", ())
    assert isinstance(result, tuple), f"{node.__name__} returned {type(result).__name__}"
    assert len(result) == len(node.RETURN_TYPES), f"{node.__name__}: {len(result)} results"
    for kind, value in zip(node.RETURN_TYPES, result, strict=True):
        if kind == "IMAGE":
            assert value.dtype == torch.float32
            assert value.device.type == "cpu"
            assert value.dim() == 4
            assert value.shape[3] in (3, 4)
            assert float(value.min()) >= 0
            assert float(value.max()) <= 1
    return result, shown
