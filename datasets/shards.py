"""Random access to the rows of a split's shards; the names of `writer` and `manifest` can be had from here as well."""

import hashlib
import os
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from datasets.manifest import COLUMNS, SCHEMA_VERSION, Manifest, read_manifest, write_manifest
from datasets.parquet import open_parquet
from datasets.rows import row_problems
from datasets.sample import DataError, Segment, decode_image, decode_mask
from datasets.storage import locate, read_bytes
from datasets.writer import ROW_GROUP, plan_files, write_part

__all__ = [
    "ROW_GROUP",
    "SCHEMA_VERSION",
    "Manifest",
    "Shards",
    "plan_files",
    "read_manifest",
    "verify",
    "write_manifest",
    "write_part",
]

SMALL = ["id", "height", "width", "sha256", "histogram"]


class Shards:
    """Random access to a split's rows, in the order of the manifest's files.

    A file is copied once per machine to a local cache, on its first use, and mapped into memory: a row then costs
    microseconds, and all processes share the pages. Many processes may use one cache at once. A pickled object keeps
    its manifest and opens its files anew.

    Args:
        uri: the split's folder: a local path, or a file://, s3:// or gs:// URI.
        cache: the local folder of copies; by default $SHARD_CACHE, else ~/.cache/context-heads/shards.

    Raises:
        DataError: there are no such shards.
    """

    def __init__(self, uri: str, cache: Path | None = None) -> None:
        default = os.environ.get("SHARD_CACHE") or Path.home() / ".cache/context-heads/shards"
        self.uri = uri if "://" in str(uri) else os.path.abspath(uri)
        self.cache = Path(cache or default).absolute()
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
        """All columns but image and mask; of staged files from the cache, else projected from the Parquet files."""
        tables = [self._read_small(number) for number in range(len(self.manifest.files))]
        if not tables:
            return pa.table({name: [] for name in SMALL})
        table = pa.concat_tables(tables)
        if len(table) != len(self):
            raise DataError(f"{self.uri}: {len(table)} rows in the files, {len(self)} in the manifest; prepare again")
        return table

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the rows."""
        return self._small["id"].to_pylist()

    @cached_property
    def sha256(self) -> list[str]:
        """Hexadecimal sha256 of each row's image bytes."""
        return self._small["sha256"].to_pylist()

    @cached_property
    def sizes(self) -> np.ndarray:
        """Height and width in pixels, int64 (n, 2)."""
        return np.stack([self._small[key].to_numpy().astype(np.int64) for key in ("height", "width")], axis=1)

    @cached_property
    def histograms(self) -> np.ndarray:
        """Pixels of the K classes, then those of 255, int64 (n, K + 1); zeros in a split without labels."""
        if not self.manifest.labelled:
            return np.zeros((len(self), len(self.manifest.classes) + 1), np.int64)
        flat = self._small["histogram"].combine_chunks().flatten()
        return flat.to_numpy().reshape(len(self), len(self.manifest.classes) + 1)

    def encoded(self, i: int) -> tuple[bytes, bytes | None]:
        """The image file's bytes and the encoded mask of row i.

        Raises:
            IndexError: no such row.
            DataError: the file of this row is missing or corrupt.
        """
        part, place = self._place(i)
        return part.row(place)

    def sample(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Row i decoded: image uint8 (H, W, 3) RGB, mask uint8 (H, W).

        Raises:
            DataError: the split has no labels, or the row is corrupt.
        """
        image, mask = self.encoded(i)
        if mask is None:
            raise DataError(f"{self.uri}: row {i} has no mask; use encoded() in a split without labels")
        return decode_image(image), decode_mask(mask)

    def segments(self, i: int) -> tuple[Segment, ...] | None:
        """The objects of row i; None in a benchmark of masks alone.

        Raises:
            IndexError: no such row.
            DataError: the file of this row is missing or corrupt.
        """
        part, place = self._place(i)
        found = part.segments(place)
        return None if found is None else tuple(Segment(**entry | {"box": tuple(entry["box"])}) for entry in found)

    def peek(self, i: int) -> dict[str, Any]:
        """All columns of row i as stored; of a file that is not in the cache one row group is read, no copy made.

        Raises:
            IndexError: no such row.
            DataError: the file of this row is missing or damaged.
        """
        number, place = self._number(i)
        if (path := self._cached(number)).exists():
            return _Part(path).table.slice(place, 1).to_pylist()[0]
        system, folder = locate(self.uri)
        path_there = f"{folder}/{self.manifest.files[number]['name']}"
        try:
            with system.open_input_file(path_there) as source:
                file = open_parquet(source, path_there, COLUMNS)
                counts = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
                starts = np.cumsum([0, *counts])
                group = int(np.searchsorted(starts, place, side="right")) - 1
                return file.read_row_group(group).slice(place - int(starts[group]), 1).to_pylist()[0]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path_there}: {error}; run prepare again or copy the shards anew") from error

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
                temporary = target.with_suffix(".tmp")  # one name: under the lock, a killed run's rest is overwritten
                to_ipc(data, temporary, f"{self.uri}/{self.manifest.files[number]['name']}")
                temporary.replace(target)
        return target

    def _read_small(self, number: int) -> pa.Table:
        if (path := self._cached(number)).exists():
            return _Part(path).table.select(SMALL)
        system, folder = locate(self.uri)
        path_there = f"{folder}/{self.manifest.files[number]['name']}"
        try:
            with system.open_input_file(path_there) as source:
                table = open_parquet(source, path_there, COLUMNS).read(columns=SMALL)
            return table.replace_schema_metadata(None)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path_there}: {error}; run prepare again or copy the shards anew") from error


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
        The problems found, a line each: checksums of files, images and rows, masks' sizes and histograms, the rows'
        number and order.

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
        problems.append("the rows are not those, or not in the order, that the manifest's hash was made of")
    return problems


def _checked(uri: str, file: dict[str, Any]) -> bytes:
    """A file's bytes, if they are those of the manifest."""
    system, folder = locate(uri)
    data = read_bytes(system, path := f"{folder}/{file['name']}")
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        raise DataError(f"corrupt shard {path}: its sha256 is not the manifest's; run prepare again or copy it anew")
    return data


def to_ipc(data: bytes, path: Path, name: str = "") -> None:
    """Rewrite Parquet bytes as an uncompressed Arrow file, which is mapped, not parsed; a batch per row group."""
    source = open_parquet(pa.BufferReader(data), name or path.name, COLUMNS)
    schema = source.schema_arrow.remove_metadata()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for group in range(source.num_row_groups):
            table = source.read_row_group(group).replace_schema_metadata(None)
            for batch in table.combine_chunks().to_batches():
                writer.write_batch(batch)
