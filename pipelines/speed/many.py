"""Shards of any number of rows, generated: every row has its own id, checksum and digest, and all have one image."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.facts import REACHES
from datasets.manifest import COLUMNS, MANIFEST, SCHEMA_VERSION, Manifest
from datasets.rows import make_row
from datasets.sample import IGNORE, Sample
from datasets.writer import ROW_GROUP
from pipelines.base.files import write_json
from pipelines.speed.drawn import draw

SIZE = (64, 64)


def many_shards(folder: Path, rows: int, per_file: int, group: int = ROW_GROUP) -> None:
    """Write a split's shards.

    Args:
        folder: a new folder for them.
        rows: of the split.
        per_file: rows of each file but the last.
        group: rows of a row group.
    """
    from datasets.readers.voc import CLASSES, PALETTE

    folder.mkdir(parents=True)
    row, content = one_row(len(CLASSES)), hashlib.sha256()
    files: list[dict[str, Any]] = []
    same, numbers = shared(row, min(rows, per_file)), np.random.default_rng(0).permutation(rows)
    for first in range(0, rows, per_file):
        path = folder / f"part-{len(files):07d}.parquet"
        table = part(same, numbers[first : first + per_file])
        pq.write_table(table, path, row_group_size=group, compression="zstd", write_statistics=False)
        data = path.read_bytes()
        content.update(data)
        sha256 = hashlib.sha256(data).hexdigest()
        files.append({"name": path.name, "rows": len(table), "bytes": len(data), "sha256": sha256})
    histogram = np.array(row["histogram"]) * rows
    manifest = Manifest(
        schema_version=SCHEMA_VERSION, benchmark="voc12", split="train", classes=CLASSES, palette=PALETTE,
        ignore=IGNORE, rows=rows, official_rows=None, partial=False, labelled=True,
        histogram=tuple(histogram.tolist()), images=tuple(((histogram > 0) * rows).tolist()),
        around=tuple(((histogram[:-1] > 0) * histogram[:-1].sum()).tolist()),
        boundary=dict(zip(map(str, REACHES), (np.array(row["boundary"]) * rows).tolist(), strict=True)),
        flip_pairs=(), duplicates=0, digest=content.hexdigest(), files=tuple(files),
    )  # fmt: skip
    facts = dataclasses.asdict(manifest)
    del facts["skipped"]  # as every manifest whose rows are whole
    write_json(folder / MANIFEST, facts)


def one_row(classes: int) -> dict[str, object]:
    """The row whose image, mask and counts all have."""
    image, mask = next(draw(1, SIZE))
    data = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
    return make_row(Sample("0", data, mask), classes)


def shared(row: dict[str, object], rows: int) -> pa.Table:
    """The columns that are the same in every row, so many times."""
    return pa.Table.from_arrays([pa.array([row.get(f.name)] * rows, f.type) for f in COLUMNS], schema=COLUMNS)


def part(same: pa.Table, numbers: np.ndarray) -> pa.Table:
    """A file's rows: what they share, with ids and checksums of their own."""
    ids = [f"{number:010d}" for number in numbers]
    sums = [hashlib.sha256(name.encode()).hexdigest() for name in ids]
    table = same.slice(0, len(ids))
    for name, values in {"id": ids, "sha256": sums, "digest": sums}.items():
        table = table.set_column(COLUMNS.get_field_index(name), COLUMNS.field(name), pa.array(values, pa.string()))
    return table
