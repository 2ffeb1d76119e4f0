"""From the probabilities in a box to a mask of the image."""

import torch
import torch.nn.functional as F
from torch import Tensor


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Draw each box's mask into an image, bilinearly between the centres of its cells, without rounding the box.

    One mask is drawn at a time, and only within its box, so nothing is held but the result.

    Args:
        masks: probabilities (n, m, m) in the boxes.
        boxes: (n, 4), x1 y1 x2 y2 in pixels of the image.
        size: (h, w) of the image in pixels.
        threshold: probability from which a pixel is of the object.

    Returns:
        bool (n, h, w), on the masks' device.
    """
    pasted = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    for out, mask, (x1, y1, x2, y2) in zip(pasted, masks, boxes.tolist(), strict=True):
        rows, row_places = covered(y1, y2, size[0])
        columns, column_places = covered(x1, x2, size[1])
        if rows.start < rows.stop and columns.start < columns.stop:
            y, x = torch.meshgrid(row_places, column_places, indexing="ij")
            grid = torch.stack((x, y), -1).to(mask)
            drawn = F.grid_sample(mask[None, None], grid[None], align_corners=False)
            out[rows, columns] = drawn[0, 0] >= threshold
    return pasted


def covered(start: float, stop: float, side: int) -> tuple[slice, Tensor]:
    """The pixels whose centres lie within a box along one side, and where: from -1 at its start to 1 at its stop."""
    first, last = max(0, round_up(start)), min(side, round_up(stop))
    centres = torch.arange(first, max(first, last), dtype=torch.float64) + 0.5
    return slice(first, last), 2 * (centres - start) / max(stop - start, 1e-9) - 1


def round_up(place: float) -> int:
    """The first pixel whose centre is not before a place."""
    return -int(-(place - 0.5) // 1)
