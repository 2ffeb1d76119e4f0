"""Items to Parquet files: which rows go where, and the writing of one file."""

import hashlib
import json
import os
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from datasets.manifest import COLUMNS, SCHEMA_VERSION
from datasets.sample import (
    IGNORE,
    Benchmark,
    DataError,
    Item,
    Sample,
    decode_mask,
    encode_mask,
    image_size,
)
from datasets.storage import exists, locate, read_bytes, written_whole

ROW_GROUP = 64
TARGET_BYTES = 128 << 20


def plan_files(items: Sequence[Item], target_bytes: int = TARGET_BYTES) -> list[list[Item]]:
    """Cut the rows into runs of at most `target_bytes` of images (or one row), one run per file.

    Args:
        items: the split's rows; the cut depends on them and their images' sizes alone.
        target_bytes: bytes of images per file.
    """
    plan: list[list[Item]] = []
    filled = 0
    for item in items:
        size = os.path.getsize(item.image)
        if not plan or filled + size > target_bytes:
            plan.append([])
            filled = 0
        plan[-1].append(item)
        filled += size
    return plan


def write_part(uri: str, index: int, items: Sequence[Item], benchmark: Benchmark, split: str) -> dict[str, Any]:
    """Write one file of shards, or keep the one that holds these very rows.

    The file gets its name when it is whole, so a killed run leaves no half file; its footer bears a fingerprint of
    the sources, so the next run keeps what is done. A kept file's rows are checked as `verify` does.

    Args:
        uri: the split's folder.
        index: number of the file, from `plan_files`.
        items: its rows.
        benchmark: reads the items.
        split: the split's name.

    Returns:
        name, rows, bytes, sha256, histogram (K + 1), labelled (rows with a mask), kept.

    Raises:
        DataError: a source that does not read.
    """
    system, folder = locate(uri)
    path, mark = f"{folder}/part-{index:05d}.parquet", fingerprint(items, benchmark, split)
    if _is_done(system, path, mark):
        return _record(system, path, kept=True)
    meta = {"schema_version": str(SCHEMA_VERSION), "fingerprint": mark, "classes": json.dumps(benchmark.classes)}
    with (
        written_whole(system, path) as stream,
        pq.ParquetWriter(
            stream,
            COLUMNS.with_metadata(meta),
            compression={name: "none" if name in ("image", "mask") else "zstd" for name in COLUMNS.names},
            use_dictionary=False,
            write_statistics=False,
        ) as writer,
    ):
        for start in range(0, len(items), ROW_GROUP):
            rows = [_row(benchmark.read(item), len(benchmark.classes)) for item in items[start : start + ROW_GROUP]]
            writer.write_table(pa.Table.from_pylist(rows, COLUMNS), row_group_size=ROW_GROUP)
    return _record(system, path, kept=False)


def fingerprint(items: Sequence[Item], benchmark: Benchmark, split: str) -> str:
    """sha256 over all that a file's rows depend on: the form, the classes, how labels are read, and the sources."""
    parts: list[object] = [SCHEMA_VERSION, benchmark.name, split, benchmark.classes]
    parts.append(hashlib.sha256(pickle.dumps(benchmark.read, protocol=4)).hexdigest())  # holds the table of values
    for item in items:
        image = os.stat(item.image)
        label = os.stat(item.label).st_mtime_ns if isinstance(item.label, str) else item.label
        parts += [item.id, image.st_size, image.st_mtime_ns, label]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def row_problems(rows: Iterable[dict[str, Any]], classes: int) -> list[str]:
    """What is wrong with rows: checksum, mask, size, histogram; one line per row at fault."""
    found = []
    for row in rows:
        try:
            _check_row(row, classes)
        except DataError as error:
            found.append(f"{row['id']}: {error}")
    return found


def _check_row(row: dict[str, Any], classes: int) -> None:
    if hashlib.sha256(row["image"]).hexdigest() != row["sha256"]:
        raise DataError("the image's bytes do not match their sha256")
    size = row["height"], row["width"]
    if image_size(row["image"]) != size:  # from the header: the sha256 vouches for the pixels
        raise DataError(f"the image is not of the stated {size[0]}x{size[1]} pixels (height x width)")
    if row["mask"] is not None:
        mask = decode_mask(row["mask"])
        if mask.shape != size:
            raise DataError(f"the mask is of {mask.shape} pixels, the image of {size} (height, width)")
        if histogram(mask, classes) != row["histogram"]:
            raise DataError("the mask's pixels do not match their histogram")


def histogram(mask: np.ndarray, classes: int) -> list[int]:
    """Pixels of each of the K classes, then those of 255."""
    counts = np.bincount(mask.reshape(-1), minlength=256)
    return [int(n) for n in (*counts[:classes], counts[IGNORE])]


def _row(sample: Sample, classes: int) -> dict[str, Any]:
    height, width = image_size(sample.image) if sample.mask is None else sample.mask.shape
    labelled: dict[str, Any] = {} if sample.mask is None else {
        "mask": encode_mask(sample.mask), "histogram": histogram(sample.mask, classes)
    }  # fmt: skip
    if sample.segments is not None:
        labelled["segments"] = [asdict(segment) for segment in sample.segments]
    digest = hashlib.sha256(sample.image).hexdigest()
    return {"id": sample.id, "image": sample.image, "height": height, "width": width, "sha256": digest} | labelled


def _is_done(system: fs.FileSystem, path: str, mark: str) -> bool:
    """Whether the file is whole and of this fingerprint; a damaged one is written again."""
    if not exists(system, path):
        return False
    try:
        with pq.ParquetFile(path, filesystem=system) as file:
            meta = file.schema_arrow.metadata or {}
            if meta.get(b"fingerprint") != mark.encode():
                return False
            classes = len(json.loads(meta[b"classes"]))
            return not any(row_problems(batch.to_pylist(), classes) for batch in file.iter_batches(ROW_GROUP))
    except (pa.ArrowException, OSError):
        return False


def _record(system: fs.FileSystem, path: str, kept: bool) -> dict[str, Any]:
    data = read_bytes(system, path)
    table = pq.read_table(pa.BufferReader(data), columns=["histogram"])
    classes = len(json.loads(table.schema.metadata[b"classes"]))
    counts = [row for row in table["histogram"].to_pylist() if row is not None]
    total = np.sum(counts, axis=0, dtype=np.int64).tolist() if counts else [0] * (classes + 1)
    name, digest = path.rsplit("/", 1)[1], hashlib.sha256(data).hexdigest()
    facts = {"name": name, "rows": table.num_rows, "bytes": len(data), "sha256": digest}
    return facts | {"histogram": total, "labelled": len(counts), "kept": kept}
