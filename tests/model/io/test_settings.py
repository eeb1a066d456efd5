"""Settings from Python and files are checked field by field; errors are one line with the key."""

import dataclasses
import datetime
import json
import math

import numpy as np
import pytest
import tomli_w
import torch

from bitdance.cli.main import main
from bitdance.io.files import CheckpointError
from bitdance.io.json_files import read_json
from bitdance.models.config import (
    AUTOENCODER_PRESETS,
    HEAD_PRESETS,
    PRESETS,
    AutoencoderConfig,
    HeadConfig,
    ModelConfig,
    ModelShape,
)
from bitdance.models.loading.checkpoint_config import read_claim, read_section
from bitdance.training.config import (
    AutoencoderRun,
    ClassConditionalRun,
    DataConfig,
    LossConfig,
    OptimConfig,
    parse_run,
    read_config,
    run_to_dict,
)

SHAPE = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": 8, "num_codebooks": 2}
MODEL = {"dim": 32, "n_layer": 1, "n_head": 2, "diff_layers": 1, "diff_dim": 32,
         "diff_adanln_layers": 1, "num_classes": 3, "cls_token_num": 2}  # fmt: skip


def autoencoder_run():
    """Every key of an autoencoder's run."""
    run = parse_run(
        {"data": {"path": "x", "size": 8}, "optim": {"steps": 200}, "autoencoder": dict(SHAPE)}
    )
    return {**run_to_dict(run), "init": "y"}


def model_run():
    """Every key of a model's run."""
    run = parse_run(
        {
            "data": {"path": "x", "size": 8},
            "optim": {"steps": 200},
            "model": dict(MODEL),
            "autoencoder_path": "z",
        }
    )
    return {**run_to_dict(run), "init": "y"}


def text_to_image_run():
    """Every key of a text-to-image model's run."""
    llm = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8,
           "num_key_value_heads": 1, "intermediate_size": 8, "vocab_size": 9}  # fmt: skip
    run = parse_run(
        {
            "data": {"path": "x"},
            "optim": {"steps": 200},
            "text_to_image": {"diff_dim": 32, "diff_layers": 1, "diff_adanln_layers": 1},
            "llm": llm,
            "autoencoder_path": "z",
            "tokenizer_path": "t",
        }
    )
    return {**run_to_dict(run), "init": "y"}


def keys(content, path=()):
    for name, value in content.items():
        yield (*path, name)
        if isinstance(value, dict):
            yield from keys(value, (*path, name))


NONSENSE = [
    True, 2.5, -1, 0, math.inf, math.nan, 10**400, "five", "", "a\0b", [], [1, "a"], {}, {"a": 1},
    datetime.date(2020, 1, 1), None, b"x", 1e300,
]  # fmt: skip
"""Values of wrong types that TOML, JSON or Python may give."""
KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def right(value, nonsense):
    """Whether `nonsense` has an acceptable type in the place of `value`."""
    if isinstance(value, bool):
        return isinstance(nonsense, bool)
    if isinstance(value, (int, float)):
        return isinstance(nonsense, (int, float)) and not isinstance(nonsense, bool)
    if isinstance(value, (list, tuple)):
        return isinstance(nonsense, list)
    return isinstance(nonsense, type(value))


@pytest.mark.parametrize("run", [autoencoder_run, model_run, text_to_image_run])
def test_every_field_refuses_every_other_type_and_names_its_key(run):
    checked = 0
    for path in keys(run()):
        for value in NONSENSE:
            content = run()
            section = content
            for name in path[:-1]:
                section = section[name]
            left_out = path == ("llm",) and value is None  # then it is that of init
            if right(section[path[-1]], value) or left_out:
                continue
            section[path[-1]] = value
            with pytest.raises(ValueError, match=r"^file: \S") as caught:
                parse_run(content, "file")
            message = str(caught.value)
            assert type(caught.value) is ValueError
            assert ".".join(path) in message, message
            assert "\n" not in message
            assert len(message) < 400
            checked += 1
    assert checked > 400


@pytest.mark.parametrize("run", [autoencoder_run, model_run, text_to_image_run])
def test_every_number_refuses_fractions_of_integers_infinity_and_nan(run):
    for path in keys(run()):
        content = run()
        section = content
        for name in path[:-1]:
            section = section[name]
        value = section[path[-1]]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        for wrong in [
            math.nan,
            math.inf,
            -math.inf,
            *([value + 0.5] if type(value) is int else []),
        ]:
            section[path[-1]] = wrong
            with pytest.raises(ValueError, match=rf"^run: {'.'.join(path)} must be "):
                parse_run(content)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim.steps", 2.5, "optim.steps must be an integer, got 2.5"),
        ("optim.steps", True, "optim.steps must be an integer, got True"),
        ("optim.steps", 10**8, "optim.steps must be at most 99999999, got 100000000"),
        ("optim.seed", -1, "optim.seed must be at least 0, got -1"),
        ("optim.seed", 2**64, "optim.seed must be at most 18446744073709551615, got 184467"),
        ("optim.betas", [0.9], "optim.betas[1] is missing"),
        ("optim.betas", [0.9, 1], "optim.betas[1] must be less than 1, got 1"),
        ("optim.lr", 0, "optim.lr must be greater than 0, got 0"),
        ("optim.lr_end", 1.0, "optim.lr_end must be at most lr = 0.0006, got 1.0"),
        ("optim.accumulate", 3, "optim.accumulate must be a divisor of batch_size = 64, got 3"),
        ("optim.warmup", 200, "optim.warmup must be less than steps = 200, got 200"),
        (
            "optim.autocast",
            "half",
            "optim.autocast must be 'auto', 'off' or 'bfloat16', got 'half'",
        ),
        (
            "data.size",
            9,
            "data.size must be a multiple of the autoencoder's 2 pixels a code, got 9",
        ),
        ("data.size", 2**20, "data.size must be at most 65536, got 1048576"),
        ("data.shift", 8, "data.shift must be less than size = 8, got 8"),
        ("data.classes", "ab", "data.classes must be a list, got 'ab'"),
        ("data.classes", ["a", 2], "data.classes[1] must be text, got 2"),
        ("data.path", "", "data.path must be not empty, got ''"),
        ("data.path", "\udcff", "data.path must be UTF-8 text without zero bytes"),
        ("loss.l2", -1, "loss.l2 must be at least 0, got -1"),
        ("loss.extra", {"os:getcwd": "1"}, "loss.extra.'os:getcwd' must be a number, got '1'"),
        ("loss.extra", {"os": 1.0}, "loss.extra.os must be named module:function, got 'os'"),
        ("loss.extra", {"os:": 1.0}, "loss.extra.'os:' must be named module:function, got 'os:'"),
        ("autoencoder.ch_mult", [1] * 100_000, "autoencoder.ch_mult must be a list of at most 12"),
        ("autoencoder.ch", 33, "autoencoder.ch must be a multiple of the 32 norm groups, got 33"),
        ("autoencoder.double_z", 1, "autoencoder.double_z must be false, "),
    ],
)
def test_ranges_and_dependencies_of_fields(key, value, message):
    section, name = key.split(".")
    content = autoencoder_run()
    content[section][name] = value
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (compared below)
        parse_run(content, "c.toml")
    assert str(caught.value).startswith(f"c.toml: {message}")


@pytest.mark.parametrize(
    ("run", "key", "value"),
    [
        (autoencoder_run, "autoencoder_path", "x"),
        (autoencoder_run, "num_inference_steps", 20),
        (autoencoder_run, "autoencoder.attn_blocks", 2),
        (autoencoder_run, "autoencoder.n_heads", 16),
        (model_run, "loss", {}),
        (model_run, "loss", {"l1": 1.0}),
        (model_run, "model.P_mean", -0.8),
        (model_run, "model.P_std", 1.0),
    ],
)
def test_a_key_without_effect_is_refused_even_with_its_default(run, key, value):
    content = run()
    if key.startswith("model."):
        content["model"]["time_schedule"] = "uniform"
        del content["model"]["P_mean"], content["model"]["P_std"]
        assert run_to_dict(parse_run(content)) == content
    *sections, name = key.split(".")
    (content[sections[0]] if sections else content)[name] = value
    unused = rf"^run: {key} must be left out \(.*\), got "
    with pytest.raises(ValueError, match=unused if sections else f"^run: unknown key {key}$"):
        parse_run(content)


@pytest.mark.parametrize(
    "key", ["color", *(f"{section}.color" for section in ("data", "optim", "model")),
            *(f"model.{name}" for name in ("resolution", "latent_dim", "autoencoder"))]
)  # fmt: skip
def test_unknown_keys_are_named(key):
    content = model_run()
    *sections, name = key.split(".")
    (content[sections[0]] if sections else content)[name] = 3
    with pytest.raises(ValueError, match=f"^run: unknown key {key}$"):
        parse_run(content)


def test_python_arguments_are_checked_like_files():
    for make, message in (
        (lambda: DataConfig("x", 2.5), "DataConfig: size must be an integer, got 2.5"),
        (lambda: DataConfig("x", 8, classes={"a": 1}), "DataConfig: classes must be a list"),
        (lambda: DataConfig("x", 8, classes={"a", "b"}), "DataConfig: classes must be a list"),
        (lambda: DataConfig("x", 8, classes=iter("ab")), "DataConfig: classes must be a list"),
        (lambda: OptimConfig(True), "OptimConfig: steps must be an integer, got True"),
        (lambda: OptimConfig(200, speed=3), "OptimConfig: unknown key speed"),
        (lambda: LossConfig(l1="1"), "LossConfig: l1 must be a number, got '1'"),
        (lambda: HeadConfig(8, 16), "HeadConfig: ch_latent is missing"),
        (
            lambda: HeadConfig(8, 16, 32, 1, 1, use_swiglu=False),
            "HeadConfig: use_swiglu must be true with architecture 'mlp', got False",
        ),
        (
            lambda: AutoencoderConfig(n_heads=8),
            "AutoencoderConfig: n_heads must be left out (16) with architecture 'conv'",
        ),
        (
            lambda: dataclasses.replace(PRESETS["B-1x"], n_layer=10_000_000),
            "ModelConfig: n_layer must be at most 4096, got 10000000",
        ),
        (
            lambda: AutoencoderRun(DataConfig("x", 8), OptimConfig(200), AutoencoderConfig(**SHAPE),
                                   num_inference_steps=3),
            "AutoencoderRun: unknown key num_inference_steps",
        ),
        (
            lambda: ClassConditionalRun(
                DataConfig("x", 8), OptimConfig(200),
                ModelShape(**MODEL, time_schedule="uniform", P_mean=0.0), "z",
            ),
            "ClassConditionalRun: model.P_mean must be left out (uniform times do not use it), got",
        ),
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:  # noqa: PT011  (compared below)
            make()
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "number", [32.0, np.int64(32), np.float32(32), np.array(32), torch.tensor(32)], ids=repr
)
def test_any_exact_integer_is_accepted(number):
    config = AutoencoderConfig(ch=number)
    assert (config.ch, type(config.ch)) == (32, int)
    assert json.loads(json.dumps(config.to_dict())) == AutoencoderConfig(ch=32).to_dict()


def test_numbers_of_numpy_and_integers_are_accepted():
    config = LossConfig(l1=np.float32(0.5), l2=2, temperature=np.float64(1))
    assert (config.l1, config.l2, config.temperature) == (0.5, 2.0, 1.0)
    assert all(type(value) is float for value in (config.l1, config.l2, config.temperature))


@pytest.mark.parametrize(
    "config", [*PRESETS.values(), *AUTOENCODER_PRESETS.values(), *HEAD_PRESETS.values()]
)
def test_configurations_stay_dataclasses(config):
    assert dataclasses.replace(config) == config
    assert hash(dataclasses.replace(config)) == hash(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.anything = 3
    if not isinstance(config, HeadConfig):
        assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_nested_json_is_checked():
    content = PRESETS["B-1x"].to_dict()
    content["autoencoder"]["ch_mult"] = [1, 0]
    message = r"^ModelConfig: autoencoder\.ch_mult\[1\] must be at least 1, got 0$"
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(content)
    for wrong in (None, 3, "x", [], {}):
        with pytest.raises(ValueError, match=r"^ModelConfig: "):
            ModelConfig.from_dict(wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["nonsense"], "a change must be section.key=value, got 'nonsense'"),
        (["=3"], "a change must be section.key=value, got '=3'"),
        (["optim..steps=3"], "a change must be section.key=value, got 'optim..steps=3'"),
        (["optim.lr=1\ndata.size=2"], "a change must be section.key=value"),
        (
            ["optim.steps=300", "optim.steps=400"],
            "optim.steps must be changed once, got 300 and 400",
        ),
        (["optim=3"], "optim must be a section of keys and values, got 3"),
        (["optim.steps.x=3"], "optim.steps must be an integer, got {'x': 3}"),
        (["data.flip=no"], "data.flip must be true or false, got 'no'"),
        (["data.path="], "data.path must be not empty, got ''"),
        (["data.path=other", "init=5"], "init must be text, got 5"),
        (["else.key=5"], "unknown key else"),
    ],
)
def test_changes_of_the_command_line_are_checked(tmp_path, changes, message):
    path = tmp_path / "c.toml"
    path.write_text(tomli_w.dumps(autoencoder_run()))
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (compared below)
        read_config(path, changes)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_changes_have_toml_keys_and_values_and_paths_are_strings(tmp_path):
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xef\xbb\xbf" + tomli_w.dumps(autoencoder_run()).encode())  # as Notepad does
    changes = ["optim.steps=1e4", 'loss.extra."a.b:c"=0.5', "data.classes=['ü']", "init=a b"]
    config = read_config(path, changes, {"data.path": "2024"})
    assert (config.optim.steps, config.loss.extra) == (10_000, {"a.b:c": 0.5})
    assert (config.data.classes, config.data.path, config.init) == (("ü",), "2024", "a b")
    with pytest.raises(ValueError, match=r"data\.path must be changed once, got 'x' and 'y'"):
        read_config(path, ["data.path=x"], {"data.path": "y"})


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"steps = ", b"a = " + b"[" * 50_000, b"", b"a = 1\na = 2"], ids=len
)
def test_a_file_that_is_not_a_configuration_gives_one_line(tmp_path, capsys, content):
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    assert main(["train", "autoencoder", str(path), "--out", str(tmp_path / "run")]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert f"{path}: " in printed
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a" + ".a" * 100_000 + " = 1", "at most 64 dots, got 100000 in line 2"),
        ("[[ " + "'a' . " * 20_000 + "a ]]", "at most 64 dots, got 20000 in line 2"),
        ("a = '" + "." * 300_000 + "'", "at most 262144 bytes"),
    ],
)
def test_toml_that_takes_long_is_refused_before_it_is_parsed(
    tmp_path, monkeypatch, content, message
):
    path = tmp_path / "config.toml"
    path.write_text("\n" + content, encoding="utf-8")
    monkeypatch.delattr("bitdance.io.toml_files.tomllib.loads")
    with pytest.raises(ValueError, match=message):
        read_config(path)
    with pytest.raises(CheckpointError, match=message):
        read_claim(path)


def test_dots_in_strings_and_comments_are_no_keys(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("# " + "." * 100 + "\na = '" + "." * 100 + "'", encoding="utf-8")
    assert read_section(path, "model") == {"a": "." * 100}


def test_duplicate_keys_in_json_are_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": {"steps": 3, "steps": 4}}')
    with pytest.raises(
        CheckpointError, match=r"config\.json is not JSON: the key 'steps' is given"
    ):
        read_json(path)
    path.write_text('{"a": {"steps": 3}, "b": {"steps": 4}}')
    assert read_json(path) == {"a": {"steps": 3}, "b": {"steps": 4}}
