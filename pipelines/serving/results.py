"""The folder that a prediction writes: masks, overlays, areas, and what they were predicted with."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pipelines.base.errors import InputError
from pipelines.base.files import replacing, write_json
from pipelines.base.pictures import LARGEST, blend, fitted

QUALITY = 90
"""Of the overlays' JPEG."""
COLUMNS = ("image", "height", "width", "value", "class", "pixels", "share")
"""Of the table of areas: a row for each class that an image has."""


@dataclass(frozen=True)
class Results:
    """The files of a prediction."""

    path: Path

    @property
    def about(self) -> Path:
        """What the masks were predicted with."""
        return self.path / "predict.json"

    def mask(self, name: str) -> Path:
        """A palette PNG of the benchmark's values."""
        return self.path / "masks" / f"{name}.png"

    def overlay(self, name: str) -> Path:
        """The mask over its image."""
        return self.path / "overlays" / f"{name}.jpg"

    def film(self, name: str) -> Path:
        """The masks over the frames of a video."""
        return self.path / "overlays" / f"{name}.mp4"

    def found(self, name: str) -> Path:
        """What was found in an image, of tasks without masks; with it the image is done."""
        return self.path / "images" / f"{name}.json"

    def picture(self, name: str) -> Path:
        """A panoptic picture: a PNG whose colours are the ids of segments."""
        return self.path / "panoptic" / f"{name}.png"

    def table(self, task: str, suffix: str) -> Path:
        """What was found in all images, of a task without masks."""
        return self.path / f"{task}.{suffix}"

    def areas(self, suffix: str) -> Path:
        """The table of areas, `csv` or `parquet`."""
        return self.path / f"areas.{suffix}"

    def begin(self, about: Mapping[str, Any]) -> None:
        """Note what images are predicted with, or see that those which are there were predicted with the same.

        Raises:
            InputError: they were predicted with something else.
        """
        wanted = json.loads(json.dumps(about))
        found = json.loads(self.about.read_text()) if self.about.exists() else None
        there = [name for name in ("masks", "images") if (self.path / name).exists()]
        if found is None and there:
            raise InputError(
                f"--out: {self.path / there[0]} is not of this command; give another folder, or move it away"
            )
        if found is not None and found != wanted:
            unlike = [key for key in wanted | found if found.get(key) != wanted.get(key)]
            raise InputError(
                f"--out: {self.path} holds predictions of another {' and '.join(unlike)}; give another folder, or "
                "remove it"
            )
        write_json(self.about, wanted)


def mask_png(values: np.ndarray, ids: Sequence[int], palette: Sequence[Sequence[int]]) -> bytes:
    """A palette PNG: the index is the benchmark's value, its colour the class'.

    Args:
        values: uint8 (H, W) of the benchmark's values.
        ids: value of each class.
        palette: K colours, RGB 0..255.
    """
    table = np.zeros((256, 3), np.uint8)
    table[list(ids)] = np.array(palette, np.uint8)
    image = Image.fromarray(values)
    image.putpalette(table.tobytes())
    return png(image)


def png(image: Image.Image) -> bytes:
    """A PNG of an image."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def overlay_jpeg(image: np.ndarray, mask: np.ndarray, palette: Sequence[Sequence[int]]) -> bytes:
    """The coloured mask over the image, reduced where a side is longer than LARGEST."""
    image, mask = fitted(image, LARGEST, LARGEST), fitted(mask, LARGEST, LARGEST)
    bgr = cv2.cvtColor(blend(image, mask, palette), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file: afterwards it is whole, or as it was."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_values(path: Path) -> np.ndarray:
    """The values of a mask that was written: uint8 (H, W).

    Raises:
        InputError: it does not read.
    """
    try:
        with Image.open(path) as image:
            return np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} does not read ({error}); remove it, and the same command predicts it again") from None


def areas_of(name: str, values: np.ndarray, ids: Sequence[int], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of an image in the table of areas.

    Args:
        name: of the image.
        values: uint8 (H, W) of the benchmark's values.
        ids: value of each class.
        classes: K names.
    """
    counts, total = np.bincount(values.reshape(-1), minlength=256), values.size
    return [
        dict(zip(COLUMNS, (name, *values.shape, value, kind, int(counts[value]), counts[value] / total), strict=True))
        for value, kind in zip(ids, classes, strict=True)
        if counts[value]
    ]


def write_areas(results: Results, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the table of areas as CSV and as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(rows)
    kinds = [pa.string(), pa.int32(), pa.int32(), pa.int32(), pa.string(), pa.int64(), pa.float64()]
    table = pa.Table.from_pylist(rows, pa.schema(list(zip(COLUMNS, kinds, strict=True))))
    with replacing(results.areas("parquet")) as temporary:
        pq.write_table(table, temporary)
    with replacing(results.areas("csv")) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
