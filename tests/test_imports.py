"""Imports never run back, and what is light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = {"datasets", "kernels", "taxonomy", "book"}
ALLOWED = {  # room -> rooms of the house that it may import
    "datasets": {"datasets"},
    "kernels": {"kernels"},
    "taxonomy": {"taxonomy"},
    "taxonomy/measure": {"taxonomy", "kernels", "datasets"},
    "book": {"taxonomy", "book"},
}
# outside measure the taxonomy may enter measure, but only inside a function: it is imported when asked for
HEAVY = {"torch", "numba", "pandas", "networkx", "altair", "scipy", "numpy", "taxonomy.measure"}


def imported(path: Path, inside_functions: bool) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    local = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in typing_only or (id(node) in local and not inside_functions):
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "taxonomy/measure" if parts[:2] == ("taxonomy", "measure") else parts[0]


FILES = [path for house in sorted(HOUSE) for path in sorted((ROOT / house).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    house = {name.split(".")[0] for name in imported(path, inside_functions=True)} & HOUSE
    assert house <= ALLOWED[room(path)], f"{room(path)} may import {sorted(ALLOWED[room(path)])} of the house"
    if room(path) == "taxonomy":
        top = imported(path, inside_functions=False)
        heavy = {name for name in top if any(name == h or name.startswith(h + ".") for h in HEAVY)}
        assert not heavy, f"import {sorted(heavy)} inside the function that needs it"


def test_the_check_sees_an_arrow_back(tmp_path):
    file = tmp_path / "kernel.py"
    file.write_text("def f():\n    from taxonomy import load\n")
    assert imported(file, inside_functions=True) == {"taxonomy"}
    assert imported(file, inside_functions=False) == set()


def test_loading_imports_nothing_heavy():
    code = (
        "import sys, taxonomy; taxonomy.load(); "
        "print([m for m in ('torch','numba','pandas','networkx','altair','scipy','numpy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
