"""Pipelines of the diffusers library around those of this one.

``pip install 'bitdance[diffusers]'`` installs what they need. After the import of this module
``diffusers.DiffusionPipeline.from_pretrained`` loads what they have saved, too: it looks for the
class of a pipeline in diffusers' own namespace, into which the import puts both, and for classes of
components only in modules that are imported already.
"""

import diffusers

from bitdance.integrations.diffusers.class_conditional import BitDanceClassDiffusionPipeline
from bitdance.integrations.diffusers.components import (
    BitDanceAutoencoder,
    BitDanceDiffusionHead,
    BitDanceProjector,
    BitDanceTextEncoder,
    BitDanceTransformer,
)
from bitdance.integrations.diffusers.scheduler import BitDanceScheduler
from bitdance.integrations.diffusers.text_to_image import BitDanceT2IDiffusionPipeline

__all__ = [
    "BitDanceAutoencoder",
    "BitDanceClassDiffusionPipeline",
    "BitDanceDiffusionHead",
    "BitDanceProjector",
    "BitDanceScheduler",
    "BitDanceT2IDiffusionPipeline",
    "BitDanceTextEncoder",
    "BitDanceTransformer",
]

for _pipeline in (BitDanceClassDiffusionPipeline, BitDanceT2IDiffusionPipeline):
    setattr(diffusers, _pipeline.__name__, _pipeline)
