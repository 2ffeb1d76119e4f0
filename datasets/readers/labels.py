"""What all readers share: checks of files, lists, masks of values, and the way from values to classes."""

import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.damage import check_png, decode_checked
from datasets.readers.files import instead, leads_nowhere, naming_file, of_file
from datasets.readers.formats import as_png
from datasets.sample import ABSENT, DAMAGED, JPEG, PNG, DataError, Item, Sample, check_size, image_size
from datasets.text import lines_of, named, read_text

UNKNOWN = 254
"""The mark of a value outside the table; because of it a benchmark has at most 254 classes."""

DEEP = ("I;16", "I;16B", "I;16L", "I")
"""Pillow's modes of grey PNGs of 16 bits."""

LOSSLESS = ("PNG", "TIFF", "BMP", "GIF")
"""Pillow's names of the formats that a mask may have."""

PNG_ERRORS = (OSError, SyntaxError, ValueError)
"""What Pillow raises on missing and damaged files."""


def lookup_table(values: Mapping[int, int]) -> np.ndarray:
    """A table for `remap`.

    Args:
        values: label value -> class or 255.

    Returns:
        uint8 (256,), UNKNOWN for all other values.
    """
    table = np.full(256, UNKNOWN, np.uint8)
    for value, target in values.items():
        table[value] = target
    return table


def remap(labels: np.ndarray, table: np.ndarray, source: str) -> np.ndarray:
    """Replace label values by their classes.

    Args:
        labels: uint8 or uint16 (H, W) as stored.
        table: uint8 from `lookup_table`, or from `tables.wide_table` for uint16.
        source: the file, for the message.

    Returns:
        uint8 (H, W), classes 0..K-1 and 255.

    Raises:
        DataError: a value is outside the table; the message names its first pixel.
    """
    mask = table[labels]
    wrong = mask == UNKNOWN
    if wrong.any():
        row, column = first_place(wrong)
        allowed = [int(v) for v in np.flatnonzero(table != UNKNOWN)]
        raise DataError(
            f"{source}: label value {labels[row, column]} at row {row}, column {column} ({wrong.sum()} such pixels); "
            f"allowed are {_ranges(allowed)}. Correct the mask, or its table of values"
        )
    return mask


def first_place(wrong: np.ndarray) -> tuple[int, int]:
    """Row and column of the first True of a bool (H, W)."""
    row, column = np.unravel_index(wrong.argmax(), wrong.shape)
    return int(row), int(column)


def read_index_png(path: str) -> np.ndarray:
    """Read the stored values of a grey or palette PNG of 1 to 16 bits: the palette's index, never its colour.

    TIFF, BMP and GIF are read alike: what counts is the file's content, and that it is lossless.

    Returns:
        uint8 (H, W).

    Raises:
        DataError: the file is missing, damaged or lossy, has colours, or has a value outside 0-255.
    """
    with opened_mask(path) as image:
        return _values(image, path)


def mask_values(data: bytes, path: str) -> np.ndarray:
    """The same as `read_index_png`, of a file's bytes.

    Args:
        data: the bytes.
        path: where they are from, for messages.

    Raises:
        DataError: as `read_index_png`.
    """
    with _opened(data, path) as image:
        return _values(image, path)


def _values(image: Image.Image, path: str) -> np.ndarray:
    if image.mode not in ("P", "L", "1", *DEEP):
        raise DataError(
            f"{path}: a mask of mode {image.mode}; allowed are grey or palette PNGs whose values are classes. "
            "Convert each colour to its class number and save that, or, in your own folder, name the classes' "
            "colours under `colours` in classes.yaml"
        )
    step = _step(image)
    stored = np.asarray(image)
    if stored.dtype.itemsize > 1 and (wrong := (stored < 0) | (stored > 255)).any():
        row, column = first_place(wrong)
        raise DataError(f"{path}: label value {stored[row, column]} at row {row}, column {column}; a mask of 16 bits "
                        "may hold 0-255. Save it with its classes' numbers")  # fmt: skip
    return stored.astype(np.uint8) // step


@contextmanager
def opened_mask(path: str) -> Iterator[Image.Image]:
    """A mask's file, opened by Pillow, after a check that it can hold classes; errors in the body name the file.

    Raises:
        DataError: the file is missing or damaged, too large, of a lossy or unknown format, or has several pictures.
    """
    with naming_file(path, "the mask does not read", PNG_ERRORS):
        data = Path(path).read_bytes()
    with _opened(data, path) as image:
        yield image


@contextmanager
def _opened(data: bytes, path: str) -> Iterator[Image.Image]:
    with naming_file(path, "the mask does not read", PNG_ERRORS):
        if data.startswith(PNG):
            with of_file(path):
                check_png(data)
        with Image.open(io.BytesIO(data)) as image:
            with of_file(path):
                check_size(image.height, image.width)
            _check_lossless(image, path)
            yield image


def _check_lossless(image: Image.Image, path: str) -> None:
    kind, packing = str(image.format), str(image.info.get("compression", ""))
    if kind in ("JPEG", "MPO", "JPEG2000", "WEBP") or (kind == "TIFF" and "jpeg" in packing):
        inside = "" if kind != "TIFF" else f" with {packing} inside"
        raise DataError(f"{path}: by its content the mask is a {kind}{inside}, a lossy format, and a "
                        "changed value is another class. Export it as PNG from its original: converting this file "
                        "cannot restore it")  # fmt: skip
    if kind not in LOSSLESS:
        raise DataError(f"{path}: the mask is a {kind}; allowed are {', '.join(LOSSLESS)}. Save it as PNG")
    if (count := getattr(image, "n_frames", 1)) > 1:
        raise DataError(f"{path}: the file holds {count} pictures; expected is one. Save each as a separate PNG")


def _step(image: Image.Image) -> int:
    """The factor by which Pillow multiplied the values of a grey PNG of 2 or 4 bits, so that they fill 0..255."""
    tiles = getattr(image, "tile", [])  # how rows are stored; Pillow drops this when it loads the image
    if not tiles:
        return 1
    how = tiles[0][3]
    return {"L;2": 85, "L;4": 17}.get(str(how[0] if isinstance(how, tuple) else how), 1)


def read_image(path: str) -> tuple[bytes, tuple[int, int]]:
    """The bytes to store of an image file, and the (height, width) of what they decode to.

    The bytes are the file's own where it is JPEG or PNG; other formats become a PNG of the same pixels.

    Raises:
        DataError: the file is missing, too large, truncated, or damaged anywhere.
    """
    with of_file(path):
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"{error}", DAMAGED) from error
        return image_of(data)


def image_of(data: bytes) -> tuple[bytes, tuple[int, int]]:
    """The same as `read_image`, of a file's bytes.

    Raises:
        DataError: as `read_image`.
    """
    if not data.startswith((JPEG, PNG)):
        data = as_png(data)
    check_size(*image_size(data))
    return data, decode_checked(data).shape[:2]


def read_pair(item: Item, mask_of: Callable[[], np.ndarray], noted: str = "") -> Sample:
    """Read an item's image, and its mask where it has a label; both must have one size.

    Args:
        item: the item.
        mask_of: reads the mask; not called where there is no label.
        noted: where the mask's size comes from, unless from the mask's own file; for the message.

    Raises:
        DataError: a damaged file or two sizes.
    """
    data, size = read_image(item.image)
    if item.label is None:
        return Sample(item.id, data, None)
    mask = mask_of()
    if mask.shape != size:
        cure = "Export the mask at the image's size, without EXIF rotation"
        cure = f"Image and {noted} must be of one release: fetch both again" if noted else cure
        raise DataError(
            f"{item.image}: the image is {size[1]}x{size[0]} pixels (width x height), {noted or 'its mask'} "
            f"{mask.shape[1]}x{mask.shape[0]}; both must be of one size. {cure}"
        )
    return Sample(item.id, data, mask)


def read_png_pair(item: Item, table: np.ndarray) -> Sample:
    """Read an item whose label is the path of an index PNG.

    Raises:
        DataError: a damaged file, a value outside the table, or two sizes.
    """
    path = str(item.label)
    return read_pair(item, lambda: remap(read_index_png(path), table, path))


def check_split(split: str, allowed: Iterable[str], benchmark: str) -> None:
    """Raise DataError unless the split is known."""
    if split not in (names := list(allowed)):
        raise DataError(f"{benchmark} has no split {split!r}; allowed are {', '.join(names)}")


def check_present(paths: Iterable[str | Path], tree: str) -> None:
    """Raise DataError where files are missing, with their count, the first ten of them, and the expected folder.

    Where an archive is in their place, or a name in another case (`Images` for `images`), the message says so, with
    the cure. A link that leads nowhere is missing too.
    """
    listings: dict[str, dict[str, bool]] = {}
    missing = []
    for path in map(str, paths):
        folder, name = os.path.split(path)
        if folder not in listings:  # one listing per folder: a stat per file takes minutes on a network disk
            listings[folder] = _entries(folder)
        if not listings[folder].get(name, False):
            missing.append(path)
    if missing:
        first = named((path + leads_nowhere(path) for path in missing), between="\n  ")
        count = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
        found = f"\n{cure}." if (cure := instead(missing[0])) else ""
        raise DataError(f"{count} missing:\n  {first}{found}\nExpected is this folder; unpack it whole:\n{tree}")


def _entries(folder: str) -> dict[str, bool]:
    """The names in a folder; each with whether something is there, which only links leave open."""
    if not os.path.isdir(folder):
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: not entry.is_symlink() or os.path.exists(entry.path) for entry in entries}


@contextmanager
def absent_unless(*pieces: Path) -> Iterator[None]:
    """In the body, a fault of a split of which nothing is there becomes one of the kind ABSENT.

    Args:
        pieces: what the split consists of; where one of them is there, the split is there in part.

    Raises:
        DataError: what the body raises.
    """
    try:
        yield
    except DataError as error:
        if not any(os.path.lexists(piece) for piece in pieces):
            raise DataError(str(error), ABSENT) from error
        raise


def check_items(items: Iterable[Item], tree: str) -> None:
    """Raise DataError where images of items are missing, or labels that are paths, as `check_present` does."""
    check_present([path for item in items for path in (item.image, item.label) if isinstance(path, str)], tree)


def read_list(path: Path, stem_of: Callable[[str], str], tree: str) -> list[str]:
    """The ids of a list file, one per line.

    Args:
        path: the list; it must exist.
        stem_of: line without surrounding blanks -> id.
        tree: the expected folder, for the message.

    Raises:
        DataError: the list is missing or empty, or names an id twice.
    """
    check_present([path], tree)
    stems = [stem_of(line) for line in lines_of(read_text(path))]
    if not stems:
        raise DataError(f"{path}: the list is empty; expected is one id per line")
    if twice := [stem for stem, count in Counter(stems).items() if count > 1]:
        raise DataError(f"{path}: listed twice: {named(twice)}; keep one line of each")
    return stems


def colour_map(count: int) -> tuple[tuple[int, int, int], ...]:
    """VOC's colours: bit 3j + c of the class number is bit 7 - j of channel c."""
    return tuple((_channel(number, 0), _channel(number, 1), _channel(number, 2)) for number in range(count))


def _channel(number: int, channel: int) -> int:
    return sum(((number >> (3 * j + channel)) & 1) << (7 - j) for j in range(3))


def _ranges(values: list[int]) -> str:
    """Write sorted numbers as ranges: 0-20, 255."""
    starts = [v for v in values if v - 1 not in values]
    ends = [v for v in values if v + 1 not in values]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
