"""CCNet: recurrent criss-cross attention (Huang et al., ICCV 2019, arXiv:1811.11721).

We follow the public code where it says more than the paper: a gate γ that starts at 0 before the residual addition of
Eq. (2), and a fusion of the backbone's own map with the context. Its leaky ReLU is a plain one here.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import positive
from segmodels.heads.maps import Maps
from segmodels.layers import ConvNormReLU, dropout_classifier, known


class CrissCross(nn.Module):
    """RCCA: every pixel gathers from its row and column, Eq. (1) and (2), `recurrences` times with the same weights.

    One softmax without scale covers the H + W − 1 positions of a pixel's cross. The work is done on (H, B, W, C), in
    which both the rows and the columns of all images are plain batches of matrices: no map is copied between them.

    Args:
        channels: C.
        key_channels: width of queries and keys.
        recurrences: R; after two, any pixel reaches any other.
        gate: multiply the gathered context by γ, learned from 0, as in the public code; False is the paper's Eq. (2).

    Maps: "cross" (B, H, W), the weights of the asked pixel in the last recurrence, 0 off its cross. It shows only that
    step, not what the steps before it carried along.

    Shape: (B, C, H, W) -> (B, C, H, W), in channels_last.
    """

    gives_maps = True

    def __init__(self, channels: int, key_channels: int, recurrences: int, *, gate: bool = True) -> None:
        super().__init__()
        self.recurrences, self.widths = positive("recurrences", recurrences), (key_channels, key_channels, channels)
        self.query = nn.Conv2d(channels, key_channels, 1)
        self.key = nn.Conv2d(channels, key_channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1)) if gate else None

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        weight, bias = self.projection()
        y = x.permute(2, 0, 3, 1).contiguous()  # (H, B, W, C)
        for step in range(self.recurrences):
            q, k, v = F.linear(y, weight, bias).split(self.widths, 3)
            crosses = self.affinity(q, k)
            y = y + self.gather(crosses, v)
            if maps is not None and step == self.recurrences - 1:
                maps.add("cross", spread(crosses, maps.cell((x.shape[2], x.shape[3]))))
        return y.permute(1, 3, 0, 2).contiguous(memory_format=torch.channels_last)

    def projection(self) -> tuple[Tensor, Tensor]:
        """The three 1x1 convolutions as one matrix and bias, γ multiplied into the value's: Σ γ a v = γ Σ a v."""
        layers = (self.query, self.key, self.value)
        weight = torch.cat([layer.weight for layer in layers]).flatten(1)
        bias = torch.cat([layer.bias for layer in layers])  # type: ignore[misc]
        if self.gamma is None:
            return weight, bias
        others, _, values = self.widths
        scale = torch.cat([self.gamma.new_ones(2 * others), self.gamma.expand(values)])
        return scale.unsqueeze(1) * weight, scale * bias

    @staticmethod
    def affinity(q: Tensor, k: Tensor) -> Tensor:
        """Eq. (1) and its softmax: (H, B, W, E) twice -> (H, B, W, W + H), first the row, then the column."""
        rows = q.flatten(0, 1) @ k.flatten(0, 1).mT  # (H·B, W, W)
        columns = columns_of(q) @ columns_of(k).mT  # (B·W, H, H)
        # The pixel itself is in both, and counts once.
        if known((q.shape[0], q.shape[2])):
            columns.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        else:  # ONNX has no views to write to
            columns = columns.masked_fill(torch.eye(q.shape[0], dtype=torch.bool, device=q.device), -torch.inf)
        cross = torch.cat([rows.view(*q.shape[:3], -1), columns.transpose(0, 1).view(*q.shape[:3], -1)], 3)
        return cross.softmax(3)

    @staticmethod
    def gather(crosses: Tensor, v: Tensor) -> Tensor:
        """The weighted sum of Eq. (2): (H, B, W, W + H), (H, B, W, C) -> (H, B, W, C)."""
        along, across = crosses.to(v.dtype).split((v.shape[2], v.shape[0]), 3)
        rows = along.flatten(0, 1) @ v.flatten(0, 1)
        columns = columns_of(across) @ columns_of(v)
        return rows.view(v.shape) + columns.transpose(0, 1).view(v.shape)


class CCNet(nn.Module):
    """Reduce, attend, convolve; the result, fused with the backbone's map if wanted, is classified.

    Shape: list of maps, the last (B, in_channels[-1], H, W) -> {"logits": (B, K, H, W)}.
    """

    gives_maps = True

    def __init__(
        self, in_channels: int, num_classes: int, channels: int, rcca: CrissCross, *, fuse: bool, dropout: float
    ) -> None:
        super().__init__()
        self.reduce = ConvNormReLU(in_channels, channels, 3)
        self.rcca = rcca
        self.after = ConvNormReLU(channels, channels, 3)
        self.fuse = ConvNormReLU(in_channels + channels, channels, 3) if fuse else None
        self.classify = dropout_classifier(channels, num_classes, dropout)

    def forward(self, features: Sequence[Tensor], maps: Maps | None = None) -> dict[str, Tensor]:
        x = features[-1]
        y = self.after(self.rcca(self.reduce(x), maps))
        return {"logits": self.classify(y if self.fuse is None else self.fuse(torch.cat([x, y], 1)))}


def ccnet_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    key_channels: int = 64,
    recurrences: int = 2,
    gate: bool = True,
    fuse: bool = True,
    dropout: float = 0.1,
) -> CCNet:
    """CCNet with its fusion of the backbone's map and the context.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: width of the context.
        key_channels, recurrences, gate: see `CrissCross`.
        fuse: a 3x3 convolution of the context next to the backbone's map; without it RCCA stands between two 3x3
            convolutions, as in SRNet's comparison.
        dropout: probability that a channel is dropped before the classifier.

    Raises:
        ValueError: a width or `recurrences` below 1, or a bad dropout.
    """
    rcca = CrissCross(positive("channels", channels), positive("key_channels", key_channels), recurrences, gate=gate)
    return CCNet(in_channels[-1], num_classes, channels, rcca, fuse=fuse, dropout=dropout)


def columns_of(x: Tensor) -> Tensor:
    """The columns of all images as a batch, without a copy: (H, B, W, D) -> (B·W, H, D)."""
    return x.flatten(1, 2).transpose(0, 1)


def spread(crosses: Tensor, cell: tuple[int, int]) -> Tensor:
    """One pixel's cross on a map: (H, B, W, W + H) -> (B, H, W)."""
    height, batch, width, _ = crosses.shape
    row, column = cell
    along, across = crosses.detach()[row, :, column].split((width, height), 1)
    spread_out = crosses.new_zeros(batch, height, width)
    spread_out[:, :, column] = across
    spread_out[:, row] = along  # the pixel's own weight is in its row; in its column it is 0
    return spread_out
