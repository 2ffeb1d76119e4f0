"""What modules of segmodels import of each other, read off their text: imports inside of functions count too."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import segmodels

ROOT = Path(segmodels.__file__).resolve().parents[1]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "segmodels").rglob("*.py"))
}


def imports(path):
    """(module, name) of all imports of a file; the name is None where the module itself is imported."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.append((whole, None) if whole in FILES else (node.module, alias.name))
    return found


def defined(path):
    """Names that a module defines at its top level."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
    return names


def test_no_circle():
    graph = {name: {module for module, _ in imports(path) if module in FILES} for name, path in FILES.items()}
    assert sum(map(len, graph.values())) > 100
    assert set(TopologicalSorter(graph).static_order()) == set(FILES)  # raises, with the circle, if there is one


def test_every_name_is_imported_from_where_it_is_defined():
    files = [*FILES.values(), *Path(__file__).parent.glob("*.py")]
    given = [(path, module, name) for path in files for module, name in imports(path) if module in FILES and name]
    assert given
    assert [entry for entry in given if entry[2] not in defined(FILES[entry[1]])] == []


def test_init_files_hold_a_docstring_only_but_for_load():
    """`segmodels.load` is what a user of a trained model writes; it is looked up on its first use."""
    for name, path in ((name, path) for name, path in FILES.items() if path.name == "__init__.py"):
        node, *rest = ast.parse(path.read_text()).body
        assert isinstance(node, ast.Expr)
        assert [getattr(other, "name", "import") for other in rest] == (
            ["import", "__getattr__"] if name == "segmodels" else []
        )
    assert segmodels.load.__module__ == "segmodels.loading"
    assert not hasattr(segmodels, "save")


def test_torchmetrics_is_left_to_the_tests():
    """Importing it costs each worker more than a second; see `metrics.py`."""
    assert not [name for name, path in FILES.items() if any(m.startswith("torchmetrics") for m, _ in imports(path))]
