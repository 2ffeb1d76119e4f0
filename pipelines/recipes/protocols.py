"""The protocols under which the papers test their models, as data.

A protocol says at which scales, mirrored or not, whole or in windows a model sees an image, and what of it is averaged.
What it leaves open (None) is as the recipe's `inference` has it; windows are the training crop unless the recipe says
otherwise, and their stride 2/3 of it, as the papers' public codes have it.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.base.errors import InputError
from pipelines.base.text import nearest

WIDE = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
LOW = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
OWN = "own"  # the name of what the command line asks for by flags, or the recipe's `inference` without any


@dataclass(frozen=True)
class Protocol:
    """How a test sees images, see above; `about` says whose it is, and where its code differs from its paper."""

    about: str
    mode: Literal["whole", "slide"] | None = None
    scales: tuple[float, ...] | None = (1.0,)
    flip: bool | None = False
    average: str = "probabilities"


PROTOCOLS = {
    "recipe": Protocol("as the recipe's `inference` has it", None, None, None),
    "single": Protocol("one scale, not mirrored; whole or windows as the recipe has it"),
    "single-flip": Protocol("one scale, averaged with the mirrored image", flip=True),
    "whole": Protocol("one scale, the whole image (the single scale of OCNet and CTNet)", "whole"),
    "slide": Protocol("one scale, windows of the training crop (SRNet, section IV-A)", "slide"),
    "reconet": Protocol(
        "RecoNet, section 4.1: six scales, mirrored, in windows; exp of the logits' sum is averaged, as in the "
        "evaluator of PyTorch-Encoding, on which its code builds (there a scale is one of a base size, here of the "
        "image's own)",
        "slide", WIDE, True, "exponentials",
    ),
    "srnet": Protocol(
        "SRNet, section IV-A: six scales, mirrored, in windows; logits are averaged, as in the authors' SFSegNets "
        "(there windows grow with scales above 1, here they keep the training crop)",
        "slide", WIDE, True, "logits",
    ),
    "ctnet": Protocol(
        "CTNet's public code: the scales of section 4.1, whole images, mirrored (the paper does not say so); logits "
        "are averaged",
        "whole", LOW, True, "logits",
    ),
    "ctnet-windows": Protocol(
        "CTNet, section 4.1, read as windows: \"scaled images are resized to the size of training images\"; logits "
        "are averaged, as in its public code",
        "slide", LOW, True, "logits",
    ),
    "ocnet": Protocol(
        "OCNet, section 4.4: six scales, mirrored, whole images; logits are averaged, as in its public code (which "
        "covers scales above 1 by windows of the image's size, to spare memory)",
        "whole", WIDE, True, "logits",
    ),
}  # fmt: skip


def check_names(names: Sequence[str]) -> None:
    """Protocols must be in the table, each once.

    Raises:
        InputError: they are not.
    """
    for name in names:
        if name not in PROTOCOLS:
            raise InputError(f"unknown protocol {name!r}{nearest(name, PROTOCOLS)} Allowed: {', '.join(PROTOCOLS)}")
    if twice := [name for name in PROTOCOLS if list(names).count(name) > 1]:
        raise InputError(f"the protocol {twice[0]} is named twice")


@contextlib.contextmanager
def of_protocol(name: str) -> Iterator[None]:
    """An error of the body is told as that of a protocol."""
    try:
        yield
    except InputError as error:
        raise InputError(f"protocol {name}: {error}") from None


def describe() -> str:
    """The table for people."""
    return "\n".join(
        textwrap.fill(f"  {name:<13} {each.about}", 100, subsequent_indent=" " * 16) for name, each in PROTOCOLS.items()
    )
