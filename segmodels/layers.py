"""The layers that all heads share."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from segmodels.checks import positive, probability
from segmodels.upsampling import bilinear

Size = Sequence[int]  # (rows, columns)


class ConvNormReLU(nn.Sequential):
    """A convolution without bias (the norm has one), batch norm and ReLU; keeps the map's size.

    Args:
        in_channels, out_channels: widths.
        kernel: side of the kernel, odd, in cells of the map.
        dilation: distance of the kernel's taps, in cells.
        groups: groups of channels.

    Shape: (B, in, H, W) -> (B, out, H, W).

    Raises:
        ValueError: the kernel is even, so no padding keeps the size.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, dilation: int = 1, groups: int = 1) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"kernel is {kernel}; allowed: odd sizes, as only they keep the map's size")
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


def biased_conv_norm_relu(in_channels: int, out_channels: int, kernel: int = 1) -> nn.Sequential:
    """`ConvNormReLU` with a bias, which the norm makes redundant but some published costs include."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class Classifier(nn.Conv2d):
    """The last layer of a head: a 1x1 convolution with bias to the K classes.

    A type of its own, since shapes cannot tell it apart: a head may be K channels wide elsewhere.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes, 1)


def dropout_classifier(channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Dropout of whole channels, and the classifier.

    Args:
        channels: width of the map that is classified.
        num_classes: K.
        dropout: probability that a channel is dropped.

    Raises:
        ValueError: a bad dropout or number of classes.
    """
    drop = nn.Dropout2d(probability("dropout", dropout))
    return nn.Sequential(drop, Classifier(channels, positive("num_classes", num_classes)))


def check_norm_batch(norm: nn.Module, x: Tensor, what: str) -> None:
    """Refuse to normalise one value per channel in training, as after a global pooling with one image per device.

    Raises:
        ValueError: `norm` would see one value per channel.
    """
    # Synchronised batch norm is not a BatchNorm2d: it sees the other workers' images too.
    if norm.training and isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d) and x.shape[0] == 1:
        raise ValueError(
            f"{what} got a training batch of 1 image per device; allowed: 2 or more, since its batch norm sees one "
            "value per channel and image. Raise the batch, or lower the number of workers"
        )


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Turn off automatic lower precision on x's device; the meta device, on which costs are counted, has none."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resizing with aligned corners, as in the papers' PyTorch codes; `size` is (h, w).

    Shape: (B, C, H, W) -> (B, C, h, w).
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return bilinear(x, size)


def known(size: Size) -> bool:
    """Whether a size is known. In an export with free sizes it is not, and nothing may depend on it."""
    return isinstance(size[0], int) and isinstance(size[1], int)


def divides(size: Size, parts: Size) -> bool:
    """Whether a map divides into equal parts; false if its size is not known."""
    return known(size) and size[0] % parts[0] == 0 and size[1] % parts[1] == 0
