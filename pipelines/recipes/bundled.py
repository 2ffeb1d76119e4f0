"""Pages that come with the project: their names, and what each is. Reads no YAML, so that a list is quick."""

from __future__ import annotations

import re
from pathlib import Path


def names_in(folder: Path) -> list[str]:
    """Names of all pages below a folder, as the command line takes them: `reconet/rank`."""
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def about(path: Path) -> str:
    """The first sentence of a page's comment, or its title."""
    text = path.read_text(encoding="utf-8")
    if title := re.search(r'^title: *"?(.*?)"?$', text, re.M):
        return title[1]
    comment = re.match(r"(?:#.*\n)+", text)
    words = " ".join(line.lstrip("# ") for line in comment[0].splitlines()) if comment else ""
    return re.split(r"[.;] ", words)[0].rstrip(".")


def listing(folder: Path) -> str:
    """A line for each page below a folder: its name, and what it is."""
    names = names_in(folder)
    width = max(map(len, names))
    return "\n".join(f"  {name:<{width}}  {about(folder / f'{name}.yaml')}" for name in names)
