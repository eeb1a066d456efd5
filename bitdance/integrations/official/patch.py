"""Our kernels inside a model that the authors' code built.

``patch_official(model)`` replaces methods of the object, not of its class: the head's network and
sampling loop, the transformer's attention, feed-forward and step with a cache (in the text-to-image
pipeline: the loop over patches), and the tokenizer's decoder. Weights, their names, and all that a
caller sees stay. Nothing of the authors' code is
imported: modules are known by the names of their attributes and by names, shapes and settings of
their layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from bitdance.integrations.official.matching import (
    PatchError,
    Replacement,
    decoder_methods,
    graft,
    head_methods,
    require,
    require_value,
)
from bitdance.integrations.official.methods import (
    CausalAttentionMethods,
    FeedForwardMethods,
    MaskedAttentionMethods,
    MaskedTrunkMethods,
    Masks,
    TrunkMethods,
    interval_ends,
)
from bitdance.integrations.official.patch_text_to_image import pipeline_methods
from bitdance.models.projectors import InputProjection
from bitdance.models.transformer import TransformerBlock

__all__ = ["PatchError", "patch_official", "unpatch_official"]

_PATCHED = "_bitdance_patched"

T = TypeVar("T")


def patch_official(model: T) -> T:
    """Make a model of the authors' code run on this library's ops, in place.

    In their ImageNet models are replaced ``head.sample``, ``head.net.forward``, the ``forward`` and
    ``enable_kv_cache`` of each ``layers[i].attention``, the ``forward`` of each
    ``layers[i].feed_forward`` and of ``proj_in``, ``forward_model`` and ``vae.decoder.forward``; in
    their text-to-image pipeline ``gen_image``, ``vision_head.sample``, ``vision_head.net.forward``
    and ``ae.decoder.forward``. All keep their arguments, and random numbers are drawn by torch in
    the same order, so a seed gives the image that it gave before, up to rounding. ``sample``,
    ``generate``, ``forward`` (the training loss, with gradients), ``state_dict``, ``to``,
    ``copy.deepcopy`` and ``load_state_dict`` work as before; no parameter is copied.

    What differs: methods that the authors compile run eagerly; the cache of keys and values has the
    dtype of the products under autocast, not that of the weights; ``forward_model`` needs
    ``torch.no_grad``, in which ``sample`` calls it. ``gen_image`` runs both halves of guidance as
    one batch and does not call the language model's ``forward``, which stays theirs: hooks on it
    or on its blocks see nothing of an image.

    Args:
        model: an object of the authors' ``BitDance`` class, of one or several tokens a step, or
            their ``BitDanceT2IPipeline``. One that is patched already is left as it is.

    Returns:
        `model` itself.

    Raises:
        TypeError: `model` is neither a module nor a pipeline.
        PatchError: it is built in another way; the message says where. Nothing is replaced then.

    Example:
        >>> model = create_model(args, device)  # theirs  # doctest: +SKIP
        >>> model.load_state_dict(checkpoint["ema"])  # doctest: +SKIP
        >>> patch_official(model)  # doctest: +SKIP
        >>> images = model.sample(labels, sample_steps=100, cfg_scale=6.1)  # doctest: +SKIP
    """
    if not isinstance(model, nn.Module) and not _is_pipeline(model):
        raise TypeError(
            "patch_official: model must be a torch module or the authors' text-to-image pipeline, "
            f"got {type(model).__name__}"
        )
    if _PATCHED in vars(model):
        return model
    for wrapper in ("_orig_mod", "module"):
        if isinstance(getattr(model, wrapper, None), nn.Module):
            raise PatchError(
                f"patch_official: model must be the authors' object, got {type(model).__name__} "
                f"around it: pass model.{wrapper}"
            )
    # All is checked before anything is replaced.
    found = pipeline_methods(model) if _is_pipeline(model) else _replacements(model)
    replacements = list(found)
    for module, name, method in replacements:
        setattr(module, name, method)
    setattr(model, _PATCHED, [(module, name) for module, name, _ in replacements])
    _forget_caches(model)
    return model


def unpatch_official(model: T) -> T:
    """Undo ``patch_official``; a model that is not patched is left as it is.

    Args:
        model: a patched model.

    Returns:
        `model` itself.
    """
    if _PATCHED in vars(model):
        for module, name in vars(model)[_PATCHED]:
            delattr(module, name)
        delattr(model, _PATCHED)
        _forget_caches(model)
    return model


def _is_pipeline(model: object) -> bool:
    return hasattr(model, "gen_image")


def _forget_caches(model: Any) -> None:
    # Those of the other side lie in memory in another way. A pipeline keeps none.
    for layer in [] if _is_pipeline(model) else model.layers:
        layer.attention.k_cache = layer.attention.v_cache = layer.attention.kv_cache_size = None


def _replacements(model: Any) -> Iterator[Replacement]:
    require(
        "model", model, "cls_token_num", "emb_norm", "forward_model", "freqs_cis", "head",
        "head_sample", "layers", "norm", "pos_for_diff", "proj_in", "sample", "vae",
    )  # fmt: skip
    yield from _trunk(model)
    yield from head_methods("model.head", model.head)
    yield from decoder_methods("model.vae", model.vae)


def _trunk(model: Any) -> Iterator[Replacement]:
    masks = None
    if any(hasattr(model, name) for name in ("attn_mask", "parallel_num", "query_token")):
        masks = _masks(model)
    trunk = TrunkMethods(model) if masks is None else MaskedTrunkMethods(model, masks)
    yield model, "forward_model", trunk.forward_model

    require("model.proj_in", model.proj_in, "w1", "w2", "ffn_dropout")
    (dim,) = model.norm.weight.shape
    with torch.device("meta"):
        projection = InputProjection(model.proj_in.w1.weight.shape[1], dim)
    graft("model.proj_in", projection, model.proj_in)
    yield model.proj_in, "forward", FeedForwardMethods(model.proj_in, projection).forward

    if not len(model.layers):
        raise PatchError("patch_official: model.layers must be one or more, got none")
    for i, layer in enumerate(model.layers):
        where = f"model.layers.{i}"
        require(where, layer, "attention", "feed_forward", "forward_onestep")
        require(f"{where}.feed_forward", layer.feed_forward, "ffn_dropout")
        attention = layer.attention
        require(
            f"{where}.attention", attention, "enable_kv_cache", "head_dim", "k_cache",
            "kv_cache_size", "n_head", "resid_dropout", "v_cache",
        )  # fmt: skip
        expected: dict[str, object] = {"attn_dropout_p": 0, "n_head": dim // attention.head_dim}
        if masks is None:
            expected["causal"] = True
        require_value(f"{where}.attention", attention, **expected)
        with torch.device("meta"):
            block = TransformerBlock(dim, attention.n_head)
        graft(where, block, layer)
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
    require("model", model, "attn_mask", "parallel_num", "query_token")
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
