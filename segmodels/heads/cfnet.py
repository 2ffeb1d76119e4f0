"""CFNet: features that occur together, gathered by heads of attention (Zhang et al., CVPR 2019).

We follow PyTorch-Encoding, the authors' code; keys and values come from a map pooled by 2, odd sides rounded up, where
the code assumes even sides.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segmodels.checks import positive, probability
from segmodels.heads.attention import attention
from segmodels.heads.context_head import ContextHead
from segmodels.heads.encnet import EncModule
from segmodels.heads.reconet import GlobalPooling


class CoOccurrence(nn.Module):
    """ACF: x + norm(W Σ_m π_m softmax(q_m k_mᵀ / √d) v), per head, with one convolution for query and key.

    Pixels are queries, the cells of the map pooled by 2 (3x3, stride 2) keys and values. With several mixtures the
    key's d channels are split among them, and π = softmax(P q̄), where q̄ is the mean query of the head. A weighted sum
    of attentions on the same values is the weighted sum of their results, so that fused attention computes both.

    Args:
        channels: C.
        heads: number of heads, each C/heads wide in the values and C/heads per mixture in the keys.
        mixtures: number of softmaxes per head.
        pooling: pool keys and values.
        dropout: probability that a weight of the attention is dropped.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: heads does not divide C, a value below 1, or a bad dropout.
    """

    def __init__(self, channels: int, heads: int, mixtures: int, *, pooling: bool, dropout: float) -> None:
        super().__init__()
        if positive("channels", channels) % positive("heads", heads):
            raise ValueError(f"heads is {heads}; allowed: a divisor of channels, which is {channels}")
        self.heads, self.mixtures = heads, positive("mixtures", mixtures)
        self.dropout = probability("attention_dropout", dropout)
        width = channels // heads
        self.query_key = nn.Conv2d(channels, channels * mixtures, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.AvgPool2d(3, 2, 1, count_include_pad=False) if pooling else nn.Identity()
        self.prior = nn.Linear(width * mixtures, mixtures, bias=False) if mixtures > 1 else None
        # As in the public code.
        nn.init.normal_(self.query_key.weight, std=(2 / (channels + width * mixtures)) ** 0.5)
        nn.init.normal_(self.value.weight, std=(2 / (channels + width)) ** 0.5)
        if self.prior is not None:
            nn.init.uniform_(self.prior.weight, -(mixtures**-0.5), mixtures**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(x)
        parts = self.heads * self.mixtures
        q, k = split(self.query_key(x), parts), split(self.query_key(pooled), parts)
        v = split(self.value(pooled), self.heads).unsqueeze(2).expand(-1, -1, self.mixtures, -1, -1)
        v = v.flatten(1, 2)  # the same values for every mixture of a head
        scale = (q.shape[-1] * self.mixtures) ** -0.5  # of a head's whole key, as in the public code
        y = attention(q, k, v, dropout=self.dropout if self.training else 0.0, scale=scale)
        if self.prior is not None:
            y = self.mix(y, q, self.prior)
        return x + self.norm(self.out(y.mT.flatten(1, 2).unflatten(2, x.shape[2:])))

    def mix(self, y: Tensor, q: Tensor, prior: nn.Linear) -> Tensor:
        """Σ_m π_m y_m: (B, heads · mixtures, N, E) twice -> (B, heads, N, E)."""
        mean = q.mean(2).unflatten(1, (self.heads, self.mixtures)).flatten(2)  # (B, heads, mixtures · E)
        pi = prior(mean).softmax(2)[..., None, None]
        return (pi * y.unflatten(1, (self.heads, self.mixtures))).sum(2)


class CFNet(nn.Module):
    """Co-occurrent features and, next to them, the projected average of the map; then EncNet's module, if wanted.

    Args:
        channels: C.
        acf: the co-occurrent features.
        global_pooling: whether to have the branch of the average; the width is 2C with it, else C.
        codes: codewords of `EncModule`, 0 for none.

    Shape: (B, C, H, W) -> (B, 2C or C, H, W).
    """

    def __init__(self, channels: int, acf: CoOccurrence, *, global_pooling: bool, codes: int) -> None:
        super().__init__()
        self.acf = acf
        self.gpm = GlobalPooling(channels) if global_pooling else None
        self.width = 2 * channels if global_pooling else channels
        self.encode = EncModule(self.width, codes) if codes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.acf(x)
        return self.encode(y if self.gpm is None else torch.cat([self.gpm(x), y], 1))


def cfnet_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    heads: int = 8,
    mixtures: int = 1,
    pooling: bool = True,
    global_pooling: bool = True,
    codes: int = 0,
    attention_dropout: float = 0.1,
    dropout: float = 0.1,
) -> ContextHead:
    """CFNet in the common frame.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: C, width of the context's input.
        heads, mixtures, pooling, attention_dropout: see `CoOccurrence`.
        global_pooling: see `CFNet`.
        codes: codewords of EncNet's module after the context, 32 in the public code; 0 for none, as in the published
            cost.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: heads does not divide the channels, or a bad value.
    """
    if codes:
        positive("codes", codes)
    acf = CoOccurrence(channels, heads, mixtures, pooling=pooling, dropout=attention_dropout)
    context = CFNet(channels, acf, global_pooling=global_pooling, codes=codes)
    return ContextHead(in_channels, num_classes, context, channels, out_channels=context.width, dropout=dropout)


def split(x: Tensor, parts: int) -> Tensor:
    """(B, parts · E, H, W) -> (B, parts, N, E)."""
    # Contiguous: with another last stride than 1 no fused attention applies, and all N x N weights are held.
    return x.flatten(2).unflatten(1, (parts, -1)).mT.contiguous()
