"""Pictures of what models of other tasks than segmentation predict: objects, panoptic pictures, sheets of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from pycocotools import mask as rle_api

from datasets.sample import Segment
from datasets.tasks.things import things
from pipelines.base.pictures import LARGEST, Palette, draw_texts, fitted, labels, one_line, within
from pipelines.scoring.average_precision import Detections
from pipelines.scoring.panoptic import PanopticPicture
from pipelines.scoring.panoptic_quality import true_pixels

SCORE = 0.5
"""Least score of an object that is drawn."""
MOST = 50  # objects of a picture, those of the highest scores
HEIGHT = 240  # pixels that a low picture is about high, where that is not too wide
BAR = 4  # pixels between two pictures
LEAST_NAMED = 0.005  # of an image: smaller segments get no name
RIGHT, WRONG = (0, 158, 115), (230, 159, 0)  # Okabe and Ito: both tell apart for every kind of colour blindness
CELL, LINE = 200, 16  # pixels: of an image in a sheet, and of a line of its text


@dataclass(frozen=True)
class Drawn:
    """An object as it is drawn.

    Args:
        box: x1, y1, x2, y2 in pixels of the image.
        rle: COCO's compressed run lengths of its mask, of the image's size.
        number: of its class.
        text: next to it.
    """

    box: Sequence[float]
    rle: bytes
    number: int
    text: str


def found_objects(found: Detections, classes: tuple[str, ...]) -> list[Drawn]:
    """What is drawn of detections: those of a score of at least `SCORE`, at most `MOST`, the best first."""
    names, numbers = labels(classes, 18), things(classes)
    order = [i for i in np.argsort(-found.scores, kind="stable").tolist() if found.scores[i] >= SCORE][:MOST]
    of_class = [numbers[label] for label in found.labels.tolist()]
    return [
        Drawn(found.boxes[i].tolist(), found.masks[i], of_class[i], f"{names[of_class[i]]} {found.scores[i]:.2f}")
        for i in order
    ]


def true_objects(segments: Sequence[Segment], classes: tuple[str, ...]) -> list[Drawn]:
    """The things of a row; crowds are marked as such."""
    names, numbers = labels(classes, 18), set(things(classes))
    return [
        Drawn((s.box[0], s.box[1], s.box[0] + s.box[2], s.box[1] + s.box[3]), s.rle, s.number,
              f"{names[s.number]}{' (crowd)' if s.crowd else ''}")
        for s in segments
        if s.number in numbers
    ]  # fmt: skip


def with_objects(image: np.ndarray, objects: Sequence[Drawn], palette: Palette, columns: int = 1) -> np.ndarray:
    """An image with boxes, masks, and texts; the first objects above the others.

    Args:
        image: RGB uint8 (H, W, 3).
        objects: in it.
        palette: K colours, RGB 0..255.
        columns: pictures that will stand side by side.

    Returns:
        RGB uint8, of the size of `enlarged`.
    """
    height, width = image.shape[:2]
    canvas = enlarged(image, columns)
    across, down = canvas.shape[1] / width, canvas.shape[0] / height
    tags = []
    for one in reversed(objects):
        colour = tuple(int(value) for value in palette[one.number])
        mask = rle_api.decode({"size": [height, width], "counts": one.rle})
        mask = cv2.resize(np.ascontiguousarray(mask), canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        inside = mask.astype(bool)
        canvas[inside] = canvas[inside] // 2 + np.array(colour, np.uint8) // 2
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, colour, 1)
        x1, x2 = (round(x * across) for x in one.box[::2])
        y1, y2 = (round(y * down) for y in one.box[1::2])
        cv2.rectangle(canvas, (x1, y1), (max(x1, x2 - 1), max(y1, y2 - 1)), colour, 2)
        tags.append((x1, y1, one.text))
    return tagged(canvas, tags)


def true_picture(segments: Sequence[Segment], size: tuple[int, int]) -> PanopticPicture:
    """The panoptic picture of a row."""
    numbers = tuple(segment.number for segment in segments)
    return PanopticPicture(true_pixels(segments, size), numbers, (1.0,) * len(numbers))


def with_segments(
    image: np.ndarray, found: PanopticPicture, classes: tuple[str, ...], palette: Palette, columns: int = 1
) -> np.ndarray:
    """An image under the colours of its segments' classes, borders between segments, and the names of larger ones.

    Args:
        image: RGB uint8 (H, W, 3).
        found: its segments; void is white.
        classes: K names.
        palette: K colours.
        columns: as of `with_objects`.

    Returns:
        RGB uint8, of the size of `enlarged`.
    """
    canvas, names = enlarged(image, columns), labels(classes, 18)
    pixels = cv2.resize(found.pixels.astype(np.int32), canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    colours = np.array([*(palette[number] for number in found.numbers), (255, 255, 255)], np.uint8)  # -1 is the last
    canvas = cv2.addWeighted(colours[pixels], 0.6, canvas, 0.4, 0)
    canvas[borders(pixels)] = 255
    return tagged(canvas, [(x, y, names[found.numbers[segment]]) for segment, x, y in middles(pixels)])


def borders(pixels: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour is of another segment: bool (H, W)."""
    found = np.zeros(pixels.shape, bool)
    found[:, :-1] |= pixels[:, 1:] != pixels[:, :-1]
    found[:-1] |= pixels[1:] != pixels[:-1]
    return found


def middles(pixels: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Each larger segment, and x and y of the pixel of it that is farthest from its border."""
    counts = np.bincount(pixels[pixels >= 0].ravel())
    for segment in np.flatnonzero(counts >= LEAST_NAMED * pixels.size).tolist():
        mask = np.pad((pixels == segment).astype(np.uint8), 1)
        y, x = np.unravel_index(int(cv2.distanceTransform(mask, cv2.DIST_L2, 3)[1:-1, 1:-1].argmax()), pixels.shape)
        yield segment, int(x), int(y)


def sheet(cells: Iterable[tuple[np.ndarray, str, str]], columns: int = 4) -> np.ndarray:
    """Images with their true and predicted class below, in green where both are one, else in orange.

    Args:
        cells: of each image: RGB uint8 (H, W, 3), its true class, and the predicted one, with more behind a comma.
        columns: side by side, at most.

    Returns:
        RGB uint8.
    """
    made = [cell(*one) for one in cells]
    columns = min(columns, len(made))
    made += [np.full_like(made[0], 255)] * (-len(made) % columns)
    return np.vstack([np.hstack(made[i : i + columns]) for i in range(0, len(made), columns)])


def cell(image: np.ndarray, truth: str, guess: str) -> np.ndarray:
    """One image of a sheet."""
    box = np.full((CELL + 2 * LINE + 8, CELL + 8, 3), 255, np.uint8)
    width, height = within(image.shape, CELL, CELL)
    smaller = height <= image.shape[0]
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_NEAREST)
    top, left = 4 + (CELL - height) // 2, 4 + (CELL - width) // 2
    box[top : top + height, left : left + width] = small
    box[CELL + 6 : CELL + 4 + 2 * LINE, 4:10] = RIGHT if guess.rpartition(",")[0] == truth else WRONG
    texts = enumerate((f"true {truth}", f"seen {guess}"))
    draw_texts(box, [(14, CELL + 6 + LINE * line, one_line(text)[:30]) for line, text in texts])
    return box


def side_by_side(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one height next to each other."""
    bar = np.full((panels[0].shape[0], BAR, 3), 255, np.uint8)
    return np.hstack([part for panel in panels for part in (panel, bar)][:-1])


def enlarged(image: np.ndarray, columns: int) -> np.ndarray:
    """An image at the size at which it is drawn on: whole times larger where it is low, smaller where it is too large.

    Args:
        image: RGB uint8 (H, W, 3).
        columns: pictures that will stand side by side.
    """
    most = LARGEST // columns - BAR
    small = fitted(image, most, LARGEST)
    factor = min(max(1, round(HEIGHT / small.shape[0])), max(1, most // small.shape[1]))
    return cv2.resize(small, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)


def tagged(picture: np.ndarray, tags: Sequence[tuple[int, int, str]]) -> np.ndarray:
    """Texts on white, each with its upper left corner at x and y, moved where it would leave the picture."""
    height, width = picture.shape[:2]
    placed = []
    for x, y, text in tags:
        long = 7 * len(text) + 4
        left, top = max(0, min(x, width - long)), max(0, min(y, height - LINE))
        cv2.rectangle(picture, (left, top), (left + long, top + LINE - 1), (255, 255, 255), -1)
        placed.append((left + 2, top + 1, text))
    draw_texts(picture, placed)
    return picture
