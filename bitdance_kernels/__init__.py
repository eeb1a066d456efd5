"""Hand-written kernels for BitDance-like models, each checked against a PyTorch reference.

Every op is a plain function on tensors with a last keyword ``backend="auto"``. ``auto`` takes the
first backend of the op's list that can run the call; a backend asked for by name (the keyword,
``use_backend`` or the environment variable ``BITDANCE_KERNELS_BACKEND``) never falls back to
another. ``explain(op, ...)`` tells what each backend says of a call; ``python -m bitdance_kernels``
tells what this machine has.

Shapes in all docstrings: B batch, T tokens, P tokens per patch, R rows, C channels (bits, for
latents), H and Hkv heads, D head dim, S denoise steps; attention tensors are [B, T, H, D].
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

# Public names by module. Packing bits with ``binary.numpy`` needs no PyTorch, whose import
# takes seconds. Unless it is there already, the first use of a name imports it and all of
# these modules, so that every op is registered.
_MODULES = {
    "_dispatch.backends": "BackendError default_backend use_backend",
    "_dispatch.explain": "explain",
    "_shared.quantized": "dequantize_rows quantize_rows",
    "_shared.launches": "overlapping_launches",
    "_shared.packed_weight": "pack_weight unpack_weight",
    "_version": "__version__",
    "attention.block_causal_attention.op": "block_causal_attention",
    "attention.block_decode_attention.op": "block_decode_attention",
    "attention.ranges": "Ranges block_causal_ranges dense_mask packed_document_ranges",
    "attention.rms_norm_qkv.op": "rms_norm_qkv",
    "attention.rope.op": "rope",
    "attention.rope_append.op": "rope_append",
    "autoencode.conv3x3.op": "conv3x3",
    "autoencode.group_norm_silu.op": "group_norm_silu",
    "binary.bit_counts.op": "bit_counts",
    "binary.flip_bits.op": "flip_bits flip_signs",
    "binary.hamming_distance.op": "CodeIndex hamming_distance nearest_codes",
    "binary.lfq_entropy.op": "lfq_entropy",
    "binary.lfq_quantize.op": "lfq_quantize lfq_quantize_commitment",
    "binary.pack_signs.op": "pack_signs",
    "binary.packed_linear.op": "packed_linear",
    "binary.unpack_signs.op": "unpack_signs",
    "cpu_graph": "CaptureError CpuGraph",
    "denoise.adaln_linear.op": "adaln_linear adaln_linear_swiglu",
    "denoise.adaln_norm.op": "adaln_norm",
    "denoise.denoise_patch.op": "check_denoise_status denoise_patch",
    "denoise.denoise_step.op": "denoise_step",
    "denoise.denoise_step_linear.op": "denoise_step_linear",
    "denoise.finalize_bits.op": "finalize_bits",
    "denoise.gated_residual.op": "gated_residual gated_residual_adaln",
    "denoise.linear.op": "linear",
    "denoise.linear_fp8.op": "linear_fp8",
    "denoise.linear_gated_residual.op": "linear_gated_residual",
    "denoise.linear_swiglu.op": "linear_swiglu",
    "denoise.patch_attention.op": "patch_attention",
    "denoise.rms_norm.op": "rms_norm",
    "denoise.rms_norm_linear.op": "rms_norm_linear rms_norm_linear_swiglu",
    "denoise.schedule": "denoise_schedule",
    "denoise.swiglu.op": "swiglu",
    "fingerprint": "fingerprints",
    "philox": "noise noise_keys noise_words",
}
__all__ = sorted(name for names in _MODULES.values() for name in names.split())

if TYPE_CHECKING:
    from bitdance_kernels._dispatch.backends import *
    from bitdance_kernels._dispatch.explain import *
    from bitdance_kernels._shared.launches import *
    from bitdance_kernels._shared.packed_weight import *
    from bitdance_kernels._shared.quantized import *
    from bitdance_kernels._version import __version__ as __version__
    from bitdance_kernels.attention.block_causal_attention.op import *
    from bitdance_kernels.attention.block_decode_attention.op import *
    from bitdance_kernels.attention.ranges import *
    from bitdance_kernels.attention.rms_norm_qkv.op import *
    from bitdance_kernels.attention.rope.op import *
    from bitdance_kernels.attention.rope_append.op import *
    from bitdance_kernels.autoencode.conv3x3.op import *
    from bitdance_kernels.autoencode.group_norm_silu.op import *
    from bitdance_kernels.binary.bit_counts.op import *
    from bitdance_kernels.binary.flip_bits.op import *
    from bitdance_kernels.binary.hamming_distance.op import *
    from bitdance_kernels.binary.lfq_entropy.op import *
    from bitdance_kernels.binary.lfq_quantize.op import *
    from bitdance_kernels.binary.pack_signs.op import *
    from bitdance_kernels.binary.packed_linear.op import *
    from bitdance_kernels.binary.unpack_signs.op import *
    from bitdance_kernels.cpu_graph import *
    from bitdance_kernels.denoise.adaln_linear.op import *
    from bitdance_kernels.denoise.adaln_norm.op import *
    from bitdance_kernels.denoise.denoise_patch.op import *
    from bitdance_kernels.denoise.denoise_step.op import *
    from bitdance_kernels.denoise.denoise_step_linear.op import *
    from bitdance_kernels.denoise.finalize_bits.op import *
    from bitdance_kernels.denoise.gated_residual.op import *
    from bitdance_kernels.denoise.linear.op import *
    from bitdance_kernels.denoise.linear_fp8.op import *
    from bitdance_kernels.denoise.linear_gated_residual.op import *
    from bitdance_kernels.denoise.linear_swiglu.op import *
    from bitdance_kernels.denoise.patch_attention.op import *
    from bitdance_kernels.denoise.rms_norm.op import *
    from bitdance_kernels.denoise.rms_norm_linear.op import *
    from bitdance_kernels.denoise.schedule import *
    from bitdance_kernels.denoise.swiglu.op import *
    from bitdance_kernels.fingerprint import *
    from bitdance_kernels.philox import noise as noise
    from bitdance_kernels.philox import noise_keys as noise_keys
    from bitdance_kernels.philox import noise_words as noise_words


def _import_all() -> None:
    for module, names in _MODULES.items():
        imported = importlib.import_module(f"{__name__}.{module}")
        globals().update({name: getattr(imported, name) for name in names.split()})
    globals().pop("__getattr__", None)  # Python looks names up faster in a module without one


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _import_all()
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "torch" in sys.modules:
    _import_all()
