"""One binary mask per class and image: NAME.CLASS.png, or a folder per class."""

from functools import partial
from pathlib import Path

import numpy as np

from datasets.exports.finding import id_of, images_of, split_of
from datasets.exports.masked import counted, numbered, read_masked
from datasets.exports.painting import ORDER
from datasets.exports.pairing import bare_item, by_split, check_pairs, keeps, key_of
from datasets.exports.records import Export, Told
from datasets.readers.classes_yaml import PAGE
from datasets.readers.labels import colour_map, opened_mask
from datasets.sample import DataError, Item, Layers
from datasets.text import named

TREE = """\
DIR/                                   one binary mask per class
  images/NAME.jpg                      images/train, images/val and images/test are splits; masks/ has them too
  masks/NAME.CLASS.png                 or masks/CLASS/NAME.png: 0, and one other value where the class is
                                       an image without a mask of a class has none of it"""
MASKS = (".png", ".tif", ".tiff", ".bmp", ".gif")


def fits(source: Path, files: list[str]) -> str:
    """Why a folder holds one mask per class; "" where it does not."""
    if PAGE in files:
        return ""
    stems = {key_of(path, "images/") for path in images_of(files) if path.startswith("images/")}
    masks = [path for path in files if path.startswith("masks/") and path.lower().endswith(MASKS)]
    if not masks or any(key_of(path, "masks/") in stems for path in masks):
        return ""
    found = [path for path in masks if _parted(path, stems)]
    return f"{found[0]} is the mask of one class of an image" if len(found) * 2 > len(masks) else ""


def read(source: Path, files: list[str], told: Told) -> Export:
    """Read images and masks; see `Format`."""
    images = {key_of(path, "images/"): path for path in images_of(files) if path.startswith("images/")}
    if not images:
        raise DataError(f"{source}: no image in images/. Expected is:\n{TREE}")
    layers: dict[str, dict[str, str]] = {}
    lonely = []
    for path in files:
        if not path.startswith("masks/") or not path.lower().endswith(MASKS):
            continue
        if not (parted := _parted(path, set(images))):
            lonely.append(path)
            continue
        stem, name = parted
        if (other := layers.setdefault(stem, {}).setdefault(name, path)) != path:
            raise DataError(f"{source}: {other} and {path} both are {name!r} of one image; keep one")
    names = sorted({name for masks in layers.values() for name in masks})
    if not names:
        raise DataError(f"{source}: no mask of a class in masks/. Expected is:\n{TREE}")
    numbers = numbered(dict(enumerate(names)), told)
    notes, used = [ORDER], set()
    rows: dict[str, list[Item]] = {}
    blind = {split for split in ("test",) if not any(split_of(images[stem]) == split for stem in layers)}
    bare = [path for stem, path in images.items() if stem not in layers and split_of(path) not in blind]
    check_pairs(source, bare, lonely, told, notes)
    for stem, path in images.items():
        masks = layers.get(stem, {})
        used |= {path, *masks.values()}
        if masks:
            label = Layers(tuple((numbers.of[names.index(name)], str(source / masks[name])) for name in sorted(masks)),
                           numbers.unlabelled)  # fmt: skip
            item = Item(id_of(path), str(source / path), label)
        elif split_of(path) in blind:
            item = Item(id_of(path), str(source / path), None)
        elif keeps(told):
            item = bare_item(source, path, numbers.unlabelled)
        else:
            continue
        rows.setdefault(split_of(path), []).append(item)
    done = by_split(source, rows, TREE)
    usual = colour_map(len(numbers.classes) + 1)
    palette = usual[:-1] if told.unlabelled == "background" else usual[1:]
    ignored = "unlabelled area, as told" if told.unlabelled == "ignore" else ""
    return Export(numbers.classes, palette, done, partial(read_masked, mask_of=mask_of),
                  counted(source, done, numbers.classes, mask_of), ignored, tuple(notes), used)  # fmt: skip


def _parted(path: str, stems: set[str]) -> tuple[str, str] | None:
    """The image's stem and the class of a mask; None where it belongs to no image."""
    whole = key_of(path, "masks/")
    before, _, name = whole.rpartition(".")
    if before in stems and name:
        return before, name
    parts = whole.split("/")
    for place in (0, 1, len(parts) - 2):  # the class's folder stands first, behind the split, or last
        if 0 <= place < len(parts) - 1 and (stem := "/".join(parts[:place] + parts[place + 1 :])) in stems:
            return stem, parts[place]
    return None


def mask_of(item: Item) -> np.ndarray:
    """Paint the layers of an image: from the most pixels to the fewest, equal ones by the classes' names.

    Raises:
        DataError: a mask of more than two values, or masks of several sizes.
    """
    layers: Layers = item.label  # type: ignore[assignment]
    found = [(number, binary(path), path) for number, path in layers.masks]
    if len(sizes := {bits.shape for _, bits, _ in found}) > 1:
        told = named(f"{path} {bits.shape[1]}x{bits.shape[0]}" for _, bits, path in found)
        raise DataError(f"masks of one image have {len(sizes)} sizes (width x height): {told}. Export them again")
    mask = np.full(found[0][1].shape, layers.unlabelled, np.uint8)
    for number, bits, _ in sorted(found, key=lambda layer: -int(layer[1].sum())):
        mask[bits] = number
    return mask


def binary(path: str) -> np.ndarray:
    """Where a mask of one class is not 0.

    Returns:
        bool (H, W).

    Raises:
        DataError: the mask has more than one value besides 0, or is damaged.
    """
    with opened_mask(path) as image:
        stored = np.asarray(image.convert("RGB") if image.mode in ("RGBA", "LA") else image)
    if stored.ndim == 3:
        if (stored != stored[..., :1]).any():
            raise DataError(f"{path}: a mask of one class has colours; expected are 0 and one other value. If colours "
                            "are classes, name them under `colours` in classes.yaml")  # fmt: skip
        stored = stored[..., 0]
    if len(values := np.unique(stored[stored != 0])) > 1:
        raise DataError(f"{path}: a mask of one class holds {named(map(int, values), 5)} besides 0; expected is one "
                        "such value. Export without smoothing; if values are classes, add classes.yaml")  # fmt: skip
    return stored != 0
