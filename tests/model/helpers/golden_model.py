"""Runner for the whole ImageNet models: losses, gradients, sampling."""

from __future__ import annotations

import torch

from bitdance.models.class_conditional import BitDanceModel, TrainingDraws
from bitdance.models.config import AutoencoderConfig, ModelConfig
from bitdance.sampling.ar_sampler import StepResult
from bitdance.sampling.class_conditional import ClassConditionalSampler
from bitdance_kernels import dense_mask
from tests.model.helpers.golden_cases import Case, runner
from tests.model.helpers.golden_transformer import additive


def model_config(case: Case) -> ModelConfig:
    """The configuration of a case; what its constructor call leaves out has the class's default."""
    params = case.params
    ctor = dict(params["ctor"])
    autoencoder = AutoencoderConfig.from_dict(
        {
            "ddconfig": {**params["vae"], "z_channels": ctor["latent_dim"]},
            "num_codebooks": 4 if ctor["latent_dim"] % 4 == 0 else 1,
        }
    )
    defaults = {"parallel_mode": "standard", "P_mean": 0.0, "P_std": 1.0}
    for name in ("perturb_rate", "class_dropout_prob"):
        if name in params:
            ctor.setdefault(name, params[name])
    return ModelConfig(**{**defaults, **ctor}, autoencoder=autoencoder)


@runner("model, ImageNet")
def run_model(case: Case) -> dict[str, torch.Tensor]:
    model = BitDanceModel(model_config(case))
    case.load_into(model)
    out = {"out.freqs_cis": model.freqs, "out.attn_mask": additive(dense_mask(model.ranges()))}
    labels = case["in.class_id"]
    images = model.encode(case["in.images"])
    with torch.no_grad():
        out |= _forward(case, model, "eval_images", images, labels)
        for layout in (torch.contiguous_format, torch.channels_last):
            latent = case["in.cached_latent"].contiguous(memory_format=layout)
            cached = model.to_tokens(latent)
            out |= _forward(case, model, "eval_cached", cached, labels)
    out |= _train(case, model, images, labels)
    for settings in case.params["samples"]:
        out |= _sample(case, model, settings)
    return out


def _forward(
    case: Case, model: BitDanceModel, name: str, tokens: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    time, noise = case.draws(f"fwd.{name}")
    draws = TrainingDraws(time=time, noise=noise)
    target, cond = model.conditions(tokens, labels, draws)
    return {
        f"out.fwd.{name}.loss": model(tokens, labels, draws),
        f"out.fwd.{name}.head_target": target,
        f"out.fwd.{name}.head_cond": cond,
    }


def _train(
    case: Case, model: BitDanceModel, tokens: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    r1, r2, drop, time, noise = case.draws("fwd.train")
    draws = TrainingDraws(flips=(r1, r2), drop=drop, time=time, noise=noise)
    model.train()
    model.vae.eval()
    target, cond = model.conditions(tokens, labels, draws)
    loss = model(tokens, labels, draws)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    names = case.description["trainable_params"]
    assert set(names) == set(parameters)
    grads = dict(zip(names, torch.autograd.grad(loss, [parameters[n] for n in names]), strict=True))
    model.eval()
    prefix = "out.fwd.train"
    return {
        f"{prefix}.loss": loss,
        f"{prefix}.head_target": target,
        f"{prefix}.head_cond": cond,
        f"{prefix}.grad_norms": torch.stack([grads[name].norm() for name in names]),
        **{f"{prefix}.grad.{name}": grad for name, grad in grads.items()},
    }


def _sample(case: Case, model: BitDanceModel, settings: dict) -> dict[str, torch.Tensor]:
    name = f"sample.{settings['name']}"
    noise, draws = [], case.draws(name)
    for _ in range(model.config.ar_steps):
        noise.append(draws[: settings["steps"] + 1])
        draws = draws[settings["steps"] + 1 :]
    assert not draws
    results: list[StepResult] = []
    tokens = ClassConditionalSampler(model).sample(
        case["in.sample_class"],
        num_inference_steps=settings["steps"],
        guidance_scale=settings["cfg"],
        guidance_schedule=settings["schedule"],
        noise=noise,
        on_step=results.append,
    )
    with torch.no_grad():
        image = model.decode(tokens)
    rest = [result.hidden for result in results[1:]]  # none if the first patch is the image
    return {
        f"out.{name}.hidden_first": results[0].hidden,
        **({f"out.{name}.hidden_rest": torch.stack(rest)} if rest else {}),
        f"out.{name}.pred_raw": torch.stack([result.prediction for result in results]),
        f"out.{name}.tokens": torch.cat([result.tokens for result in results], dim=1),
        f"out.{name}.latent": model.to_latents(tokens),
        f"out.{name}.image": image,
        f"out.{name}.cfg_per_step": torch.tensor([result.guidance_scale for result in results]),
    }
