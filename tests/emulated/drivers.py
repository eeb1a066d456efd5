"""Calls of emulated kernels on tensors; all that a kernel writes is NaN before."""

import ctypes
import math
from contextlib import contextmanager

import torch

from bitdance_kernels._shared import native

GROUP_NORM_CHUNK = 10
"""Positions of a chunk of group_norm_silu; divides no sample's."""


@contextmanager
def addresses(tensors):
    """A context with the addresses of tensors, 0 for None, as an array of C."""
    yield (ctypes.c_void_p * len(tensors))(*(0 if t is None else t.data_ptr() for t in tensors))


def int64s(values):
    """Numbers as an array of C."""
    return (ctypes.c_int64 * len(values))(*values)


def flip_bits(library, packed, key, threshold, blocks, flipped=None):
    """Bytes with flipped bits; into `flipped` if given."""
    flipped = torch.full_like(packed, 255) if flipped is None else flipped
    with addresses((packed, flipped, key)) as (x, y, seed):
        vector = (x | y) % 8 == 0
        library.flip_bits(
            ctypes.c_void_p(x), ctypes.c_void_p(y), ctypes.c_int64(packed.numel()),
            ctypes.c_void_p(seed), ctypes.c_int64(threshold), vector, ctypes.c_int64(blocks),
        )  # fmt: skip
    return flipped


def flip_signs(library, x, key, threshold, blocks):
    """The values, some of them negated."""
    y = torch.full_like(x, math.nan)
    with addresses((x, y, key)) as (source, target, seed):
        library.flip_signs(
            ctypes.c_void_p(source), ctypes.c_void_p(target), ctypes.c_int64(x.numel()),
            ctypes.c_void_p(seed), ctypes.c_int64(threshold), x.dtype == torch.float32,
            ctypes.c_int64(blocks),
        )  # fmt: skip
    return y


def patch_attention(library, qkv, heads, *, backward=False):
    """Attention among the tokens of each patch; `backward` is the order of the threads."""
    rows, patch, width = qkv.shape
    head_dim = width // (3 * heads)
    out = torch.full((rows, patch, width // 3), math.nan, dtype=torch.float32, device="cpu")
    sizes = int64s((qkv.stride(1), rows, patch, heads, head_dim))
    with addresses((qkv, out)) as (source, target):
        library.patch_attention(
            ctypes.c_void_p(source), ctypes.c_void_p(target), sizes,
            ctypes.c_float(head_dim**-0.5 / math.log(2)), ctypes.c_int(backward),
        )  # fmt: skip
    return out


def rope_append(
    library, qkv, k, v, position, freqs,
    *, num_heads, num_kv_heads, interleaved=True, q_norm=None, k_norm=None, eps=1e-6,
):  # fmt: skip
    """The rotated q; k and v go to their caches."""
    q = torch.full((*qkv.shape[:2], num_heads, k.shape[3]), math.nan, dtype=qkv.dtype, device="cpu")
    sizes = [*qkv.shape[:2], num_heads, num_kv_heads, k.shape[3]]
    sizes += [*qkv.stride()[:2], *k.stride()[:3], *v.stride()[:3]]
    dtypes = [torch.float32 if x is None else x.dtype for x in (qkv, freqs, q_norm, k_norm)]
    sizes += [native.DTYPE_CODES[dtype] for dtype in dtypes]
    with addresses((qkv, q, k, v, position, freqs, q_norm, k_norm)) as tensors:
        library.rope_append(tensors, int64s(sizes), ctypes.c_float(eps), ctypes.c_int(interleaved))
    return q


def decode(library, q, k, v, lengths, scale, splits, backward=False):
    """Attention to the cache in parts that are combined by a second launch."""
    out = torch.full_like(q, math.nan, memory_format=torch.contiguous_format)
    parts = (*q.shape[:3], splits)
    sums = torch.full((*parts, q.shape[3]), math.nan, dtype=torch.float32, device="cpu")
    top, total = (torch.full(parts, math.nan, dtype=torch.float32, device="cpu") for _ in range(2))
    with addresses((q, k, v, lengths, out, sums, top, total)) as tensors:
        library.decode(
            *map(ctypes.c_void_p, tensors), _decode_sizes(q, k, v, splits),
            ctypes.c_float(scale / math.log(2)), ctypes.c_int(q.dtype == torch.bfloat16),
            ctypes.c_int(backward),
        )  # fmt: skip
    return out


def decode_sm90(library, q, k, v, lengths, scale, splits, seed):
    """The same in clusters; and a message if a launch did not end. All inputs are late."""
    out = torch.full_like(q, math.nan, memory_format=torch.contiguous_format)
    given = (q, k, v, lengths, out)
    with addresses(given) as tensors:
        message = library.decode(
            tensors, int64s([x.nbytes for x in given]), _decode_sizes(q, k, v, splits),
            ctypes.c_float(scale / math.log(2)), ctypes.c_int(q.dtype == torch.bfloat16),
            ctypes.c_uint32(seed),
        )  # fmt: skip
    return out, message


def _decode_sizes(q, k, v, splits):
    sizes = (*q.shape[:2], q.shape[2], k.shape[2], q.shape[3], k.shape[1], splits)
    return int64s((*sizes, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3]))


def group_norm_silu(library, grad, x, num_groups, weight, bias, scale, shift, silu, eps):
    """The result, or with `grad` the gradients."""
    images, channels = x.shape[:2]
    positions = x.shape[2:].numel()
    chunks = -(-positions // GROUP_NORM_CHUNK)

    def unwritten(*shape):
        return torch.full(shape, math.nan, dtype=torch.float32, device="cpu")

    result = torch.full_like(x, math.nan, memory_format=torch.channels_last)
    given = (weight, bias, scale, shift)
    grad_given = [None if t is None else unwritten(images, channels) for t in given]
    workspaces = [unwritten(images, chunks, channels, 2) for _ in range(2)]
    workspaces.append(unwritten(images, 5, channels))
    results = (result, None, None) if grad is None else (None, grad, result)
    sizes = [images, channels, positions, num_groups, GROUP_NORM_CHUNK, silu]
    sizes.append(native.DTYPE_CODES[x.dtype])
    for t in given:
        sizes += [0, 0] if t is None else [t.stride(0), native.DTYPE_CODES[t.dtype]]
    with addresses((x, *results, *given, *grad_given, *workspaces)) as tensors:
        library.group_norm_silu(tensors, int64s(sizes), ctypes.c_double(eps))
    if grad is None:
        return result
    affine = [None if t is None else t.sum(0) for t in grad_given[:2]]
    return result, *affine, *grad_given[2:]
