"""The formats of labels by name, and the user's own folder in any of them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from datasets.exports import class_masks, coco_json, colours, image_parquet, labelme, supervisely, voc_xml, yolo
from datasets.exports.masked import counted
from datasets.exports.records import BACKGROUND, Export, Format, Own, Told
from datasets.readers.bands import check_bands
from datasets.readers.classes_yaml import PAGE
from datasets.readers.files import check_folder
from datasets.readers.folder import TREE, Plan, folder, split_off
from datasets.readers.own_tree import files_in
from datasets.readers.pairs_csv import PAIRS
from datasets.sample import Benchmark, Cell, DataError, Item
from datasets.text import named
from datasets.tiles import tiled

VALUES = "values"
"""The format that `datasets.readers.folder` reads: masks whose values or colours `classes.yaml` names."""

FORMATS: dict[str, Format] = {
    "coco": Format(
        "COCO JSON: Roboflow, CVAT, Label Studio and others", coco_json.TREE, coco_json.fits, coco_json.read
    ),
    "labelme": Format("labelme's JSON beside images", labelme.TREE, labelme.fits, labelme.read),
    "voc_xml": Format("VOC's folders: SegmentationClass, Annotations/*.xml", voc_xml.TREE, voc_xml.fits, voc_xml.read),
    "supervisely": Format("Supervisely's projects", supervisely.TREE, supervisely.fits, supervisely.read),
    "masks": Format("one binary mask per class", class_masks.TREE, class_masks.fits, class_masks.read),
    "colours": Format("RGB masks with class_dict.csv or labelmap.txt", colours.TREE, colours.fits, colours.read),
    "yolo": Format("YOLO's polygons", yolo.TREE, yolo.fits, yolo.read),
    "hf": Format("HuggingFace's image/mask Parquet", image_parquet.TREE, image_parquet.fits, image_parquet.read),
}
NAMES = (VALUES, *FORMATS)
OUTLINES = ("coco", "labelme", "supervisely", "yolo")


def own_tree() -> str:
    """What the user's own folder may look like, in every format."""
    head = f"--labels {VALUES}: masks whose values or colours classes.yaml names\n{TREE}"
    return "\n\n".join([head, *(f"--labels {name}: {form.what}\n{form.tree}" for name, form in FORMATS.items())])


def own_data(source: Path, labels: str | None, told: Told, tile: int = 0, count: bool = False) -> Own:
    """The user's own folder.

    Args:
        source: the folder.
        labels: a name of `NAMES`; None recognises the format by the folder's files.
        told: what a person decided.
        tile: the longest side of tiles, pixels; 0 cuts none.
        count: whether masks of `values` are read and counted too; other formats always are.

    Raises:
        DataError: the folder is of none of the formats or of several, or its files do not fit each other.
    """
    source = Path(source).absolute()
    check_folder(source)
    files = files_in(source)
    name, why = (labels, "") if labels else recognised(source, files)
    if name == "colours" and PAGE in files:  # which names colours too
        name = VALUES
    if name == VALUES:
        _check_told(name, told, True)
        try:
            return _values(source, told, tile, why, count)
        except DataError as error:
            if labels or why or PAGE in files:
                raise
            raise DataError(f"{error}\nThere are no labels of a known tool ({', '.join(FORMATS)}) either; `prepare "
                            "folder --tree` shows how each lies, --labels names one") from error  # fmt: skip
    _check_told(name, told, PAGE in files)
    _export.cache_clear()
    export = _export(source, name, told)
    splits: dict[str, int | None] = dict.fromkeys(export.rows)
    benchmark = Benchmark("folder", export.classes, export.palette, splits, FORMATS[name].tree,
                          partial(index_export, source=source, name=name, told=told), export.read, home="",
                          ignored=export.ignored, notes=export.notes)  # fmt: skip
    return Own(tiled(benchmark, tile) if tile else benchmark, name, why, export.tallies)


def _check_told(name: str, told: Told, page: bool) -> None:
    """Refuse decisions that a format has no place for.

    Raises:
        DataError: there is one.
    """
    for option, given in (("--line-width", told.line_width), ("--allow-outside", told.outside)):
        if given and name not in OUTLINES:
            raise DataError(
                f"{option} is for labels of outlines ({', '.join(OUTLINES)}); these are {name}: leave it out"
            )
    if told.unlabelled != BACKGROUND and (name == VALUES or (page and name in ("voc_xml", "hf"))):
        raise DataError(
            f"--unlabelled {told.unlabelled}: {PAGE} says what values mean; write ignore: [0] there instead"
        )
    if told.unannotated != "refuse" and name in (VALUES, "hf"):
        raise DataError(
            f"--unannotated is for labels of tools; these are {name}: leave it out, or use --allow-unpaired"
        )


def recognised(source: Path, files: list[str]) -> tuple[str, str]:
    """The format of a folder, and how it was recognised; `values` where its files show none.

    Raises:
        DataError: the files fit several formats.
    """
    both = all(any(path.startswith(f"{kind}/") for path in files) for kind in ("images", "masks"))
    if PAIRS in files or (PAGE in files and both):  # such a page was written for this project: it decides
        return VALUES, PAIRS if PAIRS in files else f"{PAGE} beside images/ and masks/"
    reasons = {name: why for name, form in FORMATS.items() if (why := form.fits(source, files))}
    if len(reasons) > 1:
        lines = "\n  ".join(f"--labels {name}: {why}" for name, why in reasons.items())
        raise DataError(f"{source}: its labels may be read in {len(reasons)} ways; choose one:\n  {lines}")
    return next(iter(reasons.items()), (VALUES, ""))


def index_export(split: str, source: Path, name: str, told: Told) -> list[Item]:
    """The rows of a split of an export, which is read once by each process."""
    rows = _export(source, name, told).rows
    if split not in rows:
        raise DataError(f"folder has no split {split!r}; allowed are {', '.join(rows)}")
    return rows[split]


@lru_cache(maxsize=1)
def _export(source: Path, name: str, told: Told) -> Export:
    """An export, with split val where it was asked for, and what is not used."""
    files = files_in(source)
    export = FORMATS[name].read(source, files, told)
    found = Plan(rows=dict(export.rows), notes=list(export.notes))
    found.notes += check_bands(source, sorted(set(_images(export.rows))), refuse=not told.damaged)
    if told.val:
        split_off(found, told.val)
    if unused := [path for path in files if path not in export.used and path != PAGE]:
        found.notes.append(f"not used: {len(unused):,} file{'s' * (len(unused) > 1)}: {named(unused)}")
    return replace(export, rows=found.rows, notes=tuple(found.notes))


def _images(rows: dict[str, list[Item]]) -> Iterator[str]:
    """The files of images; tables are none."""
    yield from (item.image for items in rows.values() for item in items if not isinstance(item.label, Cell))


def _values(source: Path, told: Told, tile: int, why: str, count: bool) -> Own:
    """The folder as `datasets.readers.folder` reads it."""
    benchmark = folder(source, told.val, told.unpaired)
    rows = {split: benchmark.index(split) for split in benchmark.splits}
    deep = check_bands(source, sorted(set(_images(rows))), refuse=not told.damaged)
    benchmark = replace(benchmark, notes=(*benchmark.notes, *deep))
    tallies = counted(source, rows, benchmark.classes, partial(_mask, benchmark=benchmark)) if count else ()
    return Own(tiled(benchmark, tile) if tile else benchmark, VALUES, why, tallies)


def _mask(item: Item, benchmark: Benchmark) -> np.ndarray:
    """The mask of an item that is read with its image."""
    mask = benchmark.read(item).mask
    if mask is None:
        raise DataError(f"{item.image}: no mask")
    return mask
