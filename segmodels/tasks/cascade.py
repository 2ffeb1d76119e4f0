"""Cascade Mask R-CNN: three stages, each of the regions that the one before corrected.

Cai and Vasconcelos, CVPR 2018 and TPAMI 2019, arXiv:1906.09756. Where the paper leaves it open, as mmdetection does,
by which SRNet's numbers were made: each stage draws its regions anew and has a mask head; the truth's own boxes are
among a stage's regions but are not handed on; scores are of the mean of the stages' logits, each of its own regions;
masks are the mean of the stages' probabilities in the last boxes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image

from segmodels.tasks.regions import RegionKeys, region_heads

# Inverse standard deviations of the corrections of each stage, mmdetection's: 0.1 and 0.2, a half and a third of them.
BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))


@dataclass(frozen=True)
class Drawn:
    """Regions that a stage's loss is of.

    Attributes:
        boxes: (R, 4) in pixels.
        objects: int64 (R,), which object each is on; without meaning where it is on none.
        labels: int64 (R,), 0 for no object.
        corrections: (R, 4) that lead to the object's box.
        proposed: bool (R,), false where a region is the truth's own box.
    """

    boxes: Tensor
    objects: Tensor
    labels: Tensor
    corrections: Tensor
    proposed: Tensor


def draw(stage: RoIHeads, boxes: Tensor, target: Mapping[str, Tensor]) -> Drawn:
    """Draw a stage's regions of one image from boxes and the truth's boxes, by the stage's overlap and counts.

    Args:
        stage: whose matcher, sampler and coder are taken.
        boxes: (P, 4) in pixels.
        target: `boxes` (n, 4) and `labels` from 1 on.
    """
    truth = target["boxes"]
    regions = torch.cat((boxes, truth))
    (objects,), (labels,) = stage.assign_targets_to_proposals([regions], [truth], [target["labels"]])
    (kept,) = stage.subsample([labels])
    regions, objects, labels = regions[kept], objects[kept], labels[kept]
    aims = (truth if len(truth) else regions.new_zeros(1, 4))[objects]
    return Drawn(regions, objects, labels, stage.box_coder.encode_single(aims, regions), kept < len(boxes))


class CascadeHeads(nn.Module):
    """Region heads in a row, in place of torchvision's one; for one image at a time.

    Args:
        stages: the heads, of one correction for all classes.
        weights: of each stage's losses.
    """

    def __init__(self, stages: Sequence[RoIHeads], weights: Sequence[float]) -> None:
        super().__init__()
        self.stages, self.weights = nn.ModuleList(stages), tuple(weights)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's: detections in evaluation, losses in training, which are sums over the stages."""
        (boxes,) = proposals
        if not self.training:
            return [self.detect(features, boxes, image_shapes)], {}
        if targets is None:
            raise ValueError("targets is None; allowed in training: the image's boxes, labels and masks")
        losses: list[dict[str, Tensor]] = []
        for stage in self.stages:
            drawn = draw(stage, boxes, targets[0])  # type: ignore[arg-type]
            scores, deltas = predict(stage, features, drawn.boxes, image_shapes)
            classes, box = fastrcnn_loss(scores, deltas, [drawn.labels], [drawn.corrections])
            mask = mask_loss(stage, features, drawn, targets[0], image_shapes)
            losses.append({"loss_classifier": classes, "loss_box_reg": box, "loss_mask": mask})
            boxes = refine(stage, deltas, drawn.boxes, image_shapes[0])[drawn.proposed]
        total = {
            name: sum((weight * loss[name] for weight, loss in zip(self.weights, losses, strict=True)), torch.zeros(()))
            for name in losses[0]
        }
        return [], total

    def detect(self, features: dict[str, Tensor], boxes: Tensor, shapes: list[tuple[int, int]]) -> dict[str, Tensor]:
        """Detections of one image: `boxes`, `scores`, `labels` from 1 on, and `masks` (n, 1, 28, 28)."""
        logits = []
        for index, stage in enumerate(self.stages):
            scores, deltas = predict(stage, features, boxes, shapes)
            logits.append(scores)
            if index + 1 < len(self.stages):
                boxes = refine(stage, deltas, boxes, shapes[0])
        mean = torch.stack(logits).mean(0)
        found, scored, named = self.stages[-1].postprocess_detections(mean, deltas, [boxes], shapes)  # type: ignore[operator]
        masks = [maskrcnn_inference(mask_logits(stage, features, found, shapes), named)[0] for stage in self.stages]
        return {"boxes": found[0], "scores": scored[0], "labels": named[0], "masks": torch.stack(masks).mean(0)}


def predict(
    stage: nn.Module, features: dict[str, Tensor], boxes: Tensor, shapes: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """A stage's scores (R, K + 1) and corrections (R, 4 (K + 1)) of regions of one image."""
    return stage.box_predictor(stage.box_head(stage.box_roi_pool(features, [boxes], shapes)))  # type: ignore[operator]


def refine(stage: nn.Module, deltas: Tensor, boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    """The boxes (R, 4) that a stage's corrections make of regions, cut at the image; without a gradient."""
    with torch.no_grad():
        return clip_boxes_to_image(stage.box_coder.decode_single(deltas[:, :4], boxes), shape)  # type: ignore[operator,union-attr]


def mask_logits(
    stage: nn.Module, features: dict[str, Tensor], boxes: list[Tensor], shapes: list[tuple[int, int]]
) -> Tensor:
    """A stage's mask logits (R, K + 1, 28, 28) of boxes of one image."""
    return stage.mask_predictor(stage.mask_head(stage.mask_roi_pool(features, boxes, shapes)))  # type: ignore[operator]


def mask_loss(
    stage: nn.Module,
    features: dict[str, Tensor],
    drawn: Drawn,
    target: Mapping[str, Tensor],
    shapes: list[tuple[int, int]],
) -> Tensor:
    """A stage's mask loss: the mean over its regions on objects."""
    on = drawn.labels > 0
    boxes, objects = [drawn.boxes[on]], [drawn.objects[on]]
    logits = mask_logits(stage, features, boxes, shapes)
    return maskrcnn_loss(logits, boxes, [target["masks"]], [target["labels"]], objects)


@dataclass(frozen=True, kw_only=True)
class CascadeMaskRCNN(RegionKeys):
    """Cascade Mask R-CNN: three heads on regions of rising overlap, one box correction for all classes.

    Attributes:
        overlaps: IoU with an object from which a stage's region is on it.
        stage_weights: of the stages' losses.
    """

    overlaps: tuple[float, ...] = (0.5, 0.6, 0.7)
    stage_weights: tuple[float, ...] = (1.0, 0.5, 0.25)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("overlaps", "stage_weights"):
            values = getattr(self, name)
            if len(values) != len(BOX_WEIGHTS) or not all(0 < value <= 1 for value in values):
                raise ValueError(f"{name} is {list(values)}; allowed: three numbers above 0, at most 1")

    def build(self, num_classes: int, strides: Sequence[int]) -> nn.Module:
        """The region heads for K classes on P2 to P5 of these strides."""
        stages = [
            region_heads(self, num_classes, strides, overlap=overlap, box_weights=weights, agnostic=True)
            for overlap, weights in zip(self.overlaps, BOX_WEIGHTS, strict=True)
        ]
        return CascadeHeads(stages, self.stage_weights)
