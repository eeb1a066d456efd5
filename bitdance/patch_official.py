"""Our kernels inside a model that the authors' code built.

``patch_official(model)`` replaces methods of the object, not of its class: the head's network and
sampling loop, the transformer's attention, feed-forward and step with a cache, and the tokenizer's
decoder. Weights, their names, and all that a caller sees stay. Nothing of the authors' code is
imported: modules are known by the names of their attributes and by names, shapes and settings of
their layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from bitdance.autoencoder_blocks import Decoder
from bitdance.config import NORM_GROUPS, AutoencoderConfig, HeadConfig
from bitdance.diffusion_head import HeadNetwork
from bitdance.official_methods import (
    CausalAttentionMethods,
    DecoderMethods,
    FeedForwardMethods,
    HeadMethods,
    MaskedAttentionMethods,
    MaskedTrunkMethods,
    Masks,
    TrunkMethods,
    interval_ends,
)
from bitdance.projectors import InputProjection
from bitdance.transformer import TransformerBlock

__all__ = ["PatchError", "patch_official", "unpatch_official"]

_PATCHED = "_bitdance_patched"
_EPS = 1e-6
_SHOWN = 6  # names listed per kind of problem

Replacement = tuple[nn.Module, str, Callable[..., Any]]


class PatchError(ValueError):
    """A model is not built as the authors' ImageNet models are; nothing was replaced."""


def patch_official(model: nn.Module) -> nn.Module:
    """Make a model of the authors' ImageNet code run on this library's ops, in place.

    Replaced are ``head.sample``, ``head.net.forward``, the ``forward`` and ``enable_kv_cache`` of
    each ``layers[i].attention``, the ``forward`` of each ``layers[i].feed_forward`` and of
    ``proj_in``, ``forward_model`` and ``vae.decoder.forward``. All keep their arguments, and random
    numbers are drawn by torch in the same order, so a seed gives the image that it gave before, up
    to rounding. ``sample``, ``forward`` (the training loss, with gradients), ``state_dict``,
    ``to``, ``copy.deepcopy`` and ``load_state_dict`` work as before; no parameter is copied.

    What differs: methods that the authors compile run eagerly; the cache of keys and values has the
    dtype of the products under autocast, not that of the weights; ``forward_model`` needs
    ``torch.no_grad``, in which ``sample`` calls it.

    Args:
        model: an object of the authors' ``BitDance`` class, of one or several tokens a step. A
            model that is patched already is left as it is.

    Returns:
        `model` itself.

    Raises:
        TypeError: `model` is no module.
        PatchError: it is built in another way; the message says where. Nothing is replaced then.

    Example:
        >>> model = create_model(args, device)  # theirs  # doctest: +SKIP
        >>> model.load_state_dict(checkpoint["ema"])  # doctest: +SKIP
        >>> patch_official(model)  # doctest: +SKIP
        >>> images = model.sample(labels, sample_steps=100, cfg_scale=6.1)  # doctest: +SKIP
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"patch_official: model must be a torch module, got {type(model).__name__}")
    if _PATCHED in vars(model):
        return model
    for wrapper in ("_orig_mod", "module"):
        if isinstance(getattr(model, wrapper, None), nn.Module):
            raise PatchError(
                f"patch_official: model must be the authors' object, got {type(model).__name__} "
                f"around it: pass model.{wrapper}"
            )
    replacements = list(_replacements(model))  # all is checked before anything is replaced
    for module, name, method in replacements:
        setattr(module, name, method)
    setattr(model, _PATCHED, [(module, name) for module, name, _ in replacements])
    _forget_caches(model)
    return model


def unpatch_official(model: nn.Module) -> nn.Module:
    """Undo ``patch_official``; a model that is not patched is left as it is.

    Args:
        model: what was patched.

    Returns:
        `model` itself.
    """
    if _PATCHED in vars(model):
        for module, name in vars(model)[_PATCHED]:
            delattr(module, name)
        delattr(model, _PATCHED)
        _forget_caches(model)
    return model


def _forget_caches(model: Any) -> None:
    # Those of the other side lie in memory in another way.
    for layer in model.layers:
        layer.attention.k_cache = layer.attention.v_cache = layer.attention.kv_cache_size = None


def _replacements(model: Any) -> Iterator[Replacement]:
    _require(
        "model", model, "cls_token_num", "emb_norm", "forward_model", "freqs_cis", "head",
        "head_sample", "layers", "norm", "pos_for_diff", "proj_in", "sample", "vae",
    )  # fmt: skip
    yield from _trunk(model)
    yield from _head(model.head)
    yield from _decoder(model.vae)


def _trunk(model: Any) -> Iterator[Replacement]:
    masks = None
    if any(hasattr(model, name) for name in ("attn_mask", "parallel_num", "query_token")):
        masks = _masks(model)
    trunk = TrunkMethods(model) if masks is None else MaskedTrunkMethods(model, masks)
    yield model, "forward_model", trunk.forward_model

    _require("model.proj_in", model.proj_in, "w1", "w2", "ffn_dropout")
    (dim,) = model.norm.weight.shape
    with torch.device("meta"):
        projection = InputProjection(model.proj_in.w1.weight.shape[1], dim)
    _graft("model.proj_in", projection, model.proj_in)
    yield model.proj_in, "forward", FeedForwardMethods(model.proj_in, projection).forward

    if not len(model.layers):
        raise PatchError("patch_official: model.layers must be one or more, got none")
    for i, layer in enumerate(model.layers):
        where = f"model.layers.{i}"
        _require(where, layer, "attention", "feed_forward", "forward_onestep")
        _require(f"{where}.feed_forward", layer.feed_forward, "ffn_dropout")
        attention = layer.attention
        _require(
            f"{where}.attention", attention, "enable_kv_cache", "head_dim", "k_cache",
            "kv_cache_size", "n_head", "resid_dropout", "v_cache",
        )  # fmt: skip
        expected = {"attn_dropout_p": 0, "n_head": dim // attention.head_dim}
        if masks is None:
            expected["causal"] = True
        for name, value in expected.items():
            if getattr(attention, name, None) != value:
                raise PatchError(
                    f"patch_official: {where}.attention.{name} must be {value}, got "
                    f"{getattr(attention, name, None)}"
                )
        with torch.device("meta"):
            block = TransformerBlock(dim, attention.n_head)
        _graft(where, block, layer)
        methods: MaskedAttentionMethods | CausalAttentionMethods
        if masks is None:
            methods = CausalAttentionMethods(attention)
        else:
            methods = MaskedAttentionMethods(attention, masks)
        yield attention, "forward", methods.forward
        yield attention, "enable_kv_cache", methods.enable_kv_cache
        network = FeedForwardMethods(layer.feed_forward, block.feed_forward)
        yield layer.feed_forward, "forward", network.forward


def _masks(model: Any) -> Masks:
    """Of a model of several tokens a step; with one, attention is causal and takes no mask."""
    _require("model", model, "attn_mask", "parallel_num", "query_token")
    masks = Masks(model)
    expected = masks.whole(torch.device("cpu")).end
    ends = interval_ends(model.attn_mask)
    if ends is None or not torch.equal(ends, expected):
        raise PatchError(
            "patch_official: model.attn_mask must be block-causal, 0 where a token sees and -inf "
            f"elsewhere: {model.cls_token_num - 1} causal tokens and then blocks of "
            f"{model.parallel_num}"
        )
    return masks


def _head(head: Any) -> Iterator[Replacement]:
    _require("model.head", head, "ch_target", "net", "sample", "time_shift")
    net = head.net
    _require(
        "model.head.net", net, "ada_ln_blocks", "cond_embed", "final_layer", "input_proj",
        "res_blocks", "time_embed",
    )  # fmt: skip
    blocks, shared = len(net.res_blocks), len(net.ada_ln_blocks)
    if not shared or not blocks or blocks % shared:
        raise PatchError(
            "patch_official: model.head.net must have a multiple of its adaLN projections as "
            f"blocks, got {blocks} blocks and {shared} projections"
        )
    attends = hasattr(net.res_blocks[0], "attn")
    width, of_trunk = net.cond_embed.weight.shape
    with _recognised("model.head"), torch.device("meta"):
        ours = HeadNetwork(
            HeadConfig(
                ch_target=head.ch_target, ch_cond=of_trunk, ch_latent=width, depth_latent=blocks,
                depth_adanln=shared, architecture="transformer" if attends else "mlp",
                time_shift=head.time_shift,
            )
        )  # fmt: skip
    _graft("model.head.net", ours, net)
    heads = ours.config.num_heads
    for i, block in enumerate(net.res_blocks if attends else ()):
        if getattr(block.attn, "n_head", None) != heads:
            raise PatchError(
                f"patch_official: model.head.net.res_blocks.{i}.attn.n_head must be {heads}, got "
                f"{getattr(block.attn, 'n_head', None)}"
            )
    _same_layer(
        "model.head.net.final_layer.norm_final",
        nn.LayerNorm(width, eps=_EPS, elementwise_affine=False),
        getattr(net.final_layer, "norm_final", None),
    )
    methods = HeadMethods(head, ours)
    yield head, "sample", methods.sample
    yield net, "forward", methods.forward


def _decoder(vae: Any) -> Iterator[Replacement]:
    _require("model.vae", vae, "decode", "decoder")
    decoder = vae.decoder
    where = "model.vae.decoder"
    _require(where, decoder, "adaptive", "conv_in", "conv_out", "mid_block", "norm_out", "up")
    with _recognised(where), torch.device("meta"):
        bits = decoder.adaptive[0].gamma.weight.shape[1]
        out, width = decoder.conv_out.weight.shape[:2]
        widths = [up.block[-1].conv1.weight.shape[0] for up in decoder.up]
        ours = Decoder(
            AutoencoderConfig(
                ch=width, ch_mult=tuple(level // width for level in widths), z_channels=bits,
                num_res_blocks=len(decoder.mid_block), out_ch=out, num_codebooks=1,
                gan_decoder=decoder.conv_in.weight.shape[1] == 2 * bits,
            )
        )  # fmt: skip
    _graft(where, ours, decoder)
    for i, norm in enumerate(decoder.adaptive):
        channels = norm.gamma.weight.shape[0]
        _same_layer(
            f"{where}.adaptive.{i}.gn",
            nn.GroupNorm(NORM_GROUPS, channels, eps=_EPS, affine=False),
            getattr(norm, "gn", None),
        )
    yield decoder, "forward", DecoderMethods(decoder, ours).forward


def _graft(where: str, ours: nn.Module, theirs: nn.Module) -> None:
    """Give `ours`, whose parameters have the names of theirs, the layers of `theirs`.

    Layers, not parameters, so that ours have what theirs have whatever becomes of it.
    """
    expected, found = (
        {k: list(t.shape) for k, t in m.state_dict().items()} for m in (ours, theirs)
    )
    different = [k for k in expected if k in found and expected[k] != found[k]]
    problems = {
        "no": [k for k in expected if k not in found],
        "besides": [k for k in found if k not in expected],
        "of another shape": [f"{k} {found[k]}, expected {expected[k]}" for k in different],
    }
    said = [f"{kind} {_few(names)}" for kind, names in problems.items() if names]
    if said:
        raise PatchError(
            f"patch_official: {where} ({type(theirs).__name__}) is none of the authors' ImageNet "
            f"code: {'; '.join(said)}"
        )
    for name, layer in list(ours.named_modules()):
        if not list(layer.children()) and list(layer.parameters()):
            found_layer = theirs.get_submodule(name)
            _same_layer(f"{where}.{name}", layer, found_layer)
            parent, _, attribute = name.rpartition(".")
            setattr(ours.get_submodule(parent), attribute, found_layer)


def _same_layer(where: str, expected: nn.Module, found: Any) -> None:
    """Check type and settings, such as a norm's eps; a subclass may have more settings."""
    same_type = isinstance(found, type(expected))
    if not same_type or (type(found) is type(expected) and repr(found) != repr(expected)):
        raise PatchError(f"patch_official: {where} must be {expected}, got {found}")


def _require(where: str, module: Any, *names: str) -> None:
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        raise PatchError(
            f"patch_official: {where} ({type(module).__name__}) is none of the authors' ImageNet "
            f"code: it has no {_few(missing)}"
        )


@contextlib.contextmanager
def _recognised(where: str) -> Iterator[None]:
    """Turn what fails while a configuration is read off into a ``PatchError``."""
    try:
        yield
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise PatchError(
            f"patch_official: {where} is none of the authors' ImageNet code: {error}"
        ) from error


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
