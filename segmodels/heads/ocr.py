"""OCR: object-contextual representations from soft regions (Yuan, Chen and Wang, ECCV 2020, arXiv:1909.11065).

The layers are those of the public code for ResNets, on which the published cost agrees: every convolution has a bias,
even where a batch norm makes it redundant.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segmodels.checks import positive, probability
from segmodels.heads.attention import few_keys
from segmodels.heads.maps import Maps
from segmodels.layers import Classifier, biased_conv_norm_relu, dropout_classifier, resize


class ObjectContext(nn.Module):
    """One vector per class, f_k = Σ_n m_kn x_n over its soft region m_k, and each pixel's mixture of them by attention.

    Args:
        channels: C.
        key_channels: width of queries, keys and values; the softmax over the classes is scaled by its root.

    Maps: "regions" (B, K, H, W), the soft regions; each sums to 1 over the pixels.

    Shape: (B, C, H, W), coarse logits (B, K, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.query = nn.Sequential(
            biased_conv_norm_relu(channels, key_channels), biased_conv_norm_relu(key_channels, key_channels)
        )
        self.key = nn.Sequential(
            biased_conv_norm_relu(channels, key_channels), biased_conv_norm_relu(key_channels, key_channels)
        )
        self.value = biased_conv_norm_relu(channels, key_channels)
        self.project = biased_conv_norm_relu(key_channels, channels)

    def forward(self, x: Tensor, coarse: Tensor, maps: Maps | None = None) -> Tensor:
        # The weights of thousands of pixels sum to 1: in float32 or better.
        regions = coarse.to(torch.promote_types(coarse.dtype, torch.float32)).flatten(2).softmax(2)  # (B, K, N)
        if maps is not None:
            maps.add("regions", regions.unflatten(2, coarse.shape[2:]))
        objects = (x.flatten(2) @ regions.to(x.dtype).mT).unsqueeze(3)  # (B, C, K, 1)
        q, k, v = (y.flatten(2) for y in (self.query(x), self.key(objects), self.value(objects)))
        y = v @ few_keys(q, k, k.shape[1] ** -0.5)
        return self.project(y.unflatten(2, x.shape[2:]))


class OCR(nn.Module):
    """Coarse logits from the last stage but one give the regions; the context next to the reduced map is classified.

    The gradient passes through the regions into the coarse logits, which have a loss of their own too.

    Shape: list of maps, the last two (B, ·, h, w) and (B, ·, H, W) -> {"logits": (B, K, H, W), "coarse": (B, K, h, w)}.
    """

    gives_maps = True

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, channels: int, key_channels: int, dropout: float
    ) -> None:
        super().__init__()
        reduce = biased_conv_norm_relu(in_channels[-2], channels, 3)
        self.coarse = nn.Sequential(reduce.append(nn.Dropout2d(dropout)), Classifier(channels, num_classes))
        self.reduce = biased_conv_norm_relu(in_channels[-1], channels, 3)
        self.context = ObjectContext(channels, key_channels)
        self.fuse = biased_conv_norm_relu(2 * channels, channels)
        self.classify = dropout_classifier(channels, num_classes, dropout)

    def forward(self, features: Sequence[Tensor], maps: Maps | None = None) -> dict[str, Tensor]:
        coarse, x = self.coarse(features[-2]), self.reduce(features[-1])
        y = self.context(x, resize(coarse, x.shape[2:]), maps)
        return {"logits": self.classify(self.fuse(torch.cat([y, x], 1))), "coarse": coarse}


def ocr_head(
    in_channels: Sequence[int],
    num_classes: int,
    *,
    channels: int = 512,
    key_channels: int = 256,
    dropout: float = 0.05,
) -> OCR:
    """OCR on the backbone's last two stages; its output "coarse" takes the place of an auxiliary head.

    Args:
        in_channels: widths of the stages; the last two are read.
        num_classes: K.
        channels: width of pixels and objects.
        key_channels: see `ObjectContext`.
        dropout: probability that a channel is dropped before either classifier.

    Raises:
        ValueError: a width below 1, a bad dropout, or one stage where two are needed.
    """
    if len(in_channels) < 2:
        raise ValueError("ocr reads two stages, but the head is given 1; allowed: 2 or more. Give it a later stage")
    widths = positive("channels", channels), positive("key_channels", key_channels)
    return OCR(in_channels, positive("num_classes", num_classes), *widths, probability("dropout", dropout))
