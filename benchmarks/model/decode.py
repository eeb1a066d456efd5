"""How near decoding comes to the time of its convolutions alone.

Random codes are decoded to 8-bit pixels three ways that take turns: as the library does, as
published (contiguous maps, every step an operation), and the convolutions alone, on tensors of the
same shapes, once in each memory layout; the faster one counts: PyTorch's own, on weights as
the model has them, while the library packs the weights of small maps once for all calls.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import products, timing
from benchmarks.model.published import PublishedDecoder
from bitdance import BitDancePipeline
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder, to_uint8
from bitdance.models.config import AUTOENCODER_PRESETS
from bitdance.sampling import graphs
from bitdance.sampling.image_decoder import ImageDecoder

_LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def convolutions(
    model: BinaryAutoencoder, codes: Tensor, layout: torch.memory_format
) -> Callable[[], None]:
    """The convolutions of a decode in their order, maps and weights in `layout`."""
    recorded = products.record(lambda: model.decode(codes), list(model.parameters()))
    recorded = [p for p in recorded if p.function is torch.ops.aten.convolution.default]
    given = {id(p.args[i]): p.args[i] for p in recorded for i in (0, 1)}
    changed = {key: tensor.contiguous(memory_format=layout) for key, tensor in given.items()}
    alone = [
        p._replace(args=(changed[id(p.args[0])], changed[id(p.args[1])], *p.args[2:]))
        for p in recorded
    ]
    return lambda: products.replay(alone)


def decoding(
    model: BinaryAutoencoder, name: str, images: int, cells: int, rounds: int
) -> dict[str, object]:
    """Figures of decoding `images` images of `cells` x `cells` codes."""
    signs = torch.rand(images, model.config.z_channels, cells, cells) > 0.5
    codes = torch.where(signs, 1.0, -1.0)
    plain, decoder = PublishedDecoder(model.decoder), ImageDecoder(model)
    ways: dict[str, Callable[[], object]] = {
        "decoder": lambda: decoder(codes),
        "plain": lambda: to_uint8(plain(codes)),
    }
    ways |= {layout: convolutions(model, codes, _LAYOUTS[layout]) for layout in _LAYOUTS}
    for _ in range(min(rounds, 1 + graphs.CALLS_BEFORE_CAPTURE)):
        ways["decoder"]()  # small maps are captured then
    seconds = timing.medians(timing.take_turns(ways, rounds))
    alone = min(seconds[layout] for layout in _LAYOUTS)
    fast, published = (to_uint8(way(codes)).int() for way in (model.decode, plain))
    count = f"{name}, {images} image{'s' * (images > 1)}"
    return {
        f"{count}, seconds": seconds,
        f"{count}, decoder / convolutions": seconds["decoder"] / alone,
        f"{count}, plain / convolutions": seconds["plain"] / alone,
        f"{count}, grey levels between decoder and plain": int((fast - published).abs().max()),
    }


@torch.no_grad()
def measure(rounds: int = 3) -> dict[str, object]:
    """Figures of the bundled model and, with random weights, of the published tokenizer."""
    torch.manual_seed(0)
    figures: dict[str, object] = {}
    bundled = BitDancePipeline.from_pretrained("fashion").model.vae
    for images in (1, 8):
        figures |= decoding(bundled, "fashion", images, 8, 10 * rounds)
    vae = BinaryAutoencoder(AUTOENCODER_PRESETS["d16c32"]).eval().requires_grad_(False)
    vae.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return figures | decoding(vae, "d16c32", 1, 16, rounds)
