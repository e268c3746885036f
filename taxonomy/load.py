"""From YAML files to an immutable `Taxonomy`; every mistake of every file is reported at once, with file and line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from taxonomy import schema
from taxonomy.query import Taxonomy

__all__ = ["ROOT", "TaxonomyError", "load", "nearest"]

ROOT = Path(__file__).parent
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TABLES: dict[str, Any] = {
    "metrics.yml": dict[str, schema.Metric],
    "families.yml": dict[str, schema.Family],
    "references.yml": dict[str, schema.Reference],
    "workloads.yml": dict[str, schema.WorkloadNode],
    "kinds.yml": schema.Kinds,
    "papers.yml": list[schema.Paper],
    "influences.yml": list[schema.Influence],
}


class TaxonomyError(ValueError):
    """What is wrong with the files, all of it: `problems` is a list of `file:line: message`."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)} in the taxonomy"
        super().__init__("\n  ".join([f"{count}:", *problems]))


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the closest of the known words, or the empty string."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""


def load(root: str | Path | None = None) -> Taxonomy:
    """Load the taxonomy; cached.

    Parameters
    ----------
    root : path, optional
        A folder of the same form as this package's own.

    Raises
    ------
    TaxonomyError
        If any file is wrong: file, line, what is wrong, what would be right, all at once.

    Examples
    --------
    >>> tx = load()
    >>> tx["posit"].level, tx["posit"].kind
    ('arithmetic', 'number-format')
    """
    return _load(Path(root) if root else ROOT)


@lru_cache(maxsize=4)
def _load(root: Path) -> Taxonomy:
    problems: list[str] = []
    tables = {name: _read(root / name, kind, problems) for name, kind in _TABLES.items()}
    techniques: dict[str, schema.Technique] = {}
    paths: dict[str, Path] = {}
    adapter = TypeAdapter(schema.Technique)
    for level in schema.LEVELS:
        for path in sorted((root / level).glob("*/*.yml")):
            node = _read(path, adapter, problems)
            if node is None:
                continue
            node._level, node._family = level, path.parent.name
            if node.id != path.stem:
                problems.append(_at(path, ("id",), f"id {node.id!r} differs from the file's name {path.stem!r}", root))
            if node.id in techniques:
                problems.append(_at(path, ("id",), f"id {node.id!r} is taken by {techniques[node.id].address}", root))
            techniques[node.id], paths[node.id] = node, path
    if all(table is not None for table in tables.values()):
        problems += _cross_check(root, techniques, paths, tables)
    if problems:
        raise TaxonomyError(problems)
    return Taxonomy(
        techniques=techniques,
        _influences=tuple(tables["influences.yml"]),
        metrics=tables["metrics.yml"],
        families=tables["families.yml"],
        references=tables["references.yml"],
        papers=tuple(tables["papers.yml"]),
        workloads=tables["workloads.yml"],
        kinds=tables["kinds.yml"].kinds,
        baselines=tables["kinds.yml"].baselines,
        root=root,
    )


def _read(path: Path, kind: Any, problems: list[str]) -> Any:
    adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    root = path.parents[2] if path.parent.parent.name in schema.LEVELS else path.parent
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.load(text, Loader=_Loader)
        return adapter.validate_python({} if data is None and path.name != "papers.yml" else data)
    except FileNotFoundError:
        problems.append(f"{path.name}: not found in {path.parent}")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problems.append(f"{_name(path, root)}:{line}: not YAML: {getattr(error, 'problem', error)}")
    except ValidationError as error:
        for item in error.errors():
            problems.append(_at(path, item["loc"], _explain(item), root))
    return None


def _explain(item: Any) -> str:
    field = ".".join(map(str, item["loc"])) or "file"
    if item["type"] == "missing":
        return f"{field}: missing; the field is required"
    if item["type"] == "extra_forbidden":
        known = list(schema.Technique.model_fields)
        return f"{field}: no such field{nearest(str(item['loc'][-1]), known)}"
    return f"{field}: {item['msg']}, got {item['input']!r}"


def _at(path: Path, loc: Iterable[Any], message: str, root: Path) -> str:
    """`file:line: message`; the file is parsed a second time, with positions, only now that there is an error."""
    node, line = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader), 1
    for part in loc:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = (node.value[part], node.value[part])
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return f"{_name(path, root)}:{line}: {message}"


def _name(path: Path, root: Path) -> str:
    try:
        return str(path.relative_to(root))
    except ValueError:
        return str(path)


def _cross_check(
    root: Path, techniques: Mapping[str, schema.Technique], paths: Mapping[str, Path], tables: Mapping[str, Any]
) -> list[str]:
    """What no single file can know: that every id named anywhere exists."""
    metrics = set(tables["metrics.yml"]) | {a for m in tables["metrics.yml"].values() for a in m.aliases}
    kinds, workloads = tables["kinds.yml"], set(tables["workloads.yml"])
    baselines = set(kinds.baselines) | set(techniques)
    problems: list[str] = []
    aliases: dict[str, str] = {}

    def check(path: Path, loc: tuple[Any, ...], what: str, names: Iterable[str], known: Iterable[str]) -> None:
        known = set(known)
        for name in names:
            if name not in known:
                problems.append(_at(path, loc, f"unknown {what} {name!r}{nearest(name, known)}", root))

    for node in techniques.values():
        path = paths[node.id]
        check(path, ("improves",), "metric", node.improves, metrics)
        check(path, ("references",), "reference", node.references, tables["references.yml"])
        check(path, ("baseline",), "baseline", [node.baseline], baselines)
        check(path, ("workloads",), "workload", node.workloads or (), workloads)
        check(path, ("unfit",), "workload", node.unfit, workloads)
        if f"{node.level}/{node.family}" not in {f"{f.level}/{k}" for k, f in tables["families.yml"].items()}:
            problems.append(_at(path, (), f"its folder {node.family!r} is no family of level {node.level!r}", root))
        for alias in node.aliases:
            if alias in techniques or alias in aliases:
                taken = aliases.get(alias, alias)
                problems.append(_at(path, ("aliases",), f"alias {alias!r} is taken by {taken}", root))
            aliases[alias] = node.id
    for kind, entry in kinds.kinds.items():
        check(root / "kinds.yml", ("kinds", kind, "workloads"), "workload", entry.workloads, workloads)
    for index, edge in enumerate(tables["influences.yml"]):
        path = root / "influences.yml"
        check(path, (index, "source"), "technique", [edge.source], techniques)
        check(path, (index, "target"), "technique", [edge.target], techniques)
        check(path, (index, "metric"), "metric", [edge.metric], metrics)
        check(path, (index, "workloads"), "workload", edge.workloads, workloads)
    return problems
