"""The models of all tasks but segmentation, whose own is `segmodels.segmentor.build_segmentor`."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from segmodels.checks import choose
from segmodels.cost import Cost, measure
from segmodels.tasks.classification import build_classifier
from segmodels.tasks.costs import detector_cost
from segmodels.tasks.detection import Detector, build_detector
from segmodels.tasks.panoptic import build_panoptic

BUILDERS = {"classification": build_classifier, "detection": build_detector, "panoptic": build_panoptic}


def build_task_model(task: str, *, num_classes: int, backbone: Mapping[str, Any], head: Mapping[str, Any]) -> nn.Module:
    """Build the model of a recipe; on the meta device too, if the backbone has no weights to load.

    It takes RGB uint8 (B, 3, H, W). In training it takes their targets too, and the share of the global batch that they
    are, and gives its terms of the loss, by name; they are added up as they are. Else it gives its predictions.

    Args:
        task: a key of `BUILDERS`.
        num_classes: K.
        backbone: `name`, `output_stride`, `weights`, `context`, … of `build_backbone`.
        head: `name`, and the keywords of its builder.

    Raises:
        ValueError: an unknown name or keyword, or a bad value.
    """
    build = choose(BUILDERS, task, "task")
    return build(num_classes=num_classes, backbone=backbone, head=head)


def task_cost(model: nn.Module, size: tuple[int, int]) -> Cost:
    """What a model costs at one RGB image; of a detector with as many regions as `detector_cost` says.

    Args:
        model: of `build_task_model`.
        size: (h, w) in pixels.
    """
    return detector_cost(model, size) if isinstance(model, Detector) else measure(model, size)
