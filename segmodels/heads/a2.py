"""A2-Net: double attention, which gathers features and gives them out again (Chen et al., NeurIPS 2018, 1810.11579).

There is no code of the authors for segmentation. The convolutions have no bias, as in the published cost of the block
as a segmentation head; batch norm follows the last one.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from segmodels.checks import positive
from segmodels.heads.attention import softmax
from segmodels.heads.context_head import ContextHead, Refined


class DoubleAttention(nn.Module):
    """Double attention: G = A softmax(B)ᵀ gathers c_n features, Z = G softmax(V) distributes them, Eq. (1) to (6).

    A, B and V are 1x1 convolutions of x; the softmax of B runs over the cells, that of V over the c_n features of a
    cell. The result is x plus Z, widened again.

    Args:
        channels: C.
        c_m: width of A, the features that are gathered.
        c_n: how many are: width of B and V.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, c_m: int, c_n: int) -> None:
        super().__init__()
        self.widths = (c_m, c_n, c_n)
        self.a_b_v = nn.Conv2d(channels, c_m + 2 * c_n, 1, bias=False)  # one pass over x instead of three
        self.widen = nn.Sequential(nn.Conv2d(c_m, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        a, b, v = self.a_b_v(x).flatten(2).split(self.widths, 1)  # (B, …, N): views in either memory layout
        gathered = a @ softmax(b, 2).mT  # (B, c_m, c_n)
        z = gathered @ softmax(v, 1)  # (B, c_m, N)
        return x + self.widen(z.unflatten(2, x.shape[-2:]))


def a2_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    c_m: int = 256,
    c_n: int = 256,
    second_conv: bool = False,
    dropout: float = 0.1,
) -> ContextHead:
    """The double attention block in the common frame.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: C, width of the context.
        c_m: width of the features that are gathered.
        c_n: how many are gathered.
        second_conv: a 3x3 convolution after the context, as in SRNet's comparison.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: a width below 1.
    """
    context: nn.Module = DoubleAttention(positive("channels", channels), positive("c_m", c_m), positive("c_n", c_n))
    if second_conv:
        context = Refined(context, channels)
    return ContextHead(in_channels, num_classes, context, channels, dropout=dropout)
