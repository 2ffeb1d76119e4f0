"""Random access to the rows of a split's shards."""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from pyarrow import fs

from datasets.cache import hold, make_room
from datasets.manifest import COLUMNS, read_manifest
from datasets.owned import own_folder
from datasets.parquet import open_parquet
from datasets.pixels import Pixels
from datasets.row_index import RowIndex, open_index, write_index
from datasets.rows import row_problems
from datasets.sample import DataError, Segment, decode_mask
from datasets.storage import locate, read_bytes, written_whole
from datasets.writer import ROW_GROUP

OPEN_PARTS = 512
"""Files that a process holds mapped: each takes 170 kB of its memory, and half a millisecond to be mapped again."""
ROW_BYTES = 64  # of a row in the index, about
READERS = 8  # threads that read a column of many files: in a bucket each answer takes its time
AHEAD = 64  # files whose columns they read ahead


def default_cache() -> Path:
    """The folder of a machine's copies of shards."""
    return own_folder("SHARD_CACHE", "shards")


class Shards:
    """Random access to a split's rows, in the order of the manifest's files.

    On its first use a file is copied to a cache, once per machine and user, and mapped into memory: a row then costs
    microseconds, and all processes share the pages. Many processes may use one cache at once; it is bounded, see
    `datasets.cache`. A pickled object keeps its manifest and opens its files again.

    Args:
        uri: the split's folder: a local path, or a file://, s3:// or gs:// URI.
        cache: the local folder of copies; by default this user's in $SHARD_CACHE, else ~/.cache/context-heads/shards.

    Raises:
        DataError: the folder holds no shards that this code reads.
    """

    def __init__(self, uri: str, cache: Path | None = None) -> None:
        self.uri = uri if "://" in str(uri) else os.path.abspath(uri)
        self.cache = Path(cache or default_cache()).absolute()
        self.manifest = read_manifest(self.uri)
        self._starts = list(accumulate((file["rows"] for file in self.manifest.files), initial=0))
        self._parts: dict[int, _Part] = {}

    def __getstate__(self) -> dict[str, Any]:
        kept = {key: self.__dict__[key] for key in ("uri", "cache", "manifest", "_starts")}
        return kept | {"_parts": {}}

    def __len__(self) -> int:
        return self.manifest.rows

    def columns(self, *names: str) -> Iterator[pa.Table]:
        """Some columns, a table for each file in the manifest's order; from the cache where a file is staged.

        Raises:
            DataError: a file is missing or damaged, or has other rows than the manifest says.
        """
        rows, numbers = 0, range(len(self.manifest.files))
        with ThreadPool(READERS) as pool:  # of daemons: nobody waits for a silent bucket after Ctrl-C
            for first in range(0, len(numbers), AHEAD):
                for table in pool.imap(lambda number: self._read(number, names), numbers[first : first + AHEAD]):
                    rows += len(table)
                    yield table
        if rows != len(self):
            raise DataError(f"{self.uri}: {rows} rows in the files, {len(self)} in the manifest; prepare again")

    def _whole(self, *names: str) -> pa.Table:
        """Some columns of all rows."""
        return pa.concat_tables([COLUMNS.empty_table().select(names), *self.columns(*names)])

    @cached_property
    def _pixels(self) -> Pixels:
        """Of PNG images, decoded."""
        return Pixels(self.cache / "pixels")

    @cached_property
    def index(self) -> RowIndex:
        """The rows' ids, order and images' marks, mapped; written by the machine's first process that asks for it.

        Raises:
            DataError: as in `columns`.
        """
        target = self.cache / f"{self.manifest.hash}.rows.arrow"
        return open_index(
            self._made(target, ROW_BYTES * len(self), lambda sink: write_index(self.columns("id", "sha256"), sink))
        )

    @cached_property
    def ids(self) -> list[str]:
        """The rows' ids, as Python's strings; of a large split see `index`."""
        return self._whole("id")["id"].to_pylist()

    @cached_property
    def sha256(self) -> list[str]:
        """The sha256 of each row's image bytes, hexadecimal."""
        return self._whole("sha256")["sha256"].to_pylist()

    @cached_property
    def sizes(self) -> np.ndarray:
        """Each row's height and width in pixels, int64 (n, 2)."""
        small = self._whole("height", "width")
        return np.stack([small[key].to_numpy().astype(np.int64) for key in ("height", "width")], axis=1)

    @cached_property
    def histograms(self) -> np.ndarray:
        """Each row's pixels of the K classes, then those of 255, int64 (n, K + 1); zeros in a split without labels."""
        if not self.manifest.labelled:
            return np.zeros((len(self), len(self.manifest.classes) + 1), np.int64)
        flat = self._whole("histogram")["histogram"].combine_chunks().flatten()
        return flat.to_numpy().reshape(len(self), len(self.manifest.classes) + 1)

    def encoded(self, i: int) -> tuple[bytes, bytes | None]:
        """The image file's bytes and the encoded mask of row i.

        Raises:
            IndexError: there is no row i.
            DataError: the file of this row is missing or corrupt.
        """
        part, place = self._place(i)
        return part.image(place), part.mask(place)

    def sample(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Row i decoded: image uint8 (H, W, 3) RGB, mask uint8 (H, W); both are only to be read.

        Raises:
            IndexError: there is no row i.
            DataError: the split has no labels, or the row is corrupt.
        """
        part, place = self._place(i)
        mask = part.mask(place)
        if mask is None:
            raise DataError(f"{self.uri}: row {i} has no mask; use encoded() in a split without labels")
        sha256 = part.sha256(place)
        image = self._pixels.find(sha256)
        if image is None:
            image = self._pixels.decode(part.image(place), sha256)
        return image, decode_mask(mask)

    def segments(self, i: int) -> tuple[Segment, ...] | None:
        """The objects of row i; None in a benchmark that has only masks.

        Raises:
            IndexError: there is no row i.
            DataError: the file of this row is missing or corrupt.
        """
        part, place = self._place(i)
        found = part.segments(place)
        return None if found is None else tuple(Segment(**entry | {"box": tuple(entry["box"])}) for entry in found)

    def peek(self, i: int) -> dict[str, Any]:
        """All columns of row i as stored.

        Where the row's file is not in the cache, one row group of it is read, and no copy is made.

        Raises:
            IndexError: there is no row i.
            DataError: the file of this row is missing or damaged.
        """
        number, place = self._number(i)
        if part := _Part.of(self._cached(number)):
            return part.table.slice(place, 1).to_pylist()[0]
        with self._opened(number) as file:
            counts = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            starts = np.cumsum([0, *counts])
            group = int(np.searchsorted(starts, place, side="right")) - 1
            return file.read_row_group(group).slice(place - int(starts[group]), 1).to_pylist()[0]

    def stage(self) -> None:
        """Copy all files to the cache.

        Raises:
            DataError: a file is missing or corrupt.
        """
        for number in range(len(self.manifest.files)):
            self._staged(number)

    def _place(self, i: int) -> tuple["_Part", int]:
        """The file of row i, mapped, and the row's place in it."""
        number, place = self._number(i)
        return self._part(number), place

    def _number(self, i: int) -> tuple[int, int]:
        """The number of row i's file, and the row's place in it."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)} rows in {self.uri}")
        number = bisect_right(self._starts, i) - 1
        return number, i - self._starts[number]

    def _part(self, number: int) -> "_Part":
        """A file, mapped; of those not asked for lately, one is let go where `OPEN_PARTS` are."""
        part = self._parts.pop(number, None)
        while part is None:  # another process may make room before the copy is open here
            part = _Part.of(self._staged(number))
        for old in list(self._parts)[: -OPEN_PARTS + 1]:  # threads ask at the same time
            self._parts.pop(old, None)
        self._parts[number] = part
        return part

    def _cached(self, number: int) -> Path:
        return self.cache / f"{self.manifest.files[number]['sha256']}.arrow"

    def _staged(self, number: int) -> Path:
        """The local copy of a file."""
        file = self.manifest.files[number]
        return self._made(
            self._cached(number),
            file["bytes"],
            lambda sink: to_ipc(_checked(self.uri, file), sink, f"{self.uri}/{file['name']}"),
        )

    def _made(self, target: Path, coming: int, write: Callable[[pa.NativeFile], None]) -> Path:
        """A file of the cache, of about `coming` bytes, made by the first process that asks for it."""
        if target.exists():
            return target
        self.cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                make_room(self.cache, coming)
                until = target.with_suffix(".tmp").name  # one name: under the lock, a killed run's rest is overwritten
                with written_whole(fs.LocalFileSystem(), str(target), until) as stream:
                    write(stream)
        return target

    def _read(self, number: int, names: Sequence[str]) -> pa.Table:
        if part := _Part.of(self._cached(number)):
            return part.table.select(names)
        with self._opened(number) as file:
            return file.read(columns=list(names)).replace_schema_metadata(None)

    @contextmanager
    def _opened(self, number: int) -> Iterator[pq.ParquetFile]:
        """The file in its folder, not its copy; errors in the body become ones that name it, and the cure."""
        system, folder = locate(self.uri)
        path = f"{folder}/{self.manifest.files[number]['name']}"
        try:
            with system.open_input_file(path) as source:
                yield open_parquet(source, path, COLUMNS)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: {error}; run prepare again or copy the shards again") from error


class _Part:
    """A cached file, mapped into memory; it stays in the cache as long as this does."""

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """The file; None where the cache has none."""
        held = hold(path)
        return cls(path, held) if held else None

    def __init__(self, path: Path, held: BinaryIO) -> None:
        self._held = held
        self.table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._images, self._masks, self._sums = (self.table[name].chunks for name in ("image", "mask", "sha256"))
        self._starts = list(accumulate((len(chunk) for chunk in self._images), initial=0))

    def image(self, i: int) -> bytes:
        return self._cell(self._images, i)

    def mask(self, i: int) -> bytes | None:
        return self._cell(self._masks, i)

    def sha256(self, i: int) -> str:
        return self._cell(self._sums, i)

    def _cell(self, chunks: list[pa.Array], i: int) -> Any:
        chunk = bisect_right(self._starts, i) - 1
        return chunks[chunk][i - self._starts[chunk]].as_py()

    def segments(self, i: int) -> list[dict[str, Any]] | None:
        return self.table["segments"][i].as_py()


def verify(uri: str) -> list[str]:
    """Read all shards of a split and check them against their manifest.

    Returns:
        A line per problem: in the checksums of files, images and rows, in the masks' sizes and histograms, or in the
        number and order of the rows.

    Raises:
        DataError: there is no manifest.
    """
    manifest = read_manifest(uri)
    problems, content = [], hashlib.sha256()
    for file in manifest.files:
        try:
            parquet = open_parquet(pa.BufferReader(_checked(uri, file)), f"{uri}/{file['name']}", COLUMNS)
        except DataError as error:
            problems.append(str(error))
            continue
        for batch in parquet.iter_batches(ROW_GROUP):
            rows = batch.to_pylist()
            content.update("".join(row["digest"] for row in rows).encode())
            found = row_problems(rows, len(manifest.classes))
            problems += [f"{file['name']}, row {problem}" for problem in found]
    if not problems and content.hexdigest() != manifest.digest:
        problems.append("the rows, or their order, are not those of the manifest's hash")
    return problems


def _checked(uri: str, file: dict[str, Any]) -> bytes:
    """A file's bytes; DataError where they are not those that the manifest names."""
    system, folder = locate(uri)
    data = read_bytes(system, path := f"{folder}/{file['name']}")
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        raise DataError(f"corrupt shard {path}: its sha256 is not the manifest's; run prepare again or copy it again")
    return data


def to_ipc(data: bytes, sink: Path | pa.NativeFile, name: str = "") -> None:
    """Rewrite a Parquet file as an uncompressed Arrow file, which is mapped, not parsed; a batch per row group.

    Args:
        data: the Parquet file's bytes.
        sink: the Arrow file.
        name: of the Parquet file, for messages.

    Raises:
        DataError: the file has an extension type, or other columns.
    """
    source = open_parquet(pa.BufferReader(data), name or str(sink), COLUMNS)
    schema = source.schema_arrow.remove_metadata()
    with pa.ipc.new_file(sink, schema) as writer:
        for group in range(source.num_row_groups):
            table = source.read_row_group(group).replace_schema_metadata(None)
            for batch in table.combine_chunks().to_batches():
                writer.write_batch(batch)
