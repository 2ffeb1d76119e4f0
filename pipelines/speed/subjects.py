"""What an inference is timed of: a checkpoint, a recipe's model, or a head by itself, at an image of a size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.catalog import BENCHMARKS
from pipelines.base.errors import InputError
from pipelines.published import counts
from pipelines.recipes.model import build_model
from pipelines.recipes.reading import load_recipe, read_override
from pipelines.recipes.recipe import Recipe
from segmodels.heads.catalog import HEADS
from segmodels.inference import Inference, predict
from segmodels.segmentor import Segmentor

Size = tuple[int, int]  # (h, w) in pixels
Shapes = list[tuple[int, ...]]


class Logits(nn.Module):
    """What one image costs: a model's logits, or its probabilities over windows where it takes nothing larger.

    Args:
        model: a segmentor, a head, or a part of one.
        windows: how a segmentor that is bound to its crop predicts; None for one pass.
    """

    def __init__(self, model: nn.Module, windows: Inference | None = None) -> None:
        super().__init__()
        self.model, self.windows = model, windows

    def forward(self, x: Any) -> Tensor:
        """The image, the trunk's maps, or a part's map -> the logits, or the part's output."""
        if self.windows is not None:
            return predict(self.model, x, self.windows)  # type: ignore[arg-type]
        outputs = self.model(x)
        return outputs["logits"] if isinstance(outputs, dict) else outputs

    def inputs(self, shapes: Shapes) -> Any:
        """What the model itself is called with, on the meta device: a window where there are any."""
        if self.windows is not None and self.windows.window is not None:
            return torch.zeros(1, 3, *self.windows.window, device="meta")
        zeros = [torch.zeros(1, *shape, device="meta") for shape in shapes]
        return zeros if len(zeros) > 1 else zeros[0]


@dataclass(frozen=True)
class Subject:
    """One thing to time.

    Attributes:
        label: for tables.
        at: size -> the model in evaluation mode, and the shapes of its inputs for one image, without the batch.
    """

    label: str
    at: Callable[[Size], tuple[Logits, Shapes]]


def read_words(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Names, each with the `key=value` that follow it.

    Raises:
        InputError: a key comes before any name.
    """
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if "=" not in word:
            found.append((word, []))
        elif found:
            found[-1][1].append(word)
        else:
            raise InputError(
                f"{word}: name a recipe, a checkpoint or a head first; key=value changes the one before it"
            )
    return found


def subject_of(name: str, changes: Sequence[str], classes: int | None) -> Subject:
    """A checkpoint (a path that ends in .pt), a head (a name of `python -m segmodels`), or else a recipe.

    Args:
        changes: `key=value`: of a recipe, as for `train`; of a head its keywords, and `part=context` for that alone.
        classes: K; None for the benchmark's, of a head by itself 21.

    Raises:
        InputError: no such thing, or a value that it does not take.
    """
    label = " ".join([name, *changes])
    if name.endswith(".pt"):
        return checkpoint_subject(Path(name).expanduser(), changes, classes)
    if name in HEADS:
        return head_subject(name, label, changes, classes or 21)
    recipe = load_recipe(name, list(changes))
    return whole(recipe, label, build(recipe, classes or classes_of(recipe)))


def checkpoint_subject(path: Path, changes: Sequence[str], classes: int | None) -> Subject:
    """The model of a checkpoint, with its weights."""
    if changes or classes:
        given = " ".join(changes) or "--classes"
        raise InputError(f"{path}: a checkpoint has its recipe and its classes, so {given} cannot change them")
    if not path.is_file():
        raise InputError(f"no checkpoint {path}; those of a run are RUN/STAGE/best.pt and RUN/STAGE/checkpoints/*.pt")
    from pipelines.runs.checkpoint import Checkpoint

    checkpoint = Checkpoint.read(path, mapped=True)
    model = build_model(checkpoint.recipe, len(checkpoint.classes)).eval()
    model.load_state_dict(checkpoint.model)
    model.aux = None  # only training has it
    return whole(checkpoint.recipe, "/".join(path.resolve().parts[-3:]), model)


def classes_of(recipe: Recipe) -> int:
    """K of the benchmark that the last stage trains on."""
    parts = Path(recipe.stages[-1].train).parts
    benchmark = next((part for part in parts[::-1] if part in BENCHMARKS and part != "folder"), None)
    if benchmark is None:
        raise InputError(f"{recipe.stages[-1].train}: how many classes it has is not known here; give --classes K")
    return len(BENCHMARKS[benchmark](Path()).classes)


def build(recipe: Recipe, classes: int) -> Segmentor:
    """The recipe's model with drawn weights."""
    try:
        return build_model(replace(recipe, aux=None), classes).eval()
    except ValueError as error:
        raise InputError(str(error)) from None


def whole(recipe: Recipe, label: str, model: Segmentor) -> Subject:
    """A segmentor on whole images; by its windows where it is bound to its crop."""
    windows = None
    if model.window is not None:
        stride = recipe.inference.stride if recipe.inference.mode == "slide" else None
        try:
            windows = Inference("slide", model.window, stride)
        except ValueError as error:
            raise InputError(f"{label}: inference: {error}") from None
    return Subject(label, lambda size: (Logits(model, windows).eval(), [(3, *size)]))


def head_subject(name: str, label: str, changes: Sequence[str], classes: int) -> Subject:
    """A head on the features of a ResNet at output stride 8, or one part of it on a map; built for each size."""
    keywords = dict(map(read_override, changes))

    def at(size: Size) -> tuple[Logits, Shapes]:
        try:
            module, inputs = counts.head(name, pixels=size, classes=classes, **keywords)
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{label}: {error}") from None
        maps = inputs if isinstance(inputs, list) else [inputs]
        return Logits(module.eval()).eval(), [tuple(x.shape[1:]) for x in maps]

    return Subject(label, at)
