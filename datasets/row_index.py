"""The ids of a split's rows, and the rows in the order of their ids: a file that all processes of a machine map.

Ten million ids as Python strings take a gigabyte in every process, and half a minute to sort; mapped, neither.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SCHEMA = pa.schema([("id", pa.large_string()), ("by_id", pa.int64())])


@dataclass(frozen=True)
class RowIndex:
    """Where rows are.

    Args:
        ids: the rows' ids, by row number.
        by_id: the row numbers in the order of their ids (by code points), int64 (n,).
    """

    ids: pa.Array
    by_id: np.ndarray

    def name(self, row: int) -> str:
        """The id of a row."""
        return str(self.ids[row].as_py())


def write_index(ids: Iterable[pa.ChunkedArray], sink: pa.NativeFile) -> None:
    """Write the index of rows whose ids these are, a chunked array per file, as one batch."""
    chunks = [chunk.cast(pa.large_string()) for column in ids for chunk in column.chunks]
    names = pa.concat_arrays(chunks) if chunks else pa.array([], pa.large_string())
    by_id = pc.sort_indices(names).cast(pa.int64())  # of UTF-8's bytes, whose order is that of the code points
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(pa.record_batch([names, by_id], schema=SCHEMA))


def open_index(path: Path) -> RowIndex:
    """Map an index; its pages are shared with all processes that did."""
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    return RowIndex(batch.column("id"), batch.column("by_id").to_numpy())
