"""Generated pages: one a technique, written only when it changes, gone with its technique."""

import pages
import pytest

import taxonomy

tx = taxonomy.load()


@pytest.mark.parametrize("node", tx, ids=lambda node: node.id)
def test_a_page_tells_all(node):
    text = pages.page(tx, node)
    assert f"\n# {node.name}\n" in text
    for wanted in (node.definition, node.example.strip(), node.idea.strip()[:60], "## Influences", "Use it when"):
        assert wanted in text
    path = node.implementation.partition(":")[0].replace(".", "/") + ".py"
    assert f"{{literalinclude}} ../../../{path}" in text
    for key in node.references:
        assert tx.references[key].title.replace("*", "\\*") in text


def test_pages_are_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "page", lambda tx, node: f"# {node.name}\n")
    written = pages.write(tmp_path, tx)
    assert {path.relative_to(tmp_path).with_suffix("").as_posix() for path in written} == {n.address for n in tx}
    assert pages.write(tmp_path, tx) == []
    gone = tmp_path / "model" / "pruning" / "no-longer.md"
    gone.parent.mkdir(parents=True, exist_ok=True)
    gone.write_text("# Old\n")
    one = written[0]
    one.write_text("# Edited\n")
    assert pages.write(tmp_path, tx) == [one] and not gone.exists()


def test_a_chart_is_drawn_where_figures_differ():
    def row(value, density=0.1, metric="accuracy"):
        return {
            "metric": metric,
            "value": value,
            "who": "self",
            "workload": "w",
            "parameters": {"density": density},
            "conditions": {},
        }

    class Node:
        baseline = "plain-recipe"
        improves = ("parameters",)

    rows = [row(0.9 + d, d) for d in (0.1, 0.2, 0.3, 0.4)] + [
        row(5, metric="parameters"),
        row(float("nan"), metric="macs"),
    ]
    assert pages.charts_of(Node, tx.metrics, rows) == [
        ("accuracy", 'charts.curve(rows, "density", "accuracy", names={"baseline": "plain recipe"})')
    ]
    assert pages.charts_of(Node, tx.metrics, rows[:2]) == [
        ("accuracy", 'charts.beside_peers(rows, "accuracy", names={"baseline": "plain recipe"})')
    ]
