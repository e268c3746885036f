"""`check_technique`: when a technique is done. One contract over every node; a node that fails is not in the tree."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taxonomy.status import complaints

if TYPE_CHECKING:
    from taxonomy.query import Taxonomy
    from taxonomy.schema import Influence, Technique

__all__ = ["UNWRITTEN", "check_influence", "check_technique", "five_files", "parse"]

ROOT = Path(__file__).parents[1]
MEASURED = re.compile(r"\d+(\.\d+)?\s*(%|x faster|times faster|GFLOP|GOP|ms\b|dB\b)")
UNWRITTEN = re.compile(r"<write: ([^>]*)>")
"""What `python -m taxonomy new` leaves for its reader."""


def five_files(address: str) -> dict[str, Path]:
    """Where a technique lives in each wing.

    Examples
    --------
    >>> for wing, path in five_files("model/pruning/magnitude-pruning").items():
    ...     print(f"{wing}: {path.relative_to(ROOT)}")
    knowledge: taxonomy/model/pruning/magnitude-pruning.yml
    code: kernels/model/pruning/magnitude_pruning.py
    test: tests/model/pruning/test_magnitude_pruning.py
    records: datasets/measurements/model/pruning/magnitude-pruning.jsonl
    chapter: book/model/pruning.md
    """
    family, _, name = address.rpartition("/")
    module = name.replace("-", "_")
    return {
        "knowledge": ROOT / "taxonomy" / f"{address}.yml",
        "code": ROOT / "kernels" / family / f"{module}.py",
        "test": ROOT / "tests" / family / f"test_{module}.py",
        "records": ROOT / "datasets" / "measurements" / f"{address}.jsonl",
        "chapter": ROOT / "book" / f"{family}.md",
    }


def check_technique(tx: Taxonomy, node: Technique) -> Iterator[str]:
    """What is still missing before a technique is done, in the order in which one would write it.

    Examples
    --------
    >>> import taxonomy
    >>> tx = taxonomy.load()
    >>> next(check_technique(tx, tx["posit"].model_copy(update={"idea": "It is 12 % better."})))
    "idea: a measured number is typed: '12 %'"
    """
    files = five_files(node.address)
    texts: dict[str, str] = {}
    for wing, path in files.items():
        if not path.is_file():
            yield f"{wing}: {path.relative_to(ROOT)} is not there"
            continue
        texts[wing] = path.read_text("utf-8")
        for number, line in enumerate(texts[wing].splitlines() if wing != "records" else (), start=1):
            if found := UNWRITTEN.search(line):
                yield f"{wing}: {path.relative_to(ROOT)}:{number}: still to be written: {found[1]}"
    yield from _knowledge(node)
    yield from _implementation(tx, node)
    if "assert" not in texts.get("test", "assert") and "raises" not in texts.get("test", "raises"):
        yield "test: asserts nothing"
    if "chapter" in texts and node.id not in texts["chapter"]:
        yield f"chapter: {files['chapter'].relative_to(ROOT)} does not speak of it"
    try:
        yield from complaints(tx, node)
    except Exception as error:  # of a module that cannot be imported yet, or of a method that is not there
        yield f"records: cannot be judged yet: {type(error).__name__}: {error}"


def check_influence(tx: Taxonomy, edge: Influence) -> Iterator[str]:
    """What is still missing before an influence is done.

    Examples
    --------
    >>> import taxonomy
    >>> tx = taxonomy.load()
    >>> (edge,) = tx.influences(target="csr")
    >>> list(check_influence(tx, edge.model_copy(update={"target": "posit"})))[0]
    'experiment: taxonomy/measure/influences/magnitude_pruning__posit.py is not there'
    """
    experiment = ROOT / f"{edge.implementation.replace('.', '/')}.py"
    if not experiment.is_file():
        yield f"experiment: {experiment.relative_to(ROOT)} is not there"
        return
    yield from complaints(tx, edge)
    chapters = {five_files(tx[end].address)["chapter"] for end in (edge.source, edge.target)}
    if not any(chapter.is_file() and edge.id in chapter.read_text("utf-8") for chapter in chapters):
        yield f"chapter: neither of {', '.join(sorted(str(c.relative_to(ROOT)) for c in chapters))} speaks of it"


def _knowledge(node: Technique) -> Iterator[str]:
    if node.equation is None and node.kind not in ("training-system", "search"):
        yield "equation: none"
    if not node.improves:
        yield "improves: no metric; name those of metrics.yml that it is meant to improve"
    if not node.references:
        yield "references: none"
    if node.level == "model" and not (node.leaves and node.exploited_by):
        yield "leaves, exploited_by: say what it leaves that a lower level can exploit, and which techniques do so"
    for field in ("definition", "idea", "use_when", "avoid_when"):
        if found := MEASURED.search(getattr(node, field)):
            yield f"{field}: a measured number is typed: {found.group()!r}"
    try:
        if not any(isinstance(part, ast.Call) for part in ast.walk(ast.parse(node.example))):
            yield "example: calls nothing"
    except SyntaxError as error:
        yield f"example: {error}"


def _implementation(tx: Taxonomy, node: Technique) -> Iterator[str]:
    module = node.implementation.partition(":")[0]
    if module != f"kernels.{node.address.replace('-', '_').replace('/', '.')}":
        yield f"implementation: {module} is not at the technique's address"
    try:
        subject = node.reference()
    except Exception as error:
        yield f"implementation: {node.implementation} cannot be had: {type(error).__name__}: {error}"
        return
    if not (dataclasses.is_dataclass(subject) and type(subject).__dataclass_params__.frozen):  # type: ignore[union-attr]
        yield "implementation: not a frozen dataclass"
        return
    if node.reference(**node.variants[0]) != subject:
        yield f"variants: the first, {node.variants[0]}, differs from the defaults, {subject}"
    for signature in tx.kinds[node.kind].contract:
        expected = parse(signature)
        method = getattr(subject, expected.name, None)
        if not callable(method):
            yield f"implementation: a {node.kind} offers {signature}"
        elif not _takes(method, expected.args):
            yield f"implementation: {expected.name}{inspect.signature(method)} cannot be called as {signature}"
    for name, method in vars(type(subject)).items():
        if inspect.isfunction(method) and _is_unwritten(method):
            yield f"implementation: {name}() is not written: it raises NotImplementedError"
    doc = type(subject).__doc__ or ""
    for part in ("Source", "Examples", ">>>"):
        if part not in doc:
            yield f"docstring: no {part}"


def parse(signature: str) -> ast.FunctionDef:
    """The function that a line of a kind's contract describes; what follows its arguments is for readers.

    Examples
    --------
    >>> ast.unparse(parse("search(space, task, *, seed=None) -> best, history"))
    'def search(space, task, *, seed=None):\\n    ...'
    """
    (function,) = ast.parse(f"def {signature.partition(')')[0]}): ...").body
    assert isinstance(function, ast.FunctionDef)
    return function


def _takes(method: Any, arguments: ast.arguments) -> bool:
    by_name = {argument.arg: None for argument in arguments.kwonlyargs}
    try:
        inspect.signature(method).bind(*arguments.args, **by_name)
    except TypeError:
        return False
    return True


def _is_unwritten(method: Any) -> bool:
    try:
        return inspect.getsource(method).strip().splitlines()[-1].strip().startswith("raise NotImplementedError")
    except OSError:  # made by the dataclass
        return False
