"""What predictions hold of a GPU's memory, and how many images of a size may be predicted at once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from segmodels.inference import Inference
from segmodels.windows import canvas_of

HELD_BYTES = 8 << 30  # that images predicted at once may hold together; one image is predicted whatever it holds
MODEL_BYTES = 450  # of a ResNet-101's own maps in half precision, per pixel of an image that it sees


def held_bytes(inferences: Sequence[Inference], size: Sequence[int], classes: int) -> int:
    """The most that predicting an image holds: `predict_together`'s formula, or a model's own maps if they are more.

    Args:
        inferences: how it is predicted, in one go.
        size: (h, w) of the image, in pixels.
        classes: K.
    """
    scale = max(scale for way in inferences for scale in way.scales)
    largest = [max(1, round(side * scale)) for side in size]
    windowed = {replace(way, scales=(1.0,)) for way in inferences if way.window}
    canvases = sum(math.prod(canvas_of(largest, way.window)) for way in windowed if way.window)
    seen = max(math.prod(way.window or largest) for way in inferences)
    passes = 3 if len({way.average == "probabilities" for way in inferences}) == 1 else 6
    maps = (len(inferences) + 1) * math.prod(size) + canvases + passes * seen
    return max(4 * classes * maps, MODEL_BYTES * seen)


def images_at_once(inferences: Sequence[Inference], classes: int, most: int) -> Callable[[Sequence[int]], int]:
    """How many images of a size (h, w) are predicted at once: up to `most`, and as many as `HELD_BYTES` hold.

    It does not depend on the machine, so that everywhere an image has the same company, hence the same rounding.
    """
    return lambda size: max(1, min(most, HELD_BYTES // held_bytes(inferences, size, classes)))
