"""Runner for the official text-to-image pipeline: language model, head and tokenizer together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from bitdance.models.qwen3 import rope_frequencies, rope_table
from bitdance.models.text_to_image import TextToImageModel
from bitdance.models.text_to_image_config import TextToImageConfig
from bitdance.models.token_order import tokens_to_latents
from bitdance.sampling.ar_sampler import StepResult
from bitdance.sampling.text_to_image import TextToImageSampler
from tests.model.helpers.golden_cases import Case, runner


def config(case: Case, parallel_num: int) -> TextToImageConfig:
    """The configuration of a case with P tokens a step, on which no weight depends."""
    params = case.params
    return TextToImageConfig.from_dicts(
        {**params["llm"], "vocab_size": params["vocab"]},
        {**params["head"], "parallel_num": parallel_num},
        {
            "ddconfig": params["ddconfig"],
            "gan_decoder": case.description["ae_config"].get("gan_decoder", False),
        },
    )


def special_ids(case: Case) -> dict[str, int]:
    """Ids of the special tokens by name."""
    names = case.description["special_tokens"]
    return dict(zip(names, case["in.special_ids"].tolist(), strict=True))


@runner("pipeline, text-to-image")
def run_pipeline(case: Case) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    models: dict[int, TextToImageModel] = {}
    for settings in case.params["samples"]:
        P = settings["P"]
        if P not in models:
            models[P] = TextToImageModel(config(case, P))
            case.load_into(models[P])
        out |= _sample(case, models[P], settings)
    for name in case.expected:
        if match := re.fullmatch(r"out\.pos_embed_(\d+)x(\d+)_p(\d+)", name):
            h, w, P = map(int, match.groups())
            if P not in models:
                models[P] = TextToImageModel(config(case, P))
            out[name] = models[P].positions((h, w))
    return out


def _sample(
    case: Case, model: TextToImageModel, settings: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    name, P, count = f"sample.{settings['name']}", settings["P"], case.params["num_images"]
    height, width = grid = tuple(settings["grid"])
    guided = settings["cfg"] > 1
    ids = special_ids(case)
    prefix = ["<|vision_start|>", f"<|res_{height}|>", f"<|res_{width}|>"]
    prefix += [f"<|query_{i}|>" for i in range(1, P)]
    noise, draws = [], case.draws(name)
    while draws:
        noise.append(draws[: settings["steps"] + 1])
        draws = draws[settings["steps"] + 1 :]
    results: list[StepResult] = []
    prefilled: list[torch.Tensor] = []
    sampler = TextToImageSampler(model)
    tokens = sampler.sample(
        [case["in.prompt_ids"].tolist()] * count,
        [ids[token] for token in prefix],
        grid=grid,
        negative_prompts=case["in.uncond_ids"].tolist() if guided else None,
        num_inference_steps=settings["steps"],
        guidance_scale=settings["cfg"],
        noise=noise,
        on_prefill=prefilled.append,
        on_step=results.append,
    )
    positions = model.positions(grid).unflatten(0, (-1, P))
    hidden = [result.hidden for result in results]
    with torch.no_grad():
        image = model.decode(tokens, grid)
        # The official code also runs the language model on the last patch, to no purpose.
        last = model.embed_vision_mlp(results[-1].tokens) + positions[-1]
        cache, llm = sampler.workspaces.idle[0].cache.first(len(last)), model.config.llm
        longest = int(cache.lengths.max()) + P
        freqs = rope_table(longest, rope_frequencies(llm.head_dim, llm.rope_theta))
        hidden.append(model.llm_model.model.decode(last, freqs, cache))
    condition = [h + position for h, position in zip(hidden[:-1], positions, strict=True)]
    out = {
        f"out.{name}.head_cond": torch.stack(condition),
        f"out.{name}.pred_raw": torch.stack([result.prediction for result in results]),
        f"out.{name}.tokens": tokens,
        f"out.{name}.latent": tokens_to_latents(tokens, 1, model.order(grid), grid),
        f"out.{name}.image": image,
    }
    halves = ("cond", "uncond") if guided else ("cond",)
    for half, (branch, text) in enumerate(
        zip(halves, ("in.prompt_ids", "in.uncond_ids"), strict=False)
    ):
        rows = slice(half * count, (half + 1) * count)
        length = len(case[text]) + 2
        out[f"out.{name}.llm.prefill_{branch}"] = prefilled[0][half, :length].expand(count, -1, -1)
        out[f"out.{name}.llm.query_{branch}"] = hidden[0][rows]
        out[f"out.{name}.llm.ar_{branch}"] = torch.stack(hidden[1:])[:, rows]
    return out
