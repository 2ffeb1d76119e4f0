"""What there is to choose from, read off the code itself: heads with their papers, keywords and costs, and so on."""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segmodels.checks import choose, keywords_of, positive
from segmodels.cost import CONVENTIONS, activation_bytes
from segmodels.heads.catalog import HEADS, build_head
from segmodels.heads.context_head import ContextHead
from segmodels.heads.maps import Maps
from segmodels.memory import evaluation_peak

SIZE = (512, 512)
CLASSES = 21
WIDTHS = (256, 512, 1024, 2048)  # of resnet50s, resnet101s and resnet152s
STRIDES = (4, 8, 8, 8)
SECTIONS = ("Args:", "Attributes:", "Shape:", "Raises:", "Returns:")
YEAR = re.compile(r"\b(?:19|20)\d\d\b")


@dataclass(frozen=True)
class Paper:
    """Where a head comes from, as the first line of its docstring says; empty strings where it does not."""

    title: str
    authors: str
    venue: str
    arxiv: str


@dataclass(frozen=True)
class Keyword:
    """A keyword of a builder or option of a loss term, with what its docstring's `Args:` says."""

    name: str
    kind: str
    default: Any
    text: str


@dataclass(frozen=True)
class HeadCost:
    """The cost of a head by itself, on the features of a ResNet at output stride 8.

    Attributes:
        parameters: their number.
        macs: convention -> multiply-accumulates of one image.
        activation_bytes: all outputs of leaf modules, every call, in float32.
        peak_bytes: the most that evaluation holds besides weights and features, see `evaluation_peak`; None unless
            asked for.
        bound: (h, w) in cells to which the head is bound, or None.
        outputs: name -> shape, in evaluation.
    """

    parameters: int
    macs: dict[str, int]
    activation_bytes: int
    peak_bytes: int | None
    bound: tuple[int, int] | None
    outputs: dict[str, tuple[int, ...]]


def paper_of(builder: Callable[..., Any]) -> Paper:
    """The paper of a head: from the builder's docstring if it names one, else from its module's.

    The form is `Name: what it is (Authors, VENUE YEAR, arXiv:NNNN.NNNNN).`
    """
    lines = [first_paragraph(builder.__doc__), first_paragraph(sys.modules[builder.__module__].__doc__)]
    for line in lines:
        groups = [(found, found[1]) for found in re.finditer(r"\(([^()]*)\)", line) if YEAR.search(found[1])]
        if groups:
            found, source = groups[-1]
            parts = source.split(", ")
            at = next(i for i, part in enumerate(parts) if YEAR.search(part))
            number = re.search(r"\b\d{4}\.\d{4,5}\b", source)
            title = line[: found.start()].strip().rstrip(",")
            return Paper(title, ", ".join(parts[:at]), parts[at], number[0] if number else "")
    return Paper(lines[0].rstrip("."), "", "", "")


def first_paragraph(text: str | None) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


def description(text: str | None) -> str:
    """A docstring up to its first section, such as `Args:`."""
    lines = inspect.cleandoc(text or "").splitlines()
    end = next((i for i, line in enumerate(lines) if line.startswith(SECTIONS)), len(lines))
    return "\n".join(lines[:end]).strip()


def arguments(text: str | None) -> dict[str, str]:
    """Name -> description of a docstring's `Args:`; `a, b: text` describes both."""
    lines = inspect.cleandoc(text or "").splitlines()
    if "Args:" not in lines:
        return {}
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines[lines.index("Args:") + 1 :]:
        if line and not line.startswith(" "):
            break
        entry = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
        for name in names:
            found[name] = f"{found.get(name, '')} {entry[2] if entry else line.strip()}".strip()
    return found


def keywords(builder: Callable[..., Any]) -> list[Keyword]:
    """The keyword-only parameters of a builder or loss term: what a recipe may set."""
    kinds = {p.name: inspect.formatannotation(p.annotation) for p in inspect.signature(builder).parameters.values()}
    texts = arguments(builder.__doc__)
    return [
        Keyword(name, re.sub(r"\b(?:\w+\.)+(?=\w)", "", kinds[name]), default, texts.get(name, ""))
        for name, default in keywords_of(builder).items()
    ]


def modules_of(builder: Callable[..., Any]) -> dict[str, str]:
    """Class -> description, of the modules in the builder's file and of those that it imports from other heads."""
    file = sys.modules[builder.__module__]
    modules = [value for value in vars(file).values() if inspect.isclass(value) and issubclass(value, nn.Module)]
    own = [module for module in modules if module.__module__ == file.__name__]
    taken = [module for module in modules if module not in own and module.__module__.startswith("segmodels.heads.")]
    return {module.__name__: description(module.__doc__) for module in [*own, *taken] if module is not ContextHead}


@functools.cache
def given_by(name: str) -> tuple[list[str], list[str]]:
    """Names of the context maps, see `segmodels/heads/maps.py`, and of the outputs of a head of `HEADS` as it is."""
    head, features = built(name)
    maps = Maps()
    with torch.no_grad():
        outputs = head(features, maps)
    return list(maps), list(outputs)


def built(name: str, size: tuple[int, int] = SIZE, batch: int = 1) -> tuple[nn.Module, list[Tensor]]:
    """A head of `HEADS` with its defaults, in evaluation mode, and the features for it; both on the meta device."""
    cells = [tuple(-(-side // stride) for side in size) for stride in STRIDES]
    given = {"feature_size": cells[-1]} if "feature_size" in keywords_of(choose(HEADS, name, "head")) else {}
    with torch.device("meta"):
        head = build_head(name, WIDTHS, CLASSES, **given).eval()
        return head, [torch.zeros(batch, c, *hw) for c, hw in zip(WIDTHS, cells, strict=True)]


def head_cost(
    name: str,
    size: tuple[int, int] = SIZE,
    batch: int = 1,
    conventions: Mapping[str, Callable[[nn.Module, Any], int]] = CONVENTIONS,
    peak: bool = True,
) -> HeadCost:
    """Build a head of `HEADS` with its defaults on the meta device, and count its cost.

    Args:
        name: a key of `HEADS`.
        size: (h, w) in pixels of the image; a head that is bound to its crop is built for it.
        batch: images at once, to which memory and outputs belong.
        conventions: name -> rule by which multiply-accumulates are counted.
        peak: whether to follow the memory too, which takes as long as all the rest.

    Raises:
        ValueError: an unknown head, or one that does not take these features; a bad size or batch.
    """
    size, batch = (positive("size", size[0]), positive("size", size[1])), positive("batch", batch)
    head, features = built(name, size, batch)
    with torch.device("meta"):
        with torch.no_grad():
            outputs = head(features)
        return HeadCost(
            parameters=sum(p.numel() for p in head.parameters()),
            macs={rule: count(head, features) // batch for rule, count in conventions.items()},
            activation_bytes=activation_bytes(head, features),
            peak_bytes=evaluation_peak(head, [feature.shape for feature in features]) if peak else None,
            bound=getattr(head, "feature_size", None),
            outputs={key: tuple(value.shape) for key, value in outputs.items()},
        )
