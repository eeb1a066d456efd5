"""Matching of the authors' objects by names, shapes and settings, without importing their code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from bitdance.integrations.official.methods import DecoderMethods, HeadMethods
from bitdance.models.autoencoder.blocks import Decoder
from bitdance.models.config import NORM_GROUPS, AutoencoderConfig, HeadConfig
from bitdance.models.diffusion_head import HeadNetwork
from bitdance.models.layers import Linear, RMSNorm

__all__ = [
    "PatchError",
    "Replacement",
    "decoder_methods",
    "graft",
    "head_methods",
    "matched",
    "require",
    "require_value",
    "same_layer",
]

Replacement = tuple[Any, str, Callable[..., Any]]
"""(object, name of an attribute, method that replaces it)."""

_EPS = 1e-6
_SHOWN = 6  # names listed per kind of problem


class PatchError(ValueError):
    """A model is not built as the authors' models are; nothing was replaced."""


def head_methods(where: str, head: Any, *, text_to_image: bool = False) -> Iterator[Replacement]:
    """Replacements of a diffusion head: its network and its sampling loop.

    Args:
        where: name of the head, for messages.
        head: the authors' head.
        text_to_image: whether it is that of the text-to-image models, which parameters do not tell.

    Raises:
        PatchError: it is not built as the authors'.
    """
    require(where, head, "ch_target", "net", "sample", "time_shift")
    net = head.net
    require(
        f"{where}.net", net, "ada_ln_blocks", "cond_embed", "final_layer", "input_proj",
        "res_blocks", "time_embed",
    )  # fmt: skip
    blocks, shared = len(net.res_blocks), len(net.ada_ln_blocks)
    if not shared or not blocks or (blocks > shared and blocks % shared):
        raise PatchError(
            f"patch_official: {where}.net must have a multiple of its adaLN projections as "
            f"blocks, or at most as many, got {blocks} blocks and {shared} projections"
        )
    first = net.res_blocks[0]
    attends = text_to_image or hasattr(first, "attn")
    width, of_trunk = net.cond_embed.weight.shape
    with matched(where), torch.device("meta"):
        ours = HeadNetwork(
            HeadConfig(
                ch_target=head.ch_target, ch_cond=of_trunk, ch_latent=width, depth_latent=blocks,
                depth_adanln=shared, time_shift=head.time_shift,
                architecture="t2i" if text_to_image else "transformer" if attends else "mlp",
                use_swiglu=not (text_to_image and hasattr(first, "mlp")),
            )
        )  # fmt: skip
    graft(f"{where}.net", ours, net)
    heads = ours.config.num_heads
    for i, block in enumerate(net.res_blocks if attends else ()):
        require_value(f"{where}.net.res_blocks.{i}.attn", block.attn, n_head=heads)
    same_layer(
        f"{where}.net.final_layer.norm_final",
        nn.LayerNorm(width, eps=_EPS, elementwise_affine=False),
        getattr(net.final_layer, "norm_final", None),
    )
    methods = HeadMethods(head, ours)
    yield head, "sample", methods.sample
    yield net, "forward", methods.forward


def decoder_methods(tokenizer: str, vae: Any) -> Iterator[Replacement]:
    """Replacement of an autoencoder: its decoder.

    Args:
        tokenizer: name of the autoencoder, for messages.
        vae: the authors' autoencoder.

    Raises:
        PatchError: it is not built as the authors'.
    """
    require(tokenizer, vae, "decode", "decoder")
    decoder = vae.decoder
    where = f"{tokenizer}.decoder"
    require(where, decoder, "adaptive", "conv_in", "conv_out", "mid_block", "norm_out", "up")
    with matched(where), torch.device("meta"):
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
    graft(where, ours, decoder)
    for i, norm in enumerate(decoder.adaptive):
        channels = norm.gamma.weight.shape[0]
        same_layer(
            f"{where}.adaptive.{i}.gn",
            nn.GroupNorm(NORM_GROUPS, channels, eps=_EPS, affine=False),
            getattr(norm, "gn", None),
        )
    yield decoder, "forward", DecoderMethods(decoder, ours).forward


_THEIRS: dict[type[nn.Module], type[nn.Module]] = {Linear: nn.Linear, RMSNorm: nn.RMSNorm}


def same_layer(where: str, expected: nn.Module, found: Any) -> None:
    """Check type and settings, such as the epsilon of a norm; a subclass may have more settings.

    Raises:
        PatchError: they differ.
    """
    kind = _THEIRS.get(type(expected), type(expected))
    if not isinstance(found, kind) or (type(found) is kind and repr(found) != repr(expected)):
        raise PatchError(f"patch_official: {where} must be {expected}, got {found}")


def graft(
    where: str,
    ours: nn.Module,
    theirs: nn.Module,
    same: Callable[[str, nn.Module, Any], None] = same_layer,
) -> None:
    """Put the layers of `theirs` into `ours`, whose parameters have the same names.

    Layers rather than parameters are shared, so that later changes of theirs are seen.

    Args:
        where: name of `theirs`, for messages.
        ours: our module, on the meta device.
        theirs: the authors' module.
        same: called for each pair of layers; raises PatchError if they differ.

    Raises:
        PatchError: names, shapes or layers differ.
    """
    expected, found = (
        {k: list(t.shape) for k, t in m.state_dict().items()} for m in (ours, theirs)
    )
    different = [k for k in expected if k in found and expected[k] != found[k]]
    problems = {
        "missing": [k for k in expected if k not in found],
        "unexpected": [k for k in found if k not in expected],
        "of another shape": [f"{k} {found[k]}, expected {expected[k]}" for k in different],
    }
    differences = [f"{kind} {_few(names)}" for kind, names in problems.items() if names]
    if differences:
        raise PatchError(
            f"patch_official: {where} ({type(theirs).__name__}) is not built as the authors' code: "
            f"{'; '.join(differences)}"
        )
    for name, layer in list(ours.named_modules()):
        if not list(layer.children()) and list(layer.parameters()):
            found_layer = theirs.get_submodule(name)
            same(f"{where}.{name}", layer, found_layer)
            parent, _, attribute = name.rpartition(".")
            setattr(ours.get_submodule(parent), attribute, found_layer)


def require(where: str, module: Any, *names: str) -> None:
    """Check that `module` has attributes of these names.

    Raises:
        PatchError: it has not.
    """
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        raise PatchError(
            f"patch_official: {where} ({type(module).__name__}) is not built as the authors' code: "
            f"it has no {_few(missing)}"
        )


def require_value(where: str, module: Any, **values: object) -> None:
    """Check that attributes of `module` have these values.

    Raises:
        PatchError: one has another, or is not there.
    """
    for name, value in values.items():
        found = getattr(module, name, None)
        if found != value:
            raise PatchError(f"patch_official: {where}.{name} must be {value}, got {found}")


@contextlib.contextmanager
def matched(where: str) -> Iterator[None]:
    """Turn errors while a configuration is read off into a ``PatchError``."""
    try:
        yield
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        message = f"patch_official: {where} is not built as the authors' code: {error}"
        raise PatchError(message) from error


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
