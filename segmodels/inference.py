"""From images to class probabilities: whole or by sliding windows, at several scales, mirrored or not."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from segmodels.layers import resize
from segmodels.segmentor import Segmentor

MODES = ("whole", "slide")


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

    Raises:
        ValueError: a bad value.
    """

    mode: str = "whole"
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    flip_pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; allowed: {', '.join(MODES)}")
        if (self.mode == "slide") != (self.window is not None) or (self.stride and not self.window):
            raise ValueError(
                f"mode {self.mode!r} with window {self.window} and stride {self.stride}; allowed: slide with a "
                "window, whole with neither"
            )
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales is {self.scales}; allowed: one or more numbers above 0, such as 1.0")
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
    return f"{mode}, scales {scales}, {'flip' if inference.flip else 'no flip'}"


@torch.no_grad()
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
    if model.training:
        raise ValueError("the model is in training mode, where dropout and batch norm vary; call model.eval() first")
    size = image.shape[-2:]
    image = image.to(model.mean.dtype)
    total = image.new_zeros((image.shape[0], model.num_classes, *size), dtype=torch.float32)
    for scale in inference.scales:
        scaled = resize(image, [max(1, round(side * scale)) for side in size])
        total += resize(_windows(model, scaled, inference), size)
    return total / len(inference.scales)


def _windows(model: Segmentor, image: Tensor, inference: Inference) -> Tensor:
    """Probabilities of one scale: of the whole image, or averaged where windows overlap."""
    height, width = image.shape[-2:]
    window, stride = inference.window or (height, width), inference.stride or (height, width)
    if model.window is not None and tuple(window) != tuple(model.window):
        raise ValueError(
            f"{inference.mode} inference gives the head {tuple(window)} pixels; allowed: {model.window}, the "
            f"training crop to which it is bound. Set mode: slide with window: {list(model.window)}, or train with "
            "resample: true"
        )
    image = _pad(image, model.mean, window)
    total = image.new_zeros((image.shape[0], model.num_classes, *image.shape[-2:]), dtype=torch.float32)
    count = total.new_zeros((1, 1, *image.shape[-2:]))
    for rows in _spans(image.shape[2], window[0], stride[0]):
        for columns in _spans(image.shape[3], window[1], stride[1]):
            total[..., rows, columns] += _probabilities(model, image[..., rows, columns], inference)
            count[..., rows, columns] += 1
    return (total / count)[..., :height, :width]


def _pad(image: Tensor, mean: Tensor, window: tuple[int, int]) -> Tensor:
    """Pad below and on the right to at least one window, with the mean colour, which is 0 once normalised."""
    batch, _, height, width = image.shape
    if height >= window[0] and width >= window[1]:
        return image
    canvas = mean.repeat(batch, 1, max(height, window[0]), max(width, window[1]))
    canvas[..., :height, :width] = image
    return canvas


def _spans(length: int, window: int, stride: int) -> Iterator[slice]:
    """Windows along one side; the last is flush with the border."""
    for start in range(0, max(length - window, 0) + stride, stride):
        start = min(start, length - window)
        yield slice(start, start + window)
        if start == length - window:
            return


def _probabilities(model: Segmentor, image: Tensor, inference: Inference) -> Tensor:
    """Softmax over the classes, in float32; averaged with the mirrored image's if the inference asks for it."""
    result = model(image)["logits"].float().softmax(1)
    if inference.flip:
        mirrored = model(image.flip(3))["logits"].float().softmax(1).flip(3)
        order = list(range(model.num_classes))
        for one, other in inference.flip_pairs:
            order[one], order[other] = other, one
        result = (result + (mirrored[:, order] if inference.flip_pairs else mirrored)) / 2
    return result
