"""A batch of images and masks, and its way to the device."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# A batch may lie in Ray's object store, which is mapped for reading only. Nobody writes to a batch.
warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)


@dataclass(frozen=True)
class Batch:
    """image uint8 (B, 3, H, W), laid out channels_last on the host, mask uint8 (B, H, W); both are only read."""

    image: Tensor
    mask: Tensor

    def to(self, device: torch.device, channels_last: bool) -> Batch:
        """The batch on the device in the model's layout; itself where it is there already, see `ahead.py`."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        if device.type == "cuda" and not self.image.is_cuda:
            # pinned in its dense H W C order, the permuted view would be rearranged on the host
            image = self.image.permute(0, 2, 3, 1).pin_memory().to(device, non_blocking=True).permute(0, 3, 1, 2)
            mask = self.mask.pin_memory().to(device, non_blocking=True)
        else:
            image, mask = self.image.to(device), self.mask.to(device)
        return Batch(image.contiguous(memory_format=layout), mask)


def make_batch(images: np.ndarray, masks: np.ndarray) -> Batch:
    """A batch from image uint8 (B, H, W, 3) and mask uint8 (B, H, W), without a copy."""
    return Batch(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(masks))
