#!/usr/bin/env python
"""What this project can do: its doors, and the recipes, studies and benchmarks that come with it.

`python -m pipelines DOOR …` opens a door, as `python -m pipelines.DOOR …` does; so does the installed command
`context-heads DOOR …`.
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import PROJECT, ROOT, VERSION, run
from pipelines.base.errors import InputError
from pipelines.base.text import nearest
from pipelines.recipes.bundled import listing

HERE = Path(__file__).resolve().parent
NOT_DOORS = ("__init__", "__main__", "warm")  # warm is Ray's own


def start() -> None:
    """Open the door that is named first, or say what there is; the entry point of the installed command."""
    if sys.argv[1:] and sys.argv[1] in doors():
        open_door(sys.argv[1], sys.argv[2:])
    else:
        run(main)


def main() -> None:
    """Say what there is.

    Raises:
        InputError: a door that there is not.
    """
    if sys.argv[1:] and sys.argv[1] not in ("-h", "--help"):
        raise InputError(f"no door {sys.argv[1]!r}{nearest(sys.argv[1], doors())} Doors: {', '.join(doors())}")
    print(overview())


def open_door(name: str, words: list[str]) -> None:
    """Run a door as `python -m pipelines.NAME` does."""
    module = f"pipelines.{name}"
    sys.argv = [f"python -m {module}", *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def doors() -> list[str]:
    """Names of all doors."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NOT_DOORS)


def overview() -> str:
    """All that there is, a line each."""
    width = max(map(len, doors()))
    opened = "\n".join(f"  {name:<{width}}  {summary(HERE / f'{name}.py')}" for name in doors())
    return f"""{PROJECT} {VERSION}: training of context-head semantic segmentation on Ray

Doors: python -m pipelines.DOOR --help
{opened}

Recipes: python -m pipelines.train RECIPE
{listing(HERE / "recipes")}

Studies: python -m pipelines.ablate STUDY
{listing(HERE / "studies")}

Benchmarks: python -m pipelines.prepare BENCHMARK --tree
  {", ".join(benchmarks())}

Heads, trunks and loss terms: python -m segmodels
The first thing to try: python -m pipelines.voc_pretrain, minutes on two CPU cores, without data"""


def summary(path: Path) -> str:
    """The first sentence of a file's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0].rstrip(".") if text else ""


def benchmarks() -> list[str]:
    """Names of the benchmarks, read off the catalog's text: importing it takes longer than all else here."""
    tree = ast.parse((ROOT / "datasets" / "catalog.py").read_text(encoding="utf-8"))
    tables = [node.value for node in tree.body if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)]
    return [str(key.value) for table in tables for key in table.keys if isinstance(key, ast.Constant)]


if __name__ == "__main__":
    start()
