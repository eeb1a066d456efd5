"""How near decoding comes to the time of its convolutions alone.

``python -m benchmarks.model.decode`` decodes random codes to 8-bit pixels three ways that take
turns: as the library does, as published (contiguous maps, every step an operation), and the
convolutions alone, on tensors of the same shapes, once in each memory layout, of which the faster
counts: PyTorch's own, on weights as the model has them, while the library packs the weights of
small maps once for all calls. The models are the one that comes with the library and, with random
weights, the published tokenizer at 256 pixels. ``--json FILE`` writes the figures.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import products, timing
from benchmarks.model import program
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

    def laid_out(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=layout)

    recorded = [
        product
        for product in products.record(lambda: model.decode(codes), list(model.parameters()))
        if product.function is torch.ops.aten.convolution.default
    ]
    changed = {id(p.args[i]): laid_out(p.args[i]) for p in recorded for i in (0, 1)}
    alone = [
        products.Product(
            p.function, (changed[id(p.args[0])], changed[id(p.args[1])], *p.args[2:]), p.kwargs
        )
        for p in recorded
    ]
    return lambda: products.replay(alone)


def measure(
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
def main() -> None:
    """Measure and print."""
    parser = program.parser(__doc__)
    models = ("fashion", "d16c32")
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--rounds", type=int, default=3, help="of d16c32; the other has ten times")
    options = parser.parse_args()

    def every() -> dict[str, object]:
        figures: dict[str, object] = {}
        torch.manual_seed(0)
        if "fashion" in options.models:
            vae = BitDancePipeline.from_pretrained("fashion").model.vae
            for images in (1, 8):
                figures |= measure(vae, "fashion", images, 8, 10 * options.rounds)
        if "d16c32" in options.models:
            vae = BinaryAutoencoder(AUTOENCODER_PRESETS["d16c32"]).eval().requires_grad_(False)
            vae.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            figures |= measure(vae, "d16c32", 1, 16, options.rounds)
        return figures

    program.main(options, every)


if __name__ == "__main__":
    main()
