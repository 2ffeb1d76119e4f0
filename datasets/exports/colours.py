"""Masks of colours in images/ and masks/, beside a tool's table of colours."""

from functools import partial
from pathlib import Path

from datasets.exports.colour_table import CLASS_DICT, LABELMAP, classes_of_colours, mask_of_colours, read_table
from datasets.exports.finding import id_of, images_of, split_of
from datasets.exports.masked import counted, read_masked
from datasets.exports.pairing import bare_item, by_split, check_pairs, keeps, key_of
from datasets.exports.records import Export, Told
from datasets.readers.classes_yaml import PAGE
from datasets.sample import DataError, Item

TREE = """\
DIR/                                   RGB masks with a table of colours
  class_dict.csv                       name,r,g,b  and a line per class; or labelmap.txt, name:R,G,B:: per line
  images/NAME.jpg                      images/train, images/val and images/test are splits; masks/ has them too
  masks/NAME.png                       each pixel has the colour of its class
                                       (several colours of one class, colours to ignore: `colours` in classes.yaml)"""


def fits(source: Path, files: list[str]) -> str:
    """Why a folder holds masks of colours with a tool's table; "" where it does not."""
    table = next((name for name in (CLASS_DICT, LABELMAP) if name in files), "")
    both = all(any(path.startswith(f"{kind}/") for path in files) for kind in ("images", "masks"))
    return f"{table} with images/ and masks/" if table and both and PAGE not in files else ""


def read(source: Path, files: list[str], told: Told) -> Export:
    """Read images and masks; see `Format`."""
    name = next((name for name in (CLASS_DICT, LABELMAP) if name in files), "")
    if not name:
        raise DataError(f"{source}: no {CLASS_DICT} and no {LABELMAP}. Expected is:\n{TREE}")
    classes, palette, numbers = classes_of_colours(read_table(source / name), told)
    images = {key_of(path, "images/"): path for path in images_of(files) if path.startswith("images/")}
    masks = {key_of(path, "masks/"): path for path in images_of(files) if path.startswith("masks/")}
    notes: list[str] = []
    labelled = {split_of(path) for path in masks.values()}
    blind = {"test"} - labelled
    unlabelled = next((k for k, title in enumerate(classes) if title == "background"), 255)
    bare = [path for key, path in images.items() if key not in masks and split_of(path) not in blind]
    check_pairs(source, bare, [path for key, path in masks.items() if key not in images], told, notes)
    rows: dict[str, list[Item]] = {}
    for key, path in images.items():
        label = str(source / masks[key]) if key in masks else None
        if label is not None or split_of(path) in blind:
            rows.setdefault(split_of(path), []).append(Item(id_of(path), str(source / path), label))
        elif keeps(told):
            rows.setdefault(split_of(path), []).append(bare_item(source, path, unlabelled))
    done, mask_of = by_split(source, rows, TREE), partial(mask_of_colours, numbers=numbers)
    ignored = "the background, as told, and borders" if told.unlabelled == "ignore" else ""
    tallies = counted(source, done, classes, mask_of)
    return Export(classes, palette, done, partial(read_masked, mask_of=mask_of), tallies, ignored, tuple(notes),
                  {name, *images.values(), *masks.values()})  # fmt: skip
