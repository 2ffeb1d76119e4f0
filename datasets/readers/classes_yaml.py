"""The `classes.yaml` of a folder of one's own: names, mask values or colours, and what is ignored."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from datasets.readers.colours import Colour
from datasets.readers.labels import UNKNOWN, check_present, colour_map
from datasets.sample import IGNORE, DataError

KEYS = ("classes", "palette", "ignore", "colours")


@dataclass(frozen=True)
class Settings:
    """What the file says.

    Args:
        names: K names.
        palette: K colours to show them in.
        values: mask value -> class or 255; empty where colours count.
        colours: mask colour -> class or 255; empty where values count.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    values: dict[int, int]
    colours: dict[Colour, int]


def read_settings(path: Path, tree: str) -> Settings:
    """Read the file.

    Args:
        path: the file `classes.yaml`.
        tree: the expected folder, for the message.

    Raises:
        DataError: the file is missing or wrong.
    """
    page = _page(path, tree)
    if "colours" in page:
        return _of_colours(page)
    names, values = _classes(page["classes"])
    ignored = _ignored(page.get("ignore", [IGNORE]), values)
    table = {**{value: k for k, value in enumerate(values)}, **dict.fromkeys(ignored, IGNORE)}
    return Settings(names, _palette(page.get("palette"), len(names)) or colour_map(len(names)), table, {})


def _page(path: Path, tree: str) -> dict[str, Any]:
    check_present([path], tree)
    try:
        page = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no YAML ({error}). Expected is:\n{tree}") from error
    if not isinstance(page, dict) or not {"classes", "colours"} & set(page) or set(page) - set(KEYS):
        found = ", ".join(map(str, page)) if isinstance(page, dict) else type(page).__name__
        raise DataError(f"{path}: has {found}; needed is classes, allowed are {', '.join(KEYS)}. Expected is:\n{tree}")
    return page


def _of_colours(page: dict[str, Any]) -> Settings:
    """Settings for masks of colours: `colours` maps each name to its colour, or to a list of colours."""
    given = page["colours"]
    if not isinstance(given, dict) or not given or len(given) > UNKNOWN:
        raise DataError(f"classes.yaml: colours is {given!r}; allowed is a mapping of at most {UNKNOWN} names to "
                        "[R, G, B] of 0-255, or to a list of such colours")  # fmt: skip
    names = tuple(map(str, given))
    ordered = names if "classes" not in page else _classes(page["classes"])[0]
    if unlike := sorted(set(ordered) ^ set(names)):
        raise DataError(f"classes.yaml: {unlike[0]!r} is in only one of classes and colours; name it in both")
    of_name = {str(name): _colours(value, str(name)) for name, value in given.items()}
    pairs = [(colour, number) for number, name in enumerate(ordered) for colour in of_name[name]]
    pairs += [(colour, IGNORE) for colour in _colours(page.get("ignore") or [], "ignore")]
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(colour for colour, _ in pairs if [c for c, _ in pairs].count(colour) > 1)
        raise DataError(f"classes.yaml: colour {list(twice)} has two meanings; give each colour one")
    shown = _palette(page.get("palette"), len(ordered)) or tuple(of_name[name][0] for name in ordered)
    return Settings(ordered, shown, {}, table)


def _colours(value: object, name: str) -> list[Colour]:
    """The colours of a value, which is one colour or a list of them."""
    rows = [value] if isinstance(value, list) and value and not isinstance(value[0], list) else value
    if not isinstance(rows, list) or not all(map(_is_colour, rows)) or not (rows or name == "ignore"):
        raise DataError(f"classes.yaml: {name} is {value!r}; with colours, allowed is [R, G, B] of 0-255, or a list of "
                        "such colours")  # fmt: skip
    return [(c[0], c[1], c[2]) for c in rows]


def _classes(classes: object) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The names in order of their mask values, and those values."""
    pairs = dict(enumerate(classes)) if isinstance(classes, list) else classes
    if not isinstance(pairs, dict) or not pairs or len(pairs) > UNKNOWN or not all(map(_is_value, pairs)):
        raise DataError(f"classes.yaml: classes is {classes!r}; allowed is a list of at most {UNKNOWN} names, or a "
                        "mapping of mask values (0-255) to names")  # fmt: skip
    if len(set(map(str, pairs.values()))) < len(pairs):
        raise DataError(f"classes.yaml: a name occurs twice in {list(pairs.values())}; rename one")
    values = tuple(sorted(pairs))
    return tuple(str(pairs[value]) for value in values), values


def _ignored(ignore: object, values: tuple[int, ...]) -> list[int]:
    if not isinstance(ignore, list) or not all(map(_is_value, ignore)):
        raise DataError(f"classes.yaml: ignore is {ignore!r}; allowed is a list of mask values 0-255")
    if both := sorted(set(ignore) & set(values)):
        raise DataError(f"classes.yaml: value {both[0]} is both a class and ignored; remove it from one of them")
    return ignore


def _palette(palette: object, count: int) -> tuple[Colour, ...]:
    """The given colours; () where the palette is left out."""
    if palette is None:
        return ()
    if not isinstance(palette, list) or len(palette) != count or not all(map(_is_colour, palette)):
        raise DataError(f"classes.yaml: palette is {palette!r}; expected are {count} colours [R, G, B] of 0-255")
    return tuple((c[0], c[1], c[2]) for c in palette)


def _is_colour(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_value, value))


def _is_value(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255
