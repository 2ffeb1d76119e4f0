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
from segmodels.segmentor import Segmentor
from segmodels.windows import Window, canvas_of, grid

MODES = ("whole", "slide")
AVERAGES = ("probabilities", "logits", "exponentials")
HEADROOM = 60.0  # exp of it, a few thousand times over, is still a float32


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

        4 B K (P H W + W S + 6 A) bytes,

    with P inferences, W those of them that differ in more than their scales, S pixels of the largest scaled image
    (padded to its window; 0 where one window covers it, as it does whole images), and A pixels of the largest pass: of
    a window, or of the largest scaled image where images are seen whole.

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


@dataclass(frozen=True)
class Way:
    """All of an inference that matters for one scale: inferences with the same way share its result.

    `scales` are those of the whole inference where its parts must be of one measure, see `exponentials`.
    """

    window: tuple[int, int]
    stride: tuple[int, int]
    flip: bool
    flip_pairs: tuple[tuple[int, int], ...]
    average: str
    scales: tuple[float, ...] = ()


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


class Sum:
    """Values of windows added up over a canvas; the only window of a canvas is not even copied."""

    def __init__(self, windows: Sequence[Window], size: tuple[int, int]) -> None:
        self.windows, self.size = set(windows), size
        self.total: Tensor | None = None
        self.count: Tensor | None = None

    def add(self, window: Window, value: Tensor) -> None:
        """Add the value (B, K, h, w) of a window."""
        if len(self.windows) == 1:
            self.total = value
            return
        if self.total is None:
            self.total = value.new_zeros((*value.shape[:2], *self.size))
            self.count = value.new_zeros((1, 1, *self.size))
        self.total[..., window.rows, window.columns] += value
        self.count[..., window.rows, window.columns] += 1  # type: ignore[index]  # set with the total

    def mean(self, size: Sequence[int]) -> Tensor:
        """The mean over the windows that see a pixel, without the padding: (B, K, *size)."""
        total = self.total if self.count is None else self.total.div_(self.count)  # type: ignore[union-attr]  # was added to
        return total[..., : size[0], : size[1]]  # type: ignore[index]


def see(model: Segmentor, image: Tensor, ways: Sequence[Way], references: dict[Way, Tensor]) -> dict[Way, Sum]:
    """One scale of an image in several ways, each window of it seen once, plainly and, where asked for, mirrored."""
    sums: dict[Way, Sum] = {}
    canvases: dict[tuple[int, int], dict[Window, list[Way]]] = defaultdict(lambda: defaultdict(list))
    for way in ways:
        size = canvas_of(image.shape[-2:], way.window)
        windows = list(grid(size, way.window, way.stride))
        sums[way] = Sum(windows, size)
        for window in windows:
            canvases[size][window].append(way)
    for size, users in canvases.items():
        canvas = padded(image, model.mean, size)
        for window in sorted(users):
            shared = len({way.average == "probabilities" for way in users[window]}) > 1
            glance = Glance(model, canvas[..., window.rows, window.columns], shared)
            for way in users[window]:
                sums[way].add(window, glance.value(way, references))
    return sums


def padded(image: Tensor, mean: Tensor, size: tuple[int, int]) -> Tensor:
    """The image, padded below and on the right with the mean colour, which is 0 once normalised."""
    height, width = image.shape[-2:]
    if (height, width) == size:
        return image
    canvas = mean.repeat(image.shape[0], 1, *size)
    canvas[..., :height, :width] = image
    return canvas


class Glance:
    """One window of an image, which the model sees once plainly and at most once mirrored.

    Args:
        model: in evaluation mode.
        image: the window, (B, 3, h, w).
        shared: whether both logits and probabilities are asked for.
    """

    def __init__(self, model: Segmentor, image: Tensor, shared: bool) -> None:
        self.model, self.image, self.shared = model, image, shared
        self.raw: dict[bool, Tensor] = {}
        self.kept: dict[tuple[bool, bool], Tensor] = {}

    def value(self, way: Way, references: dict[Way, Tensor]) -> Tensor:
        """What a way adds up of this window: float32 (B, K, h, w)."""
        soft = way.average == "probabilities"
        plain = self.seen(False, soft)
        if not way.flip:
            return plain if way.average != "exponentials" else exponentials(plain, way, references)
        mirrored = self.seen(True, soft)
        if way.flip_pairs:
            mirrored = mirrored[:, swapped(self.model.num_classes, way.flip_pairs)]
        both = plain + mirrored
        return both.div_(2) if way.average != "exponentials" else exponentials(both, way, references)

    def seen(self, mirrored: bool, soft: bool) -> Tensor:
        """Logits, or their softmax over the classes, in float32; of the mirrored window turned back."""
        if (mirrored, soft) not in self.kept:
            values = self.logits(mirrored)
            values = values.softmax(1) if soft else values
            self.kept[mirrored, soft] = values.flip(3) if mirrored else values
        return self.kept[mirrored, soft]

    def logits(self, mirrored: bool) -> Tensor:
        """What the model says of the window as it sees it, in float32; kept where others ask for it too."""
        if mirrored not in self.raw:
            values: Tensor = self.model(self.image.flip(3) if mirrored else self.image)["logits"].float()
            if not self.shared:
                return values
            self.raw[mirrored] = values
        return self.raw[mirrored]


def swapped(classes: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The classes 0..K-1 with those of each pair in each other's place."""
    order = list(range(classes))
    for one, other in pairs:
        order[one], order[other] = other, one
    return order


def exponentials(logits: Tensor, way: Way, references: dict[Way, Tensor]) -> Tensor:
    """exp of the logits, all of an image by one factor smaller, which the end divides out: float32 holds up to e^88."""
    if way not in references:
        references[way] = logits.amax((1, 2, 3), keepdim=True) - HEADROOM
    return (logits - references[way]).exp_()


def finish(total: Tensor, inference: Inference) -> Tensor:
    """Probabilities from the sum over the scales, in its memory where that is nobody else's."""
    if len(inference.scales) > 1:
        total.div_(len(inference.scales))
    if inference.average == "logits":
        return total.softmax(1)
    return total / total.sum(1, keepdim=True) if inference.average == "exponentials" else total
