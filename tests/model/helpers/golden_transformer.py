"""Runners for the transformer's parts: layout, rotary tables, blocks, projectors, masks, flips."""

from __future__ import annotations

import torch

from bitdance.models.kv_cache import KVCache
from bitdance.models.perturbation import perturb
from bitdance.models.projectors import InputProjection, TextToImageProjection, position_embedding_2d
from bitdance.models.token_order import generation_order, latents_to_tokens, tokens_to_latents
from bitdance.models.transformer import TransformerBlock, cell_centers, rope_table_2d
from bitdance_kernels import Ranges, block_causal_ranges, dense_mask, packed_document_ranges, rope
from tests.model.helpers.golden_cases import Case, runner


def additive(mask: torch.Tensor) -> torch.Tensor:
    """0 where visible, -inf elsewhere."""
    return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)


@runner("layout")
def run_layout(case: Case) -> dict[str, torch.Tensor]:
    out = {}
    for i, config in enumerate(case.params["configs"]):
        name, side, P = f"c{i}", config["hw"], config["P"]
        order = generation_order((side, side), P, config["mode"])
        ranges = block_causal_ranges(config["cls"] - 1, side * side // P, P)
        head_dim = 2 * case[f"out.{name}.freqs_cis"].shape[1]
        fed = cell_centers(side, side)[order[: side * side - P]]
        out |= {
            f"out.{name}.attn_mask": additive(dense_mask(ranges)),
            f"out.{name}.freqs_cis": rope_table_2d(fed, head_dim, config["cls"] + P - 1),
        }
        if f"in.{name}.grid" in case:
            # The official patchify_raster is the patch order, in a "standard" case too.
            squares = generation_order((side, side), P, "patch")
            tokens = latents_to_tokens(case[f"in.{name}.grid"], 1, squares)
            out |= {
                f"out.{name}.patchify_raster": tokens,
                f"out.{name}.unpatchify_raster": tokens_to_latents(
                    tokens, 1, squares, (side, side)
                ),
                f"out.{name}.order": squares,
            }
    return out


@runner("transformer block")
@torch.no_grad()
def run_block(case: Case) -> dict[str, torch.Tensor]:
    params = case.params
    P = params.get("parallel") or 1
    side = params["resolution"] // params["patch"]
    block = TransformerBlock(params["dim"], params["n_head"])
    case.load_into(block)
    head_dim = params["dim"] // params["n_head"]
    mode = case.description["layout"]["parallel_mode"] or "standard"
    order = generation_order((side, side), P, mode)
    centers = cell_centers(side, side)
    prefix = params["cls"] + P - 1
    freqs = rope_table_2d(centers[order[: side * side - P]], head_dim, prefix)
    ranges = block_causal_ranges(params["cls"] - 1, side * side // P, P)

    x = case["in.x"]
    cache = KVCache.allocate(
        1, len(x), x.shape[1], params["n_head"], head_dim, dtype=x.dtype, device=x.device
    )
    first: Ranges | torch.Tensor = block_causal_ranges(params["cls"] - 1, 1, P)
    outputs = []
    for part in (x[:, :prefix], *x[:, prefix:].split(P, dim=1)):
        mask = cache.lengths + part.shape[1] if outputs else first
        outputs.append(block.decode(part, freqs, cache.layers[0], cache.lengths, mask))
        cache.advance(part.shape[1])
    return {
        "out.mask": additive(dense_mask(ranges)),
        "out.pos_2d": centers,
        "out.freqs_cis": freqs,
        "out.rotary": rope(case["in.q"], freqs),
        "out.attention": block.attention(x, freqs, ranges),
        "out.feed_forward": block.feed_forward(x),
        "out.block": block(x, freqs, ranges),
        "out.block_incremental": torch.cat(outputs, dim=1),
    }


@runner("utilities")
@torch.no_grad()
def run_utilities(case: Case) -> dict[str, torch.Tensor]:
    x = case["in.mlp_x"]
    t2i = case.state("t2i_projector.")
    t2i_module = TextToImageProjection(x.shape[-1], t2i["fc1.weight"].shape[0])
    imagenet = case.state("imagenet_proj_in.")
    imagenet_module = InputProjection(x.shape[-1], imagenet["w2.weight"].shape[0])
    out = {
        "out.t2i_projector": case.load_into(t2i_module, "t2i_projector.")(x),
        "out.imagenet_proj_in": case.load_into(imagenet_module, "imagenet_proj_in.")(x),
    }
    for i, mask in enumerate(case.params["masks"]):
        segments = list(zip(mask["split_lens"], mask["attn_modes"], strict=True))
        ranges = packed_document_ranges(
            mask["document_lens"], segments, patch_tokens=mask["parallel_num"]
        )
        out[f"out.sparse_mask{i}"] = dense_mask(ranges)
    for i, flip in enumerate(case.params["flips"]):
        r1, r2 = case.draws(f"flip{i}")
        out[f"out.flip{i}"] = perturb(case[f"in.flip{i}"], flip["p_max"], (r1, r2))
    for i, position in enumerate(case.params["pos"]):
        height, width, side = position["h"], position["w"], position["ps"]
        order = generation_order((height, width), side * side, "patch")
        out[f"out.pos_embed{i}"] = position_embedding_2d(order, width, position["hidden"])
    return out
