"""Efficient attention: linear in the number of pixels (Shen et al., WACV 2021, arXiv:1812.01243).

As in the authors' code, all convolutions have a bias, and the unit adds its result to its input.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from segmodels.checks import positive
from segmodels.heads.attention import softmax
from segmodels.heads.context_head import ContextHead


class EfficientAttention(nn.Module):
    """Efficient attention: E = ρ_q(Q) (ρ_k(K)ᵀ V), Eq. (3) with the softmax normalisation, then a 1x1, plus x.

    ρ_q is the softmax of a cell over the key channels of a head, ρ_k that of a channel over the cells. The product in
    brackets, the global contexts, comes first, so that no N x N relation is ever held.

    Args:
        channels: C.
        key_channels: width of Q and K, of all heads together.
        value_channels: width of V, of all heads together.
        heads: number of parts of the channels, which attend separately.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, key_channels: int, value_channels: int, heads: int) -> None:
        super().__init__()
        self.widths, self.heads = (key_channels, key_channels, value_channels), heads
        self.qkv = nn.Conv2d(channels, sum(self.widths), 1)  # one pass over x instead of three
        self.project = nn.Conv2d(value_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).flatten(2).split(self.widths, 1)
        q, k, v = (part.unflatten(1, (self.heads, -1)) for part in parts)  # (B, heads, …, N)
        contexts = softmax(k, 3) @ v.mT
        y = contexts.mT @ softmax(q, 2)  # (B, heads, value_channels / heads, N)
        return x + self.project(y.flatten(1, 2).unflatten(2, x.shape[-2:]))


def efficient_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    key_channels: int = 256,
    value_channels: int = 256,
    heads: int = 1,
    dropout: float = 0.1,
) -> ContextHead:
    """Efficient attention in the common frame.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: C, width of the context.
        key_channels, value_channels: widths of query and key, and of the value, of all heads together.
        heads: number of heads; it divides both.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: a number below 1, or heads that do not divide the widths.
    """
    positive("heads", heads)
    for name, width in (("key_channels", key_channels), ("value_channels", value_channels)):
        if positive(name, width) % heads:
            raise ValueError(f"heads is {heads}, but {name} is {width}; allowed: a divisor of it")
    context = EfficientAttention(positive("channels", channels), key_channels, value_channels, heads)
    return ContextHead(in_channels, num_classes, context, channels, dropout=dropout)
