"""Shards' Parquet files, opened only after a check that opening them runs no code."""

import base64
import re

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.sample import DataError

BASE64 = re.compile(rb"[A-Za-z0-9+/]{24,}")  # how a footer keeps its Arrow schema
EXTENSION = b"ARROW:extension"


def open_parquet(source: pa.NativeFile, name: str, columns: pa.Schema) -> pq.ParquetFile:
    """Open a file that must have these columns.

    A file may name extension types for its columns. Arrow hands their values to the code that registered the type,
    and Ray, where it is loaded, registers one whose values are pickles. So this searches the footer for extension
    types before Arrow sees it.

    Args:
        source: the file; it can seek.
        name: the file's, for messages.
        columns: names and types.

    Raises:
        DataError: the file names an extension type, or has other columns.
        ArrowException: it is not a Parquet file.
    """
    if _names_extensions(_footer(source)):
        raise DataError(f"{name}: it has a column of an extension type, which could run code: no shard of ours has one")
    source.seek(0)
    file = pq.ParquetFile(source)
    found = file.schema_arrow
    for field in columns:
        kind = found.field(field.name).type if field.name in found.names else None
        if kind != field.type:
            raise DataError(f"{name}: column {field.name!r} is {kind or 'missing'}, not {field.type}; prepare again")
    return file


def _footer(source: pa.NativeFile) -> bytes:
    """The metadata at the end of the file: its length is in the four bytes before the last four."""
    size = source.size()
    source.seek(max(0, size - 8))
    length = int.from_bytes(source.read(8)[:4], "little")
    source.seek(max(0, size - 8 - length))
    return source.read(length)


def _names_extensions(footer: bytes) -> bool:
    """Whether some base64 in the footer names an extension type; a run may hold other letters before the base64."""
    for run in BASE64.findall(footer):
        for start in range(4):
            whole = run[start : start + (len(run) - start) // 4 * 4]
            if EXTENSION in base64.b64decode(whole):
                return True
    return False
