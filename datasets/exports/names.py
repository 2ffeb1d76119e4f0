"""The classes of an export: their names, their order, what of them is background, and what is ignored."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.exports.records import BACKGROUND, IGNORED, Colour, Outlined, Shape, Told
from datasets.readers.classes_yaml import PAGE, checked_names, given_palette
from datasets.readers.labels import UNKNOWN, colour_map
from datasets.sample import IGNORE, DataError
from datasets.strict_yaml import read_yaml
from datasets.text import named, same_form

PAGE_KEYS = ("classes", "ignore", "palette")


@dataclass(frozen=True)
class Classes:
    """The classes of an export.

    Args:
        names: K names.
        palette: K colours.
        unlabelled: class of pixels without a label, or 255.
        ignored: which labels become 255, for a person.
        notes: what was decided.
        numbers: name in one form -> class or 255.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    unlabelled: int
    ignored: str
    notes: tuple[str, ...]
    numbers: dict[str, int]

    def number(self, name: str) -> int:
        """The class of a name, or 255."""
        return self.numbers[form_of(name)]


def form_of(name: str) -> str:
    """A name to compare by: one Unicode form, no blanks around it; all spellings of background are one."""
    form = same_form(name).strip()
    return BACKGROUND if form.strip("_ ").lower() == BACKGROUND else form


def classes_of(source: Path, found: Outlined, shapes: Iterable[Shape], told: Told) -> Classes:
    """The classes that an export lists, then those that only its shapes name, by name; or those of `classes.yaml`.

    Raises:
        DataError: no class at all, too many, one that is listed twice, or one that `classes.yaml` leaves out.
    """
    listed = checked(found.names, source)
    forms = [*listed, *sorted({form_of(shape.name) for shape in shapes} - set(listed))]
    names, ignored, page, notes = forms, {IGNORED}, _page(source), []
    if page is not None:
        names, ignored = _of_page(source, page, forms)
        notes.append(f"the order of the classes is that of {PAGE}")
    kept = [form for form in names if form not in ignored]
    if told.unlabelled == BACKGROUND and BACKGROUND not in kept:
        kept.insert(0, BACKGROUND)
    elif BACKGROUND in kept and page is None:
        kept.insert(0, kept.pop(kept.index(BACKGROUND)))
    if not kept or kept == [BACKGROUND] or len(kept) > UNKNOWN:
        raise DataError(f"{source}: {len(kept)} classes ({named(kept)}); needed is one besides the background, at "
                        f"most {UNKNOWN}. Were labels exported at all?")  # fmt: skip
    numbers = {form: kept.index(form) if form in kept else IGNORE for form in sorted({*forms, *kept, *ignored})}
    unlabelled = numbers[BACKGROUND] if told.unlabelled == BACKGROUND else IGNORE
    return Classes(tuple(kept), _palette(page, found, kept), unlabelled, _told(told, ignored & set(forms)),
                   (*notes, *_alike(kept)), numbers)  # fmt: skip


def checked(names: Iterable[str], source: Path) -> list[str]:
    """The forms of listed classes.

    Raises:
        DataError: a name is empty, or is listed twice.
    """
    forms: list[str] = []
    for name in names:
        if not name.strip():
            raise DataError(f"{source}: a class without a name is listed; name it in the tool, and export again")
        if form_of(name) in forms:
            raise DataError(f"{source}: two classes are called {form_of(name)!r}; rename one in the tool, and export "
                            "again")  # fmt: skip
        forms.append(form_of(name))
    return forms


def _page(source: Path) -> dict[str, Any] | None:
    """The folder's `classes.yaml`; None where it has none.

    Raises:
        DataError: the page has other keys.
    """
    if not (path := source / PAGE).is_file():
        return None
    page = read_yaml(path, as_written=True)
    if not isinstance(page, dict) or set(page) - set(PAGE_KEYS) or not isinstance(page.get("classes"), list):
        found = ", ".join(map(str, page)) if isinstance(page, dict) else type(page).__name__
        raise DataError(f"{path}: has {found}; beside labels of a tool it may set the order of the classes, by name: "
                        "classes: [road, car], and optionally ignore: [unclear], palette: [[128, 64, 128], [0, 0, "
                        "142]]")  # fmt: skip
    checked_names(page["classes"])
    return page


def _of_page(source: Path, page: dict[str, Any], forms: list[str]) -> tuple[list[str], set[str]]:
    """The forms of the page's classes, and of what it ignores."""
    names = [form_of(name) for name in page["classes"]]
    ignored = {form_of(str(name)) for name in page.get("ignore") or []} | {IGNORED}
    if both := sorted(ignored & set(names)):
        raise DataError(f"{source / PAGE}: {both[0]!r} is both a class and ignored; remove it from one of them")
    if left := [form for form in forms if form not in {*names, *ignored, BACKGROUND}]:
        raise DataError(
            f"{source / PAGE}: the labels have {named(map(repr, left))} too; add each to classes or to ignore"
        )
    return names, ignored


def _palette(page: dict[str, Any] | None, found: Outlined, kept: list[str]) -> tuple[Colour, ...]:
    """The page's colours, else the export's, else VOC's."""
    given = page.get("palette") if page else None
    if given is not None and page is not None:
        bare = len(kept) - len(page["classes"])  # a background that the page does not list
        return ((0, 0, 0),) * bare + given_palette(given, len(page["classes"]))
    own = {form_of(name): colour for name, colour in found.palette.items()}
    usual = colour_map(len(kept) + 1)
    shift = 0 if kept[0] == BACKGROUND else 1
    return tuple(own.get(form, usual[k + shift]) for k, form in enumerate(kept))


def _told(told: Told, ignored: set[str]) -> str:
    """What becomes 255, for a person."""
    parts = ["unlabelled area, as told"] if told.unlabelled == "ignore" else []
    parts += [f"objects of {named(sorted(ignored))}"] if ignored else []
    return " and ".join([*parts, "crowds"]) if parts else "crowds"


def _alike(names: Iterable[str]) -> list[str]:
    """Names that differ only in upper and lower case, or in blanks and dashes: maybe one class by mistake."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("".join(c for c in name.lower() if c.isalnum()), []).append(name)
    return [f"WARNING: {named(map(repr, group))} are read as {len(group)} classes; if they are one, rename it in the "
            "tool" for form, group in groups.items() if form and len(group) > 1]  # fmt: skip
