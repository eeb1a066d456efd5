"""A data set of tiny pictures of three kinds, as IDX files."""

import gzip

import numpy as np

CLASSES = ("bars", "disc", "edge")


def write_idx(path, array, *, pack=False):
    header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if pack else data)


def pictures(count, seed):
    """`count` pictures [count, 6, 6] of three kinds, and their labels."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:6, :6]
    kinds = [(x % 2) * 255, (((x - 2.5) ** 2 + (y - 2.5) ** 2) < 5) * 255, (y > 2) * 255]
    labels = np.arange(count) % 3
    noisy = np.stack([kinds[label] for label in labels]) + generator.normal(0, 20, (count, 6, 6))
    return noisy.clip(0, 255).astype(np.uint8), labels


def write_data_set(folder):
    """60 pictures to train on, 30 to test, of 6 x 6 pixels."""
    for name, count, pack in (("train", 60, False), ("t10k", 30, True)):
        images, labels = pictures(count, seed=count)
        end = ".gz" if pack else ""
        write_idx(folder / f"{name}-images-idx3-ubyte{end}", images, pack=pack)
        write_idx(folder / f"{name}-labels-idx1-ubyte{end}", labels, pack=pack)
    return folder
