"""One scale of an image, seen in several ways: what these have in common is seen once."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from segmodels.segmentor import Segmentor
from segmodels.windows import Window, canvas_of, grid

LARGE_BYTES = 2**29  # of a window's values on a GPU; of larger ones no second copy is made
STRIP_BYTES = 2**26  # of values that are then worked on at a time
HEADROOM, LARGEST = 60.0, 80.0  # exponents: of an image's first window, and of any; e^80 a thousand times is a float32


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
            glance = Glance(model, canvas[..., window.rows, window.columns], shared, alone=len(users[window]) == 1)
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
        alone: whether one way asks, once.
    """

    def __init__(self, model: Segmentor, image: Tensor, shared: bool, alone: bool = False) -> None:
        self.model, self.image, self.shared, self.alone = model, image, shared, alone
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
        both = plain.add_(mirrored) if self.alone else plain + mirrored
        return both.div_(2) if way.average != "exponentials" else exponentials(both, way, references)

    def seen(self, mirrored: bool, soft: bool) -> Tensor:
        """Logits, or their softmax over the classes, in float32; of the mirrored window turned back."""
        if (mirrored, soft) not in self.kept:
            values = self.logits(mirrored)
            for change in [softmax] * soft + [turned] * mirrored:
                values = in_strips(change, values) if self.alone and large(values) else change(values)
            self.kept[mirrored, soft] = values
        return self.kept[mirrored, soft]

    def logits(self, mirrored: bool) -> Tensor:
        """What the model says of the window as it sees it, in float32; kept where others ask for it too."""
        if mirrored not in self.raw:
            values: Tensor = self.model(self.image.flip(3) if mirrored else self.image)["logits"].float()
            if not self.shared:
                return values
            self.raw[mirrored] = values
        return self.raw[mirrored]


def large(values: Tensor) -> bool:
    """Whether no second copy is made. A CPU has the memory, and its softmax rounds by where a row begins."""
    return values.device.type != "cpu" and values.numel() * values.itemsize > LARGE_BYTES


def softmax(values: Tensor) -> Tensor:
    """Over the classes."""
    return values.softmax(1)


def turned(values: Tensor) -> Tensor:
    """Left to right."""
    return values.flip(3)


def in_strips(change: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Values (B, K, h, w) changed in their place, a few rows at a time; `change` must not mix rows."""
    step = max(1, STRIP_BYTES // (values[:, :, 0].numel() * values.itemsize))
    for strip in values.split(step, 2):
        strip.copy_(change(strip))
    return values


def swapped(classes: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The classes 0..K-1 with those of each pair in each other's place."""
    order = list(range(classes))
    for one, other in pairs:
        order[one], order[other] = other, one
    return order


def exponentials(logits: Tensor, way: Way, references: dict[Way, Tensor]) -> Tensor:
    """exp of the logits, all of an image by one factor smaller, which the end divides out: float32 holds up to e^88.

    So sums of logits may lie 20 above the largest of the image's first window, and 160 below it; beyond that they count
    as the nearer of the two, or as nothing.
    """
    if way not in references:
        references[way] = logits.amax((1, 2, 3), keepdim=True) - HEADROOM
    return (logits - references[way]).clamp_(max=LARGEST).exp_()
