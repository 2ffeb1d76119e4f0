"""Checks of names and values from a recipe: every error says what was given, what is allowed, and the cure."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")
TIMM = "timm/"  # how the names of timm's networks begin


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A hint such as ` Did you mean 'rank'?`, or nothing when no name is near."""
    close = get_close_matches(str(name), list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry `name` of a table.

    Raises:
        ValueError: the table has no such entry; names the allowed ones and the nearest.
    """
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; allowed: {', '.join(table)}.{nearest(name, table)}")
    return table[name]


def positive(name: str, value: Any) -> int:
    """`value` itself, if it is an integer of at least 1.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; allowed: an integer of at least 1")
    return value


def pair(name: str, values: Any) -> tuple[int, int]:
    """Two integers of at least 1, of rows and of columns.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(values, list | tuple) or len(values) != 2:
        raise ValueError(f"{name} is {values!r}; allowed: two integers, of rows and of columns, such as [8, 8]")
    return positive(name, values[0]), positive(name, values[1])


def probability(name: str, value: Any) -> float:
    """`value` itself, if it can be the probability of a dropout: from 0 to below 1.

    Raises:
        ValueError: it cannot.
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}; allowed: from 0 to below 1")
    return value


def keywords_of(builder: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of a builder with their defaults: what a recipe may set."""
    parameters = inspect.signature(builder).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_keywords(given: Mapping[str, Any], allowed: Mapping[str, Any], what: str) -> None:
    """Compare a recipe's keywords with a builder's, by name and by the type of the default.

    Raises:
        ValueError: an unknown keyword, or a value of another type than the default's.
    """
    listing = ", ".join(f"{k}={v!r}" if v is not inspect.Parameter.empty else k for k, v in allowed.items())
    for name, value in given.items():
        if name not in allowed:
            raise ValueError(f"unknown keyword {name!r} of {what}; allowed: {listing}.{nearest(name, allowed)}")
        kind = type(allowed[name])
        # By the very type: a bool is an int to Python, and `channels: true` must not become one channel.
        fits = type(value) is kind or (kind is float and type(value) is int)
        if kind in (bool, int, float, str) and not fits:
            raise ValueError(f"{what}: {name} is {value!r}; allowed: {kind.__name__}, such as {allowed[name]!r}")
        if kind is tuple and not isinstance(value, list | tuple):
            raise ValueError(f"{what}: {name} is {value!r}; allowed: a list, such as {list(allowed[name])}")
