"""The plan of the house: two arrows between packages, rooms in one order, one owner for what must have one."""

import ast
import importlib.metadata
import re
import sys

import pytest
from house import PACKAGES, PRIVATE, ROOMS, ROOT, arrows, circles, functions, imported, room_of, trees

from pipelines.cluster import inside_ray
from pipelines.runs.folder import RunFolder, StageFolder, StudyFolder

FORBIDDEN = {
    "segmodels": {"ray", "mlflow", "datasets", "pipelines"},
    "datasets": {"ray", "mlflow", "torch", "segmodels", "pipelines"},
}
FILES = trees()


def top(names):
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_leaves_import_nothing_they_must_not(package):
    files = {name: tree for name, tree in FILES.items() if name.split(".")[0] == package}
    assert len(files) > 10
    assert {name: bad for name, tree in files.items() if (bad := top(imported(tree)) & FORBIDDEN[package])} == {}


def test_rooms_import_only_from_rooms_before_them():
    assert {path.name for path in (ROOT / "pipelines").iterdir() if (path / "__init__.py").exists()} == set(ROOMS)
    wrong = []
    for name, others in arrows(FILES).items():
        for other in others:
            here, there = room_of(name), room_of(other)
            if not other.startswith("pipelines.") or here is None:  # a leaf; doors open every room
                continue
            if there is None or ROOMS.index(there) > ROOMS.index(here):
                wrong.append(f"{name} -> {other}")
    assert wrong == []


def test_no_circle_exists_in_any_package():
    assert circles(arrows(FILES)) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]  # it finds one


def test_nobody_imports_the_door_of_rays_processes():
    assert [name for name, others in arrows(FILES).items() if "pipelines.warm" in others] == []
    kinds = (inside_ray.WORKER, inside_ray.CONTROLLER, inside_ray.TRIAL, inside_ray.FEED)
    defined = {node.name for node in FILES["pipelines.warm"].body if isinstance(node, ast.FunctionDef)}
    assert {kind.rpartition(".")[2] for kind in kinds} <= defined


def test_mlflow_has_two_importers_and_one_file_that_runs_in_its_models():
    """The client is for runs, the other file for models. `packed.py` leaves with a model: MLflow runs it elsewhere."""
    found = {name for name, tree in FILES.items() if "mlflow" in top(imported(tree))}
    assert found == {"pipelines.runs.mlflow_client", "pipelines.runs.mlflow_models", "pipelines.serving.packed"}
    assert [name for name, others in arrows(FILES).items() if "pipelines.serving.packed" in others] == []
    assert top(imported(FILES["pipelines.serving.packed"])) <= {"json", "collections", "typing", "numpy", "onnxruntime",
                                                                "mlflow"}  # fmt: skip


def test_every_name_has_one_address():
    """No module hands on a name that it only imports, and every import names the module that defines it."""
    defined = {name: {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
               | {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
               for name, tree in FILES.items()}  # fmt: skip
    tests = {str(path): ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("*.py")}
    wrong = [
        f"{name}: {alias.name} from {node.module}"
        for name, tree in (FILES | tests).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in FILES
        for alias in node.names
        if alias.name not in defined[node.module] and f"{node.module}.{alias.name}" not in FILES
    ]
    assert wrong == []


def test_init_files_hold_only_a_docstring():
    for package in PACKAGES:
        for path in (ROOT / package).rglob("__init__.py"):
            if path == ROOT / "segmodels/__init__.py":  # has `load`, see tests/segmodels/test_imports.py
                continue
            (only,) = ast.parse(path.read_text()).body
            assert isinstance(only, ast.Expr), path


def test_no_file_of_pipelines_has_the_name_of_another_module():
    """`python pipelines/NAME.py` puts that folder first on the path."""
    installed = set(importlib.metadata.packages_distributions()) - set(PACKAGES)
    here = {path.stem for path in (ROOT / "pipelines").iterdir() if not path.name.startswith("__")}
    assert here & (set(sys.stdlib_module_names) | installed) == set()


def test_what_ray_keeps_private_is_named_in_one_file():
    private = {(name, other) for name, tree in FILES.items() for other in imported(tree) if PRIVATE.match(other)}
    assert {name for name, _ in private} == {"pipelines.cluster.inside_ray"}
    listed = {entry.replace(":", ".") for names in inside_ray.NAMES.values() for entry in names}
    for _, module in private:
        assert any(entry == module or entry.startswith(f"{module}.") for entry in listed), f"{module} is not in NAMES"
    tops = [
        node for node in FILES["pipelines.cluster.inside_ray"].body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not top(name for node in tops for name in imported(node)) & {"ray", "grpc"}


@pytest.mark.parametrize("function", inside_ray.NAMES)
def test_this_ray_has_all_private_names(function):
    """Where one is lost, its function is left out: see the table, find the new name, or do without."""
    assert inside_ray.lost(inside_ray.NAMES[function]) == []
    assert inside_ray.lost(("ray.util:no_such_name", "ray.no_such_module:x")) == [
        "ray.util:no_such_name", "ray.no_such_module:x"]  # fmt: skip


def test_what_is_lost_or_switched_off_falls_back_with_a_line_in_the_log(monkeypatch, caplog):
    monkeypatch.setitem(inside_ray.NAMES, "hook", ("ray.util:gone",))
    inside_ray.usable.cache_clear()
    assert inside_ray.hook(inside_ray.FEED) == {}
    assert "this Ray has lost ray.util:gone: hook is left out" in caplog.text
    monkeypatch.undo()
    monkeypatch.setenv(inside_ray.SWITCH, "1")
    inside_ray.usable.cache_clear()
    assert not any(inside_ray.usable(function) for function in inside_ray.NAMES)
    assert inside_ray.lean(dict) is dict
    monkeypatch.undo()
    inside_ray.usable.cache_clear()
    assert inside_ray.hook(inside_ray.FEED) == {inside_ray.HOOK: inside_ray.FEED}


def test_the_files_of_a_run_are_spelled_in_one_place():
    owners = (RunFolder, StageFolder, StudyFolder)
    folders = ("has_begun", "checkpoints", "model", "plots", "ray", "tune")
    files = [(owner, key) for owner in owners for key, value in vars(owner).items() if isinstance(value, property)]
    names = {getattr(owner(ROOT), key).name for owner, key in files if key not in folders}
    assert {"recipe.yaml", "done.json", "record.jsonl", "best.pt", "study.yaml"} <= names
    spelled = {}
    for name, tree in FILES.items():
        if not name.startswith("pipelines.") or name == "pipelines.runs.folder":
            continue
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings may name them
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in names and id(node) not in prose:
                spelled.setdefault(name, set()).add(node.value)
    assert spelled == {}


def test_functions_fit_on_a_page():
    lengths = functions({name: tree for name, tree in FILES.items() if name.startswith("pipelines.")})
    assert lengths["pipelines.training.stage:train"] <= 60
    assert {name: length for name, length in lengths.items() if length > 90} == {}


def test_doors_can_be_run_as_files():
    doors = [path for path in (ROOT / "pipelines").glob("*.py") if path.stem not in ("__init__", "__main__", "warm")]
    assert len(doors) >= 9
    for path in doors:
        assert path.stat().st_mode & 0o111, path
        assert path.read_text().startswith("#!/usr/bin/env python\n"), path


def test_the_readme_is_a_page_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("[dps]*/**/*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", path.read_text()):
            assert (path.parent / link).exists(), f"{path}: {link}"
