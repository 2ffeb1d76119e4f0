"""The dilated FCN head, base of the papers' ablations and their auxiliary head (Long et al., CVPR 2015, 1411.4038)."""

from collections.abc import Sequence

from torch import nn

from segmodels.heads.context_head import ContextHead


def fcn_head(in_channels: Sequence[int], num_classes: int, *, channels: int = 512, dropout: float = 0.1) -> ContextHead:
    """The frame without context: 3x3 convolution, dropout, classifier.

    Args:
        in_channels: widths of the stages; the last is read. As the auxiliary head: those up to its stage.
        num_classes: K.
        channels: width; 512 as the head, 256 (a quarter of stage 4's 1024) as the papers' auxiliary head.
        dropout: probability that a channel is dropped before the classifier.
    """
    return ContextHead(in_channels, num_classes, nn.Identity(), channels, dropout=dropout)
