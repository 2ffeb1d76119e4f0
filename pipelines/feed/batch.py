"""A batch of images and what is known of them, and its way to the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A batch may lie in Ray's object store, which is mapped for reading only. Nobody writes to a batch.
warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)


Target = Tensor | list[dict[str, Any]]
"""What is known of each image: masks uint8 (B, H, W), classes int64 (B,), or a dict of tensors for each image."""


@dataclass(frozen=True)
class Batch:
    """image uint8 (B, 3, H, W), laid out channels_last on the host, and its target; both are only read."""

    image: Tensor
    target: Target

    def __len__(self) -> int:
        return len(self.target)

    @property
    def masks(self) -> Tensor:
        """The target of a batch of segmentation.

        Raises:
            TypeError: it is another task's.
        """
        if not isinstance(self.target, Tensor):
            raise TypeError("a list of objects is not masks")
        return self.target

    def part(self, images: slice) -> Batch:
        """Some of its images."""
        return Batch(self.image[images], self.target[images])

    def to(self, device: torch.device, channels_last: bool) -> Batch:
        """The batch on the device in the model's layout; itself where it is there already, see `ahead.py`."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        if device.type == "cuda" and not self.image.is_cuda:
            # pinned in its dense H W C order, the permuted view would be rearranged on the host
            image = self.image.permute(0, 2, 3, 1).pin_memory().to(device, non_blocking=True).permute(0, 3, 1, 2)
            target = moved(self.target, lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
        else:
            image, target = self.image.to(device), moved(self.target, lambda tensor: tensor.to(device))
        return Batch(image.contiguous(memory_format=layout), target)


def moved(target: Target, move: Callable[[Tensor], Tensor]) -> Target:
    """A target with each of its tensors moved."""
    if isinstance(target, Tensor):
        return move(target)
    return [{key: move(v) if isinstance(v, Tensor) else v for key, v in entry.items()} for entry in target]


def tensors_of(target: Target) -> Iterator[Tensor]:
    """All tensors of a target."""
    if isinstance(target, Tensor):
        yield target
    else:
        yield from (value for entry in target for value in entry.values() if isinstance(value, Tensor))


def make_batch(images: np.ndarray, target: np.ndarray | Sequence[Mapping[str, Any]]) -> Batch:
    """A batch from image uint8 (B, H, W, 3) and a target of arrays, without a copy."""
    return Batch(torch.from_numpy(images).permute(0, 3, 1, 2), as_tensors(target))


def as_tensors(target: np.ndarray | Sequence[Mapping[str, Any]]) -> Target:
    """A target of arrays as one of tensors, without a copy."""
    if isinstance(target, np.ndarray):
        return torch.from_numpy(target)
    return [
        {key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in entry.items()} for entry in target
    ]
