"""Runners for the three official autoencoders."""

from __future__ import annotations

import re

import torch

from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.autoencoder.blocks import depth_to_space
from bitdance.models.config import AutoencoderConfig
from tests.model.helpers.golden_cases import Case, runner


def autoencoder_config(case: Case) -> AutoencoderConfig:
    """The configuration a case's parameters describe."""
    values = {"ddconfig": case.params["ddconfig"]}
    if "autoencoder_uni" in case.description["official"]:
        values["architecture"] = "conv_attention"
    if "ncb" in case.params:
        values["num_codebooks"] = case.params["ncb"]
    else:  # the text-to-image classes have no entropy loss, so any divisor will do
        values["num_codebooks"] = 1
    if "gan" in case.params:
        values["gan_decoder"] = case.params["gan"]
    return AutoencoderConfig.from_dict(values)


@torch.no_grad()
def _run(case: Case) -> dict[str, torch.Tensor]:
    model = BinaryAutoencoder(autoencoder_config(case))
    case.load_into(model)
    out = {}
    # The sizes of a case are numbered, or there is a single one without a number.
    for name in case.tensors:
        match = re.fullmatch(r"in\.image(\d*)", name)
        if match:
            out |= _run_size(case, model, match[1])
    if "in.d2s" in case:
        out["out.d2s"] = depth_to_space(case["in.d2s"], 2)
    if "in.list0" in case:
        images = [case[f"in.list{i}"] for i in range(len(case.tensors)) if f"in.list{i}" in case]
        patch_size = case.params.get("ps", 1)
        out["out.vt_forward"] = model.encode_list(images, patch_size=patch_size, max_batch=2)
    return out


def _run_size(case: Case, model: BinaryAutoencoder, size: str) -> dict[str, torch.Tensor]:
    images, codes = case[f"in.image{size}"], case[f"in.codes{size}"]

    def noise(call: str) -> torch.Tensor | None:
        draws = case.draws(f"{call}{size}")
        return draws[0] if draws else None

    features = model.features(images)
    quantized = model.quantize(features)
    reconstruction, _ = model(images, noise=noise("forward"))
    # Codes and packed bits must be interchangeable everywhere.
    assert torch.equal(model.encode(images), quantized.latents)
    packed = model.encode(images, packed=True)
    assert torch.equal(packed, quantized.packed)
    from_bits = model.decode(packed, noise=noise("forward"))
    assert torch.equal(from_bits, reconstruction)
    return {
        f"out.encoder{size}": features,
        f"out.quant{size}": quantized.latents,
        f"out.indices{size}": model.quantizer.to_indices(packed),
        f"out.emb_loss{size}": quantized.losses.entropy + quantized.losses.commitment,
        f"out.decode_codes{size}": model.decode(codes, noise=noise("decode_codes")),
        f"out.forward{size}": reconstruction,
    }


runner("autoencoder, ImageNet")(_run)
runner("autoencoder, text-to-image")(_run)
runner("autoencoder, UniWeTok")(_run)
