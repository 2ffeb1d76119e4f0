"""The `classes.yaml` of the user's own folder: names, mask values or colours, and what is ignored."""

import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets.readers.colours import Colour
from datasets.readers.labels import UNKNOWN, check_present, colour_map
from datasets.sample import IGNORE, DataError
from datasets.strict_yaml import read_yaml
from datasets.text import named, same_form

PAGE = "classes.yaml"
KEYS = ("classes", "palette", "ignore", "colours")


@dataclass(frozen=True)
class Settings:
    """What the file says.

    Args:
        names: K names.
        palette: K colours to show them in.
        values: mask value -> class or 255; empty where colours count.
        colours: mask colour -> class or 255; empty where values count.
        ignored: which values or colours become 255, for a person.
        may_be_binary: whether two names are listed and nothing says what 255 means.
        notes: decisions that the file does not state.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    values: dict[int, int]
    colours: dict[Colour, int]
    ignored: str
    may_be_binary: bool = False
    notes: tuple[str, ...] = ()

    def as_binary(self) -> "Settings":
        """The same for masks of 0 and 255 only: 255 is the second class."""
        note = (
            f"the masks hold 0 and 255 only, so 255 is read as {self.names[1]!r}; to state it, write in {PAGE} "
            f"classes: {{0: {self.names[0]}, 255: {self.names[1]}}}, or ignore: [255] if 255 is no class"
        )
        return replace(self, values={0: 0, IGNORE: 1}, ignored="", may_be_binary=False, notes=(*self.notes, note))


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
    ignored = _ignored(page["ignore"], values) if "ignore" in page else [v for v in [IGNORE] if v not in values]
    table = {**{value: k for k, value in enumerate(values)}, **dict.fromkeys(ignored, IGNORE)}
    palette = given_palette(page.get("palette"), len(names)) or colour_map(len(names))
    told = f"mask value{'s' if len(ignored) > 1 else ''} {named(ignored)}" if ignored else ""
    told += ", by default because no class has it" if ignored and "ignore" not in page else ""
    binary = isinstance(page["classes"], list) and len(names) == 2 and "ignore" not in page
    return Settings(names, palette, table, {}, told, binary)


def _page(path: Path, tree: str) -> dict[str, Any]:
    """The page, with every scalar as the text that was written: a class may be called `no` or `12`."""
    check_present([path], tree)
    page = read_yaml(path, as_written=True)
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
    names = checked_names(list(given))
    ordered = names if "classes" not in page else _classes(page["classes"])[0]
    if unlike := sorted(set(ordered) ^ set(names)):
        raise DataError(f"classes.yaml: {unlike[0]!r} is in only one of classes and colours; name it in both")
    of_name = {name: _colours(value, name) for name, value in given.items()}
    ignored = _colours(page.get("ignore") or [], "ignore")
    pairs = [(colour, number) for number, name in enumerate(ordered) for colour in of_name[name]]
    pairs += [(colour, IGNORE) for colour in ignored]
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(colour for colour, _ in pairs if [c for c, _ in pairs].count(colour) > 1)
        raise DataError(f"classes.yaml: colour {list(twice)} has two meanings; give each colour one")
    shown = given_palette(page.get("palette"), len(ordered)) or tuple(of_name[name][0] for name in ordered)
    told = f"mask colours {named(map(list, ignored))}" if ignored else ""
    return Settings(ordered, shown, {}, table, told)


def _colours(value: object, name: str) -> list[Colour]:
    """The colours of a value, which is one colour or a list of them."""
    rows = [value] if isinstance(value, list) and value and not isinstance(value[0], list) else value
    colours = [_colour(row) for row in rows] if isinstance(rows, list) else [None]
    if None in colours or not (colours or name == "ignore"):
        raise DataError(f"classes.yaml: {name} is {value!r}; with colours, allowed is [R, G, B] of 0-255, or a list of "
                        "such colours")  # fmt: skip
    return [colour for colour in colours if colour is not None]


def _classes(classes: object) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The names in order of their mask values, and those values."""
    pairs = dict(enumerate(classes)) if isinstance(classes, list) else classes
    if isinstance(classes, dict):
        pairs = {_value(key): name for key, name in classes.items()}
    if not isinstance(pairs, dict) or not pairs or len(pairs) > UNKNOWN or None in pairs:
        raise DataError(f"classes.yaml: classes is {classes!r}; allowed is a list of at most {UNKNOWN} names, or a "
                        "mapping of mask values (0-255) to names")  # fmt: skip
    if isinstance(classes, dict) and len(pairs) < len(classes):
        raise DataError(f"classes.yaml: a mask value is given twice in {list(classes)}; give each class its own")
    values = tuple(sorted(pairs))
    return checked_names([pairs[value] for value in values]), values


def checked_names(given: list[object]) -> tuple[str, ...]:
    """The names, which must be text, not empty, and unlike each other."""
    for name in given:
        if not isinstance(name, str) or not name.strip() or any(unicodedata.category(c) == "Cc" for c in name):
            raise DataError(f"classes.yaml: {name!r} is no name; a class's name is text in one line")
    forms = [same_form(str(name)).strip() for name in given]
    if len(set(forms)) < len(forms):
        raise DataError(f"classes.yaml: a name occurs twice in {given}; rename one")
    return tuple(map(str, given))


def _ignored(ignore: object, values: tuple[int, ...]) -> list[int]:
    numbers = [_value(value) for value in ignore] if isinstance(ignore, list) else [None]
    if None in numbers:
        raise DataError(f"classes.yaml: ignore is {ignore!r}; allowed is a list of mask values 0-255, such as [255]")
    ignored = sorted({value for value in numbers if value is not None})
    if both := sorted(set(ignored) & set(values)):
        raise DataError(f"classes.yaml: value {both[0]} is both a class and ignored; remove it from one of them")
    return ignored


def given_palette(palette: object, count: int) -> tuple[Colour, ...]:
    """The given colours; () where the palette is left out."""
    if palette is None:
        return ()
    colours = [_colour(row) for row in palette] if isinstance(palette, list) else [None]
    if None in colours or len(colours) != count:
        raise DataError(f"classes.yaml: palette is {palette!r}; expected are {count} colours [R, G, B] of 0-255")
    return tuple(colour for colour in colours if colour is not None)


def _colour(row: object) -> Colour | None:
    """A colour as written; None where it is none."""
    channels = [_value(channel) for channel in row] if isinstance(row, list) else []
    if len(channels) != 3 or None in channels:
        return None
    red, green, blue = (channel or 0 for channel in channels)
    return red, green, blue


def _value(text: object) -> int | None:
    """A number of 0-255 as written; None where it is none. YAML reads 010 as 8, people as 10: it is none either."""
    try:
        number = int(str(text), 0)
    except ValueError:
        return None
    return number if 0 <= number <= 255 else None
