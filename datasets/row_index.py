"""The ids of a split's rows, their order, and what tells their images: a file that all processes of a machine map.

Ten million ids as Python strings take a gigabyte in every process, and half a minute to sort; mapped, neither.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SCHEMA = pa.schema([("id", pa.large_string()), ("by_id", pa.int64()), ("mark", pa.int64())])


@dataclass(frozen=True)
class RowIndex:
    """Where rows are.

    Args:
        ids: the rows' ids, by row number.
        by_id: the row numbers in the order of their ids (by code points), int64 (n,).
        marks: the first 8 bytes of each image's sha256, by row number, int64 (n,).
    """

    ids: pa.Array
    by_id: np.ndarray
    marks: np.ndarray

    def name(self, row: int) -> str:
        """The id of a row."""
        return str(self.ids[row].as_py())


def write_index(tables: Iterable[pa.Table], sink: pa.NativeFile) -> None:
    """Write the index of rows, as one batch.

    Args:
        tables: columns `id` and `sha256` of the rows, a table per file.
        sink: the file.
    """
    chunks, marks = [], []
    for table in tables:
        chunks += [chunk.cast(pa.large_string()) for chunk in table["id"].chunks]
        marks.append(first_bytes(table["sha256"].to_pylist()))
    names = pa.concat_arrays(chunks) if chunks else pa.array([], pa.large_string())
    chunks.clear()
    by_id = pc.sort_indices(names).cast(pa.int64())  # of UTF-8's bytes, whose order is that of the code points
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        columns = [names, by_id, pa.array(np.concatenate([np.zeros(0, np.int64), *marks]))]
        writer.write_batch(pa.record_batch(columns, schema=SCHEMA))


def first_bytes(sums: Sequence[str]) -> np.ndarray:
    """The first 8 bytes of each hexadecimal sum, int64 (n,)."""
    return np.frombuffer(bytes.fromhex("".join(text[:16] for text in sums)), ">i8").astype(np.int64)


def open_index(path: Path) -> RowIndex:
    """Map an index; its pages are shared with all processes that did."""
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    return RowIndex(batch.column("id"), batch.column("by_id").to_numpy(), batch.column("mark").to_numpy())
