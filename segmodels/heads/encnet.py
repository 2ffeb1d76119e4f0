"""EncNet: residuals from learned codewords gate the channels (Zhang et al., CVPR 2018, arXiv:1803.08904).

We follow PyTorch-Encoding, the authors' code: the codewords' encodings are averaged where the paper adds them up, and
the smoothing factors s start negative, without the minus of Eq. (1).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import positive
from segmodels.heads.maps import Maps
from segmodels.layers import Classifier, ConvNormReLU, dropout_classifier, without_autocast


class Encoding(nn.Module):
    """E_k = Σ_n A_kn (x_n - d_k), A_kn = softmax_k(s_k |x_n - d_k|²), Eq. (1), over all pixels n.

    Both sums are expanded, |x - d|² = |x|² - 2 x·d + |d|² and E = A Xᵀ - (Σ_n A) d, so that no residual per pixel and
    codeword is held. In float32, under autocast too: the expanded distance is a small difference of large numbers.

    Args:
        channels: C.
        codes: number of codewords d_k.

    Shape: (B, C, H, W) -> E (B, codes, C) in the codewords' type, A (B, codes, H, W).
    """

    def __init__(self, channels: int, codes: int) -> None:
        super().__init__()
        bound = (positive("codes", codes) * positive("channels", channels)) ** -0.5
        self.codewords = nn.Parameter(torch.empty(codes, channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(codes).uniform_(-1, 0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = x.shape[2:]
        with without_autocast(x):
            precise = torch.promote_types(x.dtype, torch.float32)
            x, d, s = (t.to(precise) for t in (x.flatten(2), self.codewords, self.scale))
            distance = x.square().sum(1, keepdim=True) - 2 * (d @ x) + d.square().sum(1, keepdim=True)
            a = F.softmax(s.unsqueeze(1) * distance, 1)  # (B, codes, N)
            e = a @ x.mT - a.sum(2, keepdim=True) * d
        return e.to(self.codewords.dtype), a.unflatten(2, size)


class EncModule(nn.Module):
    """relu(x + γ x), γ = σ(W e), where e is the mean over the codewords of relu(norm(E)): Sec. 2.

    Fills `maps` with "assignment" (B, codes, H, W), A of `Encoding`, of sum 1 over the codewords.

    Args:
        channels: C.
        codes: number of codewords.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    gives_maps = True

    def __init__(self, channels: int, codes: int) -> None:
        super().__init__()
        self.project = ConvNormReLU(channels, channels, 1)
        self.encoding = Encoding(channels, codes)
        self.norm = nn.BatchNorm1d(codes)
        self.gate = nn.Linear(channels, channels)

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        return self.scale(x, self.encode(x, maps))

    def encode(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        """(B, C, H, W) -> e (B, C)."""
        e, a = self.encoding(self.project(x))
        if maps is not None:
            maps.add("assignment", a)
        return F.relu(self.norm(e)).mean(1)

    def scale(self, x: Tensor, e: Tensor) -> Tensor:
        """(B, C, H, W), (B, C) -> (B, C, H, W)."""
        return F.relu(x + x * self.gate(e).sigmoid()[:, :, None, None])


class EncNetHead(nn.Module):
    """A 3x3 convolution, the context encoding module, a second 3x3 if wanted, dropout and the classifier.

    Args: see `encnet_head`.

    Shape: list of maps, the last (B, in_channels[-1], H, W) -> {"logits": (B, K, H, W)} and, with `se`, "presence"
    (B, K): logits of each class's presence in the image, for the semantic encoding loss, Sec. 2.
    """

    gives_maps = True

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int,
        codes: int,
        *,
        se: bool,
        second_conv: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.reduce = ConvNormReLU(in_channels[-1], channels, 3)
        self.context = EncModule(channels, codes)
        self.refine = ConvNormReLU(channels, channels, 3) if second_conv else nn.Identity()
        self.classify = dropout_classifier(channels, num_classes, dropout)
        # A classifier too: a change of the number of classes replaces it.
        self.presence = Classifier(channels, num_classes) if se else None

    def forward(self, features: Sequence[Tensor], maps: Maps | None = None) -> dict[str, Tensor]:
        x = self.reduce(features[-1])
        e = self.context.encode(x, maps)
        outputs = {"logits": self.classify(self.refine(self.context.scale(x, e)))}
        if self.presence is not None:
            outputs["presence"] = self.presence(e[:, :, None, None]).flatten(1)
        return outputs


def encnet_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    codes: int = 32,
    se: bool = True,
    second_conv: bool = False,
    dropout: float = 0.1,
) -> EncNetHead:
    """EncNet's head.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: C, width of the context.
        codes: number of codewords.
        se: give "presence", which the semantic encoding loss reads; without that loss its layer learns nothing.
        second_conv: a 3x3 convolution after the context, as in SRNet's comparison.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: codes or channels below 1, or a bad dropout.
    """
    positive("channels", channels)
    return EncNetHead(in_channels, num_classes, channels, codes, se=se, second_conv=second_conv, dropout=dropout)
