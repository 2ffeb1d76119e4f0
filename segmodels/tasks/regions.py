"""Torchvision's region proposals and region heads as detection and panoptic models take them.

They are called image by image, so their losses are of one image: nothing is divided by what other images hold. What is
changed of them: anchors stand at the trunk's strides, and boxes are reckoned in float32 where the network is narrower.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from segmodels.checks import positive, probability

LEVELS = ("0", "1", "2", "3")  # names of P2 to P5, in which regions are looked at; P6, "pool", is for proposals
ASPECTS = (0.5, 1.0, 2.0)  # height / width
BOX_CELLS, MASK_CELLS = 7, 14  # sides of the map of a region, of the box head and of the mask head; masks have 28
SAMPLING = 2  # points of RoIAlign along each side of a cell, as in torchvision and maskrcnn-benchmark


@dataclass(frozen=True, kw_only=True)
class RegionKeys:
    """What a recipe may set of a region head; defaults are Mask R-CNN's (He et al., ICCV 2017, arXiv:1703.06870).

    Attributes:
        channels: width of the pyramid and of the proposals' head.
        anchors: sides of the square anchors of P2, P3, P4, P5 and P6, in pixels.
        proposals: of an image in training and in testing; also how many of each level enter their suppression.
        anchor_samples: anchors of an image that the proposals' loss is of, at most half of them on objects.
        box_samples: regions of an image that the box head's loss is of, at most a quarter of them on objects.
        representation: width of the box head's two linear layers.
        mask_channels: width of the mask head.
        canonical: side in pixels of a region that is looked at in P4; half of it in P3 (Lin et al., Eq. 1).
        min_score: detections below it are left out.
        overlap: IoU above which the lower of two detections of a class is left out.
        detections: of an image, at most.
    """

    channels: int = 256
    anchors: tuple[int, ...] = (32, 64, 128, 256, 512)
    proposals: tuple[int, ...] = (2000, 1000)
    anchor_samples: int = 256
    box_samples: int = 512
    representation: int = 1024
    mask_channels: int = 256
    canonical: int = 224
    min_score: float = 0.05
    overlap: float = 0.5
    detections: int = 100

    def __post_init__(self) -> None:
        for name, length in (("anchors", 5), ("proposals", 2)):
            values = getattr(self, name)
            if len(values) != length:
                raise ValueError(f"{name} is {list(values)}; allowed: {length} integers of at least 1")
            for value in values:
                positive(name, value)
        for name in ("channels", "anchor_samples", "box_samples", "representation", "mask_channels", "canonical",
                     "detections"):  # fmt: skip
            positive(name, getattr(self, name))
        probability("min_score", self.min_score)
        probability("overlap", self.overlap)


class Anchors(AnchorGenerator):
    """Torchvision's anchors, a size for each level, at the levels' own strides and in float32 or better.

    The parent divides the image's side by the map's: where a level's last cell is cut, 800 // 13 = 61 pixels for 64.
    It reckons in the maps' precision: with 8 bits, a corner at 1000 is off by up to 4 pixels.

    Args:
        sizes: a side for each level, in pixels.
        strides: pixels per cell of each level.
    """

    def __init__(self, sizes: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__(tuple((size,) for size in sizes), (ASPECTS,) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        like = feature_maps[0]
        self.set_cell_anchors(torch.promote_types(like.dtype, torch.float32), like.device)
        grids = [list(level.shape[-2:]) for level in feature_maps]
        pairs = [[torch.tensor(s, device=like.device)] * 2 for s in self.strides]
        return [torch.cat(self.grid_anchors(grids, pairs))] * len(image_list.image_sizes)


class ProposalHead(RPNHead):
    """Torchvision's, whose outputs are float32 or better: boxes are decoded from them."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [wide(level) for level in logits], [wide(level) for level in deltas]


class BoxPredictor(FastRCNNPredictor):
    """Torchvision's scores and box corrections of regions, in float32 or better.

    Args:
        channels: width of the box head.
        classes: K + 1; 0 is no object.
        agnostic: one correction for all classes, as in Cascade R-CNN; it is given to each of them.

    Shape: (R, channels) -> scores (R, K + 1) and corrections (R, 4 (K + 1)).
    """

    def __init__(self, channels: int, classes: int, *, agnostic: bool = False) -> None:
        super().__init__(channels, classes)
        self.repeats = classes if agnostic else 1
        if agnostic:
            self.bbox_pred = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return wide(scores), wide(deltas).repeat(1, self.repeats)


def wide(x: Tensor) -> Tensor:
    """In float32, or float64 if it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def proposal_network(keys: RegionKeys, strides: Sequence[int]) -> RegionProposalNetwork:
    """The region proposals of Faster R-CNN on P2 to P6 (Ren et al., NeurIPS 2015, arXiv:1506.01497)."""
    counts = dict(zip(("training", "testing"), keys.proposals, strict=True))
    return RegionProposalNetwork(
        Anchors(keys.anchors, (*strides, 2 * strides[-1])),
        ProposalHead(keys.channels, len(ASPECTS)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=keys.anchor_samples,
        positive_fraction=0.5,
        pre_nms_top_n=counts,
        post_nms_top_n=counts,
        nms_thresh=0.7,
    )


def region_pool(strides: Sequence[int], cells: int, canonical: int) -> MultiScaleRoIAlign:
    """RoIAlign on P2 to P5 at the trunk's strides; torchvision guesses them from the first image that it sees."""
    pool: Any = MultiScaleRoIAlign(list(LEVELS), cells, SAMPLING, canonical_scale=canonical)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = LevelMapper(2, 1 + len(strides), canonical)
    return pool


def region_heads(
    keys: RegionKeys,
    num_classes: int,
    strides: Sequence[int],
    *,
    overlap: float = 0.5,
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
    agnostic: bool = False,
) -> RoIHeads:
    """Box head and mask head: two linear layers on 7 x 7 cells; four 3x3 convolutions on 14 x 14, and 28 x 28 masks.

    Args:
        keys: the recipe's.
        num_classes: K, without the background.
        strides: of P2 to P5.
        overlap: IoU with an object from which a region is on it.
        box_weights: by which corrections of x, y, width and height are multiplied before they are learnt.
        agnostic: see `BoxPredictor`.
    """
    classes = num_classes + 1
    return RoIHeads(
        region_pool(strides, BOX_CELLS, keys.canonical),
        TwoMLPHead(keys.channels * BOX_CELLS**2, keys.representation),
        BoxPredictor(keys.representation, classes, agnostic=agnostic),
        fg_iou_thresh=overlap,
        bg_iou_thresh=overlap,
        batch_size_per_image=keys.box_samples,
        positive_fraction=0.25,
        bbox_reg_weights=box_weights,
        score_thresh=keys.min_score,
        nms_thresh=keys.overlap,
        detections_per_img=keys.detections,
        mask_roi_pool=region_pool(strides, MASK_CELLS, keys.canonical),
        mask_head=MaskRCNNHeads(keys.channels, (keys.mask_channels,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(keys.mask_channels, keys.mask_channels, classes),
    )
