"""A batch of images and masks, and its way to the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """image uint8 (B, 3, H, W) laid out channels_last, mask uint8 (B, H, W); both on the host."""

    image: Tensor
    mask: Tensor

    def to(self, device: torch.device, channels_last: bool) -> Batch:
        """The batch on the device in the model's layout; an asynchronous copy to a GPU."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        if device.type == "cuda":
            # pinned in its dense H W C order, the permuted view would be rearranged on the host
            image = self.image.permute(0, 2, 3, 1).pin_memory().to(device, non_blocking=True).permute(0, 3, 1, 2)
            mask = self.mask.pin_memory().to(device, non_blocking=True)
        else:
            image, mask = self.image.to(device), self.mask.to(device)
        return Batch(image.contiguous(memory_format=layout), mask)


def make_batch(images: np.ndarray, masks: np.ndarray) -> Batch:
    """A batch from image uint8 (B, H, W, 3) and mask uint8 (B, H, W), without a copy."""
    return Batch(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(masks))
