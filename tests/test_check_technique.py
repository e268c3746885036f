"""Every technique of the tree is done, every kind has a protocol, every influence a finding."""

import pytest

import taxonomy
from taxonomy import check
from taxonomy import store as stores
from taxonomy.check import check_influence, check_technique
from taxonomy.measure.runner import protocol_of, workloads_of

tx = taxonomy.load()


@pytest.mark.parametrize("node", list(tx), ids=lambda node: node.id)
def test_check_technique(node):
    assert list(check_technique(tx, node)) == []
    assert workloads_of(tx, node)


def test_the_check_itself_finds_what_is_missing():
    broken = {"id": "unum", "example": "print", "idea": "12 % better", "variants": ({"bits": 8},), "kind": "fault"}
    node = tx["posit"].model_copy(update=broken)
    node._level, node._family = "arithmetic", "alternative_numbers"
    problems = "\n".join(check_technique(tx, node))
    for word in (
        "knowledge: taxonomy/arithmetic/alternative_numbers/unum.yml is not there",
        "code: ",
        "records: ",
        "test: ",
        "does not speak of it",
        "example: calls nothing",
        "idea: a measured number is typed: '12 %'",
        "is not at the technique's address",
        "variants: the first, {'bits': 8}, differs from the defaults",
        "a fault offers protect(weights)",
    ):
        assert word in problems


@pytest.mark.parametrize("kind", list(tx.kinds))
def test_every_kind_has_a_protocol_and_a_technique(kind):
    assert protocol_of(kind).kind == kind
    assert set(protocol_of(kind).metrics) <= set(tx.metrics)
    assert tx.find(kind=kind)


@pytest.mark.parametrize("edge", list(tx.influences()), ids=lambda edge: edge.id)
def test_check_influence(edge):
    assert list(check_influence(tx, edge)) == []
    assert edge.findings and not any(finding.stale for finding in edge.findings)


def test_an_influence_without_records_or_a_word_in_a_chapter_is_not_done(monkeypatch, tmp_path):
    (edge,) = tx.influences(source="ternary-weights")
    monkeypatch.setattr(stores, "reference", stores.Store("empty", tmp_path))
    monkeypatch.setattr(check, "five_files", lambda address: {"chapter": check.ROOT / "README.md"})
    records, chapter = check_influence(tx, edge)
    assert "records missing or stale" in records and chapter == "chapter: neither of README.md speaks of it"
