"""Images through an autoencoder and back, with the error of the reconstructions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from bitdance.data.images import LabeledImages, iterate_batches, to_float
from bitdance.evaluation.metrics import psnr
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder, to_uint8
from bitdance.sampling.image_decoder import ImageDecoder

__all__ = ["Reconstruction", "reconstruct_image", "reconstruct_images"]

_EXAMPLES = 16


@dataclass(frozen=True)
class Reconstruction:
    """A reconstructed image.

    Attributes:
        image: the reconstruction.
        packed: its packed codes, uint8 [h, w, ceil(C / 8)], on the CPU.
        psnr_db: peak signal-to-noise ratio in dB; infinity where no pixel differs.
    """

    image: Image.Image
    packed: torch.Tensor
    psnr_db: float

    @property
    def num_bytes(self) -> int:
        """Size of the packed codes."""
        return self.packed.numel()


@torch.inference_mode()
def reconstruct_image(autoencoder: BinaryAutoencoder, image: Image.Image) -> Reconstruction:
    """Encode an image, whose sides the downsampling must divide, and decode it again."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    parameter = next(autoencoder.parameters())
    packed = autoencoder.encode(to_float(pixels).to(parameter.device, parameter.dtype), packed=True)
    decoded = ImageDecoder(autoencoder)(packed).cpu()
    error = float((decoded.double() - pixels.double()).square().mean())
    result = Image.fromarray(decoded[0].permute(1, 2, 0).contiguous().numpy())
    return Reconstruction(result, packed[0].cpu(), psnr(error, peak=255))


@torch.no_grad()
def reconstruct_images(
    autoencoder: BinaryAutoencoder, images: LabeledImages, *, progress: bool = True
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Reconstruct a data set.

    Args:
        autoencoder: the model.
        images: the data set.
        progress: show a progress bar.

    Returns:
        Mean squared error over all pixels but the padding, in the range [-1, 1]; packed codes
        [N, h, w, ceil(C / 8)]; and the first images above their reconstructions,
        uint8 [2 n, 3, H, W].
    """
    height, width = images.source
    total, pixels, codes = 0.0, 0, []
    examples: list[torch.Tensor] = []
    device = next(autoencoder.parameters()).device
    for x in iterate_batches(images, device, desc="reconstruct", progress=progress):
        packed = autoencoder.encode(x, packed=True)
        y = autoencoder.decode(packed).clamp(-1, 1)
        codes.append(packed.cpu())
        if not examples:
            examples = [to_uint8(v[:_EXAMPLES]).cpu() for v in (x, y)]
        top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
        inner = (..., slice(top, x.shape[2] - top), slice(left, x.shape[3] - left))
        error = (x - y)[inner].double().square()
        total, pixels = total + float(error.sum()), pixels + error.numel()
    return total / pixels, torch.cat(codes), torch.cat(examples)
