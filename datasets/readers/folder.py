"""A folder of one's own: images, masks and a list of classes."""

from functools import partial
from pathlib import Path
from typing import Any

import yaml

from datasets.readers.labels import (
    UNKNOWN,
    check_present,
    check_split,
    colour_map,
    lookup_table,
    read_list,
    read_png_pair,
)
from datasets.sample import IGNORE, Benchmark, DataError, Item

SPLITS = ("train", "val", "test")
SUFFIXES = (".jpg", ".jpeg", ".png")
KEYS = ("classes", "palette", "ignore")
TREE = """\
DIR/
  classes.yaml                         classes: [road, car]  or  classes: {0: road, 7: car}  (mask value: name)
                                       palette: [[128, 64, 128], [0, 0, 142]]   optional
                                       ignore: [255]                            optional
  images/STEM.jpg                      or .jpeg or .png
  masks/STEM.png                       grey or palette PNG; the stored value is the class
  train.txt  val.txt  test.txt         optional: one stem per line
                                       without lists: images/train + masks/train, images/val + masks/val, ...;
                                       without either, all images are split train"""


def folder(source: Path) -> Benchmark:
    """One's own images and masks; a split whose folder of masks does not exist has no labels.

    Raises:
        DataError: `classes.yaml` is missing or wrong.
    """
    source = Path(source).absolute()
    settings = _settings(source / "classes.yaml")
    names, values = _classes(settings["classes"])
    palette = settings.get("palette")
    colours = colour_map(len(names)) if palette is None else _palette(palette, len(names))
    ignored = _ignored(settings.get("ignore", [IGNORE]), values)
    table = lookup_table({**{value: k for k, value in enumerate(values)}, **dict.fromkeys(ignored, IGNORE)})
    splits: dict[str, int | None] = dict.fromkeys(_splits(source))
    index, read = partial(index_folder, source), partial(read_png_pair, table=table)
    return Benchmark("folder", names, colours, splits, TREE, index, read, "nowhere: it is your own")


def index_folder(source: Path, split: str) -> list[Item]:
    """The split's images, in the list's order or by stem.

    Raises:
        DataError: an unknown split, missing files, or two images of one stem.
    """
    check_split(split, _splits(source), "folder")
    nested = (source / "images" / split).is_dir() and not _listed(source)
    images, masks = (source / kind / split if nested else source / kind for kind in ("images", "masks"))
    check_present([images], TREE)
    by_stem = _by_stem(images)
    stems = read_list(source / f"{split}.txt", _stem, TREE) if _listed(source) else sorted(by_stem)
    check_present([images / f"{stem}.jpg" for stem in stems if stem not in by_stem], TREE)
    items = [Item(s, str(by_stem[s]), str(masks / f"{s}.png") if masks.is_dir() else None) for s in stems]
    if not items:
        raise DataError(f"{images}: no image in it ({', '.join(SUFFIXES)}). Expected is this folder:\n{TREE}")
    check_present([str(item.label) for item in items if item.label], TREE)
    return items


def _listed(source: Path) -> list[str]:
    return [split for split in SPLITS if (source / f"{split}.txt").is_file()]


def _splits(source: Path) -> list[str]:
    nested = [split for split in SPLITS if (source / "images" / split).is_dir()]
    return _listed(source) or nested or ["train"]


def _stem(line: str) -> str:
    """The stem on a line that may bear an image's suffix; a stem may hold blanks and dots."""
    return Path(line).stem if Path(line).suffix.lower() in SUFFIXES else line


def _by_stem(images: Path) -> dict[str, Path]:
    by_stem: dict[str, Path] = {}
    for path in sorted(images.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in by_stem:
                raise DataError(f"{path} and {by_stem[path.stem].name} share one stem and so one mask; rename one")
            by_stem[path.stem] = path
    return by_stem


def _settings(path: Path) -> dict[str, Any]:
    check_present([path], TREE)
    try:
        settings = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise DataError(f"{path}: no YAML ({error}). Expected is:\n{TREE}") from error
    if not isinstance(settings, dict) or "classes" not in settings or set(settings) - set(KEYS):
        found = ", ".join(map(str, settings)) if isinstance(settings, dict) else type(settings).__name__
        raise DataError(f"{path}: has {found}; needed is classes, allowed are {', '.join(KEYS)}. Expected is:\n{TREE}")
    return settings


def _classes(classes: object) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names in order of their mask values, and those values."""
    pairs = dict(enumerate(classes)) if isinstance(classes, list) else classes
    if not isinstance(pairs, dict) or not pairs or len(pairs) > UNKNOWN or not all(map(_is_value, pairs)):
        raise DataError(f"classes.yaml: classes is {classes!r}; allowed is a list of at most {UNKNOWN} names, or a "
                        "mapping of mask values (0-255) to names")  # fmt: skip
    if len(set(map(str, pairs.values()))) < len(pairs):
        raise DataError(f"classes.yaml: a name occurs twice in {list(pairs.values())}; rename one")
    values = tuple(sorted(pairs))
    return tuple(str(pairs[value]) for value in values), values


def _ignored(ignore: object, values: tuple[int, ...]) -> list[int]:
    if not isinstance(ignore, list) or not all(map(_is_value, ignore)):
        raise DataError(f"classes.yaml: ignore is {ignore!r}; allowed is a list of mask values 0-255")
    if both := sorted(set(ignore) & set(values)):
        raise DataError(f"classes.yaml: value {both[0]} is both a class and ignored; remove it from one of them")
    return ignore


def _palette(palette: object, count: int) -> tuple[tuple[int, int, int], ...]:
    rows = palette if isinstance(palette, list) else []
    if len(rows) != count or not all(isinstance(c, list) and len(c) == 3 and all(map(_is_value, c)) for c in rows):
        raise DataError(f"classes.yaml: palette is {palette!r}; expected are {count} colours [R, G, B] of 0-255")
    return tuple((c[0], c[1], c[2]) for c in rows)


def _is_value(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255
