"""ANN: asymmetric non-local blocks with pyramid-sampled keys (Zhu et al., ICCV 2019, arXiv:1908.07678).

The layers are those of the public code, on which paper and published cost agree: APNB shares one transform between
queries and keys, and every convolution has a bias, also where a batch norm makes it redundant.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.checks import positive, probability
from segmodels.heads.attention import few_keys
from segmodels.heads.maps import Maps
from segmodels.layers import Classifier, ConvNormReLU, biased_conv_norm_relu


class AsymmetricBlock(nn.Module):
    """Non-local attention whose keys and values are a few averages of the map, softmax(q S(k)ᵀ) S(v), and its fusion.

    S averages over the bins of grids of `sizes` (1, 3, 6, 8: 110 positions), so the affinity is N × 110 instead of
    N × N. The projection that follows starts at 0: at the start the context is empty.

    Args:
        low_channels: width of the map that keys and values come from.
        channels: width of the map that queries come from, and of the context.
        out_channels: width after the fusion.
        key_channels: width of queries and keys; the softmax is scaled by its root.
        value_channels: width of values.
        sizes: sides of the pooling grids.
        shared: one transform for queries and keys, as in APNB; both maps must be one then.
        rectify: end the fusion with a ReLU.
        fuse: join context and query map by a 1x1 convolution; else they are added.
        dropout: probability that a channel of the fusion is dropped.

    Shape: query map (B, channels, H, W), key map (B, low_channels, h, w), or none for the query map itself ->
        (B, out_channels, H, W).
    """

    def __init__(
        self,
        low_channels: int,
        channels: int,
        out_channels: int,
        key_channels: int,
        value_channels: int,
        sizes: tuple[int, ...],
        *,
        shared: bool,
        rectify: bool,
        dropout: float,
        fuse: bool = True,
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.query = biased_conv_norm_relu(channels, key_channels)
        self.key = None if shared else biased_conv_norm_relu(low_channels, key_channels)
        self.value = nn.Conv2d(low_channels, value_channels, 1)
        self.project = nn.Conv2d(value_channels, channels, 1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]
        joint = biased_conv_norm_relu(2 * channels, out_channels) if fuse else nn.Sequential()
        self.fuse = nn.Sequential(*(joint if rectify else joint[:2]), nn.Dropout2d(dropout)) if fuse else None

    def forward(self, high: Tensor, low: Tensor | None = None) -> Tensor:
        context = self.context(high, high if low is None else low)
        return high + context if self.fuse is None else self.fuse(torch.cat([context, high], 1))

    def context(self, high: Tensor, low: Tensor) -> Tensor:
        """What the queries of `high` gather from the sampled values of `low`, projected."""
        query = self.query(high)
        key = query if self.key is None else self.key(low)
        k, v = self.sample(key), self.sample(self.value(low))
        y = v @ few_keys(query.flatten(2), k, k.shape[1] ** -0.5)
        return self.project(y.unflatten(2, high.shape[2:]))

    def sample(self, x: Tensor) -> Tensor:
        """Averages over the bins of all grids: (B, C, h, w) -> (B, C, Σ size²)."""
        return torch.cat([F.adaptive_avg_pool2d(x, size).flatten(2) for size in self.sizes], 2)


class ANN(nn.Module):
    """AFNB fuses the last two stages, a 3x3 convolution reduces, APNB adds the context within, a second 3x3 if wanted.

    Shape: list of maps, the last (B, in_channels[-1], H, W) -> {"logits": (B, K, H, W)}.
    """

    def __init__(
        self,
        afnb: nn.Module | None,
        reduce: nn.Module,
        apnb: nn.Module | None,
        channels: int,
        num_classes: int,
        *,
        second_conv: bool,
    ) -> None:
        super().__init__()
        self.afnb, self.reduce, self.apnb = afnb, reduce, apnb
        self.refine = ConvNormReLU(channels, channels, 3) if second_conv else nn.Identity()
        self.classify = Classifier(channels, num_classes)

    def forward(self, features: Sequence[Tensor], maps: Maps | None = None) -> dict[str, Tensor]:
        x = features[-1]
        if self.afnb is not None:
            x = self.afnb(x, features[-2])
        x = self.reduce(x)
        if self.apnb is not None:
            x = self.apnb(x)
        return {"logits": self.classify(self.refine(x))}


def ann_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    key_channels: int = 256,
    value_channels: int = 256,
    sizes: tuple[int, ...] = (1, 3, 6, 8),
    afnb: bool = True,
    apnb: bool = True,
    fuse: bool = True,
    second_conv: bool = False,
    dropout: float = 0.05,
) -> ANN:
    """ANN on the backbone's last two stages.

    Args:
        in_channels: widths of the stages; the last two are read, with `afnb` false the last.
        num_classes: K.
        channels: width after the reduction.
        key_channels, value_channels, sizes: see `AsymmetricBlock`.
        afnb, apnb: ablation switches: whether to have the block that fuses stages, the block within.
        fuse: join context and map by a 1x1 convolution, in both blocks; else they are added, without dropout. With
            afnb false and second_conv, APNB is then a bare unit between two 3x3, as in SRNet's comparison.
        second_conv: a 3x3 convolution after the context, as in SRNet's comparison.
        dropout: probability that a channel of either block's fusion is dropped.

    Raises:
        ValueError: a width or pooling size below 1, no sizes, a bad dropout, or one stage where two are needed.
    """
    widths = positive("key_channels", key_channels), positive("value_channels", value_channels)
    sizes = tuple(positive("sizes", size) for size in sizes)
    if not sizes:
        raise ValueError("sizes is (); allowed: one or more sides of pooling grids, such as (1, 3, 6, 8)")
    probability("dropout", dropout)
    if afnb and len(in_channels) < 2:
        raise ValueError("afnb fuses two stages, but the head is given 1; give it a later stage, or set afnb: false")
    positive("channels", channels)
    fusion, within = None, None
    if afnb:
        low, high = in_channels[-2:]
        fusion = AsymmetricBlock(
            low, high, high, *widths, sizes, shared=False, rectify=False, fuse=fuse, dropout=dropout
        )
    if apnb:
        within = AsymmetricBlock(
            channels, channels, channels, *widths, sizes, shared=True, rectify=True, fuse=fuse, dropout=dropout
        )
    reduce = biased_conv_norm_relu(in_channels[-1], channels, 3)
    return ANN(fusion, reduce, within, channels, positive("num_classes", num_classes), second_conv=second_conv)
