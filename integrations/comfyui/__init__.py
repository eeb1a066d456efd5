"""Nodes for ComfyUI: models of BitDance, sampling, decoding, encoding, files of bits.

Copy this folder into ComfyUI's ``custom_nodes``; it needs ``pip install bitdance`` there.
"""

from .code_files import BitDanceLoadCodes, BitDanceSaveCodes
from .codes import BitDanceDecode, BitDanceEncode
from .loaders import BitDanceLoadClassModel, BitDanceLoadTextModel
from .samplers import BitDanceSampleClasses, BitDanceSamplePrompt

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

NODE_CLASS_MAPPINGS = {
    node.__name__: node
    for node in (
        BitDanceLoadTextModel,
        BitDanceLoadClassModel,
        BitDanceSamplePrompt,
        BitDanceSampleClasses,
        BitDanceDecode,
        BitDanceEncode,
        BitDanceSaveCodes,
        BitDanceLoadCodes,
    )
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "BitDanceLoadTextModel": "Load BitDance Text Model",
    "BitDanceLoadClassModel": "Load BitDance Class Model",
    "BitDanceSamplePrompt": "BitDance Sampler (Prompt)",
    "BitDanceSampleClasses": "BitDance Sampler (Classes)",
    "BitDanceDecode": "BitDance Decode",
    "BitDanceEncode": "BitDance Encode",
    "BitDanceSaveCodes": "Save BitDance Codes",
    "BitDanceLoadCodes": "Load BitDance Codes",
}
