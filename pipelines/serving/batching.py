"""Predicting for clients: files decoded within limits, images of one size predicted together, answers encoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from datasets.sample import DataError, image_size
from pipelines.serving.answers import KINDS, Answer, Kind, areas, described, npz, palette_png
from pipelines.serving.limits import Limits, Refusal, check_pixels, check_values
from segmodels.files import FileError
from segmodels.images import FORMATS, decode
from segmodels.inference import predict

if TYPE_CHECKING:
    from segmodels.loading import Model


@dataclass(frozen=True)
class Picture:
    """An image to predict, uint8 (H, W, 3) RGB, and whether its probabilities are wanted."""

    pixels: np.ndarray
    probabilities: bool = False


@dataclass(frozen=True)
class Found:
    """What is predicted: class ids uint8 (H, W), or probabilities float32 (K, H, W), in a batch of so many images."""

    values: np.ndarray
    batch: int


class Predictor:
    """What a replica does with a request, without Ray.

    Args:
        model: of `segmodels.load`.
        limits: what a request may ask for.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.classes = described(model.classes, model.palette)

    def warm(self) -> None:
        """Predict one grey crop, so that the first client does not wait for what starts only then."""
        height, width = self.model.recipe["view"]["crop"]
        self.model.predict(np.full((height, width, 3), 127, np.uint8))

    def decode(self, data: bytes, kind: Kind) -> Picture:
        """The image of a file, whose header is checked before its pixels take memory.

        Raises:
            Refusal: it is of another format, damaged, or too large.
        """
        if not data.startswith(tuple(FORMATS)):
            begins = f"a body that begins with {data[:12]!r}" if data else "an empty body"
            raise Refusal(415, begins, f"an image file: {', '.join(KINDS)}", "convert it, for example to PNG")
        try:
            height, width = image_size(data)
            check_pixels(height, width, self.limits)
            if kind == "probabilities":
                check_values(height, width, len(self.classes), self.limits)
            return Picture(decode(data, self.limits.pixels), kind == "probabilities")
        except (DataError, FileError) as error:
            given, _, cure = str(error).rpartition("; ")
            raise Refusal(
                422, given or "a damaged image", "a whole file that holds one image", cure or "fetch it again"
            ) from None

    def predict(self, pictures: Sequence[Picture]) -> list[Found | Refusal]:
        """Predict images, those of one size together, no more at once than one tile of a large image has pixels."""
        found: dict[int, Found | Refusal] = {}
        for indices in groups([picture.pixels.shape[:2] for picture in pictures], self.model.pixels):  # type: ignore[misc]
            found |= zip(indices, self.together([pictures[index] for index in indices]), strict=True)
        return [found[index] for index in range(len(pictures))]

    def together(self, pictures: Sequence[Picture]) -> list[Found] | list[Refusal]:
        """Predict images of one size; each alone where the GPU's memory is too small for all."""
        try:
            return self.stacked(pictures) if len(pictures) > 1 else [self.alone(pictures[0])]
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        if len(pictures) > 1:
            return [one for picture in pictures for one in self.together([picture])]  # type: ignore[return-value]
        height, width = pictures[0].pixels.shape[:2]
        return [
            Refusal(
                413, f"an image of {width:,}x{height:,} pixels, for which this GPU's memory is too small",
                "smaller images", "send a smaller one, or start the server with a smaller --max-megapixels",
            )
        ]  # fmt: skip

    def alone(self, picture: Picture) -> Found:
        """Predict one image, tile by tile where it is large."""
        return Found(self.model.predict(picture.pixels, probabilities=picture.probabilities), 1)

    def stacked(self, pictures: Sequence[Picture]) -> list[Found]:
        """Predict images of one size as one batch."""
        pixels = np.stack([picture.pixels.transpose(2, 0, 1) for picture in pictures])
        with torch.inference_mode(), self.model.computing():
            scores = predict(self.model.segmentor, torch.from_numpy(pixels).to(self.model.device), self.model.inference)
        masks = scores.argmax(1).to(torch.uint8).cpu().numpy()
        values = [scores[i].cpu().numpy() if p.probabilities else masks[i] for i, p in enumerate(pictures)]
        return [Found(value, len(pictures)) for value in values]

    def encode(self, found: Found, kind: Kind, mask: bool) -> Answer:
        """What the client is told."""
        height, width = found.values.shape[-2:]
        if kind == "probabilities":
            body = npz(found.values, self.model.classes)
        else:
            png = palette_png(found.values, self.model.palette) if mask or kind == "mask" else None
            body = png if kind == "mask" and png else areas(found.values, self.classes, self.model.protocol, png)
        return Answer(body, height * width, found.batch)


def groups(sizes: Sequence[tuple[int, int]], most: int) -> Iterator[list[int]]:
    """Indices of images that are predicted together: of one size, and with at most so many pixels, or just one."""
    waiting: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        group = waiting.setdefault(size, [])
        if group and (len(group) + 1) * size[0] * size[1] > most:
            yield waiting.pop(size)
            group = waiting.setdefault(size, [])
        group.append(index)
    yield from waiting.values()
