"""Packed codes to Parquet and back; needs pyarrow (``pip install 'bitdance[parquet]'``).

Each row is an image: column ``bits``, a fixed-size binary of tokens * ceil(C / 8) bytes in the
order of the packed array, and column ``label``, int64. The schema's metadata has a JSON object
under "bitdance" with format, tokens, channels and the data set's metadata.
"""

from __future__ import annotations

import contextlib
import json
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bitdance.data.packed_dataset import PackedDataset, PackedDatasetError
from bitdance.data.packed_writer import PackedWriter
from bitdance.io import files
from bitdance.io.files import one_line
from bitdance.io.settings import Count, parse, settings

__all__ = ["convert_errors", "from_parquet", "import_pyarrow", "to_parquet"]

FORMAT = "bitdance-parquet-1"
_KEY = b"bitdance"


def to_parquet(
    data: PackedDataset | str | Path, path: str | Path, *, row_group_size: int = 16_384
) -> None:
    """Write a data set as one Parquet file with checksums, completely or not at all.

    Args:
        data: a data set or its folder.
        path: path of the file, which is replaced.
        row_group_size: images per row group, the unit of reading.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: there is no data set.
        PackedDatasetError: the data set is damaged.
        ValueError: `row_group_size` is below 1.
        OSError: the disk is full, or the folder cannot be written.

    Example:
        >>> to_parquet("runs/fashion-codes", "codes.parquet")  # doctest: +SKIP
    """
    pa, pq = import_pyarrow()
    if row_group_size < 1:
        raise ValueError(f"to_parquet: row_group_size must be at least 1, got {row_group_size}")
    if not isinstance(data, PackedDataset):
        data = PackedDataset(data)
    if len(data.variants) > 1:
        raise ValueError(
            f"to_parquet: data must have one code of each image, got {len(data.variants)}"
        )
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
        convert_errors(pa, f"cannot write {path}", OSError),
        pq.ParquetWriter(
            temporary, schema, write_page_checksum=True,
            # Codes are like noise: neither a dictionary nor compression makes them smaller.
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
    """Write a data set from a Parquet file, completely or not at all.

    Args:
        path: a file of `to_parquet`, or any with the columns ``bits`` (fixed-size binary) and
            ``label`` (an integer type) without nulls.
        folder: must not exist, or be empty.
        tokens: codes per image; required where the file's metadata do not have it.
        channels: C, bits per code; likewise.
        shard_size: images per file of the data set.

    Returns:
        The data set.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: there is no such file.
        FileExistsError: the folder is not empty.
        PackedDatasetError: the file is not a Parquet file, is damaged, or has other columns.
        ValueError: `tokens` or `channels` are required, or contradict the file.
        OSError: the folder cannot be written.

    Example:
        >>> data = from_parquet("codes.parquet", "runs/codes")  # doctest: +SKIP
    """
    pa, pq = import_pyarrow()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with convert_errors(pa, f"{path} is not a complete Parquet file", PackedDatasetError):
        file = pq.ParquetFile(path, page_checksum_verification=True)
    with file:
        with convert_errors(pa, f"{path} is damaged", PackedDatasetError):
            schema = file.schema_arrow
            _check_columns(pa, path, schema)
        sizes, metadata = _sizes(path, schema.metadata or {}, tokens, channels)
        width = sizes["tokens"] * -(-sizes["channels"] // 8)
        if schema.field("bits").type.byte_width != width:
            raise PackedDatasetError(
                f"{path}: bits must have {width} bytes for {sizes['tokens']} tokens of "
                f"{sizes['channels']} channels, got {schema.field('bits').type.byte_width}"
            )
        with PackedWriter(
            folder,
            tokens=sizes["tokens"],
            channels=sizes["channels"],
            metadata=metadata,
            shard_size=shard_size,
        ) as writer:
            for number in range(file.num_row_groups):
                with convert_errors(pa, f"{path} is damaged", PackedDatasetError):
                    rows = file.read_row_group(number, columns=["bits", "label"])
                for batch in rows.to_batches():
                    codes = _read_bytes(path, batch.column("bits"), width)
                    codes = codes.reshape(len(codes), sizes["tokens"], -1)
                    writer.write(codes, _read_integers(path, batch.column("label")))
    return PackedDataset(folder, verify=False)


def import_pyarrow() -> tuple[types.ModuleType, types.ModuleType]:
    """Import pyarrow and pyarrow.parquet.

    Raises:
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "Parquet files need pyarrow: pip install 'bitdance[parquet]'"
        ) from error  # fmt: skip
    return pyarrow, pyarrow.parquet


@contextlib.contextmanager
def convert_errors(pa: types.ModuleType, what: str, kind: type[Exception]) -> Iterator[None]:
    """Convert pyarrow's errors, some of which are OSErrors or ValueErrors, to one type."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise OSError(error.errno, f"{what}: {error.strerror or error}") from error
        raise kind(f"{what}: {one_line(error)}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:  # the latter in a column's name
        raise kind(f"{what}: {one_line(error)}") from error


def _check_columns(pa: types.ModuleType, path: Path, schema: Any) -> None:
    for name, fits, expected in (
        ("bits", pa.types.is_fixed_size_binary, "fixed_size_binary"),
        ("label", pa.types.is_integer, "integer"),
    ):
        if len(schema.get_all_field_indices(name)) != 1:
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
    """Tokens and channels from the file or the arguments, and the data set's metadata."""
    given = {"tokens": tokens, "channels": channels}
    if _KEY not in metadata:
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise ValueError(f"{path} has no {' and '.join(missing)} in its metadata: pass them")
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


def _read_bytes(path: Path, column: Any, width: int) -> np.ndarray:
    """uint8 [N, width], a view of a fixed-size binary array."""
    if column.null_count:
        raise PackedDatasetError(f"{path}: bits must have no nulls, got {column.null_count}")
    if not len(column):
        return np.empty((0, width), np.uint8)
    return np.frombuffer(
        column.buffers()[1], np.uint8, len(column) * width, column.offset * width
    ).reshape(-1, width)


def _read_integers(path: Path, column: Any) -> np.ndarray:
    if column.null_count:
        raise PackedDatasetError(f"{path}: label must have no nulls, got {column.null_count}")
    return np.asarray(column.to_numpy(zero_copy_only=False))
