"""A model small enough for tests, whose sampling is not degenerate."""

import dataclasses

import torch

from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import AutoencoderConfig, HeadConfig, ModelConfig
from bitdance.models.diffusion_head import DiffusionHead
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance.sampling.class_conditional import ClassConditionalSampler

AUTOENCODER = AutoencoderConfig(
    ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=8, num_codebooks=1
)  # fmt: skip
PACKABLE = {"latent_dim": 16, "autoencoder": dataclasses.replace(AUTOENCODER, z_channels=16)}
"""Changes to a tiny model by which all widths are multiples of 16, as packed weights need."""


def tiny_config(**changes):
    values = {
        "dim": 32, "n_layer": 2, "n_head": 2, "diff_layers": 2, "diff_dim": 64,
        "diff_adanln_layers": 1, "parallel_num": 4, "latent_dim": 8, "down_size": 2,
        "resolution": 8, "num_classes": 5, "cls_token_num": 3, "cfg_scale": 2.0,
        "autoencoder": AUTOENCODER,
    }  # fmt: skip
    return ModelConfig(**{**values, **changes})


def tiny_model(seed=0, **changes):
    """Random weights everywhere, also where training starts at zero."""
    torch.manual_seed(seed)
    model = BitDanceModel(tiny_config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return model.eval()


def tiny_sampler(seed=0, **changes):
    return ClassConditionalSampler(tiny_model(seed, **changes))


def tiny_pipeline(seed=0, **changes):
    classes = ("boot", "bag", "shirt", "night dress", "sneaker")
    model = tiny_model(seed, **changes)
    pipeline = BitDancePipeline(model, classes[: model.config.num_classes])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


HEADS = {
    "mlp": {"architecture": "mlp"},
    "transformer": {"architecture": "transformer"},
    "t2i": {"architecture": "t2i", "ch_latent": 128},
    "t2i, SiLU": {"architecture": "t2i", "ch_latent": 128, "use_swiglu": False},
}


def tiny_head(architecture="transformer", **changes):
    torch.manual_seed(0)
    values = {
        "ch_target": 8, "ch_cond": 24, "ch_latent": 64, "depth_latent": 4, "depth_adanln": 2,
        **HEADS[architecture], **changes,
    }  # fmt: skip
    head = DiffusionHead(HeadConfig(**values)).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return head


def tiny_patch(architecture):
    return None if architecture == "mlp" else 4
