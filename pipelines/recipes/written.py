"""Text as it was written: YAML takes `no` for a boolean, `12` for a number and `hub:` for a mapping."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal


def as_written(kind: Any, value: Any, written: Any) -> Any:
    """A value from YAML, with the very text wherever a type hint wants text, and with text for keys of mappings.

    Args:
        kind: the type hint.
        value: as YAML reads it.
        written: the same with each scalar as text.
    """
    kind = inner(kind)
    if isinstance(value, dict) and isinstance(written, dict) and len(value) == len(written):
        pairs = zip(value.values(), written.items(), strict=True)
        return {str(key): as_written(below(kind, str(key)), v, w) for v, (key, w) in pairs}
    if isinstance(value, list) and isinstance(written, list):
        pairs = zip(value, written, strict=True)
        return [as_written(below(kind, str(i)), v, w) for i, (v, w) in enumerate(pairs)]
    scalar = value is not None and isinstance(written, str)
    return written if scalar and wants_text(kind) else value


def wants_text(kind: Any) -> bool:
    """Whether a value of this type is text, or one of several words."""
    return kind is str or (typing.get_origin(kind) is Literal and isinstance(typing.get_args(kind)[0], str))


def kind_at(kind: Any, key: str) -> Any:
    """The type hint at a dotted key; `Any` where there is none."""
    for part in key.split("."):
        kind = below(inner(kind), part)
    return kind


def allows_null(kind: Any) -> bool:
    """Whether null is a value of this type."""
    return type(None) in typing.get_args(kind)


def inner(kind: Any) -> Any:
    """A type hint without `| None`; the first of several."""
    return kinds(kind)[0]


def kinds(kind: Any) -> list[Any]:
    """The types that a hint allows, without None."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [arg for arg in typing.get_args(kind) if arg is not type(None)]
    return [kind]


def below(kind: Any, part: str) -> Any:
    """The type hint of an entry: of a dataclass by its key, of a mapping or a list of any."""
    if dataclasses.is_dataclass(kind):
        return typing.get_type_hints(kind).get(part, Any)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        return args[1]
    if origin is tuple:
        return args[int(part)] if Ellipsis not in args and part.isdigit() and int(part) < len(args) else args[0]
    return Any
