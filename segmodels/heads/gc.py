"""GCNet's global context block: one attention for all pixels (Cao et al., ICCVW 2019, arXiv:1904.11492).

We follow the public code, which starts the last layer at zero, so that the block starts as the identity. Its attention
also has a bias, which we leave out: the softmax cancels it.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import choose
from segmodels.heads.context_head import ContextHead
from segmodels.heads.maps import Maps
from segmodels.heads.se import bottleneck

POOLINGS = {"attention": True, "average": False}  # whether there is an attention
FUSIONS = {"add": False, "scale": True}  # whether the vector is a gate


class GlobalContext(nn.Module):
    """x_i + W_2 relu(LN(W_1 Σ_j α_j x_j)), α = softmax_j(W_k x_j): Eq. (5), the same vector for every pixel i.

    Fills `maps` with "attention" (B, 1, H, W), α, of sum 1.

    Args:
        channels: C.
        reduction: r; the transform goes through C/r values, normalised over the channels.
        pooling: "attention", or "average": α constant, as in squeeze-and-excitation; then there are no maps.
        fusion: "add", or "scale": x_i times the sigmoid of the vector.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: an unknown pooling or fusion, r does not divide C or leaves fewer than 2 channels.
    """

    gives_maps = True

    def __init__(self, channels: int, reduction: int, pooling: str, fusion: str) -> None:
        super().__init__()
        inner = bottleneck(channels, reduction)
        if inner < 2:
            raise ValueError(
                f"reduction is {reduction} with channels {channels}; allowed: {channels // 2} at most, since the layer "
                "norm of a single value is constant"
            )
        self.mask = nn.Conv2d(channels, 1, 1, bias=False) if choose(POOLINGS, pooling, "pooling") else None
        self.scale = choose(FUSIONS, fusion, "fusion")
        last = nn.Linear(inner, channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.transform = nn.Sequential(nn.Linear(channels, inner), nn.LayerNorm(inner), nn.ReLU(inplace=True), last)
        if self.mask is not None:
            nn.init.kaiming_normal_(self.mask.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        context = x.mean((2, 3)) if self.mask is None else self.pool(x, self.mask(x), maps)
        y = self.transform(context)[:, :, None, None]
        return x * y.sigmoid() if self.scale else x + y

    def pool(self, x: Tensor, scores: Tensor, maps: Maps | None) -> Tensor:
        """(B, C, H, W), (B, 1, H, W) -> (B, C), the average of x weighted by the softmax of the scores."""
        weights = F.softmax(scores.flatten(2), 2)
        if maps is not None:
            maps.add("attention", weights.view(scores.shape))
        return (x.flatten(2) @ weights.mT).squeeze(2)


def gc_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    reduction: int = 4,
    pooling: str = "attention",
    fusion: str = "add",
    dropout: float = 0.1,
) -> ContextHead:
    """The global context block in the common frame.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: C, width of the context.
        reduction: r: 4, the paper's best and the ports' for segmentation; 16 is its lighter setting.
        pooling, fusion: see `GlobalContext`.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: a bad width or reduction, or an unknown pooling or fusion.
    """
    context = GlobalContext(channels, reduction, pooling, fusion)
    return ContextHead(in_channels, num_classes, context, channels, dropout=dropout)
