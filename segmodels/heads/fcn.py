"""The dilated FCN head, base of the papers' ablations and their auxiliary head (Long et al., CVPR 2015, 1411.4038)."""

from collections.abc import Sequence

from torch import Tensor, nn

from segmodels.heads.context_head import ContextHead
from segmodels.heads.maps import Maps
from segmodels.layers import dropout_classifier


class TrunkClassifier(nn.Module):
    """Dropout and the classifier on the trunk's last map as it is.

    Shape: list of maps, the last (B, in_channels[-1], H, W) -> {"logits": (B, K, H, W)}.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, dropout: float) -> None:
        super().__init__()
        self.classify = dropout_classifier(in_channels[-1], num_classes, dropout)

    def forward(self, features: Sequence[Tensor], maps: Maps | None = None) -> dict[str, Tensor]:
        return {"logits": self.classify(features[-1])}


def fcn_head(
    in_channels: Sequence[int], num_classes: int, *, channels: int = 512, conv: bool = True, dropout: float = 0.1
) -> nn.Module:
    """The frame without context: 3x3 convolution, dropout, classifier.

    Args:
        in_channels: widths of the stages; the last is read. As the auxiliary head: those up to its stage.
        num_classes: K.
        channels: width; 512 as the head, 256 (a quarter of stage 4's 1024) as the papers' auxiliary head.
        conv: have the 3x3 convolution. Without it the classifier reads the trunk: the base row of SRNet's Tables III
            and IV, whose printed cost is the trunk's.
        dropout: probability that a channel is dropped before the classifier.
    """
    if not conv:
        return TrunkClassifier(in_channels, num_classes, dropout)
    return ContextHead(in_channels, num_classes, nn.Identity(), channels, dropout=dropout)
