"""State dicts in checkpoints of many trainers, and prefixes of wrappers."""

import itertools

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bitdance.io.files import CheckpointError
from bitdance.io.weights import read_weights

NAMES = ("proj_in.fc1.weight", "layers.0.attention.wqkv.weight", "head.net.norm.weight")
AUTOENCODER = ("encoder.conv_in.weight", "encoder.norm_out.weight", "decoder.conv_in.weight")


def state(value=1.0, prefix="", names=NAMES):
    return {f"{prefix}{name}": torch.full((2,), value) for name in names}


def read(folder, content, kind="pt", **options):
    path = folder / f"x.{kind}"
    (torch.save if kind == "pt" else save_file)(content, path)
    return read_weights(path, **options)


def values(tensors):
    return {name: float(tensor[0]) for name, tensor in tensors.items()}


WRAPPERS = (
    "module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.",
    "_forward_module.",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_wrappers_are_removed_in_any_order_and_depth(tmp_path, kind):
    for wrappers in itertools.chain(
        itertools.permutations(WRAPPERS, 2), [("module.", "module."), WRAPPERS]
    ):
        content = state(prefix="".join(wrappers))
        assert set(read(tmp_path, content, kind)) == set(NAMES), wrappers


def test_wrappers_are_removed_in_the_middle_of_names(tmp_path):
    inside = {
        "layers._fsdp_wrapped_module.0._orig_mod.attention._checkpoint_wrapped_module.wqkv.weight":
        torch.ones(2)
    }  # fmt: skip
    assert list(read(tmp_path, inside)) == ["layers.0.attention.wqkv.weight"]


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_two_names_for_one_parameter_are_an_error(tmp_path, kind):
    content = {"norm.weight": torch.ones(2), "module.norm.weight": torch.ones(2)}
    with pytest.raises(CheckpointError, match=r"two names for one .*module\.norm\.weight"):
        read(tmp_path, content, kind)
    if kind == "pt":
        with pytest.raises(CheckpointError, match="two names for one parameter: '5' twice"):
            read(tmp_path, {5: torch.ones(1), "5": torch.ones(1)})


NESTINGS = {
    "bare": lambda s: s,
    "official": lambda s: {"model": s, "epochs": 3, "optimizer": {"state": {0: state(9.0)}}},
    "Lightning": lambda s: {
        "state_dict": {f"model.{k}": t for k, t in s.items()},
        "callbacks": {"x": {"best": torch.ones(2)}}, "optimizer_states": [{}],
    },
    "Lightning, compiled": lambda s: {
        "state_dict": {f"net._orig_mod.{k}": t for k, t in s.items()}
    },
    "DeepSpeed": lambda s: {"module": s, "optimizer": {"fp32": {"0": torch.ones(3)}}},
    "PyTorch's tutorial": lambda s: {"model_state_dict": s, "optimizer_state_dict": {}},
    "BasicSR": lambda s: {"params": s},
    "a GAN's": lambda s: {"generator": s, "discriminator": state(9.0, "d.")},
    "nested twice": lambda s: {"model": {"state_dict": s}},
    "net": lambda s: {"net": {f"module.{k}": t for k, t in s.items()}},
}  # fmt: skip


@pytest.mark.parametrize("name", NESTINGS)
def test_nested_dicts_of_common_trainers(tmp_path, name):
    assert values(read(tmp_path, NESTINGS[name](state()))) == values(state())


AVERAGES = {
    "official": lambda s, e: {"model": s, "ema": e},
    "wrapped": lambda s, e: {"model": s, "ema": {f"module.{k}": t for k, t in e.items()}},
    "with counters": lambda s, e: {
        "model": s, "ema": {"n_averaged": torch.tensor(3)} | {f"module.{k}": e[k] for k in e}
    },
    "one deeper": lambda s, e: {"model": s, "ema": {"shadow": e, "decay": 0.9}},
    "timm": lambda s, e: {"state_dict": s, "state_dict_ema": e},
    "BasicSR": lambda s, e: {"params": s, "params_ema": e},
    "both in one": lambda s, e: {"state": 1, "model": {"net": s, "net_ema": e}},
    "side by side": lambda s, e: {
        "state_dict": {f"model.{k}": t for k, t in s.items()}
        | {f"ema_model.{k}": t for k, t in e.items()}
        | {"loss.lin.weight": torch.ones(1)}
    },
    "below the model": lambda s, e: {"state_dict": s | {f"ema.{k}": t for k, t in e.items()}},
    "without dots": lambda s, e: {
        "state_dict": s | {f"model_ema.{k.replace('.', '')}": t for k, t in e.items()}
    },
    "without dots, wrapped": lambda s, e: {
        "state_dict": {f"module.{k}": t for k, t in s.items()}
        | {f"module.model_ema.{k.replace('.', '')}": t for k, t in e.items()}
        | {"module.model_ema.decay": torch.tensor(0.9)}
        | {"module.model_ema.num_updates": torch.ones(1)}
    },
    "without dots, compiled": lambda s, e: {
        "state_dict": {f"_orig_mod.{k}": t for k, t in s.items()}
        | {f"model_ema._orig_mod{k.replace('.', '')}": t for k, t in e.items()}
    },
    "without dots, below": lambda s, e: {
        "state_dict": {f"model.{k}": t for k, t in s.items()}
        | {f"model_ema.{k.replace('.', '')}": t for k, t in e.items()}
    },
}  # fmt: skip


@pytest.mark.parametrize("name", AVERAGES)
def test_averaged_weights_win_unless_raw_ones_are_asked_for(tmp_path, name):
    raw, averaged = state(1.0, names=AUTOENCODER), state(2.0, names=AUTOENCODER)
    content = AVERAGES[name](raw, averaged)
    assert values(read(tmp_path, content)) == values(averaged)
    assert values(read(tmp_path, content, prefer="model")) == values(raw)


def test_parameters_without_an_average_keep_their_weights(tmp_path):
    """As in the authors' loader of UniWeTok: buffers and frozen parameters have no average."""
    raw = state(1.0, names=AUTOENCODER)
    content = {"state_dict": {**raw, "model_ema.encoderconv_inweight": torch.full((2,), 2.0)}}
    found = values(read(tmp_path, content))
    assert found == {**values(raw), "encoder.conv_in.weight": 2.0}
    save_file(content["state_dict"], tmp_path / "y.safetensors")
    assert values(read_weights(tmp_path / "y.safetensors")) == found
    # A run of this library averages what it trains: not the autoencoder inside of the model.
    content = {"step": 3, "module": raw, "average": {AUTOENCODER[0]: torch.full((2,), 2.0)}}
    assert values(read(tmp_path, content)) == found


def test_averages_that_match_no_parameter_are_an_error(tmp_path):
    content = {**state(), "model_ema.something_else": torch.ones(2)}
    with pytest.raises(CheckpointError, match=r"averaged weights \(model_ema.something_else"):
        read(tmp_path, content)
    assert values(read(tmp_path, content, prefer="model")) == values(state())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": state(), "state_dict": state()},
            r"several candidates .* model \(3\), state_dic",
        ),
        ({"a": {"b": state()}, "c": state()}, r"where trainers put them; .* a\.b \(3\), c \(3\)"),
        ({"ema": {}, "epoch": 3}, "has no tensors; its keys are ema, epoch"),
        (
            state(names=AUTOENCODER, prefix="a.") | state(names=AUTOENCODER, prefix="b."),
            r"several models: encoder\.conv_in\.weight is below 'a\.', 'b\.'",
        ),
    ],
)
def test_ambiguous_weights_are_refused(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, content)


def test_a_mapping_that_contains_itself(tmp_path):
    content = {"epoch": 1}
    content["model"] = content
    with pytest.raises(CheckpointError, match="has no tensors"):
        read(tmp_path, content)


def test_names_that_begin_like_containers_are_kept(tmp_path):
    head = {"net.input_proj.weight": torch.ones(2), "net.norm.weight": torch.ones(2)}
    assert set(read(tmp_path, head)) == set(head)
    words = {"model.embed_tokens.weight": torch.ones(2), "model.norm.weight": torch.ones(2)}
    assert set(read(tmp_path, words)) == set(words)
    module = nn.Sequential(nn.Linear(2, 2))
    assert set(read(tmp_path, module.state_dict())) == {"0.weight", "0.bias"}
