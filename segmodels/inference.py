"""From images to class probabilities: whole or by sliding windows, at several scales, mirrored or not.

Several ways to predict an image share what they have in common: each (scale, window, mirrored or not) is seen by the
model once, see `predict_together`.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segmodels.layers import resize
from segmodels.passes import Way, see
from segmodels.segmentor import Segmentor

MODES = ("whole", "slide")
AVERAGES = ("probabilities", "logits", "exponentials")


@dataclass(frozen=True)
class Inference:
    """How to predict an image.

    Attributes:
        mode: "whole", the image in one pass, or "slide", windows over it.
        window: (h, w) in pixels; only for "slide". A head bound to its crop needs that crop.
        stride: (h, w) in pixels from window to window; None for 2/3 of the window, rounded up.
        scales: sizes of the image, 1.0 its own.
        flip: whether to average with the mirrored image's prediction.
        flip_pairs: classes that change places in a mirrored image (left arm, right arm).
        average: what is averaged over mirrored images, windows and scales: "probabilities"; "logits"; or
            "exponentials", exp of the sum of the logits of an image and its mirror image, not normalised, as
            PyTorch-Encoding's evaluator does: a window that is surer counts for more.

    Raises:
        ValueError: a bad value.
    """

    mode: str = "whole"
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    flip_pairs: tuple[tuple[int, int], ...] = ()
    average: str = "probabilities"

    def __post_init__(self) -> None:
        for name, allowed in (("mode", MODES), ("average", AVERAGES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if (self.mode == "slide") != (self.window is not None) or (self.stride and not self.window):
            raise ValueError(
                f"mode {self.mode!r} with window {self.window} and stride {self.stride}; allowed: slide with a "
                "window, whole with neither"
            )
        if not self.scales or min(self.scales) <= 0 or len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales is {self.scales}; allowed: one or more numbers above 0, such as 1.0, none twice")
        object.__setattr__(self, "scales", tuple(float(s) for s in self.scales))
        if self.window is not None:
            self._settle_windows(self.window)

    def _settle_windows(self, window: tuple[int, int]) -> None:
        """Fill in the stride and check that windows leave no gap."""
        stride = self.stride or tuple(math.ceil(2 * side / 3) for side in window)
        object.__setattr__(self, "window", tuple(window))
        object.__setattr__(self, "stride", tuple(stride))
        if len(window) != 2 or len(stride) != 2 or not all(1 <= s <= w for s, w in zip(stride, window, strict=True)):
            raise ValueError(f"window {window} with stride {stride}; allowed: (h, w) each, 1 <= stride <= window")


def protocol(inference: Inference) -> str:
    """The inference in words, printed next to every score: "slide 512x512 stride 342x342, scales 1.0, no flip"."""
    mode = inference.mode
    if inference.window and inference.stride:
        window, stride = ("x".join(map(str, size)) for size in (inference.window, inference.stride))
        mode = f"slide {window} stride {stride}"
    scales = " ".join(map(str, inference.scales))
    average = "" if inference.average == "probabilities" else f", {inference.average} averaged"
    return f"{mode}, scales {scales}, {'flip' if inference.flip else 'no flip'}{average}"


def predict(model: Segmentor, image: Tensor, inference: Inference) -> Tensor:
    """Class probabilities: the mean over scales and mirrored images, at the precision of the caller's autocast.

    Args:
        model: in evaluation mode.
        image: RGB uint8 (B, 3, H, W).
        inference: how to predict.

    Returns:
        float32 (B, K, H, W), whose sum over the classes is 1.

    Raises:
        ValueError: the model is in training mode, or its head is bound to a crop that `inference` does not keep to.
    """
    return predict_together(model, image, [inference])[0]


@torch.no_grad()
def predict_together(model: Segmentor, image: Tensor, inferences: Sequence[Inference]) -> list[Tensor]:
    """As `predict`, of several inferences; each gets the very numbers that it gets alone.

    Scales are taken one after the other, the smallest first, and added up at the image's size, so that no two scales
    are held at once. What is held besides the model's own maps is at most

        4 B K ((P + 1) H W + W S + 3 A) bytes,

    with P inferences, W those of them that differ in more than their scales, S pixels of the largest scaled image
    (padded to its window; 0 where one window covers it, as it does whole images), and A pixels of the largest pass: of
    a window, or of the largest scaled image where images are seen whole. It is 6 A where some inferences average
    probabilities and others do not.

    Args:
        model: in evaluation mode.
        image: RGB uint8 (B, 3, H, W).
        inferences: how to predict.

    Returns:
        float32 (B, K, H, W) of each inference.

    Raises:
        ValueError: as `predict`.
    """
    if model.training:
        raise ValueError("the model is in training mode, where dropout and batch norm vary; call model.eval() first")
    size = image.shape[-2:]
    image = image.to(model.mean.dtype)
    references: dict[Way, Tensor] = {}
    totals: list[Tensor | None] = [None] * len(inferences)
    for scale in sorted({scale for inference in inferences for scale in inference.scales}):
        scaled = resize(image, [max(1, round(side * scale)) for side in size])
        users: dict[Way, list[int]] = defaultdict(list)
        for number, inference in enumerate(inferences):
            if scale in inference.scales:
                check_window(model, inference, scaled)
                users[way_of(inference, scaled)].append(number)
        sums = see(model, scaled, list(users), references)
        for way, numbers in users.items():
            part = resize(sums.pop(way).mean(scaled.shape[-2:]), size)
            for number in numbers:
                totals[number] = added(totals[number], part, inferences[number])
            del part
    return [finish(total, inference) for total, inference in zip(totals, inferences, strict=True) if total is not None]


def added(total: Tensor | None, part: Tensor, inference: Inference) -> Tensor:
    """A scale's part added to what is there; a part may be shared, so only a copy of it is ever written to."""
    if total is not None:
        return total.add_(part)
    return part if len(inference.scales) == 1 else part.clone()


def check_window(model: Segmentor, inference: Inference, image: Tensor) -> None:
    """A head that is bound to its crop must be given just that.

    Raises:
        ValueError: it would not be.
    """
    given = tuple(inference.window or image.shape[-2:])
    if model.window is not None and given != tuple(model.window):
        raise ValueError(
            f"{inference.mode} inference gives the head {given} pixels; allowed: {model.window}, the "
            f"training crop to which it is bound. Set mode: slide with window: {list(model.window)}, or train with "
            "resample: true"
        )


def way_of(inference: Inference, image: Tensor) -> Way:
    """The way in which an inference sees an image of one scale; a whole image is a window of its own size."""
    height, width = image.shape[-2:]
    return Way(
        inference.window or (height, width),
        inference.stride or (height, width),
        inference.flip,
        inference.flip_pairs,
        inference.average,
        inference.scales if inference.average == "exponentials" else (),
    )


def finish(total: Tensor, inference: Inference) -> Tensor:
    """Probabilities from the sum over the scales."""
    if len(inference.scales) > 1:
        total = total.div_(len(inference.scales))
    if inference.average == "logits":
        return total.softmax(1)
    if inference.average == "exponentials":
        return total / total.sum(1, keepdim=True).clamp_min_(torch.finfo(total.dtype).tiny)
    return total
