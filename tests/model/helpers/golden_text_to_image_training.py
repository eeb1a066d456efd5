"""Runner for a training step of the text-to-image model: losses and gradients."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F

from bitdance.models.packed_batch import PackedBatch, PackedDraws
from bitdance.models.text_to_image import TextToImageModel
from bitdance.models.token_order import latents_to_tokens
from bitdance_kernels import Ranges, dense_mask, pack_signs, packed_document_ranges
from tests.model.helpers.golden_cases import Case, runner
from tests.model.helpers.golden_text_to_image import config

TEXT_WEIGHT = 0.01


def load(case: Case) -> TextToImageModel:
    """The model of a case, whose official names are renamed as its description says."""
    model = TextToImageModel(config(case, case.params["vision_pred"]["parallel_num"]))
    state = {}
    for name, tensor in case.state().items():
        prefixes = case.description["state_prefixes"].items()
        ours = next(new + name.removeprefix(old) for old, new in prefixes if name.startswith(old))
        state[ours] = tensor
    if model.llm_model.lm_head is None:  # the input's once more
        state.pop("llm_model.lm_head.weight")
    model.load_state_dict(state, strict=True)
    model.ae.requires_grad_(False)
    return model.eval()


def ranges_of(case: Case) -> Ranges:
    """The mask, with the rows of the padding document."""
    segments = zip(case["in.split_lens"].tolist(), case.description["attn_modes"], strict=True)
    return packed_document_ranges(
        case["in.sample_lens"].tolist(), segments,
        patch_tokens=case.params["vision_pred"]["parallel_num"],
    )  # fmt: skip


def batch_of(case: Case, latents: torch.Tensor, ranges: Ranges) -> PackedBatch:
    """The packed sequence of a case, with the bits of all its images [N, bits]."""
    rows = case.description["sequence_length"]
    token_ids = torch.zeros(rows, dtype=torch.int64)
    token_ids[case["in.packed_text_indexes"]] = case["in.packed_text_ids"]
    return PackedBatch(
        token_ids=token_ids,
        position_ids=case["in.packed_position_ids"],
        ranges=Ranges(ranges.start[:rows], ranges.end[:rows]),
        grids=tuple(map(tuple, case["in.vit_latent_shapes"].tolist())),
        packed=pack_signs(F.pad(latents, (0, -latents.shape[1] % 8))),
        fed_rows=case["in.packed_vit_token_indexes"],
        loss_tokens=case["in.packed_label_indexes_vision"],
        loss_rows=case["in.ce_loss_indexes_vision"],
        text_rows=case["in.ce_loss_indexes_text"],
        text_labels=case["in.packed_label_ids"],
    )


def text_documents(case: Case, batch: PackedBatch) -> PackedBatch:
    """The documents without images, as a batch of their own."""
    with_images = {image["document"] for image in case.description["images"]}
    documents = enumerate(case.description["documents"])
    alone = [d for i, d in documents if i not in with_images]
    rows = torch.cat([torch.arange(d["start"], d["end"]) for d in alone])
    new = torch.full_like(batch.token_ids, -1)
    new[rows] = torch.arange(len(rows))
    here = new[batch.text_rows] >= 0
    lengths = [d["end"] - d["start"] for d in alone]
    none = torch.empty(0, dtype=torch.int64)
    return PackedBatch(
        token_ids=batch.token_ids[rows],
        position_ids=batch.position_ids[rows],
        ranges=packed_document_ranges(lengths, [(sum(lengths), "causal")], patch_tokens=1),
        grids=(),
        packed=batch.packed[:0],
        fed_rows=none,
        loss_tokens=none,
        loss_rows=none,
        text_rows=new[batch.text_rows[here]],
        text_labels=batch.text_labels[here],
    )


def draws_of(case: Case, name: str) -> PackedDraws:
    """The recorded draws of a call, which end with times and noise."""
    *flips, time, noise = case.draws(name)
    return PackedDraws((flips[0], flips[1]) if flips else None, time, noise)


def settings(case: Case) -> dict[str, float]:
    """Arguments of the losses."""
    return {
        "perturb_rate": case.params["vision_perturb"],
        "repeats": case.params["vision_pred"].get("diff_batch_mul", 1),
    }


def encode(model: TextToImageModel, case: Case) -> torch.Tensor:
    """Bits of all images in generation order, [N, bits]."""
    tokens = []
    for i, grid in enumerate(case["in.vit_latent_shapes"].tolist()):
        latents = model.ae.encode(case[f"in.image.{i}"])
        tokens.append(latents_to_tokens(latents, 1, model.order((grid[0], grid[1])))[0])
    return torch.cat(tokens)


def gradients(
    model: TextToImageModel, names: list[str], loss: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Gradients of a loss by name; 0 where it does not depend on a parameter."""
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(
        loss, [parameters[name] for name in names], retain_graph=True, allow_unused=True
    )
    return {
        name: torch.zeros_like(parameters[name]) if grad is None else grad
        for name, grad in zip(names, found, strict=True)
    }


@runner("training, text-to-image")
def run_training(case: Case) -> dict[str, torch.Tensor]:
    model, ranges = load(case), ranges_of(case)
    latents = encode(model, case)
    batch = batch_of(case, latents, ranges)
    out = {"out.latents": latents, "out.sparse_mask": dense_mask(ranges)}
    for name in case.expected:
        if match := re.fullmatch(r"out\.pos_embed_(\d+)x(\d+)_p\d+", name):
            out[name] = model.positions((int(match[1]), int(match[2])))
    for name in ("eval", "train"):
        model.train(name == "train")
        model.ae.eval()
        out |= _step(case, model, batch, name)
    return out | _fixed(case, model, batch)


def _step(
    case: Case, model: TextToImageModel, batch: PackedBatch, name: str
) -> dict[str, torch.Tensor]:
    prefix, draws = f"out.fwd.{name}", draws_of(case, f"fwd.{name}")
    made = model.conditions(batch, draws, **settings(case))
    seen: list[tuple[torch.Tensor, ...]] = []
    network = model.vision_head.net
    hook = network.register_forward_hook(lambda _, args, result: seen.append((args[1], result)))
    losses = model.losses(batch, draws, **settings(case))
    hook.remove()
    text, vision = losses.means()
    loss = TEXT_WEIGHT * text + vision
    out = {
        f"{prefix}.hidden": made.hidden,
        f"{prefix}.vision_embedding": made.embedded,
        f"{prefix}.latents_fed": made.fed,
        f"{prefix}.head_target": made.target,
        f"{prefix}.head_cond": made.cond,
        f"{prefix}.time": seen[0][0],
        f"{prefix}.x_pred": seen[0][1],
        f"{prefix}.loss_text": losses.text,
        f"{prefix}.loss_vision": losses.vision,
        f"{prefix}.loss_text_mean": text,
        f"{prefix}.loss_vision_mean": vision,
        f"{prefix}.loss": loss,
    }
    if name == "train":
        out |= _gradients(case, model, (loss, text, vision))
    return out


def _gradients(
    case: Case, model: TextToImageModel, losses: tuple[torch.Tensor, ...]
) -> dict[str, torch.Tensor]:
    official = case.description["trainable_params"]
    renamed = case.description["state_prefixes"].items()
    names = [
        next(new + name.removeprefix(old) for old, new in renamed if name.startswith(old))
        for name in official
    ]
    assert set(names) == {n for n, p in model.named_parameters() if p.requires_grad}
    out, stride = {}, case.description["grad_sub_stride"]
    for label, loss in zip(("grad", "grad_text", "grad_vision"), losses, strict=True):
        grads = gradients(model, names, loss)
        out[f"out.fwd.train.{label}_norms"] = torch.stack([grads[n].norm() for n in names])
        if label == "grad":
            for theirs, ours in zip(official, names, strict=True):
                out[f"out.fwd.train.grad.{theirs}"] = grads[ours]
                out[f"out.fwd.train.grad_sub.{theirs}"] = grads[ours].flatten()[::stride]
    return out


def _fixed(case: Case, model: TextToImageModel, batch: PackedBatch) -> dict[str, torch.Tensor]:
    """Batches without one of the losses, with the draws of training."""
    out, model = {}, model.train()
    if "out.fixed.no_text.loss" in case:
        none = {"text_rows": batch.text_rows[:0], "text_labels": batch.text_labels[:0]}
        silent = PackedBatch(**{**vars(batch), **none})
        text, vision = model([silent], [draws_of(case, "fwd.train")], **settings(case))[0]
        out["out.fixed.no_text.loss"] = TEXT_WEIGHT * text + vision
    if "out.fixed.no_vision.loss" in case:
        words = text_documents(case, batch)
        losses = model.losses(words, **settings(case))
        out["out.fixed.no_vision.loss_text"] = losses.text
        text, vision = losses.means()
        out["out.fixed.no_vision.loss"] = TEXT_WEIGHT * text + vision
    model.eval()
    return out


__all__ = ["batch_of", "draws_of", "load", "ranges_of", "settings"]
