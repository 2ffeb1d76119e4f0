"""Drawn pictures with objects on two kinds of stuff, and models small enough for them."""

import torch
from torch import nn

from segmodels.tasks.detection import build_detector
from segmodels.tasks.panoptic import build_panoptic

SIZE = (64, 64)
THINGS = 3
SMALL = {
    "channels": 16, "anchors": [8, 16, 32, 48, 64], "proposals": [60, 40], "anchor_samples": 32, "box_samples": 16,
    "representation": 32, "mask_channels": 8, "canonical": 56,
}  # fmt: skip
PANOPTIC = {"stuff": 2, "semantic_channels": 8, "stuff_area": 64}


def build(name, **keys):
    """A model of each name; its trunk's batch norms stay as they are, as in the papers' settings."""
    backbone, head = {"name": "test_resnet"}, {"name": name} | SMALL | keys
    if name == "panoptic_fpn":
        model = build_panoptic(num_classes=THINGS + 2, backbone=backbone, head=head | PANOPTIC)
    else:
        model = build_detector(num_classes=THINGS, backbone=backbone, head=head)
    model.train()
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def picture(boxes, labels, seed=0):
    """An image uint8 (3, 64, 64) and its target: sky above, ground below, a block for each object."""
    image, semantic = torch.full((3, *SIZE), 60, dtype=torch.uint8), torch.zeros(SIZE, dtype=torch.uint8)
    image[2, SIZE[0] // 2 :], semantic[SIZE[0] // 2 :] = 180, 1
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2), label in zip(masks, boxes, labels, strict=True):
        mask[y1:y2, x1:x2] = 1
        image[:, y1:y2, x1:x2] = torch.tensor([250, 40, 40]).roll(label)[:, None, None]
        semantic[y1:y2, x1:x2] = 2
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks, "seed": seed, "semantic": semantic, "size": torch.tensor(SIZE),
    }  # fmt: skip
    return image, target


def pictures():
    """Four, with two, one, no and three objects."""
    objects = [
        ([(4, 8, 30, 40), (36, 30, 60, 58)], [0, 2]),
        ([(10, 20, 50, 44)], [1]),
        ([], []),
        ([(2, 2, 18, 20), (30, 4, 62, 30), (20, 36, 44, 62)], [2, 0, 1]),
    ]
    images, targets = zip(*(picture(*one, seed=7 + i) for i, one in enumerate(objects)), strict=True)
    return torch.stack(images), list(targets)
