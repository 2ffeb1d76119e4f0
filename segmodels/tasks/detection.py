"""Instances: Mask R-CNN and Cascade Mask R-CNN on any trunk with four maps at strides 4 to 32.

He et al., ICCV 2017, arXiv:1703.06870, on a feature pyramid (Lin et al., CVPR 2017, arXiv:1612.03144), of torchvision's
parts. Each image's losses are its own, means over its own anchors, regions and regions on objects, and its random
choices come of its own seed: what a batch or a worker holds besides changes neither. Torchvision and mmdetection divide
by what the whole batch of a GPU holds, so there an image with few objects counts less.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import FeaturePyramidNetwork

from segmodels.backbone import Backbone, build_backbone
from segmodels.checks import check_keywords, choose, keywords_of, positive
from segmodels.segmentor import TRUNK, named
from segmodels.tasks.cascade import CascadeMaskRCNN
from segmodels.tasks.regions import LEVELS, RegionKeys, proposal_network, region_heads

STRIDES = (4, 8, 16, 32)
NAMES = {  # of a loss here, and at torchvision's parts
    "rpn_class": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "class": "loss_classifier",
    "box": "loss_box_reg",
    "mask": "loss_mask",
}


class Detector(nn.Module):
    """A trunk, a feature pyramid, region proposals and region heads.

    In training it gives its losses, in evaluation its detections: of each image a dict of `boxes` float32 (n, 4), x1 y1
    x2 y2 in pixels of the given image, `scores` (n,) in falling order, `labels` int64 (n,) from 0 on, and `masks`
    (n, 28, 28), probabilities in the boxes; `paste` (`tasks/masks.py`) draws these into an image.

    Args:
        backbone: a trunk of four maps at strides 4, 8, 16 and 32.
        num_classes: K.
        rpn: proposes regions.
        regions: torchvision's `RoIHeads`, or what takes and gives the same for one image.
        channels: width of the pyramid.

    Attributes:
        terms: the losses' names. They are added up as they are.

    Shape: RGB in 0..255, uint8 or float, (B, 3, H, W).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: Backbone, num_classes: int, rpn: RegionProposalNetwork, regions: nn.Module, channels: int
    ) -> None:
        super().__init__()
        self.backbone, self.num_classes = backbone, num_classes
        self.fpn = FeaturePyramidNetwork(list(backbone.channels), channels)
        self.rpn, self.regions = rpn, regions
        self.terms: tuple[str, ...] = tuple(NAMES)
        self.register_buffer("mean", 255 * torch.tensor(backbone.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(backbone.std).view(1, 3, 1, 1))

    def pyramid(self, image: Tensor) -> dict[str, Tensor]:
        """P2 to P6, by the names "0" to "3" and "pool": each (B, channels, h, w)."""
        maps = self.backbone((image.to(self.mean.dtype) - self.mean) / self.std)
        return with_p6(self.fpn(dict(zip(LEVELS, maps, strict=True))))

    def forward(self, image: Tensor, target: Sequence[Mapping[str, Any]] | None = None, images: float = 1.0) -> Any:
        """Losses in training, detections in evaluation.

        Args:
            image: (B, 3, H, W).
            target: in training, of each image `boxes` (n, 4), `labels` (n,) from 0 on, `masks` (n, H, W) and `seed`;
                and `size`, the image's (h, w) in pixels, if the rest of the canvas is padding.
            images: by which the losses are multiplied: the share of these images in the whole batch.

        Returns:
            In training a dict of losses: the mean over these images of each image's own, times `images`. In evaluation
            a list of detections, see the class.

        Raises:
            ValueError: no target in training, or one in evaluation; not one an image; a box without width or height.
        """
        self.check(image, target)
        pyramid = self.pyramid(image)
        parts = [{name: level[i : i + 1] for name, level in pyramid.items()} for i in range(len(image))]
        canvas = (int(image.shape[-2]), int(image.shape[-1]))
        if target is None:
            return [self.detect(part, canvas) for part in parts]
        losses = [self.losses(part, canvas, one) for part, one in zip(parts, target, strict=True)]
        return {name: images * torch.stack([loss[name] for loss in losses]).mean() for name in self.terms}

    def check(self, image: Tensor, target: Sequence[Mapping[str, Any]] | None) -> None:
        """See `forward`."""
        if self.training == (target is None):
            mode = "training" if self.training else "evaluation"
            raise ValueError(f"target is {'None' if target is None else 'given'} in {mode}; allowed: a target in "
                             "training, none in evaluation. Call model.train() or model.eval()")  # fmt: skip
        if target is not None and len(target) != len(image):
            raise ValueError(f"target is of {len(target)} images; allowed: one of each of the {len(image)} images")

    def losses(
        self, pyramid: dict[str, Tensor], canvas: tuple[int, int], target: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """One image's losses, by its own seed; proposals are cut at the image, not at its canvas."""
        like, (height, width) = pyramid["0"], target.get("size", canvas)
        shape = (int(height), int(width))
        truth = as_truth(target, torch.promote_types(like.dtype, torch.float32), like.device)
        with torch.random.fork_rng([like.device] if like.is_cuda else []):
            torch.manual_seed(int(target["seed"]))
            proposals, proposing = self.rpn(ImageList(like, [shape]), pyramid, [truth])
            _, regarding = self.regions(pyramid, proposals, [shape], [truth])
        found = proposing | regarding
        return {name: found[theirs] for name, theirs in NAMES.items()}

    def detect(self, pyramid: dict[str, Tensor], canvas: tuple[int, int]) -> dict[str, Tensor]:
        """One image's detections."""
        proposals, _ = self.rpn(ImageList(pyramid["0"], [canvas]), pyramid)
        (found,), _ = self.regions(pyramid, proposals, [canvas])
        return found | {"labels": found["labels"] - 1, "masks": found["masks"][:, 0]}


def with_p6(levels: dict[str, Tensor]) -> dict[str, Tensor]:
    """P2 to P5, and P6, "pool": every second cell of P5, for the largest proposals."""
    return levels | {"pool": F.max_pool2d(levels[LEVELS[-1]], 1, 2)}


def as_truth(target: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """A target as torchvision takes it: classes from 1 on, as 0 is no object.

    Raises:
        ValueError: a box without width or height, from which no correction can be learnt.
    """
    boxes = target["boxes"].to(device, dtype)
    flat = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    if flat.any():
        raise ValueError(f"a box is {boxes[flat][0].tolist()}; allowed: x1 < x2 and y1 < y2. Leave such objects out")
    return {"boxes": boxes, "labels": target["labels"].to(device) + 1, "masks": target["masks"].to(device)}


@dataclass(frozen=True, kw_only=True)
class MaskRCNN(RegionKeys):
    """Mask R-CNN: one box head and one mask head on the proposed regions."""

    def build(self, num_classes: int, strides: Sequence[int]) -> nn.Module:
        """The region heads for K classes on P2 to P5 of these strides."""
        return region_heads(self, num_classes, strides)


# The names of `head.name` in a recipe; their fields are its keywords.
DETECTORS: dict[str, type[MaskRCNN] | type[CascadeMaskRCNN]] = {
    "mask_rcnn": MaskRCNN,
    "cascade_mask_rcnn": CascadeMaskRCNN,
}


def build_detector(*, num_classes: int, backbone: Mapping[str, Any], head: Mapping[str, Any]) -> Detector:
    """Build the model of a recipe; on the meta device too, if the backbone has no weights to load.

    Args:
        num_classes: K.
        backbone: keywords of `build_backbone`; the output stride is 32, and is so if not given.
        head: `name` in `DETECTORS`, and its keywords.

    Raises:
        ValueError: an unknown name or keyword, a bad value, or a trunk whose maps are at other strides.
    """
    trunk, keys = trunk_of(backbone), keys_of(head)
    regions = keys.build(positive("num_classes", num_classes), STRIDES)
    return Detector(trunk, num_classes, proposal_network(keys, STRIDES), regions, keys.channels)


def trunk_of(backbone: Mapping[str, Any]) -> Backbone:
    """A trunk with four maps at strides 4, 8, 16 and 32.

    Raises:
        ValueError: its maps are others, or it has a neck.
    """
    parts = named(backbone, "backbone")
    check_keywords(parts, TRUNK, "backbone")
    if parts.pop("neck", None) is not None:
        raise ValueError(f"backbone.neck is {backbone['neck']!r}; allowed here: null, as the pyramid is the neck")
    stride = parts.setdefault("output_stride", STRIDES[-1])
    if stride != STRIDES[-1]:
        raise ValueError(f"backbone.output_stride is {stride}; allowed for a feature pyramid: {STRIDES[-1]}")
    trunk = build_backbone(**parts)
    if trunk.strides != STRIDES:
        raise ValueError(f"{trunk.name} has maps at strides {trunk.strides}; allowed for a feature pyramid: {STRIDES}")
    return trunk


def keys_of(head: Mapping[str, Any]) -> MaskRCNN | CascadeMaskRCNN:
    """What a recipe's `head` says of the regions, checked.

    Raises:
        ValueError: an unknown name or keyword, or a bad value.
    """
    keywords = named(head, "head")
    name = keywords.pop("name")
    kind = choose(DETECTORS, name, "head")
    check_keywords(keywords, keywords_of(kind), f"head {name!r}")
    return kind(**as_tuples(keywords))


def as_tuples(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's keywords with its lists as tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in keywords.items()}
