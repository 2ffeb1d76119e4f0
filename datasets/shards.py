"""Random access to the rows of a split's shards."""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from pyarrow import fs

from datasets.manifest import COLUMNS, read_manifest
from datasets.parquet import open_parquet
from datasets.rows import row_problems
from datasets.sample import DataError, Segment, decode_image, decode_mask
from datasets.storage import locate, read_bytes, written_whole
from datasets.writer import ROW_GROUP

SMALL = ["id", "height", "width", "sha256", "histogram"]


def default_cache() -> Path:
    """The folder of a machine's copies of shards."""
    return Path(os.environ.get("SHARD_CACHE") or Path.home() / ".cache/context-heads/shards")


class Shards:
    """Random access to a split's rows, in the order of the manifest's files.

    On its first use a file is copied to a cache, once per machine, and mapped into memory: a row then costs
    microseconds, and all processes share the pages. Many processes may use one cache at once. A pickled object keeps
    its manifest and opens its files again.

    Args:
        uri: the split's folder: a local path, or a file://, s3:// or gs:// URI.
        cache: the local folder of copies; by default $SHARD_CACHE, else ~/.cache/context-heads/shards.

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

    @cached_property
    def _small(self) -> pa.Table:
        """The columns SMALL, from the cache where a file is staged, else from the Parquet file."""
        tables = [self._read_small(number) for number in range(len(self.manifest.files))]
        if not tables:
            return pa.table({name: [] for name in SMALL})
        table = pa.concat_tables(tables)
        if len(table) != len(self):
            raise DataError(f"{self.uri}: {len(table)} rows in the files, {len(self)} in the manifest; prepare again")
        return table

    @cached_property
    def ids(self) -> list[str]:
        """The rows' ids."""
        return self._small["id"].to_pylist()

    @cached_property
    def sha256(self) -> list[str]:
        """The sha256 of each row's image bytes, hexadecimal."""
        return self._small["sha256"].to_pylist()

    @cached_property
    def sizes(self) -> np.ndarray:
        """Each row's height and width in pixels, int64 (n, 2)."""
        return np.stack([self._small[key].to_numpy().astype(np.int64) for key in ("height", "width")], axis=1)

    @cached_property
    def histograms(self) -> np.ndarray:
        """Each row's pixels of the K classes, then those of 255, int64 (n, K + 1); zeros in a split without labels."""
        if not self.manifest.labelled:
            return np.zeros((len(self), len(self.manifest.classes) + 1), np.int64)
        flat = self._small["histogram"].combine_chunks().flatten()
        return flat.to_numpy().reshape(len(self), len(self.manifest.classes) + 1)

    def encoded(self, i: int) -> tuple[bytes, bytes | None]:
        """The image file's bytes and the encoded mask of row i.

        Raises:
            IndexError: there is no row i.
            DataError: the file of this row is missing or corrupt.
        """
        part, place = self._place(i)
        return part.row(place)

    def sample(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Row i decoded: image uint8 (H, W, 3) RGB, mask uint8 (H, W).

        Raises:
            IndexError: there is no row i.
            DataError: the split has no labels, or the row is corrupt.
        """
        image, mask = self.encoded(i)
        if mask is None:
            raise DataError(f"{self.uri}: row {i} has no mask; use encoded() in a split without labels")
        return decode_image(image), decode_mask(mask)

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
        if (path := self._cached(number)).exists():
            return _Part(path).table.slice(place, 1).to_pylist()[0]
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
        if number not in self._parts:
            self._parts[number] = _Part(self._staged(number))
        return self._parts[number]

    def _cached(self, number: int) -> Path:
        return self.cache / f"{self.manifest.files[number]['sha256']}.arrow"

    def _staged(self, number: int) -> Path:
        """The local copy of a file, made by the first process that asks for it."""
        target = self._cached(number)
        if target.exists():
            return target
        self.cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                data = _checked(self.uri, self.manifest.files[number])
                until = target.with_suffix(".tmp").name  # one name: under the lock, a killed run's rest is overwritten
                with written_whole(fs.LocalFileSystem(), str(target), until) as stream:
                    to_ipc(data, stream, f"{self.uri}/{self.manifest.files[number]['name']}")
        return target

    def _read_small(self, number: int) -> pa.Table:
        if (path := self._cached(number)).exists():
            return _Part(path).table.select(SMALL)
        with self._opened(number) as file:
            return file.read(columns=SMALL).replace_schema_metadata(None)

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
    """A cached file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self.table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._images, self._masks = self.table["image"].chunks, self.table["mask"].chunks
        self._starts = list(accumulate((len(chunk) for chunk in self._images), initial=0))

    def row(self, i: int) -> tuple[bytes, bytes | None]:
        chunk = bisect_right(self._starts, i) - 1
        at = i - self._starts[chunk]
        return self._images[chunk][at].as_py(), self._masks[chunk][at].as_py()

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
