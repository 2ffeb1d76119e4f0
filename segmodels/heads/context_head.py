"""The frame of all compared heads: reduce, context, classify."""

from collections.abc import Sequence

from torch import Tensor, nn

from segmodels.checks import positive
from segmodels.heads.maps import Maps
from segmodels.layers import ConvNormReLU, dropout_classifier


class ContextHead(nn.Module):
    """The control of every experiment: heads in this frame differ only in their context module.

    A 3x3 convolution reduces the backbone's last map to `channels`, the context module works on it, and dropout and a
    1x1 convolution classify. Dropout zeroes whole channels, as in semseg: neighbouring cells would give single ones
    away.

    Args:
        in_channels: widths of the backbone's stages; the last is read.
        num_classes: K.
        context: a module from (B, channels, H, W) to (B, out_channels, H, W). One whose class attribute `gives_maps`
            is true takes `maps` as its second argument and fills it. One whose attribute `one_size_programs` is true
            is exported for one size only.
        channels: width of the context module's input.
        out_channels: width of its output; `channels` if None.
        dropout: probability that a channel is dropped before the classifier.
        feature_size: the one map size (h, w) in cells that the context module takes, or None if it takes any.

    Shape: list of maps, the last (B, in_channels[-1], H, W) -> {"logits": (B, K, H, W)}.

    Raises:
        ValueError: a bad width or dropout; in `forward`, a map of another size than `feature_size`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        context: nn.Module,
        channels: int,
        *,
        out_channels: int | None = None,
        dropout: float = 0.1,
        feature_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.feature_size = feature_size
        self.reduce = ConvNormReLU(in_channels[-1], positive("channels", channels), 3)
        self.context = context
        self.gives_maps: bool = getattr(context, "gives_maps", False)
        self.one_size_programs: bool = getattr(context, "one_size_programs", False)
        self.classify = dropout_classifier(out_channels or channels, num_classes, dropout)

    def forward(self, features: Sequence[Tensor], maps: Maps | None = None) -> dict[str, Tensor]:
        x = features[-1]
        if self.feature_size is not None and tuple(x.shape[-2:]) != self.feature_size:
            raise ValueError(
                f"the head got a map of {tuple(x.shape[-2:])} cells; allowed: {self.feature_size}, to which its "
                "weights are bound. Slide windows of the training crop over the image, or train with the head's "
                "`resample: true`, if it has that"
            )
        x = self.reduce(x)
        y = self.context(x, maps) if self.gives_maps and maps is not None else self.context(x)
        return {"logits": self.classify(y)}


class Refined(nn.Module):
    """A context module followed by a 3x3 convolution of its output, as in the frame of SRNet's comparison.

    Shape: that of the context.
    """

    def __init__(self, context: nn.Module, channels: int) -> None:
        super().__init__()
        self.context, self.refine = context, ConvNormReLU(channels, channels, 3)
        self.gives_maps: bool = getattr(context, "gives_maps", False)

    def forward(self, x: Tensor, maps: Maps | None = None) -> Tensor:
        return self.refine(self.context(x, maps) if self.gives_maps else self.context(x))
