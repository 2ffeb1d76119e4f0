"""Windows over an image: where they lie, and how large the image must be for them."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@functools.total_ordering
@dataclass(frozen=True)
class Window:
    """A part of an image: its upper left corner, and its (h, w), in pixels. Windows are sorted row by row."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """Its rows of the image."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Its columns of the image."""
        return slice(self.left, self.left + self.width)

    def __lt__(self, other: "Window") -> bool:
        return (self.top, self.left, self.height, self.width) < (other.top, other.left, other.height, other.width)


def canvas_of(size: Sequence[int], window: tuple[int, int]) -> tuple[int, int]:
    """The size (h, w) of an image, at least that of a window."""
    return max(size[0], window[0]), max(size[1], window[1])


def grid(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> Iterator[Window]:
    """Windows that cover a canvas, row by row; the last of each side are flush with its border.

    Args:
        size: (h, w) of the canvas, no smaller than the window.
        window: (h, w) of each.
        stride: pixels from window to window, down and across.
    """
    for top in starts(size[0], window[0], stride[0]):
        for left in starts(size[1], window[1], stride[1]):
            yield Window(top, left, *window)


def starts(length: int, window: int, stride: int) -> Iterator[int]:
    """Where windows begin along one side."""
    for start in range(0, length - window + stride, stride):
        yield min(start, length - window)
