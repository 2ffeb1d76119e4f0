"""Recipes from YAML and `key=value`, strict about every key and type."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal

from datasets.sample import DataError
from datasets.strict_yaml import strict_yaml
from datasets.text import read_text
from pipelines.base.errors import InputError, SetupError
from pipelines.base.files import write_text
from pipelines.base.text import nearest
from pipelines.recipes.bundled import names_in
from pipelines.recipes.recipe import Recipe, check, fingerprint
from pipelines.recipes.written import allows_null, as_written, inner, kind_at, kinds, wants_text

RECIPES = Path(__file__).parent


WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
NAMED = ("backbone", "head", "aux")  # `head=fcn` is short for `head={name: fcn}`


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


def read_page(path: Path, wanted: str, kind: Any = Recipe) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Args:
        path: of the file, in any encoding.
        wanted: ends the message when it holds something else.
        kind: the dataclass that it describes: where this wants text, `no` and `12` are text.

    Raises:
        InputError: not YAML, a key that is given twice, or no mapping.
    """
    try:
        page = parse(read_text(path), str(path), kind)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(page, dict):
        raise InputError(f"{path} holds {type(page).__name__}, {wanted}")
    return page


def parse(text: str, name: str, kind: Any) -> Any:
    """What a text in YAML means, for a type hint.

    Args:
        text: the page.
        name: of the page, for messages.
        kind: the type hint.
    """
    try:
        return as_written(kind, strict_yaml(text, name), strict_yaml(text, name, as_written=True))
    except DataError as error:
        cure = ' Text that ends with a colon needs quotes, such as "hub:".' if "mapping values" in str(error) else ""
        raise InputError(f"{error}{cure}") from None


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
    for path in (Path(source).expanduser(), bundled / source, bundled / f"{source}.yaml"):
        if path.is_file():
            return path
    door = {"recipe": "train", "study": "ablate"}[what]
    raise InputError(
        f"no {what} {source!r}{nearest(source, names_in(bundled))} Give the path of a YAML file, or a bundled name: "
        f"`python -m pipelines.{door} --list` shows them."
    )


def copy_page(source: str, bundled: Path, what: str, target: Path) -> None:
    """Copy a bundled page, with its comments, to a file that does not exist yet.

    Raises:
        InputError: no such page, or the file exists.
        SetupError: the file cannot be written.
    """
    text = find_page(source, bundled, what).read_text(encoding="utf-8")
    if target.is_dir():
        raise InputError(f"--copy: {target} is a folder; name a file in it, such as {target / 'my.yaml'}")
    if target.exists():
        raise InputError(f"--copy: {target} exists already; name a file that does not, or remove it")
    try:
        write_text(target, text)
    except OSError as error:
        raise SetupError(f"--copy: cannot write {target}: {error.strerror}. Give another place") from None


def apply_override(page: dict[str, Any], override: str) -> None:
    """Set `a.b=value` (value in YAML) in the page; list entries by position, stages by name too."""
    set_key(page, *read_override(override))


def read_override(override: str) -> tuple[str, Any]:
    """Key and value of `a.b=value`; a value that is to be text is taken as it stands, but for quotes around it."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"override {override!r} is not of the form key=value, e.g. head.rank=32")
    kind = kind_at(Recipe, key)
    if not wants_text(inner(kind)) or text.strip()[:1] in ('"', "'"):
        return key, parse(text, f"override {override!r}", kind)
    empty = not text.strip() or (allows_null(kind) and text.strip() in ("null", "~"))
    return key, None if empty else text.strip()


def set_key(page: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a page to a value as YAML gives it.

    Raises:
        InputError: the key leads nowhere.
    """
    *parents, last = key.split(".")
    node: Any = page
    if not parents:
        value = with_name(key, value)
    try:
        for depth, part in enumerate(parents):
            if isinstance(node, dict):
                if node.get(part) is None:
                    node[part] = {}
                if depth == 0:
                    node[part] = with_name(part, node[part])
                node = node[part]
            else:
                node = node[position(node, part, key)]
        node[last if isinstance(node, dict) else position(node, last, key)] = value
    except (TypeError, IndexError) as error:
        raise InputError(f"override {f'{key}={value}'!r} cannot be applied: {error}") from None


def with_name(key: str, value: Any) -> Any:
    """A part of the model that is given only by its name, as a mapping; any other value as it is."""
    return {"name": value} if key in NAMED and isinstance(value, str) else value


def position(entries: Any, part: str, key: str) -> int:
    """Place of a list entry given by number or by its `name`."""
    if not isinstance(entries, list):
        raise InputError(f"override {key!r}: nothing is below {part!r}, whose parent is the value {entries!r}")
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
        return None if value is None else convert(fitting(kind, value), value, key)
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            raise InputError(f"{key} = {shown(value)}: allowed are {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        return convert_tuple(args, value, key)
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong(key, value, "a mapping")
        return {str(k): convert(args[1], v, f"{key}.{k}") for k, v in value.items()}
    return convert_scalar(kind, value, key)


def fitting(kind: Any, value: Any) -> Any:
    """Of the types that a hint allows that of a value: a list's for a list, else the first."""
    allowed = kinds(kind)
    lists = [arg for arg in allowed if typing.get_origin(arg) is tuple]
    return lists[0] if lists and isinstance(value, list) else allowed[0]


def convert_table(kind: Any, value: Any, key: str) -> Any:
    """A dataclass from a mapping; unknown and missing keys are errors."""
    if not isinstance(value, dict):
        raise wrong(key, value, f"a mapping with the keys {', '.join(f.name for f in dataclasses.fields(kind))}")
    if kind is Recipe:
        value = {name: with_name(name, given) for name, given in value.items()}
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
    raise wrong(key, value, WORDS[kind])


def wrong(key: str, value: Any, wanted: str) -> InputError:
    """What to say of a value of another type than is wanted."""
    return InputError(f"{key or 'the recipe'} = {shown(value)}: give {wanted}")


def shown(value: Any) -> str:
    """A value as YAML has it, in one line."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
