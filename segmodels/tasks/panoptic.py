"""Panoptic segmentation: Panoptic-FPN, a semantic branch beside Mask R-CNN on one pyramid, and how both are merged.

Kirillov, Girshick, He and Dollár, CVPR 2019, arXiv:1901.02446; the merge is of Kirillov, He, Girshick, Rother and
Dollár, Panoptic Segmentation, CVPR 2019, arXiv:1801.00868.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.rpn import RegionProposalNetwork

from segmodels.backbone import Backbone
from segmodels.checks import check_keywords, choose, keywords_of, positive, probability
from segmodels.layers import Classifier, resize
from segmodels.segmentor import named
from segmodels.tasks.detection import STRIDES, Detector, MaskRCNN, as_tuples, trunk_of
from segmodels.tasks.masks import paste
from segmodels.tasks.regions import LEVELS, proposal_network, wide
from segmodels.upsampling import bilinear

VOID = 255
GROUPS = 32  # of the branch's group norms, or all channels in one where they do not divide


class SemanticBranch(nn.Module):
    """The sum of P2 to P5, each enlarged to P2 by steps of 3x3 convolution, group norm, ReLU and resizing; classified.

    P5 takes three steps, P4 two, P3 one, P2 one without enlarging (Section 3).

    Args:
        channels: width of the pyramid.
        width: of the steps.
        classes: S + 1: stuff, and all things as one.

    Shape: P2 to P6 by name -> (B, S + 1, h, w) of P2, in float32 or better.
    """

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(*(step(channels if i == 0 else width, width) for i in range(max(level, 1))))
            for level in range(len(LEVELS))
        )
        self.classify = Classifier(width, classes)

    def forward(self, pyramid: Mapping[str, Tensor]) -> Tensor:
        total: Tensor | None = None
        for index, (name, steps) in enumerate(zip(LEVELS, self.levels, strict=True)):
            x = pyramid[name]
            for done, one in enumerate(steps.children(), 1):
                x = resize(one(x), pyramid[LEVELS[max(index - done, 0)]].shape[-2:])
            total = x if total is None else total + x
        return wide(self.classify(total))


def step(channels: int, width: int) -> nn.Sequential:
    """A step of the branch, without the enlarging."""
    groups = GROUPS if width % GROUPS == 0 else 1
    conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(groups, width), nn.ReLU(inplace=True))


def semantic_loss(logits: Tensor, semantic: Tensor) -> Tensor:
    """Cross entropy of one image, the mean over its labelled pixels; 0 where none is.

    Args:
        logits: (1, S + 1, h, w), enlarged to the target's size.
        semantic: (H, W), 0 to S, 255 void.
    """
    enlarged = bilinear(logits, semantic.shape)
    total = F.cross_entropy(enlarged, semantic[None].long(), ignore_index=VOID, reduction="sum")
    return total / (semantic != VOID).sum().clamp(min=1)


class PanopticFPN(Detector):
    """`Detector` with a semantic branch on its pyramid.

    In training there is the loss `semantic` too, times its weight, of the target's `semantic` (H, W): stuff 0 to S - 1,
    S for all things, 255 void. In evaluation each image's dict has `semantic` too: logits (S + 1, h, w) at a quarter of
    the image's size; `merge` makes a panoptic picture of such a dict.

    Args:
        backbone, num_classes, rpn, regions, channels: as `Detector`; its classes are the things.
        semantic: the branch.
        weight: of its loss.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        rpn: RegionProposalNetwork,
        regions: nn.Module,
        channels: int,
        semantic: SemanticBranch,
        weight: float,
    ) -> None:
        super().__init__(backbone, num_classes, rpn, regions, channels)
        self.semantic, self.weight = semantic, weight
        self.terms = (*self.terms, "semantic")

    def losses(
        self, pyramid: dict[str, Tensor], canvas: tuple[int, int], target: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """One image's losses, as of `Detector`, and that of the branch."""
        loss = semantic_loss(self.semantic(pyramid), target["semantic"].to(pyramid["0"].device))
        return super().losses(pyramid, canvas, target) | {"semantic": self.weight * loss}

    def detect(self, pyramid: dict[str, Tensor], canvas: tuple[int, int]) -> dict[str, Tensor]:
        """One image's detections, and the branch's logits."""
        return super().detect(pyramid, canvas) | {"semantic": self.semantic(pyramid)[0]}


@dataclass(frozen=True)
class MergeRule:
    """When a detection and a region of stuff are part of a panoptic picture.

    Attributes:
        thing_score: detections below it are not.
        thing_overlap: share of a detection's pixels that higher ones may have; with more it is not.
        stuff_area: least pixels of a class of stuff.
    """

    thing_score: float = 0.5
    thing_overlap: float = 0.5
    stuff_area: int = 4096


@dataclass(frozen=True)
class Panoptic:
    """A panoptic picture.

    Attributes:
        pixels: int64 (h, w): the number of a pixel's segment, or -1 for void.
        things: bool (n,), whether a segment is a thing; things are first, by falling score.
        classes: int64 (n,): of things 0 to T - 1, of stuff 0 to S - 1.
        scores: float (n,), 1 for stuff.
    """

    pixels: Tensor
    things: Tensor
    classes: Tensor
    scores: Tensor


def merge(
    found: Mapping[str, Tensor],
    canvas: tuple[int, int],
    view: tuple[int, int],
    size: tuple[int, int],
    rule: MergeRule,
) -> Panoptic:
    """Merge what `PanopticFPN` gives of an image into a panoptic picture: first things by falling score, then stuff.

    Args:
        found: `boxes` in pixels of the canvas, `scores`, `labels`, `masks`, and the branch's logits, `semantic`.
        canvas: (H, W) of what the model was given.
        view: (h, w) of the image in it, at its top left; the rest is padding.
        size: (h, w) of the picture that is asked for, to which the view is resized.
        rule: what is left out.
    """
    logits = bilinear(found["semantic"][None], canvas)[..., : view[0], : view[1]]
    stuff = resize(logits, size)[0].argmax(0)
    scale = found["boxes"].new_tensor([size[1] / view[1], size[0] / view[0]]).repeat(2)
    kept = found["scores"] >= rule.thing_score
    masks = paste(found["masks"][kept], found["boxes"][kept] * scale, size)
    return merged(masks, found["labels"][kept], found["scores"][kept], stuff, len(logits[0]) - 1, rule)


def merged(masks: Tensor, labels: Tensor, scores: Tensor, stuff: Tensor, things: int, rule: MergeRule) -> Panoptic:
    """The merge itself, on masks of the picture's size.

    Args:
        masks: bool (n, h, w) of detections that are good enough.
        labels, scores: (n,).
        stuff: int64 (h, w), 0 to S - 1 stuff.
        things: S, which in `stuff` stands for things and leaves a pixel void unless a detection has it.
        rule: what is left out.
    """
    pixels = torch.full_like(stuff, -1)
    taken: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        area, free = int(masks[index].sum()), masks[index] & (pixels < 0)
        if area and area - int(free.sum()) <= rule.thing_overlap * area and free.any():
            pixels[free] = len(taken)
            taken.append(index)
    regions: list[int] = []
    for number in stuff[pixels < 0].unique().tolist():
        region = (stuff == number) & (pixels < 0)
        if number != things and int(region.sum()) >= rule.stuff_area:
            pixels[region] = len(taken) + len(regions)
            regions.append(number)
    return Panoptic(
        pixels,
        torch.tensor([True] * len(taken) + [False] * len(regions), dtype=torch.bool),
        torch.cat((labels[taken].cpu(), torch.tensor(regions, dtype=torch.int64))),
        torch.cat((scores[taken].float().cpu(), torch.ones(len(regions)))),
    )


@dataclass(frozen=True, kw_only=True)
class PanopticKeys(MaskRCNN):
    """Panoptic-FPN: Mask R-CNN for things, a semantic branch for stuff.

    Attributes:
        stuff: S, classes of stuff, COCO's 53 among its 133.
        semantic_channels: width of the semantic branch.
        semantic_weight: of its loss, beside Mask R-CNN's (λ_s where λ_i is 1).
        thing_score: detections below it are not in a panoptic picture.
        thing_overlap: share of a detection's pixels that higher ones may have.
        stuff_area: least pixels of a class of stuff in a picture; smaller pictures need fewer.
    """

    stuff: int = 53
    semantic_channels: int = 128
    semantic_weight: float = 0.5
    thing_score: float = 0.5
    thing_overlap: float = 0.5
    stuff_area: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stuff", "semantic_channels", "stuff_area"):
            positive(name, getattr(self, name))
        for name in ("thing_score", "thing_overlap"):
            probability(name, getattr(self, name))
        if not self.semantic_weight > 0:
            raise ValueError(f"semantic_weight is {self.semantic_weight}; allowed: above 0")

    def rule(self) -> MergeRule:
        """What is left out of panoptic pictures."""
        return MergeRule(self.thing_score, self.thing_overlap, self.stuff_area)


PANOPTIC = {"panoptic_fpn": PanopticKeys}  # the names of `head.name` in a recipe


def panoptic_keys(head: Mapping[str, Any]) -> PanopticKeys:
    """What a recipe's `head` says, checked.

    Raises:
        ValueError: an unknown name or keyword, or a bad value.
    """
    keywords = named(head, "head")
    name = keywords.pop("name")
    kind = choose(PANOPTIC, name, "head")
    check_keywords(keywords, keywords_of(kind), f"head {name!r}")
    return kind(**as_tuples(keywords))


def build_panoptic(*, num_classes: int, backbone: Mapping[str, Any], head: Mapping[str, Any]) -> PanopticFPN:
    """Build the model of a recipe; on the meta device too, if the backbone has no weights to load.

    Args:
        num_classes: of things and stuff together.
        backbone: as of `build_detector`.
        head: `name` in `PANOPTIC`, and its keywords.

    Raises:
        ValueError: as of `build_detector`; or all classes are stuff.
    """
    trunk, keys = trunk_of(backbone), panoptic_keys(head)
    things = positive("num_classes", num_classes) - keys.stuff
    if things < 1:
        raise ValueError(f"head.stuff is {keys.stuff} of {num_classes} classes; allowed: fewer, as some are things")
    branch = SemanticBranch(keys.channels, keys.semantic_channels, keys.stuff + 1)
    regions = keys.build(things, STRIDES)
    rpn = proposal_network(keys, STRIDES)
    return PanopticFPN(trunk, things, rpn, regions, keys.channels, branch, keys.semantic_weight)
