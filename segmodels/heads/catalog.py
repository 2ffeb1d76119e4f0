"""The table of heads."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from segmodels.checks import check_keywords, choose, keywords_of
from segmodels.heads.fcn import fcn_head
from segmodels.heads.reconet import reconet_head

HEADS: dict[str, Callable[..., nn.Module]] = {
    "fcn": fcn_head,
    "reconet": reconet_head,
}


def build_head(name: str, in_channels: Sequence[int], num_classes: int, **keywords: Any) -> nn.Module:
    """Build a head of `HEADS` with a recipe's keywords.

    Args:
        name: a key of `HEADS`.
        in_channels: widths of the backbone's stages, the first to the one that the head reads.
        num_classes: K.
        keywords: the keyword-only parameters of the head's builder.

    Raises:
        ValueError: an unknown head or keyword (names the nearest and the allowed), or a bad value.
    """
    builder = choose(HEADS, name, "head")
    check_keywords(keywords, keywords_of(builder), f"head {name!r}")
    return builder(in_channels, num_classes, **keywords)
