"""PSPNet: averages over a pyramid of regions (Zhao et al., CVPR 2017, arXiv:1612.01105).

The layout of semseg, the authors' PyTorch code: every level has its batch norm and ReLU, and a 3x3 convolution fuses.
"""

from collections.abc import Sequence

from segmodels.checks import positive
from segmodels.heads.pyramid_head import PooledBranch, PyramidHead, sizes


def psp_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    bins: tuple[int, ...] = (1, 2, 3, 6),
    dropout: float = 0.1,
) -> PyramidHead:
    """The pyramid pooling module (Sec. 3.2) on the trunk's last map, and its classifier.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: width of every level and of the fused map.
        bins: n of every level, which averages n x n regions. A level of 1 needs two images per device in training.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: no bins, a bin or channels below 1, or a bad dropout.
    """
    width, inner = in_channels[-1], positive("channels", channels)
    levels = [PooledBranch(width, inner, side) for side in sizes("bins", bins)]
    return PyramidHead(in_channels, num_classes, levels, inner, dropout=dropout)
