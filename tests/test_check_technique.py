"""`check_technique`: when a technique is done. One contract over every node; a node that fails is not in the tree."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

import taxonomy
from taxonomy import store as stores
from taxonomy.measure.runner import protocol_of, workloads_of
from taxonomy.status import complaints

ROOT = Path(__file__).parent.parent
METHODS = {  # kind -> what its implementation must offer, design's table of contracts
    "number-format": ("round", "encode", "decode", "fit", "stored_bits"),
    "codec": ("encode", "decode"),
    "transform": ("apply",),
    "block": ("build",),
    "training": ("train",),
    "training-system": ("run",),
    "search": ("search",),
    "adaptive": ("apply",),
    "operator": ("prepare", "supports"),
    "cost-model": ("cost", "cost_gemm", "ideal"),
    "fault": ("protect", "corrupt", "recover"),
}
MEASURED = re.compile(r"\d+(\.\d+)?\s*(%|x faster|times faster|GFLOP|GOP|ms\b|dB\b)")

tx = taxonomy.load()


def check_technique(node):
    """Yield what is missing before the technique is done."""
    five = {
        "knowledge": ROOT / "taxonomy" / f"{node.address}.yml",
        "code": ROOT / "kernels" / f"{node.address.replace('-', '_')}.py",
        "measurements": stores.reference.path(node.address),
        "chapter": ROOT / "book" / f"{node.level}/{node.family}.md",
        "test": ROOT / "tests" / node.level / node.family / f"test_{node.id.replace('-', '_')}.py",
    }
    for wing, path in five.items():
        if not path.is_file():
            yield f"{wing}: {path.relative_to(ROOT)} is not there"
    module = node.implementation.partition(":")[0]
    if module != f"kernels.{node.address.replace('-', '_').replace('/', '.')}":
        yield f"implementation: {module} is not at the technique's address"
    subject = node.reference()
    if not (dataclasses.is_dataclass(subject) and type(subject).__dataclass_params__.frozen):
        yield "implementation: not a frozen dataclass"
    for method in METHODS[node.kind]:
        if not callable(getattr(subject, method, None)):
            yield f"implementation: a {node.kind} offers {method}()"
    doc = type(subject).__doc__ or ""
    for part in ("Source", "Examples", ">>>"):
        if part not in doc:
            yield f"docstring: no {part}"
    if node.equation is None and node.kind not in ("training-system", "search"):
        yield "equation: none"
    if not node.references:
        yield "references: none"
    for field in ("definition", "idea", "use_when", "avoid_when"):
        if MEASURED.search(getattr(node, field)):
            yield f"{field}: a measured number is typed: {MEASURED.search(getattr(node, field)).group()!r}"
    try:
        if not any(isinstance(part, ast.Call) for part in ast.walk(ast.parse(node.example))):
            yield "example: calls nothing"
    except SyntaxError as error:
        yield f"example: {error}"
    if five["test"].is_file() and "assert" not in five["test"].read_text():
        yield "test: asserts nothing"
    if not workloads_of(tx, node):
        yield "workloads: none fits"
    chapter = five["chapter"]
    if chapter.is_file() and node.id not in chapter.read_text():
        yield f"chapter: {chapter.relative_to(ROOT)} does not speak of it"
    yield from complaints(tx, node)


@pytest.mark.parametrize("node", list(tx), ids=lambda node: node.id)
def test_check_technique(node):
    assert list(check_technique(node)) == []


def test_the_check_itself_finds_what_is_missing():
    broken = {"id": "unum", "example": "print", "peers": ("nobody",), "idea": "12 % better"}
    node = tx["posit"].model_copy(update=broken)
    node._level, node._family = "arithmetic", "alternative_numbers"
    problems = "\n".join(check_technique_without_store(node))
    for word in ("knowledge", "code", "measurements", "test", "example", "idea"):
        assert word in problems


def check_technique_without_store(node):
    known = check_technique(node)
    while True:
        try:
            yield next(known)
        except (StopIteration, KeyError):
            return


@pytest.mark.parametrize("kind", list(tx.kinds))
def test_every_kind_has_a_protocol_and_a_technique(kind):
    assert protocol_of(kind).kind == kind
    assert set(protocol_of(kind).metrics) <= set(tx.metrics)
    assert tx.find(kind=kind)


def test_every_influence_has_findings_and_none_is_stale():
    for edge in tx.influences():
        assert edge.findings, f"{edge.id}: not measured"
        assert not any(finding.stale for finding in edge.findings), f"{edge.id}: stale"
