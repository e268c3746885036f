"""When is a record stale? When a definition that it reached has changed its meaning.

A fingerprint hashes the unparsed source, without docstrings and comments, of every definition of the house that the
implementation reaches by name, found statically; what is reached by duck typing is declared (`reaches`). Added are the
protocol's own version, the sha256 of data and weights, the variant and the setting. Nothing is imported.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["closure", "fingerprint", "protocol_version", "snapshot", "workload_key"]

HOUSE = ("kernels", "datasets")
ROOT = Path(__file__).parent.parent


def canonical(value: Any) -> str:
    """JSON with sorted keys: equal conditions give equal text.

    Examples
    --------
    >>> canonical({"es": 1, "bits": 16})
    '{"bits":16,"es":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


class _Module:
    """A module's top-level definitions and the names that it imports from the house."""

    def __init__(self, root: Path, name: str):
        path = root.joinpath(*name.split("."))
        self.package = path.is_dir()
        self.name = name
        tree = ast.parse(((path / "__init__.py") if self.package else path.with_suffix(".py")).read_text("utf-8"))
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, str] = {}
        for statement in _top_level(tree.body):
            for bound in _bound_names(statement):
                self.definitions.setdefault(bound, []).append(statement)
        for node in ast.walk(tree):  # imports inside functions count too
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self.imports[alias.asname or alias.name] = f"{self._absolute(node)}:{alias.name}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.asname:
                        self.imports[alias.asname] = alias.name
                    else:
                        self.imports[alias.name.split(".")[0]] = alias.name.split(".")[0]

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + self.package]
        return ".".join(parts + ([node.module] if node.module else []))


def _top_level(body: Iterable[ast.stmt]) -> Iterable[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With | ast.For):
            for part in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from _top_level(handler.body)
        else:
            yield node


def _bound_names(node: ast.stmt) -> Iterable[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            for part in ast.walk(target):
                if isinstance(part, ast.Name):
                    yield part.id


def _without_docstrings(node: ast.stmt) -> ast.stmt:
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = part.body[0] if part.body else None
            if isinstance(first, ast.Expr) and isinstance(getattr(first, "value", None), ast.Constant):
                part.body = part.body[1:] or [ast.Pass()]
    return node


def snapshot(root: Path = ROOT) -> tuple[tuple[str, int], ...]:
    """Which files the house has, and when each was last written: while this is equal, closures are."""
    return tuple(
        (str(path), path.stat().st_mtime_ns) for house in HOUSE for path in sorted((root / house).rglob("*.py"))
    )


def closure(start: Iterable[str], root: Path = ROOT, state: Any = None) -> dict[str, str]:
    """Every definition of the house reached by name from `start`, with its source as it means.

    Parameters
    ----------
    start : iterable of str
        `module:name` each.
    state : optional
        A `snapshot` taken just before, for those who ask often.

    Raises
    ------
    LookupError
        If one of `start` does not exist.

    Examples
    --------
    >>> sorted(closure(["kernels.arrays:like"]))
    ['kernels.arrays:is_tensor', 'kernels.arrays:like']
    """
    return dict(_closure(tuple(start), root, state or snapshot(root)))


@lru_cache(maxsize=4096)
def _closure(start: tuple[str, ...], root: Path, _state: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    queue = list(start)
    while queue:
        name = queue.pop()
        if name in found:
            continue
        resolved = _resolve(name, root, _state)
        if resolved is None:
            if name in start:
                raise LookupError(f"no definition {name!r} in the house")
            continue
        if resolved != name:
            queue.append(resolved)
            continue
        source, reached = _definition(name, root, _state)
        found[name] = source
        queue += reached
    return found


@lru_cache(maxsize=1024)
def _module(root: Path, name: str, _state: Any) -> _Module | None:
    path = root.joinpath(*name.split("."))
    inside = name.split(".")[0] in HOUSE
    return _Module(root, name) if inside and (path.with_suffix(".py").is_file() or path.is_dir()) else None


def _resolve(name: str, root: Path, state: Any) -> str | None:
    """Follow re-exports to where a name is defined; None for what lies outside the house."""
    for _ in range(16):
        module_name, _, attribute = name.partition(":")
        module = _module(root, module_name, state)
        if module is None:
            return None
        if not attribute or attribute in module.definitions:
            return name if attribute else None
        if attribute in module.imports:
            name = module.imports[attribute]
            continue
        if _module(root, f"{module_name}.{attribute}", state):
            return None
        return None
    return None


@lru_cache(maxsize=8192)
def _definition(name: str, root: Path, state: Any) -> tuple[str, tuple[str, ...]]:
    module_name, _, attribute = name.partition(":")
    module = _module(root, module_name, state)
    assert module is not None
    nodes = module.definitions[attribute]
    reached: list[str] = []
    for node in nodes:
        for part in ast.walk(node):
            dotted = _dotted(part)
            if not dotted:
                continue
            head, *rest = dotted.split(".")
            if head in module.definitions and head != attribute:
                reached.append(f"{module_name}:{head}")
            elif head in module.imports:
                reached += _through(module.imports[head], rest, root, state)
    source = "\n".join(ast.unparse(_without_docstrings(node)) for node in nodes)
    return source, tuple(reached)


def _through(target: str, rest: list[str], root: Path, state: Any) -> Iterable[str]:
    """The definitions behind an imported name, through modules (`simd.fma`) and packages."""
    if ":" in target:
        module, _, attribute = target.partition(":")
        if _module(root, f"{module}.{attribute}", state) is None:
            return [target]
        target = f"{module}.{attribute}"
    while rest and _module(root, f"{target}.{rest[0]}", state):
        target, rest = f"{target}.{rest[0]}", rest[1:]
    return [f"{target}:{rest[0]}"] if rest else []


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := _dotted(node.value)):
        return f"{head}.{node.attr}"
    return None


@lru_cache(maxsize=64)
def protocol_version(kind: str, root: Path = ROOT) -> int:
    """The version number that the protocol of a kind declares, read without importing it."""
    path = root / "taxonomy" / "measure" / "protocols" / f"{kind.replace('-', '_')}.py"
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef):
            fields = {
                target.id: statement.value.value
                for statement in node.body
                if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
                for target in statement.targets
                if isinstance(target, ast.Name)
            }
            if fields.get("kind") == kind:
                return int(str(fields.get("version", 1)))
    raise LookupError(f"{path.name}: no class with kind = {kind!r}")


def workload_key(workload: str, settings: Any = (), root: Path = ROOT, state: Any = None) -> str:
    """What a workload is: its definitions, the sha256 of its data and weights; for operands, their settings."""
    module = root / "datasets" / "workloads" / f"{workload.replace('-', '_')}.py"
    if not module.is_file():
        return canonical([workload, settings])
    return _workload_key(workload, root, state or snapshot(root))


@lru_cache(maxsize=64)
def _workload_key(workload: str, root: Path, _state: Any) -> str:
    import yaml

    def card(*parts: str) -> dict[str, Any]:
        path = root.joinpath("datasets", *parts)
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return yaml.load(path.read_text("utf-8"), loader) if path.is_file() else {}

    entry = card("workloads", "card.yml").get(workload, {})
    sums = [entry.get("sha256"), *(card("workloads", "card.yml")[other]["sha256"] for other in entry.get("beside", ()))]
    data = entry.get("data")
    while data:
        described = card(data, "card.yml")
        sums.append(described.get("sha256"))
        data = described.get("derived_from")
    return canonical([closure([f"datasets.workloads.{workload.replace('-', '_')}:workload"], root), sums])


def fingerprint(parts: Mapping[str, Any]) -> str:
    """The first 20 hexadecimal digits of the sha256 of what a record depends on."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:20]
