"""CodeIndex: codes that are searched many times, in the order in which the C++ code reads them."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bitdance_kernels._dispatch import arguments
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels._shared import checks, native
from bitdance_kernels.binary.hamming_distance import cpu, reference

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

__all__ = ["CodeIndex"]

_MAGIC = b"BDKCODES"
# Magic, version, CRC-32 of the blocks, codes, bytes of each; CRC-32 of these.
_HEADER, _CHECKED = struct.Struct("<8sIIQQI28x"), 32
_VERSION = 2


class CodeIndex:
    """Codes to be searched many times by ``hamming_distance`` and ``nearest_codes``, on the CPU.

    Plain codes are brought into blocks in every call with several queries; an index has them
    already. It takes as much memory as the codes, which it does not keep.

    Args:
        codes: uint8 [M, C / 8], on the CPU, any strides.

    Raises:
        TypeError: `codes` is no tensor, or not uint8.
        ValueError: it is no matrix of at least one byte a code, or not on the CPU.

    Example:
        >>> import torch
        >>> from bitdance_kernels import nearest_codes
        >>> index = CodeIndex(torch.tensor([[0], [7], [255]], dtype=torch.uint8))
        >>> index.append(torch.tensor([[3]], dtype=torch.uint8))
        >>> nearest_codes(torch.tensor([[1]], dtype=torch.uint8), index, 2)
        (tensor([[0, 3]]), tensor([[1, 1]], dtype=torch.int32))
    """

    def __init__(self, codes: torch.Tensor) -> None:
        _check("CodeIndex", codes)
        self._count, self._width = codes.shape
        self._blocks = _blocks(codes)  # with room for more than `count` after an `append`

    def __len__(self) -> int:
        """The number of codes."""
        return self._count

    def __repr__(self) -> str:
        return f"CodeIndex({self._count} codes of {8 * self._width} bits)"

    @property
    def width(self) -> int:
        """Bytes of a code."""
        return self._width

    def codes(self) -> torch.Tensor:
        """The codes, uint8 [M, C / 8], contiguous."""
        return self._from(0)

    def append(self, codes: torch.Tensor) -> None:
        """Add codes behind the others; memory grows by doubling.

        Args:
            codes: uint8 [N, C / 8], on the CPU, as wide as the others.

        Raises:
            TypeError: `codes` is no tensor, or not uint8.
            ValueError: it has another shape or device; nothing is added.
        """
        _check("CodeIndex.append", codes, self._width)
        first = self._count // cpu.BLOCK  # the first block that changes
        added = _blocks(torch.cat([self._from(first * cpu.BLOCK), codes]))
        needed = first + len(added)
        if needed > len(self._blocks):
            grown = added.new_empty(max(needed, 2 * len(self._blocks)), *added.shape[1:])
            grown[:first] = self._blocks[:first]
            self._blocks = grown
        self._blocks[first:needed] = added
        self._count += len(codes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a file, whole or not at all.

        Args:
            path: the file; one that is there is replaced if it is an index.

        Raises:
            FileExistsError: there is a file that is no index.
            OSError: the file cannot be written.
        """
        path = Path(path)
        if path.exists() and not _is_index(path):
            raise FileExistsError(f"CodeIndex.save: path must be an index or new, got {path}")
        blocks = self._blocks[: -(-self._count // cpu.BLOCK)].contiguous().numpy()
        fields = _MAGIC, _VERSION, zlib.crc32(blocks.data), self._count, self._width
        header = _HEADER.pack(*fields, zlib.crc32(_HEADER.pack(*fields, 0)[:_CHECKED]))
        _remove_leftovers(path)
        unfinished, lock = _new_file(path)
        try:
            with unfinished.open("wb") as file:
                file.write(header)
                file.write(blocks.data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            _sync_names(path.parent)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        finally:
            if lock is not None:
                os.close(lock)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = False) -> CodeIndex:
        """Read an index that ``save`` has written.

        Args:
            path: the file.
            mmap: map the file into memory instead of reading it: pages are read when they are
                searched. The checksum of the codes, which needs all of them, is not compared then.

        Returns:
            The index. Adding to a mapped one leaves the file as it is.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no index, its length is wrong, or a checksum differs.
        """
        path = Path(path)
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError(f"CodeIndex.load: path must be a file, got {path}")
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise ValueError(f"CodeIndex.load: path must be an index, got {path}")
        _, version, checksum, count, width, of_header = _HEADER.unpack(header)
        if version != _VERSION:
            raise ValueError(f"CodeIndex.load: {path} must be of version {_VERSION}, got {version}")
        if zlib.crc32(header[:_CHECKED]) != of_header:
            raise ValueError(f"CodeIndex.load: {path} is damaged: its header's checksum differs")
        shape = (-(-count // cpu.BLOCK), width, cpu.BLOCK)
        expected, found = _HEADER.size + int(np.prod(shape, dtype=object)), path.stat().st_size
        if width == 0 or found != expected:
            raise ValueError(f"CodeIndex.load: {path} must have {expected} bytes, got {found}")
        blocks: np.ndarray = np.empty(shape, np.uint8)
        if mmap and count > 0:
            blocks = np.memmap(path, np.uint8, "c", _HEADER.size, shape)
        elif count > 0:
            blocks = np.fromfile(path, np.uint8, offset=_HEADER.size).reshape(shape)
        if not mmap and zlib.crc32(blocks.data) != checksum:
            raise ValueError(f"CodeIndex.load: {path} is damaged: its checksum differs")
        index = cls.__new__(cls)
        index._count, index._width, index._blocks = count, width, torch.from_numpy(blocks)
        return index

    def distances(self, a: torch.Tensor, backend: str) -> torch.Tensor:
        """What ``hamming_distance`` returns for this index."""
        self._check_queries("hamming_distance", a)
        if self._is_native("hamming_distance", backend, a):
            return cpu.distances(a, self._blocks, self._count)
        return reference.run(a, self.codes())

    def nearest(self, a: torch.Tensor, k: int, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
        """What ``nearest_codes`` returns for this index."""
        self._check_queries("nearest_codes", a)
        arguments.integer("nearest_codes", "k", k)
        if not 1 <= k <= self._count:
            raise checks.fail("nearest_codes", "k", f"in 1 to M = {self._count}", k)
        if self._is_native("nearest_codes", backend, a, k):
            return cpu.nearest(a, self._blocks, self._count, k)
        return reference.run_nearest(a, self.codes(), k)

    def _check_queries(self, op: str, a: torch.Tensor) -> None:
        arguments.tensor(op, "a", a)
        checks.dtype(op, "a", a, (torch.uint8,))
        checks.rank(op, "a", a, 2, 2)
        checks.shape(op, "a", a, (len(a), self._width), "[N, C / 8]")
        if a.device.type != "cpu":
            raise checks.fail(op, "a", "on the CPU, where an index is", a.device)

    def _is_native(self, op: str, backend: str, a: torch.Tensor, *k: int) -> bool:
        """Whether the C++ code runs a call; the reference does if not."""
        backends = REGISTRY[op]
        chosen = backends.select(backend, (a, a, *k))
        if chosen not in (backends.backend("cpu"), backends.backend("reference")):
            raise backends.refusal(backend, "it does not take a CodeIndex")
        return chosen is backends.backend("cpu")

    def _from(self, first: int) -> torch.Tensor:
        """Codes from number `first`, a multiple of the block, on."""
        blocks = self._blocks[first // cpu.BLOCK : -(-self._count // cpu.BLOCK)]
        return blocks.transpose(1, 2).flatten(0, 1)[: self._count - first].contiguous()


def _check(function: str, codes: torch.Tensor, width: int | None = None) -> None:
    arguments.tensor(function, "codes", codes)
    checks.dtype(function, "codes", codes, (torch.uint8,))
    checks.rank(function, "codes", codes, 2, 2)
    if codes.shape[1] == 0 or codes.shape[1] != (width or codes.shape[1]):
        expected = "[M, C / 8] with C > 0" if width is None else f"[N, {width}]"
        raise checks.fail(function, "codes", expected, f"shape {list(codes.shape)}")
    if codes.device.type != "cpu":
        raise checks.fail(function, "codes", "on the CPU", codes.device)


def _blocks(codes: torch.Tensor) -> torch.Tensor:
    if native.cpu.unavailable("code_blocks") is None:
        return cpu.blocks(codes)
    codes = F.pad(codes, (0, 0, 0, -len(codes) % cpu.BLOCK))
    return codes.unflatten(0, (-1, cpu.BLOCK)).transpose(1, 2).contiguous()


def _is_index(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _new_file(path: Path) -> tuple[Path, int | None]:
    """A new file beside `path`, locked while its descriptor is open: it is being written."""
    while True:
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        unfinished.open("xb").close()  # with the permissions of any new file
        if fcntl is None:
            return unfinished, None
        with contextlib.suppress(FileNotFoundError):  # removed before it was locked
            lock = os.open(unfinished, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a disk without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if unfinished.exists():
                return unfinished, lock
            os.close(lock)


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes have left of this file: it is locked by nobody."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}")
    for other in path.parent.iterdir() if fcntl is not None else ():
        if pattern.fullmatch(other.name) and other.is_file() and not other.is_symlink():
            with contextlib.suppress(OSError):  # it is locked, or gone
                lock = os.open(other, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    other.unlink()
                finally:
                    os.close(lock)


def _sync_names(folder: Path) -> None:
    """Sync the names in a folder to the disk, where the system opens folders."""
    if fcntl is not None:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
