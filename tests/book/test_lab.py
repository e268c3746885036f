"""Chapters as notebooks: the cells of the page, prose with its figures, and nothing of a reader's is lost."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book"))

import lab  # noqa: E402

PAGE = """---
kernelspec: {display_name: Python 3, language: python, name: python3}
---

# A page

{technique}`posit` in [another](other.md).

```{code-cell} python
:tags: [hide-input]

import taxonomy
len(taxonomy.load()["posit"].variants) > 1
```

:::{dropdown} Answer
```python
never_a_cell()
```
:::
"""


@pytest.fixture
def book(tmp_path):
    folder = tmp_path / "book" / "model"
    folder.mkdir(parents=True)
    (folder / "page.md").write_text(PAGE)
    (folder / "prose.md").write_text("# No cells\n")
    return tmp_path


def write(root):
    return lab.write(root / "lab", root / "book")


def test_a_page_becomes_a_notebook_that_runs_to_its_end(book):
    from nbclient import NotebookClient

    (path,) = write(book)
    assert path == book / "lab" / "model" / "page.ipynb"
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code", "markdown"]
    assert "Posit in [another](other.ipynb)" in notebook.cells[0].source
    assert "hide-input" in notebook.cells[1].metadata.tags and ":tags:" not in notebook.cells[1].source
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert notebook.cells[1].outputs[0].data["text/plain"] == "True"


def test_what_a_reader_changed_is_kept(book):
    (path,) = write(book)
    notebook = nbformat.read(path, 4)
    notebook.cells[1].execution_count = 7
    nbformat.write(notebook, path)
    write(book)
    assert nbformat.read(path, 4).cells[1].execution_count == 7, "one that was only run stays"
    notebook.cells[1].source = "mine = 1"
    nbformat.write(notebook, path)
    write(book)
    (kept,) = set(path.parent.iterdir()) - {path}
    assert nbformat.read(kept, 4).cells[1].source == "mine = 1"
    assert nbformat.read(path, 4).cells[1].source.startswith("import taxonomy")


def test_every_chapter_has_its_cells_and_no_role_is_left(tmp_path):
    paths = lab.write(tmp_path)
    written = {path.relative_to(tmp_path).with_suffix(".md").as_posix() for path in paths}
    chapters = {p.relative_to(ROOT / "book").as_posix() for p in (ROOT / "book").glob("*/*.md")} - {"_ext"}
    assert written >= {name for name in chapters if not name.startswith("_")}
    for path in paths:
        notebook = nbformat.read(path, 4)
        page = (ROOT / "book" / path.relative_to(tmp_path).with_suffix(".md")).read_text("utf-8")
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert len(code) == len(re.findall(r"^```\{code-cell\}", page, re.M)), path
        prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert not re.search(r"\{(measured|measured-value|finding|cite|technique|metric|doc)\}`", prose), path
        assert kernel(notebook) == "python3"


def kernel(notebook):
    return notebook.metadata.kernelspec.name


def test_a_run_says_what_fails_and_what_nobody_measured(book):
    bad = PAGE.replace("{technique}", "{measured}`posit:sqnr:workload=nowhere` {technique}").replace(
        '"posit"', '"unum"'
    )
    (book / "book" / "model" / "bad.md").write_text(bad)
    assert lab.run(["model/page"], book / "lab", book / "book") == []
    unknown, failed = lab.run([], book / "lab", book / "book")
    assert unknown.startswith("model/bad: ") and "nowhere" in unknown
    assert failed.startswith("model/bad: ") and "unknown technique 'unum'" in failed
    with pytest.raises(ValueError, match="no page with cells at model/prose; there are model/bad, model/page"):
        lab.run(["model/prose"], book / "lab", book / "book")
