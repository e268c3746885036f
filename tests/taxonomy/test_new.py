"""What `python -m taxonomy new` writes loads at once, and fails the check with what is still to be written."""

import ast
import importlib
import shutil
import subprocess
import sys

import pytest

import kernels.model.pruning
import taxonomy
from taxonomy import check
from taxonomy.load import ROOT, load
from taxonomy.new import new

tx = taxonomy.load()


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A copy of the taxonomy in a house of its own, whose kernels are found beside the real ones."""
    shutil.copytree(ROOT, tmp_path / "taxonomy", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.setattr(check, "ROOT", tmp_path)
    folder = tmp_path / "kernels" / "model" / "pruning"
    monkeypatch.setattr(kernels.model.pruning, "__path__", [*kernels.model.pruning.__path__, str(folder)])
    return tmp_path


@pytest.mark.parametrize("number, kind", list(enumerate(tx.kinds)))
def test_a_new_technique_loads_and_says_what_is_missing(house, number, kind):
    address = f"model/pruning/brand-new-{number}"  # a name of its own: modules stay imported
    written = {path.relative_to(house).as_posix() for path in new(tx, address, kind)}
    assert written == {
        f"taxonomy/{address}.yml",
        f"kernels/model/pruning/brand_new_{number}.py",
        "kernels/model/pruning/__init__.py",
        f"tests/model/pruning/test_brand_new_{number}.py",
        "book/model/pruning.md",
    }
    for path in written:
        if path.endswith(".py"):
            ast.parse((house / path).read_text())
    again = load(house / "taxonomy")
    missing = list(check.check_technique(again, again[f"brand-new-{number}"]))
    for wing in ("knowledge", "code", "test", "chapter"):
        assert any(line.startswith(f"{wing}: ") and ": still to be written: " in line for line in missing)
    assert "improves: no metric; name those of metrics.yml that it is meant to improve" in missing
    assert "references: none" in missing and "example: calls nothing" in missing
    owed = [signature.partition("(")[0] for signature in tx.kinds[kind].contract]
    if base := tx.kinds[kind].base:
        module, _, name = base.partition(":")
        owed = getattr(importlib.import_module(module), name).__abstractmethods__
    for name in owed:
        assert f"implementation: {name}() is not written: it raises NotImplementedError" in missing
    assert any("records missing or stale" in line for line in missing)


def test_nothing_is_replaced(house):
    mine = house / "tests" / "model" / "pruning" / "test_brand_new.py"
    mine.parent.mkdir(parents=True)
    mine.write_text("assert True\n")
    assert mine not in new(tx, "model/pruning/brand-new", "transform")
    assert mine.read_text() == "assert True\n"


@pytest.mark.parametrize(
    "address, kind, message",
    [
        ("pruning/x", "transform", "address: expected LEVEL/FAMILY/ID"),
        ("modle/pruning/x", "transform", "level: 'modle' is none of model, arithmetic, implementation"),
        ("arithmetic/pruning/x", "transform", "family: 'pruning' is none of the arithmetic level"),
        ("model/pruning/X_y", "transform", "id: expected lower case with hyphens"),
        ("model/pruning/posit", "transform", "id: 'posit' is taken by arithmetic/alternative_numbers/posit"),
        ("model/pruning/x", "transfrom", "kind: 'transfrom' is none of .*; did you mean transform"),
    ],
)
def test_a_wrong_address_is_refused_with_what_would_be_right(house, address, kind, message):
    with pytest.raises(ValueError, match=message):
        new(tx, address, kind)
    assert not (house / "kernels").exists()


def test_what_is_written_has_the_house_s_style(house):
    for number, kind in enumerate(tx.kinds):
        new(tx, f"model/pruning/as-ruff-writes-it-{number}", kind)
    shutil.copy(ROOT.parent / "pyproject.toml", house)
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "kernels", "tests"]
        done = subprocess.run(ruff, text=True, capture_output=True, cwd=house)
        assert done.returncode == 0, done.stdout + done.stderr
