"""Arrow columns of raw bytes, over an array's own memory and back."""

import numpy as np
import pyarrow as pa


def column(values: np.ndarray) -> pa.Array:
    """A column over an array's own memory, a value for each entry of its first axis."""
    offsets = np.arange(len(values) + 1, dtype=np.int32) * np.int32(values[0].nbytes)
    return pa.Array.from_buffers(pa.binary(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(values)])


def flat(binary: pa.ChunkedArray) -> np.ndarray:
    """All bytes of a column as uint8 (n,), where they are if it is one chunk: only to be read."""
    chunk = binary.combine_chunks() if binary.num_chunks != 1 else binary.chunk(0)
    if isinstance(chunk, pa.ChunkedArray):
        chunk = chunk.chunk(0)
    _, offsets, data = chunk.buffers()
    ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    return np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
