"""The build is a gate: what fails in a page fails the book; what has not changed is not run again."""

import json

HEAD = """---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {display_name: Python 3, language: python, name: python3}
---
"""


def test_pages_run_again_when_the_house_changes_and_only_then(mini):
    assert mini.count.read_text().splitlines() == ["ran"]
    again = mini.build()
    assert again.returncode == 0 and mini.count.read_text().splitlines() == ["ran"]
    (mini.root / "kernels" / "new.py").write_text("changed = True\n")
    changed = mini.build()
    assert changed.returncode == 0, changed.stdout + changed.stderr
    assert mini.count.read_text().splitlines() == ["ran", "ran"]
    assert "open file://" in changed.stdout


def test_a_failing_cell_and_an_unknown_number_fail_the_build(house_of):
    house = house_of(
        alpha="# Alpha\n\nIt reaches {measured}`no-such-technique:accuracy`.\n",
        beta=f"{HEAD}# Beta\n\n```{{code-cell}} python\n1 / 0\n```\n",
    )
    done = house.build()
    assert done.returncode == 1
    assert "unknown technique 'no-such-technique'" in done.stderr
    assert "ZeroDivisionError" in done.stderr and "beta.md" in done.stderr
    (house.root / "book" / "beta.md").write_text("# Beta\n")
    repaired = house.build()  # the page with the unknown number has not changed, and must still fail
    assert repaired.returncode == 1 and "no-such-technique" in repaired.stderr


def test_executed_notebooks_are_offered(mini):
    notebook = json.loads((mini.html / "notebooks" / "intro.ipynb").read_text("utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    assert any("<svg" in "".join(output.get("data", {}).get("text/html", "")) for output in outputs)
    assert 'href="notebooks/intro.ipynb"' in (mini.html / "intro.html").read_text("utf-8")


def test_charts_have_stable_ids(mini):
    before = (mini.html / "intro.html").read_bytes()
    (mini.root / "kernels" / "other.py").write_text("again = True\n")
    assert mini.build().returncode == 0
    assert (mini.html / "intro.html").read_bytes() == before
