"""What a reader of an export gives: images with their outlines, or rows whose masks are files."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.sample import Benchmark, Item, Sample

Colour = tuple[int, int, int]
BACKGROUND, IGNORED = "background", "__ignore__"
UNLABELLED = ("background", "ignore")
UNANNOTATED = ("refuse", "empty", "drop")


@dataclass(frozen=True)
class Told:
    """What a person decides, because an export does not say.

    Args:
        unlabelled: what pixels without a label are: background, or ignore.
        unannotated: what to do with images without an annotation: refuse; empty, one without objects; drop.
        unpaired: whether annotations without an image are left out, not refused; images without an annotation too.
        outside: whether outlines that reach beyond their image are cut at its edge, not refused.
        line_width: pixels, how wide lines are drawn; 0 refuses them.
        damaged: whether images that do not read are left out when rows are written.
        val: the share of the images that become split val, where the export has none.
    """

    unlabelled: str = "background"
    unannotated: str = "refuse"
    unpaired: bool = False
    outside: bool = False
    line_width: int = 0
    damaged: bool = False
    val: float = 0.0


@dataclass(frozen=True)
class Shape:
    """One outline of an image, in pixels; (0, 0) is the upper left corner of the upper left pixel.

    Args:
        name: of its class, as written.
        at: where it stands in its file, for messages.
        rings: float64 (n, 2) each, x and y of corners; what any of them encloses belongs to the shape.
        holes: the same, what none of them may enclose.
        bits: bool (h, w) and the x, y of its upper left pixel, for shapes that are drawn as pixels.
        circle: x, y of the centre, and the radius.
        line: float64 (n, 2), an open line.
        rle: COCO's run lengths of the whole image, {"size": [H, W], "counts": ...}.
        crowd: whether it is several objects under one outline: 255 where no other shape is.
    """

    name: str
    at: str
    rings: tuple[np.ndarray, ...] = ()
    holes: tuple[np.ndarray, ...] = ()
    bits: tuple[np.ndarray, int, int] | None = None
    circle: tuple[float, float, float] | None = None
    line: np.ndarray | None = None
    rle: dict[str, object] | None = None
    crowd: bool = False


@dataclass(frozen=True)
class Record:
    """One image as an annotation file describes it.

    Args:
        split: train, val or test; "" where the export names none.
        image: path of the image in the source; where it is not there, the path that the file names.
        file: path of the annotation file in the source.
        size: height and width as the file states them; None where it does not.
        shapes: in the file's order.
        fractions: whether shapes are in shares of the image's sides, not in pixels.
    """

    split: str
    image: str
    file: str
    size: tuple[int, int] | None
    shapes: tuple[Shape, ...]
    fractions: bool = False


@dataclass
class Outlined:
    """An export of outlines.

    Args:
        names: the classes that the export lists, in its order; further ones are added as they are found.
        records: its annotated images.
        images: path in the source -> split, of all images that should have a record.
        pages: further files that were read, as paths in the source.
        palette: name -> colour, where the export has one.
        notes: what the reader decided.
    """

    names: list[str]
    records: list[Record]
    images: dict[str, str]
    pages: set[str] = field(default_factory=set)
    palette: dict[str, Colour] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Tally:
    """What the labels hold of a class.

    Args:
        name: of the class.
        objects: how many; None where labels are masks.
        images: with at least one of it.
        pixels: of all its objects together, before smaller ones hide parts of larger ones.
    """

    name: str
    objects: int | None
    images: int
    pixels: int


@dataclass
class Export:
    """What an own folder of any format comes to.

    Args:
        classes: K names.
        palette: K colours.
        rows: split -> rows.
        read: row -> sample, picklable.
        tallies: of all classes, the unlabelled area last; () where nothing was counted.
        ignored: which labels become 255, for a person.
        notes: what was decided; a line each.
        used: files that are read, as paths in the source.
    """

    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    rows: dict[str, list[Item]]
    read: Callable[[Item], Sample]
    tallies: tuple[Tally, ...] = ()
    ignored: str = ""
    notes: tuple[str, ...] = ()
    used: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Format:
    """A line of the table of formats.

    Args:
        what: the tools that write it, for people.
        tree: a drawing of the expected folder.
        fits: why a folder is of this format, by its files; "" where it is not.
        read: the folder, its files and what a person decided -> what it comes to.
    """

    what: str
    tree: str
    fits: Callable[[Path, list[str]], str]
    read: Callable[[Path, list[str], Told], Export]


@dataclass(frozen=True)
class Own:
    """The user's own folder, read.

    Args:
        benchmark: what is prepared.
        format: its name in the table.
        why: how it was recognised; "" where a person named it.
        tallies: what the labels hold; () where nothing was counted.
    """

    benchmark: Benchmark
    format: str
    why: str
    tallies: tuple[Tally, ...]
