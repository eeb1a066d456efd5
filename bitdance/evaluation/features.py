"""Features of images that distances are taken in: networks by their names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import torch

from bitdance.data.images import to_float
from bitdance.evaluation.classifier import load_classifier
from bitdance.io.files import CheckpointError, one_line, require_file
from bitdance.io.validation import brief
from bitdance.io.weights import read_pickle

__all__ = ["EXTRACTORS", "FeatureExtractor", "Features", "load_extractor"]

Features = tuple[torch.Tensor, torch.Tensor | None]
"""Features [n, D], and logits [n, K] for the inception score or None."""

FeatureExtractor = Callable[[torch.Tensor], Features]
"""From images uint8 [n, 3, H, W], on the device of the network, to their features."""


def load_extractor(
    name: str, weights: Path | None = None, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """A network that computes features.

    Args:
        name: "inception", the InceptionV3 of torch-fidelity, whose weights are those of the
            published metrics; "classifier", the small network that ``bitdance evaluate`` trains;
            or "module:function", a function of `weights` and `device` that returns a
            ``FeatureExtractor``.
        weights: file of the weights; nothing is downloaded.
        device: device of the network.

    Raises:
        CheckpointError: the file has other weights.
        FileNotFoundError: there is no such file.
        ImportError: torch-fidelity or the module cannot be imported.
        ValueError: there is no such network, or it needs weights.
    """
    device = torch.device(device)
    if name in EXTRACTORS:
        if weights is None:
            raise ValueError(f"load_extractor: weights must be a file for {name!r}, got None")
        return EXTRACTORS[name](require_file(weights), device)
    module, colon, function = name.partition(":")
    if not (module and colon and function.isidentifier()):
        known = ", ".join(EXTRACTORS)
        raise ValueError(
            f"load_extractor: name must be {known} or module:function, got {brief(name)}"
        )
    try:
        load = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"load_extractor: {name} cannot be imported: {error}") from error
    extractor: FeatureExtractor = load(weights, device)
    return extractor


def _classifier(weights: Path, device: torch.device) -> FeatureExtractor:
    network = load_classifier(weights, device)

    def extract(images: torch.Tensor) -> Features:
        features = network.features(to_float(images))
        return features, network.logits(features)

    return extract


def _inception(weights: Path, device: torch.device) -> FeatureExtractor:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError(
            f"load_extractor: 'inception' needs torch-fidelity (pip install 'bitdance[eval]'): "
            f"{one_line(error)}"
        ) from error
    read_pickle(weights)  # refuses code, which torch-fidelity would run
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"],
            feature_extractor_weights_path=str(weights),
        )  # fmt: skip
    except (RuntimeError, AttributeError, TypeError) as error:  # another state
        raise CheckpointError(
            f"{weights} has no weights of torch-fidelity's InceptionV3: {one_line(error)}"
        ) from error
    network = network.to(device)

    @torch.no_grad()
    def extract(images: torch.Tensor) -> Features:
        features, logits = network(images)
        return features, logits

    return extract


EXTRACTORS: dict[str, Callable[[Path, torch.device], FeatureExtractor]] = {
    "inception": _inception, "classifier": _classifier,
}  # fmt: skip
"""Networks by their names, each made from a file of weights and a device."""
