"""What the code's imports and definitions tell of its structure; `python tests/house.py [ROOT]` prints the counts.

Imports count wherever they are: at the top, in a function, under TYPE_CHECKING.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("datasets", "pipelines", "segmodels")
ROOMS = ("base", "published", "recipes", "shards", "runs", "cluster", "feed", "scoring", "serving", "training",
         "driver", "studies", "speed")  # fmt: skip
PRIVATE = re.compile(
    r"^ray(\.\w+)*\.(_\w+|core\.generated|execution)(\.|$)|^ray\.core\.generated|^ray\.tune\.execution"
)


def trees(root=ROOT):
    """Module -> its parsed file."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text())
    return found


def imported(tree):
    """Every module that a file names in an import, and every name below one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(files):
    """Module -> our modules that it imports."""
    return {
        name: {other for other in imported(tree) if other in files and other != name} for name, tree in files.items()
    }


def room_of(module):
    """The room of a module of `pipelines`; None for a door."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or (len(parts) == 2 and parts[1] in ROOMS) else None


def circles(graph):
    """Groups of modules that import each other, each by its names."""
    reach = {name: set(others) for name, others in graph.items()}
    changed = True
    while changed:
        changed = False
        for name in reach:
            grown = reach[name].union(*(reach[other] for other in reach[name]))
            changed |= grown != reach[name]
            reach[name] = grown
    rings = {frozenset(other for other in reach[name] if name in reach[other]) for name in reach if name in reach[name]}
    return sorted(map(sorted, rings))


def functions(files):
    """Lines of each function, by module and name."""
    return {
        f"{name}:{node.name}": node.end_lineno - node.lineno + 1
        for name, tree in files.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def counts(root=ROOT):
    """The figures that a change of the structure is judged by."""
    files = trees(root)
    ours = {name: tree for name, tree in files.items() if name.startswith("pipelines")}
    graph = arrows(files)
    inner = {name: {other for other in graph[name] if other in ours} for name in ours}
    between = {(room_of(a), room_of(b)) for a, others in inner.items() for b in others if room_of(a) != room_of(b)}
    lines = functions(ours)
    longest = max(lines, key=lines.get)
    text = {name: (root / f"{name.replace('.', '/')}.py") for name in ours}
    source = "\n".join(path.read_text() for path in text.values() if path.exists())
    lazy = [n for tree in ours.values() for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)
            if isinstance(n, ast.Import | ast.ImportFrom)]  # fmt: skip
    private = {(name, module) for name, tree in files.items() for module in imported(tree) if PRIVATE.match(module)}
    return {
        "files of pipelines": len(ours),
        "imports between files of pipelines": sum(map(len, inner.values())),
        "arrows between rooms": len({pair for pair in between if None not in pair}),
        "circles": sum(map(len, circles(graph))),
        "longest function, lines": f"{lines[longest]} ({longest})",
        "functions over 60 lines": sum(length > 60 for length in lines.values()),
        "lazy imports": len(lazy),
        "dict[str, Any]": source.count("dict[str, Any]"),
        "files that name what Ray keeps private": len({name for name, _ in private}),
    }


if __name__ == "__main__":
    for what, number in counts(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT).items():
        print(f"{what:>40}  {number}")
