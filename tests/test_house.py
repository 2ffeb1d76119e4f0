"""The two arrows of the house: pipelines -> segmodels, pipelines -> datasets; the leaves never meet."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "segmodels": {"ray", "mlflow", "datasets", "pipelines"},
    "datasets": {"ray", "mlflow", "torch", "segmodels", "pipelines"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_leaves_import_nothing_they_must_not(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    assert {str(f): bad for f in files if (bad := imported(f) & FORBIDDEN[package])} == {}


def test_mlflow_has_one_importer():
    assert [f.name for f in (ROOT / "pipelines").rglob("*.py") if "mlflow" in imported(f)] == ["mlflow_client.py"]


def test_init_files_hold_a_docstring_alone():
    for path in [ROOT / p / "__init__.py" for p in ("datasets", "pipelines", "segmodels")]:
        body = ast.parse(path.read_text()).body
        assert len(body) == 1
        assert isinstance(body[0], ast.Expr)


def test_no_module_of_pipelines_shadows_the_standard_library():
    assert not {path.stem for path in (ROOT / "pipelines").glob("*.py")} & set(sys.stdlib_module_names)


def test_doors_can_be_run_as_files():
    for door in ("voc_pretrain", "train", "evaluate", "prepare", "audit", "replay", "compare", "ablate"):
        path = ROOT / "pipelines" / f"{door}.py"
        assert path.stat().st_mode & 0o111
        assert path.read_text().startswith("#!/usr/bin/env python\n")
