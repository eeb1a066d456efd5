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

# PyTorch takes seconds to import, and a data loader that packs bits with ``binary.numpy`` does not
# need it: unless it is there already, it is imported when the first of these names is used.
if TYPE_CHECKING or "torch" in sys.modules:
    from bitdance_kernels._dispatch.backends import (
        BackendError,
        default_backend,
        explain,
        use_backend,
    )
    from bitdance_kernels._version import __version__
    from bitdance_kernels.attention.block_causal_attention.op import block_causal_attention
    from bitdance_kernels.attention.block_decode_attention.op import block_decode_attention
    from bitdance_kernels.attention.ranges import (
        Ranges,
        block_causal_ranges,
        dense_mask,
        packed_document_ranges,
    )
    from bitdance_kernels.attention.rope.op import rope
    from bitdance_kernels.attention.rope_append.op import rope_append
    from bitdance_kernels.autoencode.group_norm_silu.op import group_norm_silu
    from bitdance_kernels.binary.bit_counts.op import bit_counts
    from bitdance_kernels.binary.flip_bits.op import flip_bits, flip_signs
    from bitdance_kernels.binary.hamming_distance.op import hamming_distance, nearest_codes
    from bitdance_kernels.binary.lfq_entropy.op import lfq_entropy
    from bitdance_kernels.binary.lfq_quantize.op import lfq_quantize, lfq_quantize_commitment
    from bitdance_kernels.binary.pack_signs.op import pack_signs
    from bitdance_kernels.binary.packed_linear.op import packed_linear
    from bitdance_kernels.binary.unpack_signs.op import unpack_signs
    from bitdance_kernels.cpu_graph import CaptureError, CpuGraph
    from bitdance_kernels.denoise.adaln_linear.op import adaln_linear, adaln_linear_swiglu
    from bitdance_kernels.denoise.adaln_norm.op import adaln_norm
    from bitdance_kernels.denoise.denoise_step.op import denoise_step
    from bitdance_kernels.denoise.finalize_bits.op import finalize_bits
    from bitdance_kernels.denoise.gated_residual.op import gated_residual, gated_residual_adaln
    from bitdance_kernels.denoise.linear.op import linear
    from bitdance_kernels.denoise.linear_gated_residual.op import linear_gated_residual
    from bitdance_kernels.denoise.linear_swiglu.op import linear_swiglu
    from bitdance_kernels.denoise.patch_attention.op import patch_attention
    from bitdance_kernels.denoise.predict_step.op import predict_step
    from bitdance_kernels.denoise.schedule import denoise_schedule
    from bitdance_kernels.denoise.swiglu.op import swiglu
    from bitdance_kernels.philox import noise, noise_keys
else:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        importlib.import_module("torch")
        return getattr(importlib.reload(sys.modules[__name__]), name)


__all__ = [
    "BackendError",
    "CaptureError",
    "CpuGraph",
    "Ranges",
    "__version__",
    "adaln_linear",
    "adaln_linear_swiglu",
    "adaln_norm",
    "bit_counts",
    "block_causal_attention",
    "block_causal_ranges",
    "block_decode_attention",
    "default_backend",
    "denoise_schedule",
    "denoise_step",
    "dense_mask",
    "explain",
    "finalize_bits",
    "flip_bits",
    "flip_signs",
    "gated_residual",
    "gated_residual_adaln",
    "group_norm_silu",
    "hamming_distance",
    "lfq_entropy",
    "lfq_quantize",
    "lfq_quantize_commitment",
    "linear",
    "linear_gated_residual",
    "linear_swiglu",
    "nearest_codes",
    "noise",
    "noise_keys",
    "pack_signs",
    "packed_document_ranges",
    "packed_linear",
    "patch_attention",
    "predict_step",
    "rope",
    "rope_append",
    "swiglu",
    "unpack_signs",
    "use_backend",
]
