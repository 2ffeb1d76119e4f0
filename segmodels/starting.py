"""A whole model that starts from a checkpoint of this project, of another run and perhaps of other classes."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from segmodels.files import TRAINING
from segmodels.segmentor import Segmentor, classifier_keys
from segmodels.weights import COUNTER, Taken, parts_of


def start_from(model: Segmentor, content: Mapping[str, Any], classes: Sequence[str]) -> Taken:
    """Load the weights of a checkpoint: all of them, but for the classifiers where the classes are others.

    An auxiliary head is taken where both have one; files for use have none.

    Args:
        model: takes them, its classifiers fresh; on the meta device it only compares.
        content: what `files.read` gives.
        classes: that the model is to tell apart, in its order.

    Raises:
        ValueError: the checkpoint is of another trunk, neck or head.
    """
    found: Mapping[str, Tensor] = content["model"]
    own = model.state_dict()
    fresh = [] if list(content["classes"]) == list(classes) else classifier_keys(model)
    optional = [key for key in {**own, **found} if key.startswith(TRAINING)]
    alone = [key for key in optional if key not in own or key not in found]
    alike = {key: None for key in own if key not in fresh and key not in alone}  # in their order
    theirs = {key for key in found if key not in fresh and key not in alone}
    odd = sorted(alike.keys() ^ theirs) + [k for k in alike if k in found and own[k].shape != found[k].shape]
    if odd:
        page = content["recipe"]
        parts = ", ".join(f"{part} {page[part]['name']}" for part in ("backbone", "head", "aux") if page.get(part))
        raise ValueError(
            f"it is of another model ({parts}): {len(odd)} names or shapes differ, such as {odd[:3]}; give it as "
            "backbone.weights to take its trunk alone, or name the trunk and head, with their keywords, that it is of"
        )
    if not any(value.is_meta for value in own.values()):
        model.load_state_dict({key: found[key] for key in alike}, strict=False)
    millions = sum(found[key].numel() for key in alike) / 1e6
    return Taken(
        f"{len(alike)} entries of {content['stage']} (step {content['step']}), {millions:.2f} M values: "
        + ", ".join(parts_of([key for key in alike if not key.endswith(COUNTER) and key.split(".")[0] in PARTS])),
        told([key for key in found if key not in alike], "classifiers of other classes", fresh),
        told([key for key in own if key not in alike], "classifiers, which are fresh", fresh),
    )


PARTS = ("backbone", "neck", "head", "aux")


def told(names: Sequence[str], classifiers: str, fresh: Sequence[str]) -> str:
    """Entries in words: those of classifiers, and others by the part of the model that they are of."""
    others = [name for name in names if name not in fresh]
    counts = [f"{number} of {part}" for part, number in parts_of(others).items()]
    own = len(names) - len(others)
    return ", ".join([f"{own} of {classifiers}"] * bool(own) + counts) or "nothing"
