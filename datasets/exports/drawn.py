"""Outlines to rows: which images, which classes in which order, which pixels; checked before any row is written."""

from collections import Counter
from pathlib import Path

from datasets.exports.finding import check_agrees, id_of, stored_size
from datasets.exports.names import Classes, classes_of
from datasets.exports.painting import ORDER, Drawing, Painted, in_order, pixels_of, read_drawn, run_lengths
from datasets.exports.pairing import by_split
from datasets.exports.records import Export, Outlined, Record, Shape, Tally, Told
from datasets.sample import IGNORE, DataError, Item
from datasets.text import named

FAULTS = 10
"""Faults of a folder that a message names."""


def drawn(source: Path, found: Outlined, told: Told, tree: str) -> Export:
    """An export of outlines as rows.

    Args:
        source: the folder, absolute.
        found: what its reader gives.
        told: what a person decided.
        tree: the expected folder, for messages.

    Raises:
        DataError: images or annotations that do not pair, or do not agree; the message names up to ten of them.
    """
    notes = list(found.notes)
    blind = "test" in found.images.values() and all(record.split != "test" for record in found.records)
    records, images = _paired(source, found, told, notes, {"test"} if blind else set())
    shapes = [shape for record in records for shape in record.shapes]
    classes = classes_of(source, found, shapes, told)
    marks = _Marks(classes)
    rows: dict[str, list[Item]] = {}
    faults: list[str] = []
    by_image = {record.image: record for record in records}
    for path, split in images.items():
        record = by_image.get(path)
        try:
            item = _item(source, path, record, told, marks, blind=split == "test" and blind)
        except DataError as error:
            faults.append(str(error))
            continue
        rows.setdefault(split, []).append(item)
    if len(faults) > 1:
        told_of = named(faults, FAULTS, between="\n  ")
        raise DataError(f"{source}: {len(faults):,} images and their labels do not fit:\n  {told_of}")
    if faults:
        raise DataError(faults[0])
    rows = by_split(source, rows, tree)
    notes += [*classes.notes, ORDER, *marks.notes(told)]
    used = {*images, *found.pages, *(record.file for record in found.records)}
    return Export(
        classes.names, classes.palette, rows, read_drawn, marks.tallies(), classes.ignored, tuple(notes), used
    )


def _paired(
    source: Path, found: Outlined, told: Told, notes: list[str], blind: set[str]
) -> tuple[list[Record], dict[str, str]]:
    """The records that have an image, and all images to keep -> their split; `blind` are splits without labels."""
    there = {record.image: record for record in found.records}
    if len(there) < len(found.records):
        twice = [path for path, count in Counter(record.image for record in found.records).items() if count > 1]
        files = named(dict.fromkeys(record.file for record in found.records if record.image == twice[0]))
        raise DataError(f"{source}: {named(twice)} is annotated more than once (in {files}); keep one annotation of it")
    lost = [record for record in found.records if not (source / record.image).is_file()]
    bare = [path for path, split in found.images.items() if path not in there and split not in blind]
    drop = told.unpaired or told.unannotated == "drop"
    refused = []
    if lost and not told.unpaired:
        told_of = [f"{record.image} ({record.file})" for record in lost]
        refused.append(f"annotations whose image is not there: {named(told_of)}. Add the images, or leave these "
                       "annotations out with --allow-unpaired")  # fmt: skip
    if bare and not drop and told.unannotated == "refuse":
        refused.append(f"{len(bare):,} image(s) without an annotation: {named(bare)}. Annotate them, keep them as "
                       "images without an object with --unannotated empty, or leave them out with --unannotated "
                       "drop")  # fmt: skip
    if refused:
        raise DataError(f"{source}: images and annotations do not pair.\n  " + "\n  ".join(refused))
    if lost:
        notes.append(f"left out, {len(lost):,} annotation(s) whose image is not there: "
                     f"{named(record.image for record in lost)}")  # fmt: skip
    if bare:
        kept = "left out" if drop else "kept as images without an object"
        notes.append(f"{kept}, {len(bare):,} image(s) without an annotation: {named(bare)}")
    left = set(bare) if drop else set()
    images = {path: split for path, split in found.images.items() if path not in left}
    gone = {record.image for record in lost}
    records = [record for record in found.records if record.image not in gone]
    return records, images | {record.image: record.split for record in records}


class _Marks:
    """What is counted while outlines become run lengths.

    Args:
        classes: of the export.
    """

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self.objects: Counter[int] = Counter()
        self.images: Counter[int] = Counter()
        self.pixels: Counter[int] = Counter()
        self.empty: list[str] = []
        self.cut: list[str] = []
        self.bare = 0

    def take(self, number: int, pixels: int, where: str, cut: bool) -> None:
        """Count a shape."""
        self.objects[number] += 1
        self.pixels[number] += pixels
        if not pixels:
            self.empty.append(where)
        if cut:
            self.cut.append(where)

    def notes(self, told: Told) -> list[str]:
        """What a person should know of the shapes."""
        lines = []
        if self.cut:
            lines.append(f"cut at the image's edge, {len(self.cut):,} outline(s): {named(self.cut, 3)}")
        if self.empty:
            lines.append(f"no pixel's centre lies inside {len(self.empty):,} outline(s): {named(self.empty, 3)}")
        if self.bare:
            lines.append(f"{self.bare:,} image(s) are annotated and have no object: all of each is unlabelled "
                         f"({told.unlabelled})")  # fmt: skip
        return lines

    def tallies(self) -> tuple[Tally, ...]:
        """A line per class, and one for what becomes 255."""
        rows = [(k, name) for k, name in enumerate(self.classes.names)]
        rows += [(IGNORE, "(ignored)")] if self.objects[IGNORE] else []
        return tuple(Tally(name, self.objects[k], self.images[k], self.pixels[k]) for k, name in rows)


def _item(source: Path, path: str, record: Record | None, told: Told, marks: _Marks, blind: bool) -> Item:
    """An image and what to paint on it; one without a record has no object, and where it is blind no label.

    Raises:
        DataError: image and record do not agree; the message names both.
    """
    try:
        (height, width), turn = stored_size(source / path)
    except DataError:  # reported when it is read for its shard, where damaged rows may be left out
        return Item(id_of(path), str(source / path), (1, 1, marks.classes.unlabelled, ()))
    if record is None:
        bare: Drawing = (height, width, marks.classes.unlabelled, ())
        return Item(id_of(path), str(source / path), None if blind else bare)
    check_agrees(path, (height, width), turn, record.size, record.file)
    painted: list[Painted] = []
    for shape in record.shapes:
        number = marks.classes.number(shape.name)
        try:
            scaled = in_pixels(shape, height, width) if record.fractions else shape
            counts, cut = run_lengths(scaled, height, width, told.outside, told.line_width)
        except DataError as error:
            raise DataError(f"{record.file}: {error}") from None
        where = f"{record.file}, {shape.at}"
        marks.take(IGNORE if shape.crowd else number, pixels_of(counts, height, width), where, cut)
        painted.append((number, shape.crowd, counts))
    marks.images.update({IGNORE if crowd else number for number, crowd, _ in painted})
    marks.bare += not painted
    drawing = (height, width, marks.classes.unlabelled, in_order(painted, height, width))
    return Item(id_of(path), str(source / path), drawing)


def in_pixels(shape: Shape, height: int, width: int) -> Shape:
    """A shape whose rings are in shares of the image's sides, in pixels."""
    return Shape(shape.name, shape.at, tuple(ring * (width, height) for ring in shape.rings))
