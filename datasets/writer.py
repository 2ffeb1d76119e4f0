"""Items to Parquet files: which rows go to which file, and the writing of one file."""

import hashlib
import json
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from datasets.manifest import COLUMNS, SCHEMA_VERSION
from datasets.parquet import open_parquet
from datasets.rows import make_row, row_problems
from datasets.sample import DAMAGED, Benchmark, DataError, Item, Layers, Tile
from datasets.storage import Hashed, exists, locate, read_bytes, written_whole
from datasets.text import named

ROW_GROUP = 64
GROUP_BYTES = 32 << 20
"""A row group ends at ROW_GROUP rows or GROUP_BYTES of images: a writer holds that much in memory."""
TARGET_BYTES = 128 << 20
LEAST_BYTES = 8 << 20
FILES = 64
"""Small splits are cut into this many files, of LEAST_BYTES or more: cores must not wait for one long last file."""
BETWEEN = "\n  "
SKIPPED = "skipped"
"""The key of a file's footer that lists the rows left out."""
TELL_S = 1.0
"""Seconds between two reports on a file that is being written."""


def plan_files(items: Sequence[Item], target_bytes: int | None = None) -> list[list[Item]]:
    """Cut the rows into runs of at most `target_bytes` of images (or one row), one run per file.

    Args:
        items: the split's rows; the cut depends only on them and their images' sizes, never on who writes them.
        target_bytes: bytes of images per file; by default a 64th of all, but at least 8 MiB and at most 128 MiB.

    Returns:
        The rows of each file.
    """
    sizes = list(map(_bytes, items))
    return _cut(items, sizes, target_bytes or min(TARGET_BYTES, max(LEAST_BYTES, -(-sum(sizes) // FILES))), len(items))


def _bytes(item: Item) -> int:
    """Of an item's image."""
    return item.bytes or os.path.getsize(item.image)


def _cut(items: Sequence[Item], sizes: Sequence[int], most_bytes: int, most_rows: int) -> list[list[Item]]:
    """Runs of at most `most_bytes` and `most_rows`, or of one row."""
    runs: list[list[Item]] = []
    filled = 0
    for item, size in zip(items, sizes, strict=True):
        if not runs or filled + size > most_bytes or len(runs[-1]) == most_rows:
            runs.append([])
            filled = 0
        runs[-1].append(item)
        filled += size
    return runs


def write_part(
    uri: str, index: int, items: Sequence[Item], benchmark: Benchmark, split: str, skip_damaged: bool = False
) -> dict[str, Any]:
    """Write one file of shards, or keep the one that holds exactly these rows.

    Args:
        uri: as in `part_steps`.
        index: as in `part_steps`.
        items: as in `part_steps`.
        benchmark: as in `part_steps`.
        split: as in `part_steps`.
        skip_damaged: as in `part_steps`.

    Returns:
        The record that `part_steps` yields last.

    Raises:
        DataError: as in `part_steps`.
    """
    *_, record = part_steps(uri, index, items, benchmark, split, skip_damaged)
    return record


def part_steps(
    uri: str, index: int, items: Sequence[Item], benchmark: Benchmark, split: str, skip_damaged: bool = False
) -> Iterator[dict[str, Any]]:
    """Write one file of shards, or keep the one that holds exactly these rows, and report progress.

    The file gets its name when it is whole, so a killed run leaves no half file. Its footer has a fingerprint of the
    sources, so the next run keeps what is done. A kept file's rows are checked as in `verify`.

    Args:
        uri: the split's folder.
        index: the file's number, its place in `plan_files`.
        items: the file's rows.
        benchmark: reads the items.
        split: the split's name.
        skip_damaged: whether rows whose files are damaged are left out, not refused.

    Yields:
        About every second, rows and bytes (of images and masks) so far; last, the record: name, rows, bytes, sha256,
        histogram (K + 1), labelled (rows with a mask), kept, skipped (id and why of the rows left out).

    Raises:
        DataError: sources do not read; the message names up to ten of them.
    """
    system, folder = locate(uri)
    path, mark = f"{folder}/part-{index:05d}.parquet", fingerprint(items, benchmark, split)
    if _is_done(system, path, mark, skip_damaged):
        yield _kept(system, path)
        return
    meta = {"schema_version": str(SCHEMA_VERSION), "fingerprint": mark, "classes": json.dumps(benchmark.classes)}
    total, labelled = np.zeros(len(benchmark.classes) + 1, np.int64), 0
    skipped: list[dict[str, str]] = []
    with written_whole(system, path) as stream:
        hashed = Hashed(stream)
        with pq.ParquetWriter(
            hashed,
            COLUMNS.with_metadata(meta),
            compression={name: "none" if name in ("image", "mask") else "zstd" for name in COLUMNS.names},
            use_dictionary=False,
            write_statistics=False,
        ) as writer:
            for entry in _groups(items, benchmark, skipped if skip_damaged else None):
                if isinstance(entry, dict):
                    yield entry
                    continue
                writer.write_table(pa.Table.from_pylist(entry, COLUMNS), row_group_size=ROW_GROUP)
                counted = [row["histogram"] for row in entry if "histogram" in row]
                total, labelled = total + np.sum(counted, axis=0, dtype=np.int64), labelled + len(counted)
            if skipped:
                writer.add_key_value_metadata({SKIPPED: json.dumps(skipped)})
    rows = len(items) - len(skipped)
    yield _record(path, rows, hashed.bytes, hashed.sha256, total, labelled, skipped, kept=False)


def _groups(
    items: Sequence[Item], benchmark: Benchmark, skipped: list[dict[str, str]] | None
) -> Iterator[dict[str, int] | list[dict[str, Any]]]:
    """The rows, a row group at a time, and between the groups rows and bytes so far.

    After a fault it still reads the other rows, so that the message can count the faults and name the first.

    Args:
        items: of the file.
        benchmark: reads them.
        skipped: takes the rows that are damaged; None where these are faults too.
    """
    faults: list[str] = []
    rows = size = 0
    told = time.monotonic()
    for group in _cut(items, list(map(_bytes, items)), GROUP_BYTES, ROW_GROUP):
        done = []
        for item in group:
            try:
                done.append(_row(item, benchmark))
            except DataError as error:
                if skipped is not None and error.kind == DAMAGED:
                    skipped.append({"id": item.id, "why": str(error)})
                else:
                    faults.append(str(error))
                continue
            rows, size = rows + 1, size + len(done[-1]["image"]) + len(done[-1].get("mask", b""))
            if time.monotonic() - told >= TELL_S:
                told = time.monotonic()
                yield {"rows": rows, "bytes": size}
        if done and not faults:
            yield done
    if len(faults) > 1:
        raise DataError(f"{len(faults)} rows of one file do not read:\n  {named(faults, between=BETWEEN)}")
    if faults:
        raise DataError(faults[0])


def _row(item: Item, benchmark: Benchmark) -> dict[str, Any]:
    """An item as a row.

    Raises:
        DataError: it does not read, or does not fit into memory.
    """
    try:
        return make_row(benchmark.read(item), len(benchmark.classes))
    except MemoryError as error:
        raise DataError(f"{item.image}: too large for the free memory ({error}); cut it into tiles with --tile N, "
                        "or write fewer files at once with --workers")  from error  # fmt: skip


def fingerprint(items: Sequence[Item], benchmark: Benchmark, split: str) -> str:
    """The sha256 of all that a file's rows depend on: schema, classes, how labels are read, and the sources."""
    parts: list[object] = [SCHEMA_VERSION, benchmark.name, split, benchmark.classes]
    parts.append(hashlib.sha256(pickle.dumps(benchmark.read, protocol=4)).hexdigest())  # holds the table of values
    for item in items:
        image = os.stat(item.image)
        parts += [item.id, image.st_size, image.st_mtime_ns, _mark(item.label)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _mark(label: object) -> object:
    """What a label's row depends on: of files, when they were changed."""
    if isinstance(label, str):
        return os.stat(label).st_mtime_ns
    if isinstance(label, Tile):
        return label.box, label.item.id, _mark(label.item.label)
    if isinstance(label, Layers):
        return label.unlabelled, [(number, _mark(path)) for number, path in label.masks]
    return label


def _is_done(system: fs.FileSystem, path: str, mark: str, skip_damaged: bool) -> bool:
    """Whether the file is whole and has this fingerprint; a damaged file is written again.

    A file that lacks damaged rows is done only where these are to be left out.
    """
    if not exists(system, path):
        return False
    try:
        with system.open_input_file(path) as source:
            file = open_parquet(source, path, COLUMNS)
            meta = file.schema_arrow.metadata or {}
            if meta.get(b"fingerprint") != mark.encode() or (_skipped(file) and not skip_damaged):
                return False
            classes = len(json.loads(meta[b"classes"]))
            return not any(row_problems(batch.to_pylist(), classes) for batch in file.iter_batches(ROW_GROUP))
    except (pa.ArrowException, OSError, DataError):
        return False


def _kept(system: fs.FileSystem, path: str) -> dict[str, Any]:
    """The record of a file that was already there."""
    data = read_bytes(system, path)
    file = open_parquet(pa.BufferReader(data), path, COLUMNS)
    table = file.read(columns=["histogram"])
    classes = len(json.loads(table.schema.metadata[b"classes"]))
    counts = [row for row in table["histogram"].to_pylist() if row is not None]
    total = np.array([[0] * (classes + 1), *counts], np.int64).sum(0)
    sha256 = hashlib.sha256(data).hexdigest()
    return _record(path, table.num_rows, len(data), sha256, total, len(counts), _skipped(file), kept=True)


def _skipped(file: pq.ParquetFile) -> list[dict[str, str]]:
    """The rows that were left out of a file."""
    return json.loads((file.metadata.metadata or {}).get(SKIPPED.encode(), b"[]"))


def _record(
    path: str,
    rows: int,
    size: int,
    sha256: str,
    total: np.ndarray,
    labelled: int,
    skipped: list[dict[str, str]],
    kept: bool,
) -> dict[str, Any]:
    facts = {"name": path.rsplit("/", 1)[1], "rows": rows, "bytes": size, "sha256": sha256}
    return facts | {"histogram": total.tolist(), "labelled": labelled, "kept": kept, "skipped": skipped}
