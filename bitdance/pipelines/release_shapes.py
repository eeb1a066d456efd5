"""Configuration of a text-to-image model whose files have none, from the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from bitdance.io.files import CheckpointError, one_line
from bitdance.models.config import HeadConfig
from bitdance.models.loading.checkpoint_config import infer_autoencoder_config
from bitdance.models.loading.meta_device import count
from bitdance.models.qwen3 import Qwen3Config
from bitdance.models.text_to_image_config import TextToImageConfig

__all__ = ["infer_release_config"]

# What shapes do not tell, as in all published Qwen3 models.
_ROPE_THETA = 1_000_000.0
_MAX_POSITIONS = 40960


def infer_release_config(
    language_model: Mapping[str, torch.Tensor],
    head: Mapping[str, torch.Tensor],
    autoencoder: Mapping[str, torch.Tensor],
    parallel_num: int,
    source: str,
) -> TextToImageConfig:
    """The configuration of a text-to-image model.

    Args:
        language_model: tensors of the language model, perhaps on the meta device. Without an
            output projection, which images do not need, its embeddings are taken for tied.
        head: tensors of the diffusion head.
        autoencoder: tensors of the autoencoder.
        parallel_num: P, tokens per step.
        source: origin of the tensors, for errors.

    Raises:
        CheckpointError: the tensors are of something else, or do not fit each other.
    """
    try:
        return TextToImageConfig(
            _language_model(language_model),
            _head(head),
            infer_autoencoder_config(autoencoder, Path(source)),
            parallel_num,
        )
    except KeyError as error:
        raise CheckpointError(
            f"{source} is not a text-to-image model: {error.args[0]} is missing"
        ) from error
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{source}: {one_line(error)}") from error


def _language_model(tensors: Mapping[str, torch.Tensor]) -> Qwen3Config:
    block = "model.layers.0."
    vocabulary, width = tensors["model.embed_tokens.weight"].shape
    (head_dim,) = tensors[f"{block}self_attn.q_norm.weight"].shape
    heads, kv_heads = (
        len(tensors[f"{block}self_attn.{name}_proj.weight"]) // head_dim for name in "qk"
    )
    return Qwen3Config(
        hidden_size=width,
        num_hidden_layers=count(tensors, "model.layers."),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=len(tensors[f"{block}mlp.gate_proj.weight"]),
        vocab_size=vocabulary,
        head_dim=head_dim,
        max_position_embeddings=_MAX_POSITIONS,
        rope_theta=_ROPE_THETA,
        attention_bias=f"{block}self_attn.q_proj.bias" in tensors,
        tie_word_embeddings="lm_head.weight" not in tensors,
    )


def _head(tensors: Mapping[str, torch.Tensor]) -> HeadConfig:
    width, bits = tensors["net.input_proj.weight"].shape
    return HeadConfig(
        ch_target=bits,
        ch_cond=tensors["net.cond_embed.weight"].shape[1],
        ch_latent=width,
        depth_latent=count(tensors, "net.res_blocks."),
        depth_adanln=count(tensors, "net.ada_ln_blocks."),
        architecture="t2i",
        use_swiglu="net.res_blocks.0.w1.weight" in tensors,
        P_mean=0.0,
        P_std=1.0,
    )
