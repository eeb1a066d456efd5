"""Packed codes to Parquet and back; needs pyarrow (``pip install 'bitdance[parquet]'``).

A row is an image: column ``bits``, a fixed-size binary of tokens * ceil(C / 8) bytes in the order
of the packed array, and column ``label``, int64. The schema's metadata has a JSON object under
"bitdance": format, tokens, channels and the data set's metadata.
"""

from __future__ import annotations

import contextlib
import json
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bitdance.data.packed_dataset import PackedDataset, PackedDatasetError, PackedWriter
from bitdance.io import files
from bitdance.io.files import one_line
from bitdance.io.settings import Count, parse, settings

__all__ = ["from_parquet", "to_parquet"]

FORMAT = "bitdance-parquet-1"
_KEY = b"bitdance"


def to_parquet(
    data: PackedDataset | str | Path, path: str | Path, *, row_group_size: int = 16_384
) -> None:
    """Write a data set as one Parquet file, whole or not at all, with a checksum of every page.

    Args:
        data: a data set or its folder.
        path: of the file; one that is there is replaced.
        row_group_size: images a row group, which is what is read at once.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: there is no data set.
        PackedDatasetError: the data set is not whole.
        ValueError: `row_group_size` is below 1.
        OSError: the disk is full, or the folder cannot be written.

    Example:
        >>> to_parquet("runs/fashion-codes", "codes.parquet")  # doctest: +SKIP
    """
    pa, pq = _pyarrow()
    if row_group_size < 1:
        raise ValueError(f"to_parquet: row_group_size must be at least 1, got {row_group_size}")
    if not isinstance(data, PackedDataset):
        data = PackedDataset(data)
    width = data.tokens * -(-data.channels // 8)
    header = {
        "format": FORMAT,
        "tokens": data.tokens,
        "channels": data.channels,
        "metadata": data.metadata,
    }
    schema = pa.schema(
        [pa.field("bits", pa.binary(width), False), pa.field("label", pa.int64(), False)],
        metadata={_KEY: json.dumps(header)},
    )
    path = Path(path)
    with (
        files.replace_file(path) as temporary,
        _about(pa, f"cannot write {path}", OSError),
        pq.ParquetWriter(
            temporary, schema, write_page_checksum=True,
            # Codes look like noise: neither a dictionary nor compression makes them smaller.
            use_dictionary=["label"], compression={"bits": "NONE", "label": "SNAPPY"},
        ) as writer,
    ):  # fmt: skip
        for start in range(0, len(data), row_group_size):
            codes, labels = data.take(np.arange(start, min(start + row_group_size, len(data))))
            bits = pa.FixedSizeBinaryArray.from_buffers(
                schema.field("bits").type, len(codes), [None, pa.py_buffer(codes.numpy())]
            )
            batch = pa.record_batch([bits, pa.array(labels.numpy())], schema=schema)
            writer.write_batch(batch, row_group_size)


@settings
class _Header:
    format: Literal["bitdance-parquet-1"]
    tokens: Count
    channels: Count
    metadata: dict[str, Any]


def from_parquet(
    path: str | Path, folder: str | Path, *, tokens: int | None = None,
    channels: int | None = None, shard_size: int = 65536,
) -> PackedDataset:  # fmt: skip
    """Write a data set from a Parquet file, whole or not at all, a row group at a time.

    Args:
        path: a file of `to_parquet`, or any with the columns ``bits`` (fixed-size binary) and
            ``label`` (an integer type), without nulls.
        folder: must not exist, or be empty.
        tokens: codes an image; needed for a file that does not say it.
        channels: C, bits of a code; likewise.
        shard_size: images a file of the data set.

    Returns:
        The data set.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: no such file.
        FileExistsError: the folder has something in it.
        PackedDatasetError: the file is no Parquet file, is damaged, or holds something else.
        ValueError: `tokens` or `channels` are needed, or contradict the file.
        OSError: the folder cannot be written.

    Example:
        >>> data = from_parquet("codes.parquet", "runs/codes")  # doctest: +SKIP
    """
    pa, pq = _pyarrow()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with _about(pa, f"{path} is no whole Parquet file", PackedDatasetError):
        file = pq.ParquetFile(path, page_checksum_verification=True)
    with file:
        with _about(pa, f"{path} is damaged", PackedDatasetError):
            schema = file.schema_arrow
            _check_columns(pa, path, schema)
        sizes, metadata = _sizes(path, schema.metadata or {}, tokens, channels)
        width = sizes["tokens"] * -(-sizes["channels"] // 8)
        if schema.field("bits").type.byte_width != width:
            raise PackedDatasetError(
                f"{path}: bits must have {width} bytes for {sizes['tokens']} tokens of "
                f"{sizes['channels']} channels, got {schema.field('bits').type.byte_width}"
            )
        with PackedWriter(folder, **sizes, metadata=metadata, shard_size=shard_size) as writer:
            for number in range(file.num_row_groups):
                with _about(pa, f"{path} is damaged", PackedDatasetError):
                    rows = file.read_row_group(number, columns=["bits", "label"])
                for batch in rows.to_batches():
                    codes = _bytes_of(path, batch.column("bits"), width)
                    codes = codes.reshape(len(codes), sizes["tokens"], -1)
                    writer.write(codes, _integers_of(path, batch.column("label")))
    return PackedDataset(folder, verify=False)


def _pyarrow() -> tuple[types.ModuleType, types.ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Parquet files need pyarrow: pip install 'bitdance[parquet]'"
        ) from error  # fmt: skip
    return pyarrow, pyarrow.parquet


@contextlib.contextmanager
def _about(pa: types.ModuleType, what: str, kind: type[Exception]) -> Iterator[None]:
    """Turn pyarrow's errors, some of which are OSErrors or ValueErrors, into one kind."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise OSError(error.errno, f"{what}: {error.strerror or error}") from error
        raise kind(f"{what}: {error}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:  # the latter in a column's name
        raise kind(f"{what}: {error}") from error


def _check_columns(pa: types.ModuleType, path: Path, schema: Any) -> None:
    for name, fits, expected in (
        ("bits", pa.types.is_fixed_size_binary, "fixed_size_binary"),
        ("label", pa.types.is_integer, "integer"),
    ):
        found = schema.get_all_field_indices(name)
        if len(found) != 1:
            raise PackedDatasetError(
                f"{path} must have one column {name!r}, got columns {schema.names}"
            )
        if not fits(schema.field(name).type):
            raise PackedDatasetError(
                f"{path}: {name} must be {expected}, got {schema.field(name).type}"
            )


def _sizes(
    path: Path, metadata: Mapping[bytes, bytes], tokens: int | None, channels: int | None
) -> tuple[dict[str, int], dict[str, Any]]:
    """Tokens and channels by the file, or by the arguments; and the data set's metadata."""
    given = {"tokens": tokens, "channels": channels}
    if _KEY not in metadata:
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise ValueError(f"{path} does not say its {' and '.join(missing)}: pass them")
        return {name: int(value) for name, value in given.items() if value is not None}, {}
    try:
        content = json.loads(metadata[_KEY])
        header = parse(_Header, content, "its content")
    except (ValueError, RecursionError) as error:
        raise PackedDatasetError(f"{path}: its metadata are damaged: {one_line(error)}") from error
    sizes = {"tokens": header.tokens, "channels": header.channels}
    for name, value in given.items():
        if value not in (None, sizes[name]):
            raise ValueError(f"{path} has {sizes[name]} {name}, got {value}")
    return sizes, header.metadata


def _bytes_of(path: Path, column: Any, width: int) -> np.ndarray:
    """uint8 [N, width], a view of a fixed-size binary array."""
    if column.null_count:
        raise PackedDatasetError(f"{path}: bits must have no nulls, got {column.null_count}")
    if not len(column):
        return np.empty((0, width), np.uint8)
    return np.frombuffer(
        column.buffers()[1], np.uint8, len(column) * width, column.offset * width
    ).reshape(-1, width)


def _integers_of(path: Path, column: Any) -> np.ndarray:
    if column.null_count:
        raise PackedDatasetError(f"{path}: label must have no nulls, got {column.null_count}")
    return np.asarray(column.to_numpy(zero_copy_only=False))
