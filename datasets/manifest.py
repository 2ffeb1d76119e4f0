"""The columns of a shard, and the manifest that names the shards of a split."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatch
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from datasets.facts import REACHES
from datasets.parquet import open_parquet
from datasets.sample import IGNORE, Benchmark, DataError
from datasets.storage import exists, is_temporary, locate, names_in, read_bytes, written_whole
from datasets.text import named

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
OPTIONAL = {"skipped"}
"""The keys of a manifest that are left out where they are empty."""
SEGMENT = pa.struct(
    [("number", pa.int32()), ("crowd", pa.bool_()), ("box", pa.list_(pa.float64())), ("rle", pa.binary())]
)
COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),  # the source file's bytes
        ("mask", pa.binary()),  # as `encode_mask` writes it; null in a split without labels
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("sha256", pa.string()),  # of the image's bytes, hexadecimal
        ("histogram", pa.list_(pa.int64())),  # pixels of the K classes, then those of 255; null without a label
        ("segments", pa.list_(SEGMENT)),  # objects; null in a benchmark that has only masks
        ("boundary", pa.list_(pa.int64())),  # pixels near a change of class, for each of REACHES; null without a label
        ("digest", pa.string()),  # of the row's content, hexadecimal
    ]
)


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds.

    Args:
        schema_version: of the columns.
        benchmark: name in the catalog.
        split: name of the split.
        classes: K names.
        palette: K colours, RGB 0..255.
        ignore: the mask value that is not counted.
        rows: rows in all files.
        official_rows: rows as published; None where nothing is published.
        partial: whether these are only some of the published rows.
        labelled: whether every row has a mask.
        histogram: pixels of the K classes, then those of 255, over all rows.
        images: for each of the K classes, then for 255, the rows that hold it: a pixel, or, without masks, a segment.
        around: for each of the K classes, the labelled pixels of the rows that hold it.
        boundary: reach in pixels -> labelled pixels that have one of another class within that reach.
        flip_pairs: classes that change places when an image is flipped left to right.
        duplicates: rows whose image equals an earlier row's byte for byte.
        digest: sha256 over the rows' digests, in order.
        files: in row order; name, rows, bytes and sha256 of each.
        skipped: rows that were left out because their files are damaged; id and why of each.
    """

    schema_version: int
    benchmark: str
    split: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore: int
    rows: int
    official_rows: int | None
    partial: bool
    labelled: bool
    histogram: tuple[int, ...]
    images: tuple[int, ...]
    around: tuple[int, ...]
    boundary: dict[str, int]
    flip_pairs: tuple[tuple[int, int], ...]
    duplicates: int
    digest: str
    files: tuple[dict[str, Any], ...]
    skipped: tuple[dict[str, str], ...] = ()

    @property
    def hash(self) -> str:
        """The sha256, hexadecimal, that names exactly these rows in this order, and what their masks' values mean.

        It is the same on every machine: it depends neither on the files' checksums, which change with the time at
        which the release was unpacked, nor on the other splits that were prepared with this one.
        """
        named = [self.benchmark, self.split, list(self.classes), self.ignore, self.rows, self.digest]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()

    @property
    def unseen(self) -> list[str]:
        """Classes that no row holds; all of them in a split without labels."""
        return [name for name, images in zip(self.classes, self.images, strict=False) if not images]

    @property
    def classified(self) -> bool:
        """Whether rows have classes without masks: those of whole images."""
        return not self.labelled and any(self.images)


@dataclass(frozen=True)
class _Counted:
    """What the rows of all files add up to: fields of `Manifest`."""

    histogram: tuple[int, ...]
    images: tuple[int, ...]
    around: tuple[int, ...]
    boundary: dict[str, int]
    duplicates: int
    digest: str


def write_manifest(
    uri: str, benchmark: Benchmark, split: str, records: Sequence[dict[str, Any]], partial: bool
) -> Manifest:
    """Name the written files as the split's shards; remove earlier runs' other parts and half files.

    Call it once, after all `write_part` calls of the split have returned.

    Args:
        uri: the split's folder.
        benchmark: where the rows come from.
        split: the benchmark's split.
        records: what the `write_part` calls returned, in any order.
        partial: whether these are only some of the published rows.

    Raises:
        DataError: two rows share an id, or only some rows have a mask.
    """
    records = sorted(records, key=lambda record: record["name"])
    rows, labelled = (sum(record[key] for record in records) for key in ("rows", "labelled"))
    if labelled not in (0, rows):
        raise DataError(f"{uri}: {labelled} of {rows} rows have a mask; label all rows of a split or none")
    system, folder = locate(uri)
    counted = _count(system, folder, [record["name"] for record in records], len(benchmark.classes))
    files = tuple({key: record[key] for key in ("name", "rows", "bytes", "sha256")} for record in records)
    skipped = tuple(entry for record in records for entry in record.get("skipped", ()))
    if not rows:
        raise DataError(f"{uri}: no row is left, all {len(skipped)} are damaged; fetch the release again")
    manifest = Manifest(
        schema_version=SCHEMA_VERSION, benchmark=benchmark.name, split=split, classes=benchmark.classes,
        palette=benchmark.palette, ignore=IGNORE, rows=rows, official_rows=benchmark.splits[split], partial=partial,
        labelled=labelled == rows, flip_pairs=benchmark.flip_pairs, files=files, skipped=skipped, **vars(counted),
    )  # fmt: skip
    content = {key: value for key, value in asdict(manifest).items() if key not in OPTIONAL or value}
    with written_whole(system, f"{folder}/{MANIFEST}") as stream:
        stream.write((json.dumps(content, indent=1) + "\n").encode())
    _remove_others(system, folder, {record["name"] for record in records})
    return manifest


def read_manifest(uri: str) -> Manifest:
    """Read the manifest of a split's folder.

    Raises:
        DataError: there is no folder, no manifest in it, or the shards have another schema version.
    """
    system, folder = locate(uri)
    if not exists(system, f"{folder}/{MANIFEST}"):
        raise DataError(f"{uri}: {_instead(system, folder)}")
    content = json.loads(read_bytes(system, f"{folder}/{MANIFEST}"))
    if (version := content.get("schema_version")) != SCHEMA_VERSION:
        raise DataError(f"{uri}: shards of schema version {version}; this code reads {SCHEMA_VERSION}. Prepare again")
    if unlike := {field.name for field in fields(Manifest)} ^ (set(content) | OPTIONAL):
        raise DataError(f"{uri}/{MANIFEST}: damaged, it lacks or adds {', '.join(sorted(unlike))}. Prepare again")
    content["palette"] = tuple((r, g, b) for r, g, b in content["palette"])
    content["flip_pairs"] = tuple((left, right) for left, right in content["flip_pairs"])
    lists = {key: tuple(content[key]) for key in ("classes", "histogram", "images", "around", "files", *OPTIONAL)
             if key in content}  # fmt: skip
    return Manifest(**(content | lists))


def _instead(system: fs.FileSystem, folder: str) -> str:
    """What is there instead of a manifest, and the cure."""
    if not exists(system, folder):
        return "no such folder; run prepare, or correct the path"
    inside = names_in(system, folder)
    splits = [name for name, is_folder in inside.items() if is_folder and exists(system, f"{folder}/{name}/{MANIFEST}")]
    if splits:
        return f"this is a folder of splits: {', '.join(splits)}; name one, such as {folder}/{splits[0]}"
    if any(fnmatch(name, "part-*.parquet") for name in inside):
        return f"parts without {MANIFEST}: a preparation that did not end. Run it again; finished parts are kept"
    if not inside:
        return "the folder is empty; run prepare, or correct the path"
    return f"no {MANIFEST} in it, but {named(inside)}; run prepare, or correct the path"


def _count(system: fs.FileSystem, folder: str, names: list[str], classes: int) -> _Counted:
    """Add up the rows of all files; DataError where an id occurs twice."""
    columns = ["id", "sha256", "digest", "histogram", "boundary"]
    ids: Counter[str] = Counter()
    seen: set[str] = set()
    total, images, near = (np.zeros(n, np.int64) for n in (classes + 1, classes + 1, len(REACHES)))
    around, content = np.zeros(classes, np.int64), hashlib.sha256()
    for name in names:
        with system.open_input_file(f"{folder}/{name}") as source:
            file = open_parquet(source, name, COLUMNS)
            table = file.read(columns=columns)
            if table["histogram"].null_count:
                images += _classes(file.read(columns=["segments"])["segments"], classes)
        ids.update(table["id"].to_pylist())
        seen.update(table["sha256"].to_pylist())
        content.update("".join(table["digest"].to_pylist()).encode())
        pixels, edges = (_matrix(table[key], n) for key, n in (("histogram", classes + 1), ("boundary", len(REACHES))))
        total, images, near = total + pixels.sum(0), images + (pixels > 0).sum(0), near + edges.sum(0)
        around += (pixels[:, :-1].sum(1, keepdims=True) * (pixels[:, :-1] > 0)).sum(0)
    if twice := [key for key, count in ids.items() if count > 1]:
        raise DataError(
            f"{folder}: {len(twice)} ids occur twice, the first is {twice[0]!r}; make ids unique in a split"
        )
    return _Counted(
        histogram=tuple(map(int, total)),
        images=tuple(map(int, images)),
        around=tuple(map(int, around)),
        boundary={str(reach): int(n) for reach, n in zip(REACHES, near, strict=True)},
        duplicates=ids.total() - len(seen),
        digest=content.hexdigest(),
    )


def _classes(segments: pa.ChunkedArray, classes: int) -> np.ndarray:
    """Rows without a mask that have a segment of each of the K classes, then 0 for 255."""
    held = [number for row in segments.to_pylist() if row for number in {segment["number"] for segment in row}]
    return np.bincount(np.array(held, np.int64), minlength=classes + 1)


def _matrix(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """Lists of one length as int64 (n, width), without the rows that have no list."""
    return column.combine_chunks().drop_null().flatten().to_numpy().reshape(-1, width)


def _remove_others(system: fs.FileSystem, folder: str, keep: set[str]) -> None:
    """Remove what earlier runs left, and never a file whose name no writer of shards gives."""
    for name, is_folder in names_in(system, folder).items():
        if not is_folder and name not in keep and (fnmatch(name, "part-*.parquet") or is_temporary(name)):
            system.delete_file(f"{folder}/{name}")
