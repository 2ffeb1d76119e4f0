"""Pictures to judge a run by: overlays, confusion matrix, IoU bars, contact sheets."""

from __future__ import annotations

import functools
import hashlib
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from pipelines.base.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Palette = Sequence[Sequence[int]]
LONGEST = 100  # letters of a file's name
LARGEST = 8192  # sides of a picture, pixels
MOST_LETTERS = 40  # of a label
LETTERS = 14  # of a title, per inch
MOST_CLASSES = 200  # of a picture with a line for each: of a thousand nobody sees anything


def safe_name(sample_id: str) -> str:
    """A sample id as a file name: unlike ids give unlike names, and none is too long for a disk."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", sample_id)
    if plain == sample_id and 0 < len(plain) <= LONGEST and not plain.startswith("."):
        return plain
    mark = hashlib.sha256(sample_id.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{plain[-LONGEST:].lstrip('.')}-{mark}"


def write_png(path: Path, image: np.ndarray) -> str:
    """Write RGB uint8 (H, W, 3); returns the path."""
    with replacing(path) as temporary:
        if not cv2.imwrite(str(temporary), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
            raise OSError(f"cannot write the picture {path}")
    return str(path)


def save_counts(path: Path, counts: np.ndarray) -> str:
    """Write the confusion counts as .npy; returns the path."""
    with replacing(path) as temporary:
        np.save(temporary, counts)
    return str(path)


def colour(mask: np.ndarray, palette: Palette) -> np.ndarray:
    """Mask uint8 (H, W) in the palette's colours, ignored pixels white: RGB uint8 (H, W, 3)."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(palette)] = np.array(palette, np.uint8)
    return table[mask]


def blend(image: np.ndarray, mask: np.ndarray, palette: Palette, share: float = 0.6) -> np.ndarray:
    """The coloured mask over the image: RGB uint8 (H, W, 3)."""
    return cv2.addWeighted(colour(mask, palette), share, image, 1 - share, 0)


def save_overlay(path: Path, image: np.ndarray, mask: np.ndarray, prediction: np.ndarray, palette: Palette) -> str:
    """image | truth | prediction side by side, at least 240 pixels high where that is not too wide."""
    image, mask, prediction = (fitted(pixels, LARGEST // 3, LARGEST) for pixels in (image, mask, prediction))
    truth, guess = blend(image, mask, palette), blend(image, np.where(mask == 255, 255, prediction), palette)
    bar = np.full((image.shape[0], 4, 3), 255, np.uint8)
    row = np.hstack([image, bar, truth, bar, guess])
    factor = min(max(1, round(240 / row.shape[0])), max(1, LARGEST // row.shape[1]))
    return write_png(path, cv2.resize(row, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST))


def fitted(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """An image or a mask, reduced to at most this size; as it is where it fits."""
    if pixels.shape[1] <= width and pixels.shape[0] <= height:
        return pixels
    how = cv2.INTER_AREA if pixels.ndim == 3 else cv2.INTER_NEAREST
    return cv2.resize(pixels, within(pixels.shape, width, height), interpolation=how)


def within(shape: Sequence[int], width: int, height: int) -> tuple[int, int]:
    """Width and height of the largest picture of an image's proportions in a box; each at least 1."""
    scale = min(width / shape[1], height / shape[0])
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def contact_sheet(
    samples: Iterable[tuple[str, np.ndarray, np.ndarray | None]],
    classes: Sequence[str],
    palette: Palette,
    columns: int = 4,
    width: int = 320,
) -> np.ndarray:
    """A grid of images, each above its coloured mask, with ids and a legend: RGB uint8 (H, W, 3).

    All pictures fit into one box, whose height is that of the common image: a portrait among landscapes is narrower,
    not taller, so that the sheet does not become white.

    Args:
        samples: id, image and mask of each; taken one after the other, because they may be large.
        classes: K names.
        palette: K colours.
        columns: pictures side by side.
        width: of a picture, pixels.
    """
    kept = [(name, *_small(image, mask, palette, width)) for name, image, mask in samples]
    natural = sorted(round(width * image.shape[0] / image.shape[1]) for _, image, _ in kept)
    height = max(16, min(natural[len(natural) // 2], width * 3 // 2))
    cells = [_cell(name, image, mask, width, height) for name, image, mask in kept]
    tallest = max(len(cell) for cell in cells)
    cells = [np.pad(cell, ((0, tallest - len(cell)), (2, 2), (0, 0)), constant_values=255) for cell in cells]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    return np.vstack([*rows, legend(classes, palette, rows[0].shape[1])])


def _small(
    image: np.ndarray, mask: np.ndarray | None, palette: Palette, width: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """An image, and the same under its coloured mask, no larger than a cell needs them."""
    size = within(image.shape, width, width * 3 // 2)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if mask is None:
        return small, None
    return small, blend(small, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), palette)


def _cell(name: str, image: np.ndarray, both: np.ndarray | None, width: int, height: int) -> np.ndarray:
    """A cell of the sheet: id, image and mask, each in the middle of its box."""
    boxes = [np.full((20, width, 3), 255, np.uint8)]
    draw_texts(boxes[0], [(4, 3, one_line(name)[-MOST_LETTERS:])])
    for picture in (image, both):
        if picture is None:
            continue
        box = np.full((height, width, 3), 255, np.uint8)
        shown = cv2.resize(picture, within(picture.shape, width, height), interpolation=cv2.INTER_AREA)
        top, left = (height - shown.shape[0]) // 2, (width - shown.shape[1]) // 2
        box[top : top + shown.shape[0], left : left + shown.shape[1]] = shown
        boxes.append(box)
    return np.vstack(boxes)


def legend(classes: Sequence[str], palette: Palette, width: int) -> np.ndarray:
    """Colour patches with class names, as many in a line as fit."""
    per_line = max(1, width // 160)
    lines = -(-(len(classes) + 1) // per_line)
    sheet = np.full((lines * 22 + 6, width, 3), 255, np.uint8)
    texts = []
    for i, (name, rgb) in enumerate(zip([*labels(classes, 18), "ignored"], [*palette, (255, 255, 255)], strict=True)):
        x, y = i % per_line * 160 + 4, i // per_line * 22 + 4
        cv2.rectangle(sheet, (x, y), (x + 16, y + 16), tuple(map(int, rgb)), -1)
        cv2.rectangle(sheet, (x, y), (x + 16, y + 16), (0, 0, 0), 1)
        texts.append((x + 22, y + 2, name))
    draw_texts(sheet, texts)
    return sheet


def labels(names: Sequence[str], most: int = MOST_LETTERS) -> list[str]:
    """Names as labels of pictures: text in one line, shortened, □ for letters that the font lacks.

    Names that become equal get their numbers, as do those with letters that the font lacks.

    Args:
        names: the names.
        most: letters of a label.
    """
    short = [drawable(one_line(name)) for name in names]
    short = [text if len(text) <= most else f"{text[: most - 1]}…" for text in short]
    unlike = [short.count(text) == 1 and drawable(name) == name for text, name in zip(short, names, strict=True)]
    numbered = [f"{i} {text}"[:most] for i, text in enumerate(short)]
    return [text if alone else other for text, alone, other in zip(short, unlike, numbered, strict=True)]


def one_line(text: str) -> str:
    """The text without line breaks and other control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def drawable(text: str) -> str:
    """The text with □ for each letter that the font of the pictures lacks."""
    if text.isascii():
        return text
    from matplotlib.ft2font import FT2Font

    known = FT2Font(font_file()).get_charmap()
    return "".join(c if c == "\n" or ord(c) in known else "□" for c in text)


@functools.cache
def font_file() -> str:
    """DejaVu Sans, which comes with matplotlib and has Latin, Greek, Cyrillic, Arabic and mathematical letters."""
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")


def draw_texts(sheet: np.ndarray, texts: Iterable[tuple[int, int, str]]) -> None:
    """Write black text into an RGB picture, in place: OpenCV's own letters are those of ASCII.

    Args:
        sheet: RGB uint8 (H, W, 3).
        texts: x and y of the upper left corner, pixels, and the text.
    """
    from PIL import Image, ImageDraw, ImageFont

    canvas, font = Image.fromarray(sheet), ImageFont.truetype(font_file(), 12)
    draw = ImageDraw.Draw(canvas)
    for x, y, text in texts:
        draw.text((x, y), drawable(text), (0, 0, 0), font)
    sheet[:] = np.asarray(canvas)


def new_figure(width: float, height: float) -> tuple[Figure, Any]:
    """A figure that needs no screen and no global state of pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def set_title(axes: Any, title: str, width: float) -> None:
    """A small title above a figure, its lines broken where they are wider than this, in inches."""
    lines = [part for line in drawable(title).splitlines() for part in textwrap.wrap(line, int(width * LETTERS))]
    axes.set_title("\n".join(lines), fontsize=9, parse_math=False)


def confusion_figure(counts: np.ndarray, classes: Sequence[str], title: str, what: str = "pixels") -> Figure:
    """Rows of the confusion matrix as shares of the true class.

    Args:
        counts: (K, K), true and predicted.
        classes: K names.
        title: of the picture.
        what: is counted.
    """
    size = max(5.0, 0.32 * len(classes) + 2)
    figure, axes = new_figure(size + 1, size)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap="magma", vmin=0, vmax=1)
    figure.colorbar(picture, shrink=0.8, label=f"share of the true class's {what}")
    names = labels(classes)
    axes.set_xticks(range(len(classes)), names, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(classes)), names, fontsize=8, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    set_title(axes, title, size - 1)
    return figure


def iou_figure(
    iou: Sequence[float], classes: Sequence[str], title: str, low: Sequence[float] = (), high: Sequence[float] = (),
    metric: str = "IoU",
) -> Figure:  # fmt: skip
    """IoU of each class as bars, or another score; `absent` for classes in neither truth nor prediction.

    Args:
        iou: 0 to 1, nan where absent.
        classes: names.
        title: of the picture.
        low, high: ends of the classes' intervals, drawn as whiskers; none where not given.
        metric: name of the score.
    """
    figure, axes = new_figure(7, max(3.0, 0.25 * len(classes) + 1))
    values = np.array(iou, float)
    present = np.nan_to_num(values) * 100
    axes.barh(range(len(classes)), present, color="#3b6ea5")
    ends = np.fmax(present, np.array(high, float) * 100) if len(high) else present
    if len(high):
        spans = [present - np.array(low, float) * 100, np.array(high, float) * 100 - present]
        whiskers = np.maximum(np.nan_to_num(spans), 0)
        axes.errorbar(present, range(len(classes)), xerr=whiskers, fmt="none", ecolor="black", capsize=2, linewidth=1)
    for place, (end, value) in enumerate(zip(ends, values, strict=True)):
        text = "absent" if np.isnan(value) else f"{value * 100:.1f}"
        axes.text(end + 1, place, text, va="center", fontsize=8)
    axes.set_yticks(range(len(classes)), labels(classes), fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 110)
    axes.set_xlabel(f"{metric}, percent; 95 % intervals over images" if len(high) else f"{metric}, percent")
    set_title(axes, title, 5.5)
    return figure


def class_figures(
    metric: str, values: Sequence[float | None], classes: Sequence[str], title: str, counts: np.ndarray | None
) -> dict[str, Callable[[], Figure]]:
    """What draws the score of each class, and the confusion of images; nothing of more than `MOST_CLASSES`.

    Args:
        metric: name of the score.
        values: of each class, 0 to 1; None for one that is left out.
        classes: K names.
        title: of the pictures.
        counts: (K, K), images by true and predicted class; None for none.
    """
    if len(classes) > MOST_CLASSES:
        return {}
    there = [(name, value) for name, value in zip(classes, values, strict=True) if value is not None]
    drawn: dict[str, Callable[[], Figure]] = {}
    if there:
        drawn["classes"] = lambda: iou_figure([v for _, v in there], [n for n, _ in there], title, metric=metric)
    if counts is not None:
        drawn["confusion"] = lambda: confusion_figure(counts, classes, title, "images")
    return drawn
