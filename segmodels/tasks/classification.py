"""Classification of whole images: what trunks are trained for before they segment (SRNet, Sec. IV-E).

The trunk's last map, its average, a linear layer. The trunk of a trained classifier goes on as `backbone.weights` of a
segmentation recipe, its context too.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmodels.backbone import Backbone, build_backbone
from segmodels.checks import check_keywords, choose, keywords_of, probability
from segmodels.layers import dropout_classifier
from segmodels.segmentor import TRUNK, named


class ImageClassifier(nn.Module):
    """A trunk, global average pooling, dropout and a linear layer, which is a 1x1 convolution of the pooled map.

    Args:
        backbone: gives the map, and mean and std of its normalisation.
        num_classes: K.
        dropout: probability that a value is dropped before the classifier.
        label_smoothing: share of a target that goes to all classes alike (Szegedy et al., CVPR 2016,
            arXiv:1512.00567).

    Shape: RGB in 0..255, uint8 or float, (B, 3, H, W) -> logits (B, K) in float32 or better; with classes int64 (B,),
    {"cross_entropy": scalar}, the mean of the images' losses times `images`, their share of the global batch.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, num_classes: int, *, dropout: float, label_smoothing: float) -> None:
        super().__init__()
        self.backbone, self.num_classes = backbone, num_classes
        self.label_smoothing = probability("label_smoothing", label_smoothing)
        self.terms = ("cross_entropy",)
        if backbone.taps is not None and backbone.pyramid is not None:  # a ViT's one map is read, no pyramid of it
            backbone.pyramid = None
            backbone.channels, backbone.strides = backbone.taps.channels, backbone.taps.strides
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = dropout_classifier(backbone.channels[-1], num_classes, dropout)
        # Part of the state dict, as a segmentor's.
        self.register_buffer("mean", 255 * torch.tensor(backbone.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(backbone.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor, target: Tensor | None = None, images: float = 1.0) -> Tensor | dict[str, Tensor]:
        features = self.backbone((image.to(self.mean.dtype) - self.mean) / self.std)
        logits = self.head(self.pool(features[-1])).flatten(1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if target is None:
            return logits
        return {"cross_entropy": images * F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)}


def classifier(
    backbone: Backbone, num_classes: int, *, dropout: float = 0.0, label_smoothing: float = 0.0
) -> ImageClassifier:
    """The classifier of a trunk, see `ImageClassifier`; its keywords are the recipe's."""
    return ImageClassifier(backbone, num_classes, dropout=dropout, label_smoothing=label_smoothing)


HEADS = {"classifier": classifier}


def build_classifier(*, num_classes: int, backbone: Mapping[str, Any], head: Mapping[str, Any]) -> ImageClassifier:
    """Build the model of a recipe; on the meta device too, if the backbone has no weights to load.

    Args:
        num_classes: K.
        backbone: `name`, `output_stride`, `weights`, `multi_grid` and `context` of `build_backbone`; ImageNet's trunks
            have output stride 32.
        head: `name`, a key of `HEADS`, and its keywords.

    Raises:
        ValueError: an unknown name or keyword, a bad value, or a neck.
    """
    check_keywords(backbone, TRUNK, "backbone")
    parts, keywords = named(backbone, "backbone"), named(head, "head")
    if (neck := parts.pop("neck", None)) is not None:
        raise ValueError(f"backbone.neck is {neck!r}; allowed for a classifier, which reads the last map: null")
    builder = choose(HEADS, keywords.pop("name"), "head of classification")
    check_keywords(keywords, keywords_of(builder), "head 'classifier'")
    return builder(build_backbone(**parts), num_classes, **keywords)
