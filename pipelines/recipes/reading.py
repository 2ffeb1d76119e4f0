"""Recipes from YAML and `key=value`, strict about every key and type."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from pipelines.base.errors import InputError
from pipelines.base.text import nearest
from pipelines.recipes.recipe import Recipe, check, fingerprint

RECIPES = Path(__file__).parent


def load_recipe(source: str | Path, overrides: typing.Sequence[str] = ()) -> Recipe:
    """Recipe of a YAML file (a path, or a name below pipelines/recipes) with `key=value` overrides applied.

    Raises:
        InputError: no such file, not YAML, an unknown key, a wrong type or an impossible value.
    """
    path = find_recipe(str(source))
    page = read_page(path, f"a recipe is a mapping of keys; see {RECIPES}")
    for override in overrides:
        apply_override(page, override)
    recipe = make_recipe(page)
    if recipe.name is None:
        recipe = dataclasses.replace(recipe, name=f"{path.stem}-{fingerprint(recipe)[:8]}")
    return recipe


def read_page(path: Path, wanted: str) -> dict[str, Any]:
    """The mapping that a YAML file holds; `wanted` ends the message when it holds something else.

    Raises:
        InputError: not YAML, or no mapping.
    """
    try:
        page = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    if not isinstance(page, dict):
        raise InputError(f"{path} holds {type(page).__name__}, {wanted}")
    return page


def make_recipe(page: dict[str, Any]) -> Recipe:
    """The recipe of a page, its keys, types and values checked; its name stays open where the page has none."""
    recipe = typing.cast(Recipe, convert(Recipe, page, ""))
    check(recipe)
    return recipe


def find_recipe(source: str) -> Path:
    """The file that `source` names: a path, or `reconet/camvid_resnet50s` below pipelines/recipes."""
    return find_page(source, RECIPES, "recipe")


def find_page(source: str, bundled: Path, what: str) -> Path:
    """The file that `source` names: a path, or a name below a folder.

    Raises:
        InputError: no such file.
    """
    for path in (Path(source), bundled / source, bundled / f"{source}.yaml"):
        if path.is_file():
            return path
    known = sorted(str(path.relative_to(bundled).with_suffix("")) for path in bundled.rglob("*.yaml"))
    raise InputError(f"no {what} {source!r}{nearest(source, known)} Bundled: {', '.join(known)}; or give a path.")


def apply_override(page: dict[str, Any], override: str) -> None:
    """Set `a.b=value` (value in YAML) in the page; list entries by position, stages by name too."""
    set_key(page, *read_override(override))


def read_override(override: str) -> tuple[str, Any]:
    """Key and value of `a.b=value`."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"override {override!r} is not of the form key=value, e.g. head.rank=32")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"override {override!r} cannot be applied: {error}") from None


def set_key(page: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a page to a value as YAML gives it.

    Raises:
        InputError: the key leads nowhere.
    """
    *parents, last = key.split(".")
    node: Any = page
    try:
        for part in parents:
            if isinstance(node, dict):
                if node.get(part) is None:
                    node[part] = {}
                node = node[part]
            else:
                node = node[position(node, part, key)]
        node[last if isinstance(node, dict) else position(node, last, key)] = value
    except (TypeError, IndexError) as error:
        raise InputError(f"override {f'{key}={value}'!r} cannot be applied: {error}") from None


def position(entries: Any, part: str, key: str) -> int:
    """Place of a list entry given by number or by its `name`."""
    if not isinstance(entries, list):
        raise InputError(f"override {key!r}: nothing lies below {part!r}, whose parent is the value {entries!r}")
    names = [entry.get("name", "") if isinstance(entry, dict) else "" for entry in entries]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(entries):
        return int(part)
    raise InputError(f"override {key!r}: no entry {part!r}; allowed: 0..{len(entries) - 1} or {names}")


def convert(kind: Any, value: Any, key: str) -> Any:
    """`value` as read from YAML, checked against a type hint and made that type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return convert_table(kind, value, key)
    if origin in (typing.Union, types.UnionType):
        inner = next(arg for arg in args if arg is not type(None))
        return None if value is None else convert(inner, value, key)
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            raise InputError(f"{key} = {value!r}: allowed are {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        return convert_tuple(args, value, key)
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong(key, value, "a mapping")
        return {str(k): convert(args[1], v, f"{key}.{k}") for k, v in value.items()}
    return convert_scalar(kind, value, key)


def convert_table(kind: Any, value: Any, key: str) -> Any:
    """A dataclass from a mapping; unknown and missing keys are errors."""
    if not isinstance(value, dict):
        raise wrong(key, value, f"a mapping with the keys {', '.join(f.name for f in dataclasses.fields(kind))}")
    hints = typing.get_type_hints(kind)
    for name in value:
        if name not in hints:
            where = f"{key}.{name}" if key else str(name)
            raise InputError(f"unknown key {where!r}{nearest(str(name), hints)} Allowed: {', '.join(hints)}")
    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in value]:
        raise InputError(f"{key or 'the recipe'} lacks the key(s) {', '.join(missing)}")
    return kind(**{n: convert(hints[n], v, f"{key}.{n}" if key else str(n)) for n, v in value.items()})


def convert_tuple(args: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    """A list of fixed or free length."""
    free = len(args) == 2 and args[1] is Ellipsis
    if not isinstance(value, list) or (not free and len(value) != len(args)):
        raise wrong(key, value, "a list" if free else f"a list of {len(args)}, e.g. [512, 512]")
    return tuple(convert(args[0] if free else args[i], v, f"{key}.{i}") for i, v in enumerate(value))


def convert_scalar(kind: type, value: Any, key: str) -> Any:
    """int, float, bool or str; YAML reads `1e-5` as a string, which is taken for the number that it is."""
    if kind is float and not isinstance(value, bool):
        try:
            number = float(value) if isinstance(value, (int, float, str)) else None
        except ValueError:
            number = None
        if number is not None and math.isfinite(number):
            return number
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise wrong(key, value, {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind])


def wrong(key: str, value: Any, wanted: str) -> InputError:
    return InputError(f"{key or 'the recipe'} = {value!r} is {type(value).__name__}: give {wanted}")
