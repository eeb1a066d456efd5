"""Runner for the official quantizer, through BinaryQuantizer and its ops."""

from __future__ import annotations

import torch

from bitdance.models.autoencoder.quantizer import BinaryQuantizer, QuantizerOutput
from tests.model.helpers.golden_cases import Case, runner


@runner("quantizer")
def run_quantizer(case: Case) -> dict[str, torch.Tensor]:
    params = case.params
    quantizer = BinaryQuantizer(
        params["dim"],
        params["groups"],
        sample_weight=params.get("wmin", 1.0),
        codebook_weight=params.get("wmax", 1.0),
    )
    zero = torch.zeros(())
    out: dict[str, torch.Tensor] = {}

    for name, x in (("eval", case["in.x"]), ("eval_seq", case["in.x_seq"])):
        result = quantizer(x)
        out |= _codes(f"out.{name}", quantizer, result)
        out |= dict.fromkeys((f"out.{name}.{loss}" for loss in _LOSSES), zero)
    indices = out["out.eval.indices"]
    out["out.eval.decode_indices"] = quantizer.from_indices(indices)
    assert torch.equal(quantizer.to_indices(quantizer(case["in.x"]).packed), indices)

    # The official commitment of a training batch is over rows 1, 2, 4, ... only; ours, over all
    # rows, is what `fixed` records. The official figure is rebuilt here from our codes.
    x = case["in.x_train"].clone().requires_grad_()
    result = quantizer(x, with_losses=True)
    losses = result.losses
    out |= _codes("out.train", quantizer, result)
    some_rows = [1 << i for i in range(quantizer.code_bits)]
    official = (x - result.latents.detach())[some_rows].square().mean()
    for prefix, commitment in (("out.train", official), ("out.fixed.train", losses.commitment)):
        out |= _losses(prefix, result)
        out[f"{prefix}.commit_loss"] = commitment
        out[f"{prefix}.grad_total"] = _gradient(losses.entropy + commitment, x)
    out["out.train.grad_entropy"] = _gradient(losses.entropy, x)
    out |= dict.fromkeys((f"out.train_noloss.{loss}" for loss in _LOSSES), zero)
    out["out.train_noloss.commit_loss"] = official

    x = case["in.x"].clone().requires_grad_()
    result = quantizer(x, with_losses=True)
    prefix = "out.fixed.train_small"
    out |= _codes(prefix, quantizer, result) | _losses(prefix, result)
    out[f"{prefix}.grad_entropy"] = _gradient(result.losses.entropy, x)
    total = result.losses.entropy + result.losses.commitment
    out[f"{prefix}.grad_total"] = _gradient(total, x)
    ramp = torch.linspace(-1, 1, x.numel()).view_as(x)
    out[f"{prefix}.grad_straight_through"] = _gradient((result.latents * ramp).sum(), x)
    return out


_LOSSES = ("per_sample_entropy", "codebook_entropy", "entropy_aux_loss", "commit_loss")


def _codes(
    prefix: str, quantizer: BinaryQuantizer, result: QuantizerOutput
) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}.quantized": result.latents,
        f"{prefix}.indices": quantizer.to_indices(result.packed),
    }


def _losses(prefix: str, result: QuantizerOutput) -> dict[str, torch.Tensor]:
    names = (f"{prefix}.{loss}" for loss in _LOSSES)
    return dict(zip(names, result.losses, strict=True))


def _gradient(scalar: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(scalar, x, retain_graph=True)[0]
