"""Context maps for pictures: what a head computed on its way, handed out on request and never computed twice."""

from torch import Tensor


class Maps(dict[str, Tensor]):
    """Name -> tensor, filled by one forward pass: `head(features, maps=Maps(pixel=(0.5, 0.5)))`.

    A head without context maps leaves it empty. The tensors are detached; their shapes are in the docstring of the
    module that fills them.

    Args:
        pixel: (row, column) of the pixel whose relation to all others is asked for, in fractions of the map, 0 to 1.

    Raises:
        ValueError: `pixel` is outside of the map.
    """

    def __init__(self, pixel: tuple[float, float] = (0.5, 0.5)) -> None:
        super().__init__()
        if not all(0 <= part <= 1 for part in pixel):
            raise ValueError(f"pixel is {pixel}; allowed: (row, column) in fractions of the map, each from 0 to 1")
        self.pixel = pixel

    def cell(self, size: tuple[int, int]) -> tuple[int, int]:
        """The cell (row, column) of `pixel` in a map of `size` (h, w)."""
        row, column = (min(int(part * side), side - 1) for part, side in zip(self.pixel, size, strict=True))
        return row, column

    def add(self, name: str, value: Tensor) -> None:
        """Keep a detached tensor under a name."""
        self[name] = value.detach()
