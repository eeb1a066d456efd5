"""The adversarial term of an autoencoder's loss: a discriminator that is trained beside it.

A PatchGAN, as VQGAN and its successors have it, gives a logit to every patch of an image. It is
trained with the hinge loss to tell images from reconstructions. The autoencoder's term raises the
logits of reconstructions, with a weight by which its gradient at the decoder's last layer is as
large as that of the reconstruction's own terms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bitdance.distributed import World
from bitdance.training.config import AdversarialConfig, AutoencoderRun

__all__ = ["Adversary", "Discriminator"]

_EPS = 1e-4  # added to the norm that the adaptive weight is divided by
_MAX_WEIGHT = 1e4
_GROUPS = 32


class Discriminator(nn.Module):
    """PatchGAN: images [B, 3, H, W] in [-1, 1] to logits [B, 1, h, w] of overlapping patches.

    Its norms are over groups of channels instead of the batch, so that an image has the same logits
    whatever else is in its batch.

    Args:
        config: its width and depth.
        **factory: ``dtype`` and ``device`` as torch.nn's layers take them.
    """

    def __init__(self, config: AdversarialConfig, **factory: Any) -> None:
        super().__init__()
        width = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, **factory), nn.LeakyReLU(0.2)]
        for number in range(1, config.layers + 1):
            wider = min(2 * width, 8 * config.channels)
            stride = 2 if number < config.layers else 1
            layers += [
                nn.Conv2d(width, wider, 4, stride, 1, bias=False, **factory),
                nn.GroupNorm(math.gcd(_GROUPS, wider), wider, **factory),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1, **factory))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of the images' patches."""
        return self.layers(images)


class Adversary:
    """The discriminator, its optimizer and the two losses.

    Args:
        config: configuration of the run.
        last_layer: weight of the decoder's last layer.
        device: device of the discriminator.
    """

    columns = ("adversarial", "adaptive_weight", "discriminator")

    def __init__(
        self, config: AutoencoderRun, last_layer: torch.Tensor, device: torch.device
    ) -> None:
        self._config, self._optim = config.adversarial, config.optim
        self._last_layer = last_layer
        self.network = Discriminator(self._config, dtype=torch.float32, device="cpu").to(device)
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self._config.lr, betas=config.optim.betas,
            weight_decay=config.optim.weight_decay, fused=True,
        )  # fmt: skip
        self.world = World(device=device)

    def loss(
        self, step: int, x: torch.Tensor, y: torch.Tensor, reconstruction: torch.Tensor
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """The weighted term for the autoencoder; the discriminator's gradients are added up.

        Args:
            step: number of the step, from 0.
            x: images.
            y: their reconstructions.
            reconstruction: the terms of the loss that compare them.

        Returns:
            The term, 0 before the first step of the discriminator, and the values of `columns`.
        """
        if step < self._config.start:
            zero = torch.zeros((), dtype=torch.float32, device=x.device)
            return zero, dict.fromkeys(self.columns, zero)
        x, y = x.float(), y.float()
        self.network.requires_grad_(False)  # its gradients are those of its own loss
        term = -self.network(y).float().mean()
        self.network.requires_grad_(True)
        adaptive = self._adaptive_weight(reconstruction, term)
        real, fake = self.network(x.detach()), self.network(y.detach())
        own = 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())
        (own / self._optim.accumulate).backward()
        values = dict(zip(self.columns, (term.detach(), adaptive, own.detach()), strict=True))
        return self._config.weight * adaptive * term, values

    def _adaptive_weight(self, reconstruction: torch.Tensor, term: torch.Tensor) -> torch.Tensor:
        """Ratio of the norms of two gradients, both of the batch of all processes."""
        if not self._config.adaptive:
            return torch.ones((), dtype=torch.float32, device=term.device)
        norms = []
        for loss in (reconstruction, term):
            (gradient,) = torch.autograd.grad(loss, self._last_layer, retain_graph=True)
            norms.append(self.world.reduce_mean(gradient.float()).norm())
        return (norms[0] / (norms[1] + _EPS)).clamp(0, _MAX_WEIGHT).detach()

    def step(self, step: int) -> None:
        """Train the discriminator with the gradients of the step.

        Raises:
            RuntimeError: they are not finite.
        """
        since = step - self._config.start
        if since < 0:
            return
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        flat = self.world.reduce_mean(torch.cat([g.flatten() for g in gradients]))
        parts = flat.split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self._optim.grad_clip)
        if not bool(norm.isfinite()):
            raise RuntimeError(
                f"step {step + 1}: the discriminator's gradient is not finite; lower adversarial.lr"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.lr * min(1, (since + 1) / max(1, self._config.warmup))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """The discriminator's weights and its optimizer's state."""
        return {"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
