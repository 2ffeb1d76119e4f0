"""RecoNet: context as a sum of rank-1 tensors (Chen et al., ECCV 2020, arXiv:2008.00490).

We follow the paper. Its public code differs: it has no global pooling branch (the published cost needs it), holds λ at
1/r instead of learning it, and lets the vector pooled per row gate the columns and vice versa.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import pair, positive
from segmodels.heads.context_head import ContextHead
from segmodels.heads.maps import Maps
from segmodels.layers import ConvNormReLU, check_norm_batch, known


class TensorGeneration(nn.Module):
    """TGM: r vectors per axis, v_c[i] = σ(W_c[i] u_c) and likewise v_h and v_w; u is x averaged over the others.

    The r matrices of an axis are stacked into one linear layer: r(C² + H² + W²) weights.

    Args:
        channels: C.
        size: (H, W) in cells, to which the weights of the row and column vectors are bound.
        rank: r.
        resample: take any map by resampling u_h and u_w linearly to `size` and the gates back to the map. Our own
            extension, not in the paper; the identity when the sizes agree.

    Shape: (B, C, H, W) -> (B, r, C), (B, r, H), (B, r, W).
    """

    def __init__(self, channels: int, size: tuple[int, int], rank: int, *, resample: bool = False) -> None:
        super().__init__()
        self.resample, self.rank = resample, rank
        self.c, self.h, self.w = (nn.Linear(n, rank * n, bias=False) for n in (channels, *size))
        for layer in (self.c, self.h, self.w):
            # Kaiming, fan-out, as in the public code: of one rank's matrix, not of the stack, which is r times higher.
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_features))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v_c = self.gates(x.mean((2, 3)), self.c)
        return v_c, self.gates(x.mean((1, 3)), self.h), self.gates(x.mean((1, 2)), self.w)

    def gates(self, u: Tensor, layer: nn.Linear) -> Tensor:
        """(B, n) -> (B, r, n), every entry in (0, 1)."""
        grid = layer.in_features if self.resample else u.shape[1]
        v = layer(stretch(u.unsqueeze(1), grid).squeeze(1)).sigmoid().unflatten(1, (self.rank, -1))
        return stretch(v, u.shape[1])


class TensorReconstruction(nn.Module):
    """TRM: A = Σ_i λ_i v_c[i] ⊗ v_h[i] ⊗ v_w[i], then Y = A · x, entry by entry.

    λ is learned, in (0, 1) and of sum 1: the softmax of a parameter that starts constant. The sum over i is one
    product of matrices, (λ v_c)ᵀ (v_h ⊗ v_w), so that no r maps of C·H·W are held.

    Shape: (B, C, H, W), (B, r, C), (B, r, H), (B, r, W) -> (B, C, H, W). Maps, averaged over the channels:
    `sub_attention` (B, r, H, W), what each rank contributes to Y, λ_i A_i · x; `attended` (B, H, W), Y, their sum;
    `full_attention` (B, H, W), A. And the vectors that A is made of: `v_c`, `v_h`, `v_w`, `lambda_` (r).
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rank))

    @property
    def lambda_(self) -> Tensor:
        return self.weight.softmax(0)

    def forward(self, x: Tensor, v_c: Tensor, v_h: Tensor, v_w: Tensor, maps: Maps | None = None) -> Tensor:
        v_hw = (v_h.unsqueeze(3) * v_w.unsqueeze(2)).flatten(2)  # (B, r, H·W)
        weighted = self.lambda_.unsqueeze(1) * v_c
        a = weighted.mT @ v_hw  # (B, C, H·W)
        if maps is not None:
            maps.add("sub_attention", ((weighted @ x.flatten(2)) * v_hw / x.shape[1]).unflatten(2, x.shape[2:]))
            self.show(maps, x, a.view_as(x), (v_c, v_h, v_w))
        return x * a.view_as(x)

    def show(self, maps: Maps, x: Tensor, a: Tensor, vectors: tuple[Tensor, Tensor, Tensor]) -> None:
        """Fill the maps that hold all ranks, and the vectors."""
        maps.add("full_attention", a.mean(1))
        maps.add("attended", (x * a).mean(1))
        for name, value in zip(("v_c", "v_h", "v_w", "lambda_"), (*vectors, self.lambda_), strict=True):
            maps.add(name, value)


class GlobalPooling(nn.Module):
    """GPM: the map's average, projected by a 1x1 convolution and spread over the map again.

    The paper says no more; bias-free with batch norm and ReLU is the layout of PyTorch-Encoding's image pooling.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: one image in training, whose batch norm needs several values per channel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = ConvNormReLU(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_norm_batch(self.project[1], x, "the global pooling branch")
        return self.project(x.mean((2, 3), keepdim=True)).expand_as(x)


class RecoNet(nn.Module):
    """The context of RecoNet: x, Y and the global vector g side by side, fused by a 1x1 convolution.

    Args:
        channels: C.
        size: (H, W) in cells of the grid of TGM; unused without it.
        rank: r.
        tgm_trm, gpm: whether to have the branches of Y and of g. Without both the context is x itself: the FCN head.
        resample: see `TensorGeneration`.

    Shape: (B, C, H, W) -> (B, C, H, W).
    """

    gives_maps = True

    def __init__(
        self, channels: int, size: tuple[int, int] | None, rank: int, *, tgm_trm: bool, gpm: bool, resample: bool
    ) -> None:
        super().__init__()
        self.tgm = self.trm = None
        if tgm_trm:
            if size is None:
                raise ValueError("feature_size is None; allowed: (h, w) in cells, as tgm_trm has weights per row")
            self.tgm = TensorGeneration(channels, size, rank, resample=resample)
            self.trm = TensorReconstruction(rank)
        self.gpm = GlobalPooling(channels) if gpm else None
        branches = 1 + tgm_trm + gpm
        self.fuse = ConvNormReLU(branches * channels, channels, 1) if branches > 1 else nn.Identity()

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        branches = [x]
        if self.tgm is not None and self.trm is not None:
            branches.append(self.trm(x, *self.tgm(x), maps))
        if self.gpm is not None:
            branches.append(self.gpm(x))
        return self.fuse(torch.cat(branches, 1))


def reconet_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    rank: int = 64,
    tgm_trm: bool = True,
    gpm: bool = True,
    resample: bool = False,
    dropout: float = 0.05,
    feature_size: tuple[int, int] | None = None,
) -> ContextHead:
    """RecoNet in the common frame.

    Args:
        in_channels: widths of the stages; the last is read.
        num_classes: K.
        channels: C, width of the context.
        rank: r, number of rank-1 tensors.
        tgm_trm, gpm: ablation switches, see `RecoNet`.
        resample: take maps of any size, our own extension, not in the paper; see `TensorGeneration`.
        dropout: probability that a channel is dropped before the classifier.
        feature_size: (h, w) in cells: of the training crop's map or, with `resample`, of the gates' grid.

    Raises:
        ValueError: rank, channels or a side below 1, or no `feature_size` though `tgm_trm` needs it.
    """
    positive("channels", channels)
    positive("rank", rank)
    if feature_size is not None:
        feature_size = pair("feature_size", feature_size)
    context = RecoNet(channels, feature_size, rank, tgm_trm=tgm_trm, gpm=gpm, resample=resample)
    bound = feature_size if tgm_trm and not resample else None
    return ContextHead(in_channels, num_classes, context, channels, dropout=dropout, feature_size=bound)


def stretch(v: Tensor, length: int) -> Tensor:
    """Linear resampling with aligned ends: (B, r, n) -> (B, r, length)."""
    if known((v.shape[2], length)) and v.shape[2] == length:  # free sizes of an export are always resampled
        return v
    return F.interpolate(v, size=length, mode="linear", align_corners=True)
