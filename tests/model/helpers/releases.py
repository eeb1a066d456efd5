"""A tiny text-to-image model in every layout in which such models are published."""

import dataclasses
import json

import torch
from safetensors.torch import save_file

from bitdance_kernels import quantize_rows
from tests.model.models.test_text_to_image import CONFIG, tiny

LLM = dataclasses.replace(CONFIG.llm, rope_theta=1e6, max_position_embeddings=40960)
"""What files without a configuration are taken to have."""


def qwen_model(seed=0):
    return tiny(seed, llm=LLM)


def write_flat(folder, model, shards=1):
    """The authors' layout."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    contents = {
        "config": _llm(config),
        "vision_head_config": _head(config),
        "ae_config": _autoencoder(config),
    }
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    for name, part in _parts(model).items():
        files = {"diffusion_head": "vision_head", "autoencoder": "ae", "projector": "projector"}
        if name in files:
            _write(folder / f"{files[name]}.safetensors", part.state_dict(), 1)
    _write(folder / "model.safetensors", model.llm_model.state_dict(), shards)
    _write_tokenizer(folder)
    return folder


def write_diffusers(folder, model, shards=1):
    """Folders of components, as the converted models have them."""
    config = model.config
    contents = {
        "text_encoder": _llm(config),
        "diffusion_head": {"_class_name": "BitDanceDiffusionHead", **_head(config)},
        "projector": {"_class_name": "BitDanceProjector", "in_dim": 8, "out_dim": 24},
        "autoencoder": {"_class_name": "BitDanceAutoencoder", **_autoencoder(config)},
    }
    index = {"_class_name": "BitDanceDiffusionPipeline", "tokenizer": ["transformers", "Tokenizer"]}
    for name, part in _parts(model).items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(contents[name]))
        index[name] = ["bitdance_diffusers", contents[name].get("_class_name", "Qwen3ForCausalLM")]
        file = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        _write(folder / name / f"{file}.safetensors", part.state_dict(), shards)
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "tokenizer").mkdir()
    _write_tokenizer(folder / "tokenizer")
    return folder


def write_three_files(folder, model, *, bare=False):
    """Three files in float8 with scales; `bare` has no prefixes and no output projection.

    Returns:
        The folder, and the state of the model that these files mean.
    """
    rounded, files = {}, {"text_encoder": {}, "main": {}, "vae": {}}
    places = {
        "llm_model": ("text_encoder", "" if bare else "text_encoder."),
        "vision_head": ("main", "" if bare else "diffusion_head."),
        "embed_vision_mlp": ("main", "" if bare else "projector."),
        "ae": ("vae", ""),
    }
    for name, tensor in model.state_dict().items():
        part, _, inner = name.partition(".")
        file, prefix = places[part]
        if bare and inner == "lm_head.weight":
            continue
        rounded[name] = tensor
        if file == "vae":
            files[file][prefix + inner] = tensor.half()
            rounded[name] = tensor.half().float()
        elif tensor.dim() == 2 and "embed_tokens" not in inner and inner.endswith(".weight"):
            stored, scale, rounded[name] = _float8(tensor, bare)
            files[file][prefix + inner] = stored
            ending = ".scale_weight" if bare else ".weight_scale"
            files[file][prefix + inner.removesuffix(".weight") + ending] = scale
        else:
            files[file][prefix + inner] = tensor
    files["main"]["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    for name, kind in (
        ("text_encoders/Tiny_TextEncoder_FP8", "text_encoder"),
        ("diffusion_models/Tiny_MainModel_FP8", "main"),
        ("vae/Tiny_VAE_FP16", "vae"),
    ):
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(files[kind], path)
    (folder / "tokenizer").mkdir()
    _write_tokenizer(folder / "tokenizer")
    return folder, rounded


def _float8(weight, single):
    """A weight in float8, its scale, or one for each row, and their product."""
    if single:
        scale = weight.abs().max() / 448
        stored = (weight / scale).to(torch.float8_e4m3fn)
        return stored, scale, stored.float() * scale
    bits, scale = quantize_rows(weight)
    stored = bits.view(torch.float8_e4m3fn)
    return stored, scale, stored.float() * scale[:, None]


def _parts(model):
    return {
        "text_encoder": model.llm_model, "diffusion_head": model.vision_head,
        "projector": model.embed_vision_mlp, "autoencoder": model.ae,
    }  # fmt: skip


def _llm(config):
    return {"model_type": "qwen3", "hidden_act": "silu", **config.llm.to_dict()}


def _head(config):
    head = dataclasses.asdict(config.head)
    del head["architecture"]
    return {**head, "grad_checkpointing": False, "parallel_num": config.parallel_num}


def _autoencoder(config):
    shape = config.autoencoder
    names = ("ch", "num_res_blocks", "z_channels", "in_channels", "out_ch")
    inner = {name: getattr(shape, name) for name in names}
    inner |= {"ch_mult": list(shape.ch_mult), "double_z": False}
    return {"ddconfig": inner, "gan_decoder": shape.gan_decoder}


def _write_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def _write(path, state, shards):
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    if shards == 1:
        save_file(state, path)
        return
    files = {name: f"{path.stem}-{i % shards}.safetensors" for i, name in enumerate(state)}
    for file in set(files.values()):
        save_file({n: state[n] for n, f in files.items() if f == file}, path.parent / file)
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
