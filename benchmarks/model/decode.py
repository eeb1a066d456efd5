"""Decoding random codes to 8-bit pixels, against PyTorch and the runtimes for exported models."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers, products
from benchmarks.model import Comparison
from benchmarks.model.published import PublishedDecoder
from bitdance import BitDancePipeline
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder, to_uint8
from bitdance.sampling import graphs
from bitdance.sampling.image_decoder import ImageDecoder


def decoding(model: BinaryAutoencoder, name: str, images: int, cells: int) -> Comparison:
    """Ways to decode so many images of `cells` x `cells` codes, on the threads of PyTorch.

    "PyTorch" is the decoder as published, every step an operation, but with channels-last weights,
    which is faster on a CPU.
    """
    signs = torch.rand(images, model.config.z_channels, cells, cells) > 0.5
    codes = torch.where(signs, 1.0, -1.0)
    plain, decoder = PublishedDecoder(model.decoder), ImageDecoder(model)
    plain.decoder.to(memory_format=torch.channels_last)
    for _ in range(1 + graphs.CALLS_BEFORE_CAPTURE):
        decoder(codes)  # small maps are captured then
    ways: dict[str, Callable[[], object]] = {
        "bitdance": lambda: decoder(codes),
        "PyTorch": lambda: to_uint8(plain(codes)),
    }
    exported = functools.cache(functools.partial(to_onnx, model, codes))
    ways |= {runtime: _Exported(runtime, exported, codes) for runtime in _RUNTIMES}
    shape = f"{name}, {images} image{'s' * (images > 1)}"
    return Comparison("decoder", shape, ways, products.flops(lambda: model.decode(codes)))


class _Exported:
    """Decodes by a runtime, on the threads that PyTorch has at the first call."""

    def __init__(self, runtime: str, exported: Callable[[], bytes], codes: Tensor) -> None:
        self._make, self._package = _RUNTIMES[runtime]
        self._exported, self._codes = exported, codes.numpy()
        self._run: Callable[[Any], Any] | None = None

    def __call__(self) -> Tensor:
        if self._run is None:
            peers.installed(self._package)
            self._run = self._make(self._exported(), torch.get_num_threads())
        return to_uint8(torch.from_numpy(self._run(self._codes)))


_RUNTIMES: dict[str, tuple[Callable[[bytes, int], Callable[[Any], Any]], str]] = {
    "ONNX Runtime": (peers.onnxruntime_model, "onnxruntime"),
    "OpenVINO": (peers.openvino_model, "openvino"),
}


def to_onnx(model: BinaryAutoencoder, codes: Tensor) -> bytes:
    """The decoder in ONNX for such codes."""

    class Decode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, codes: Tensor) -> Tensor:
            return self.model.decode(codes)

    peers.installed("onnxscript")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Decode().eval(), (codes,), dynamo=True, input_names=["x"], verbose=False
        )
    assert program is not None
    serialized: bytes = program.model_proto.SerializeToString()
    return serialized


def comparisons() -> Iterator[Comparison]:
    """Of the bundled model."""
    torch.manual_seed(0)
    bundled = BitDancePipeline.from_pretrained("fashion").model.vae
    for images in (1, 8):
        yield decoding(bundled, "bundled model", images, 8)
