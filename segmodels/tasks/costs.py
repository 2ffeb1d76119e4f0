"""What detectors cost at one image: how many regions it has is stated, not found, as nothing is computed.

SRNet's Table IX prints mmdetection's figures. Its rule is met by "mmdetection" at 1280 x 800 pixels, the size that its
script takes if none is given, though the table says 1200 x 800.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from segmodels.checks import choose, positive
from segmodels.cost import CONVENTIONS, Cost, activation_bytes, leaf_macs, on_meta, run_hooked
from segmodels.tasks.detection import Detector, with_p6
from segmodels.tasks.regions import BOX_CELLS, LEVELS, MASK_CELLS

PROPOSALS, MASKS = 1000, 100  # regions that mmdetection's count gives to box heads, and to mask heads


def detector_cost(
    model: Detector,
    size: tuple[int, int],
    convention: str = "conv+matmul",
    *,
    proposals: int = PROPOSALS,
    masks: int = MASKS,
) -> Cost:
    """Count a detector's cost at one RGB image; the model stays as it is.

    Args:
        model: a detector, or one with a semantic branch.
        size: (h, w) in pixels.
        convention: a key of `segmodels.cost.CONVENTIONS`, or "mmdetection": its "leaf-modules", every call of a module
            counted, and a transposed convolution as a convolution at its outputs, four times what a 2x2 of stride 2
            does, without its bias: what gives the printed figures.
        proposals: regions that each box head is given.
        masks: regions that each mask head is given.

    Raises:
        ValueError: an unknown convention, or a bad size or number.
    """
    size = positive("size", size[0]), positive("size", size[1])
    count = choose(CONVENTIONS | {"mmdetection": mmdetection_macs}, convention, "cost convention")
    model = on_meta(model)  # type: ignore[assignment]
    with torch.no_grad():
        pieces = list(parts(model, size, positive("proposals", proposals), positive("masks", masks)))
        return Cost(
            parameters=sum(p.numel() for p in model.parameters()),
            macs=sum(count(piece, given) for piece, given in pieces),
            convention=convention,
            size=size,
            activation_bytes=sum(activation_bytes(piece, given) for piece, given in pieces),
        )


def parts(model: Detector, size: tuple[int, int], proposals: int, masks: int) -> Iterator[tuple[nn.Module, Any]]:
    """The modules that work on an image, in their order, each with inputs on the meta device."""
    image = torch.zeros(1, 3, *size, device="meta")
    yield model.backbone, image
    maps: dict[str, Tensor] = dict(zip(LEVELS, model.backbone(image), strict=True))
    yield model.fpn, maps
    pyramid = with_p6(model.fpn(maps))
    for level in pyramid.values():
        yield model.rpn.head, [level]
    if isinstance(semantic := getattr(model, "semantic", None), nn.Module):
        yield semantic, pyramid
    channels = pyramid[LEVELS[0]].shape[1]
    boxes = torch.zeros(proposals, channels, BOX_CELLS, BOX_CELLS, device="meta")
    regions = torch.zeros(masks, channels, MASK_CELLS, MASK_CELLS, device="meta")
    stages: Any = getattr(model.regions, "stages", [model.regions])
    for stage in stages:
        yield nn.Sequential(stage.box_head, stage.box_predictor), boxes
        yield nn.Sequential(stage.mask_head, stage.mask_predictor), regions


def mmdetection_macs(model: nn.Module, inputs: Any) -> int:
    """See `detector_cost`; of one part, whose modules are called once."""
    transposed: list[int] = []

    def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.ConvTranspose2d):
            transposed.append(output.numel() * module.in_channels // module.groups * math.prod(module.kernel_size))

    run_hooked(model, inputs, hook)
    return leaf_macs(model, inputs) + sum(transposed)
