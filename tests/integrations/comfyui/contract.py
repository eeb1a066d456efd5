"""What ComfyUI asks of a node of the form with ``INPUT_TYPES``, as its version 0.38.1 has it."""

import inspect
import keyword

GROUPS = ("required", "optional", "hidden")
HIDDEN = {
    "PROMPT", "DYNPROMPT", "EXTRA_PNGINFO", "UNIQUE_ID", "EXECUTION_LIST", "AUTH_TOKEN_COMFY_ORG",
    "API_KEY_COMFY_ORG", "COMFY_USAGE_SOURCE",
}  # fmt: skip
_ANY = {"tooltip", "lazy", "rawLink", "forceInput", "advanced"}
_VALUE = _ANY | {"default", "control_after_generate", "display"}
_NUMBER = _VALUE | {"min", "max", "step"}
OPTIONS = {
    "INT": _NUMBER,
    "FLOAT": _NUMBER | {"round"},
    "STRING": _VALUE | {"multiline", "placeholder", "dynamicPrompts"},
    "BOOLEAN": _VALUE | {"label_on", "label_off"},
    "COMBO": _VALUE | {"options", "image_upload", "image_folder", "remote", "multi_select"},
}
KINDS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


def problems(node):
    """What a node breaks of the contract, as a list of sentences; empty if nothing."""
    if not inspect.isclass(node):
        return [f"a node must be a class, got {node!r}"]
    found = []
    for name in ("INPUT_TYPES", "RETURN_TYPES", "FUNCTION", "CATEGORY"):
        if not hasattr(node, name):
            found.append(f"{name} is missing")
    if found:
        return found
    given = node.INPUT_TYPES() if inspect.ismethod(node.INPUT_TYPES) else None
    if not isinstance(given, dict) or "required" not in given:
        return ["INPUT_TYPES must be a class method that returns a dict with 'required'"]
    found += [f"INPUT_TYPES has the group {group!r}" for group in given if group not in GROUPS]
    names = [name for group in GROUPS for name in given.get(group, {})]
    found += [f"the input {name!r} is there twice" for name in {*names} if names.count(name) > 1]
    for group in ("required", "optional"):
        for name, entry in given.get(group, {}).items():
            if not name.isidentifier() or keyword.iskeyword(name):
                found.append(f"the input {name!r} is no name of an argument")
            found += [f"input {name!r}: {problem}" for problem in _input_problems(entry)]
    for name, kind in given.get("hidden", {}).items():
        if kind not in HIDDEN:
            found.append(f"hidden input {name!r}: there is no {kind!r}")
    return found + _function_problems(node, given, names) + _attribute_problems(node)


def _input_problems(entry):
    if not isinstance(entry, tuple | list) or len(entry) not in (1, 2):
        return ["must be (type,) or (type, options)"]
    kind, options = entry[0], entry[1] if len(entry) == 2 else {}
    if not isinstance(options, dict):
        return ["options must be a dict"]
    if isinstance(kind, list | tuple):
        kind, choices = "COMBO", list(kind)
    else:
        choices = options.get("options", [])
    if not isinstance(kind, str) or kind != kind.upper() or not kind:
        return [f"its type must be a name in capitals or a list, got {kind!r}"]
    found = [f"no option {name!r}" for name in options if name not in OPTIONS.get(kind, _ANY)]
    default = options.get("default")
    if kind == "COMBO":
        if not all(isinstance(choice, str | int | float) for choice in choices):
            found.append("choices must be text or numbers")
        if "default" in options and default not in choices:
            found.append(f"its default {default!r} must be one of its choices")
    elif kind in KINDS:
        if type(default) is not KINDS[kind]:
            found.append(f"its default must be of type {KINDS[kind].__name__}, got {default!r}")
        elif kind in ("INT", "FLOAT"):
            low, high = options.get("min"), options.get("max")
            if low is None or high is None or not low <= default <= high:
                found.append(f"its default must be in its range, got {default} of {low} to {high}")
            if options.get("step", 1) <= 0:
                found.append("its step must be positive")
    return found


def _function_problems(node, given, names):
    if not isinstance(node.FUNCTION, str):
        return ["FUNCTION must be the name of a method"]
    function = inspect.getattr_static(node, node.FUNCTION, None)
    if not inspect.isfunction(function):
        return [f"FUNCTION is {node.FUNCTION!r}, which is no method"]
    found = []
    parameters = dict(list(inspect.signature(function).parameters.items())[1:])
    if set(parameters) != set(names):
        found.append(f"{node.FUNCTION} takes {sorted(parameters)}, its inputs are {sorted(names)}")
    for name in given.get("optional", {}):
        if name in parameters and parameters[name].default is inspect.Parameter.empty:
            found.append(f"{node.FUNCTION} needs {name!r}, which is optional")
    if any(p.default is p.empty for p in list(inspect.signature(node).parameters.values())):
        found.append("it must be made without arguments")
    for name, exact in (("IS_CHANGED", True), ("VALIDATE_INPUTS", False)):
        if not hasattr(node, name):
            continue
        if not inspect.ismethod(getattr(node, name)):
            found.append(f"{name} must be a class method")
            continue
        spec = inspect.getfullargspec(getattr(node, name))
        taken, known = set(spec.args[1:]), {*names, "input_types"}
        if not taken <= known or (exact and not spec.varkw and taken != set(names)):
            found.append(f"{name} takes {sorted(taken)}, its inputs are {sorted(names)}")
    return found


def _attribute_problems(node):
    found, types = [], node.RETURN_TYPES
    if not isinstance(types, tuple) or not all(isinstance(t, str) and t.isupper() for t in types):
        return [f"RETURN_TYPES must be a tuple of names in capitals, got {types!r}"]
    for name in ("RETURN_NAMES", "OUTPUT_TOOLTIPS", "OUTPUT_IS_LIST"):
        value = getattr(node, name, types)
        if not isinstance(value, tuple) or len(value) != len(types):
            found.append(f"{name} must have one for each of RETURN_TYPES, got {value!r}")
    output = getattr(node, "OUTPUT_NODE", False)
    if not isinstance(output, bool) or (not types and not output):
        found.append("a node without results must have OUTPUT_NODE = True")
    for name in ("CATEGORY", "DESCRIPTION"):
        if not isinstance(getattr(node, name, ""), str):
            found.append(f"{name} must be text")
    return found
