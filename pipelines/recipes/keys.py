"""Every key of a recipe with its type, its default and its meaning, read from the dataclasses."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from collections.abc import Iterator
from typing import Any, Literal

import yaml

from pipelines.recipes.recipe import Recipe
from pipelines.recipes.written import allows_null, inner, kinds

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Any: "anything"}
ENTRY = "NAME"  # stands for the name of a stage, as in overrides


def keys_of(kind: Any = Recipe, head: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and meaning of each field of a dataclass, and of those below it."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        key, hint = head + field.name, hints[field.name]
        table = below(hint)
        yield key, words(hint), default(field), field.metadata["about"]
        if table is not None:
            entry = f"{key}.{ENTRY}." if typing.get_origin(inner(hint)) is tuple else f"{key}."
            yield from keys_of(table, entry)


def below(hint: Any) -> Any:
    """The dataclass that a hint names, or whose list it is; None for any other type."""
    kind = inner(hint)
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
    return kind if dataclasses.is_dataclass(kind) else None


def words(hint: Any) -> str:
    """A type in words."""
    if len(several := kinds(hint)) > 1:
        return f"{' or '.join(map(words, several))}{', or null' if allows_null(hint) else ''}"
    kind = several[0]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        *first, last = map(str, sorted(args))
        found = f"{', '.join(first)} or {last}"
    elif origin is tuple and Ellipsis not in args:
        found = f"a list of {len(args)}"
    elif origin is tuple:
        found = "a list"
    elif origin is dict or dataclasses.is_dataclass(kind):
        found = "a mapping"
    else:
        found = WORDS[kind]
    return f"{found}, or null" if allows_null(hint) else found


def default(field: dataclasses.Field[Any]) -> str:
    """The default of a field in YAML; empty for a table, whose keys have defaults of their own."""
    if field.default is not dataclasses.MISSING:
        value = list(field.default) if isinstance(field.default, tuple) else field.default
    elif field.default_factory is dataclasses.MISSING:
        return "needed"
    elif dataclasses.is_dataclass(value := field.default_factory()):
        return ""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def describe_keys(width: int = 100) -> str:
    """All keys for people, each with its meaning below it."""
    lines = []
    for key, kind, given, about in keys_of():
        start = f" = {given}" if given not in ("", "needed") else " (must be given)" if given else ""
        lines.append(f"{key}: {kind}{start}")
        lines.append(textwrap.indent(textwrap.fill(about, width - 4, break_on_hyphens=False), "    "))
    return "\n".join(lines)
