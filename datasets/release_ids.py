"""The values that releases give to classes in their masks: what other people's tools and test servers expect."""

from collections.abc import Sequence

from datasets.readers import ade20k, cityscapes, cocostuff, pascal_context, siftflow
from datasets.readers.coco_categories import STUFF, THINGS

IDS: dict[tuple[str, ...], tuple[int, ...]] = {
    tuple(name for name, _ in cityscapes.LABELS.values()): tuple(cityscapes.LABELS),
    ade20k.CLASSES: tuple(range(1, 151)),
    tuple(pascal_context.LABELS.values()): tuple(range(1, 60)),  # as in PASCAL in Detail's 59 classes; 0: none of them
    cocostuff.CLASSES: cocostuff.IDS,  # label ids, as release 10K stores them; 164K stores one less
    tuple(siftflow.CLASSES): tuple(range(1, len(siftflow.CLASSES) + 1)),
    (*THINGS, *STUFF): tuple(number for number, _ in (*THINGS.values(), *STUFF.values())),
}
"""Names of the classes -> value of each, where these are not 0..K-1."""


def release_ids(classes: Sequence[str]) -> tuple[int, ...]:
    """The value of each class in the masks of the benchmark that has these classes; 0..K-1 where no release has them.

    Args:
        classes: K names.
    """
    return IDS.get(tuple(classes), tuple(range(len(classes))))
