"""From raw RGB to logits at the image's size: normalise, backbone, neck if any, head, upsample."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from segmodels.backbone import Backbone, build_backbone
from segmodels.checks import check_keywords, choose, keywords_of, pair, positive
from segmodels.cost import on_meta
from segmodels.heads.catalog import HEADS, build_head
from segmodels.jpu import JPU, build_neck
from segmodels.layers import Classifier
from segmodels.upsampling import bilinear

AUX_STAGE = 3
AUX_CHANNELS = 256
TRUNK = {"name": "resnet101s", "output_stride": 8, "weights": None, "multi_grid": None, "context": None, "neck": None}


class Segmentor(nn.Module):
    """A backbone, a head and, in training, an auxiliary head on an earlier stage.

    Args:
        backbone: gives the features, and mean and std of its normalisation.
        head: a head of `HEADS`.
        num_classes: K.
        neck: turns the backbone's four maps into the four that the heads read; or None.
        aux: a second head, only for training, or None.
        aux_stage: the last stage, of 4, that the auxiliary head is given.
        crop: (h, w) in pixels of the training crop: the window of a head that is bound to its size.

    Attributes:
        feature_size: (h, w) in cells to which the head is bound, or None.
        window: `crop` if the head is bound to it, else None: an image of any size will do.
        program_window: the same for an exported program; also `crop` where no program of free size can be traced.

    Shape: RGB in 0..255, uint8 or float, (B, 3, H, W) -> {"logits": (B, K, H, W)}, with "aux" likewise in training.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        num_classes: int,
        *,
        neck: nn.Module | None = None,
        aux: nn.Module | None = None,
        aux_stage: int = AUX_STAGE,
        crop: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        # A neck learns at the heads' rate, as in FastFCN: it is no part of the backbone, and has no weights to load.
        self.backbone, self.neck, self.head, self.aux = backbone, neck, head, aux
        self.num_classes, self.aux_stage = num_classes, aux_stage
        self.feature_size: tuple[int, int] | None = getattr(head, "feature_size", None)
        self.window = crop if self.feature_size is not None else None
        one_size = any(getattr(part, "one_size_programs", False) for part in (backbone, head))
        self.program_window = self.window or (crop if one_size else None)
        # Part of the state dict: a checkpoint and an exported program keep their normalisation.
        self.register_buffer("mean", 255 * torch.tensor(backbone.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(backbone.std).view(1, 3, 1, 1))

    def features(self, image: Tensor) -> list[Tensor]:
        """The four maps that the heads read."""
        features = self.backbone((image.to(self.mean.dtype) - self.mean) / self.std)
        return features if self.neck is None else self.neck(features)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.features(image)
        outputs = self.head(features)
        if self.training and self.aux is not None:
            outputs = outputs | {"aux": self.aux(features[: self.aux_stage])["logits"]}
        return {name: upsample(output, image) for name, output in outputs.items()}


def upsample(output: Tensor, image: Tensor) -> Tensor:
    """A map at the image's size, in float32 or better; vectors, such as class presence, stay as they are.

    bfloat16 has 8 bits: between cells, classes would tie and the lower index win.
    """
    if output.ndim != 4:
        return output
    # contiguous while it is small: channels_last, the loss would copy it at the image's size
    output = output.to(torch.promote_types(output.dtype, torch.float32)).contiguous()
    # Not `resize`: it checks whether there is anything to do, which binds an exported program to one size.
    return bilinear(output, image.shape[-2:])


def build_segmentor(
    *,
    num_classes: int,
    crop: tuple[int, int],
    backbone: Mapping[str, Any],
    head: Mapping[str, Any],
    aux: Mapping[str, Any] | None = None,
) -> Segmentor:
    """Build the model of a recipe; on the meta device too, if the backbone has no weights to load.

    Args:
        num_classes: K.
        crop: (h, w) in pixels of the training crop. A head bound to its size is built for this crop's map.
        backbone: `name`, `output_stride`, `weights`, `multi_grid`, `context` of `build_backbone`, and `neck`, a key of
            `NECKS`.
        head: `name` in `HEADS`, and its keywords.
        aux: likewise, and `stage`, 1 to 4 (3, res4, if not given); 256 channels if not given. None for no such head.

    Raises:
        ValueError: an unknown name or keyword, a bad value, or a head whose parts are larger than the crop's map.
    """
    height, width = crop
    crop = positive("crop", height), positive("crop", width)
    positive("num_classes", num_classes)
    check_keywords(backbone, TRUNK, "backbone")
    parts = named(backbone, "backbone")
    name = parts.pop("neck", None)
    trunk = build_backbone(**parts)
    neck = None if name is None else build_neck(name, trunk.channels, trunk.strides)
    source = trunk if neck is None else neck
    main = stage_head(source, 4, num_classes, crop, named(head, "head"))
    if aux is None:
        return Segmentor(trunk, main, num_classes, neck=neck, crop=crop)
    keywords = named(aux, "aux")
    stage = keywords.pop("stage", AUX_STAGE)
    if stage not in (1, 2, 3, 4):
        raise ValueError(f"aux: stage is {stage!r}; allowed: 1, 2, 3, 4")
    if "channels" in keywords_of(choose(HEADS, keywords["name"], "head")):
        keywords.setdefault("channels", AUX_CHANNELS)
    second = stage_head(source, stage, num_classes, crop, keywords)
    return Segmentor(trunk, main, num_classes, neck=neck, aux=second, aux_stage=stage, crop=crop)


def named(part: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A copy of a part of the recipe, which must have a name."""
    if "name" not in part:
        raise ValueError(f"{what} is {dict(part)}; it needs a name, such as {what}: {{name: …}}")
    return dict(part)


def stage_head(
    source: Backbone | JPU, stage: int, num_classes: int, crop: tuple[int, int], keywords: dict[str, Any]
) -> nn.Module:
    """A head on the first `stage` maps; it is given the size of the crop's last one if it has a keyword for it."""
    name = keywords.pop("name")
    stride = source.strides[stage - 1]
    size = (-(-crop[0] // stride), -(-crop[1] // stride))  # strided convolutions round up
    if "feature_size" in keywords_of(choose(HEADS, name, "head")):
        given = keywords.get("feature_size")
        keywords["feature_size"] = size if given is None else pair("feature_size", given)
    head = build_head(name, source.channels[:stage], num_classes, **keywords)
    bound = getattr(head, "feature_size", None)
    if bound is not None and bound != size:
        raise ValueError(
            f"head {name!r}: feature_size is {bound}, but a crop of {crop} at stride {stride} gives {size}; "
            "leave feature_size out, or set resample: true"
        )
    try_size(head, name, source, stage, crop)
    return head


def try_size(head: nn.Module, name: str, source: Backbone | JPU, stage: int, crop: tuple[int, int]) -> None:
    """Run a head on the crop's maps without computing anything.

    Raises:
        ValueError: the head does not take them.
    """
    shapes = zip(source.channels[:stage], source.strides[:stage], strict=True)
    features = [torch.empty(1, c, -(-crop[0] // s), -(-crop[1] // s), device="meta") for c, s in shapes]
    tried = on_meta(head)
    for module in tried.modules():  # some refuse small maps only in training; norms take one image as in testing
        module.training = hasattr(module, "partition")
    try:
        with torch.no_grad():
            tried(features)
    except ValueError as error:
        raise ValueError(f"head {name!r} on a crop of {crop} at strides {source.strides[:stage]}: {error}") from None


def classifier_keys(model: nn.Module) -> list[str]:
    """State-dict keys of all final classifiers, whose first dimension is K: what a change of classes replaces."""
    return [
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, Classifier)
        for parameter in ("weight", "bias")
    ]
