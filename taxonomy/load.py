"""From YAML files to an immutable `Taxonomy`; every mistake of every file is reported at once, with file and line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
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
    "workloads.yml": dict[str, schema.WorkloadNode],
    "kinds.yml": schema.Kinds,
    "papers.yml": list[schema.Paper],
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
    tables = {name: _read(root / name, kind, problems, root) for name, kind in _TABLES.items()}
    techniques: dict[str, schema.Technique] = {}
    paths: dict[str, Path] = {}
    for level in schema.LEVELS:
        for path, node in _each(root, f"{level}/*/*.yml", schema.Technique, problems):
            node._level, node._family = level, path.parent.name
            if node.id != path.stem:
                problems.append(_at(path, ("id",), f"id {node.id!r} differs from the file's name {path.stem!r}", root))
            if node.id in techniques:
                problems.append(_at(path, ("id",), f"id {node.id!r} is taken by {techniques[node.id].address}", root))
            techniques[node.id], paths[node.id] = node, path
    tables["references"] = {
        path.stem: node for path, node in _each(root, "references/*.yml", schema.Reference, problems)
    }
    edges = dict(_each(root, "influences/*.yml", schema.Influence, problems))
    for path, edge in edges.items():
        if edge.id != path.stem:
            problems.append(_at(path, (), f"{edge.id!r} differs from the file's name {path.stem!r}", root))
    stacks = dict(_each(root, "stacks/*.yml", schema.StackNode, problems))
    if all(table is not None for table in tables.values()):
        problems += _cross_check(root, techniques, paths, tables, edges, stacks)
    if problems:
        raise TaxonomyError(problems)
    return Taxonomy(
        techniques=techniques,
        _influences=tuple(edges.values()),
        stacks={node.id: node for node in stacks.values()},
        metrics=tables["metrics.yml"],
        families=tables["families.yml"],
        references=tables["references"],
        papers=tuple(tables["papers.yml"]),
        workloads=tables["workloads.yml"],
        kinds=tables["kinds.yml"].kinds,
        baselines=tables["kinds.yml"].baselines,
        root=root,
    )


def _each(root: Path, pattern: str, kind: Any, problems: list[str]) -> Iterator[tuple[Path, Any]]:
    """The files of a folder that hold one entry each, in the order of their names."""
    adapter = TypeAdapter(kind)
    for path in sorted(root.glob(pattern)):
        node = _read(path, adapter, problems, root)
        if node is not None:
            yield path, node


def _read(path: Path, kind: Any, problems: list[str], root: Path) -> Any:
    adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
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
            problems.append(_at(path, item["loc"], _explain(item, adapter), root))
    return None


def _explain(item: Any, adapter: TypeAdapter[Any]) -> str:
    field = ".".join(map(str, item["loc"])) or "file"
    if item["type"] == "missing":
        return f"{field}: missing; the field is required"
    if item["type"] == "extra_forbidden":
        return f"{field}: no such field{nearest(str(item['loc'][-1]), _fields(adapter.json_schema()))}"
    return f"{field}: {item['msg']}, got {item['input']!r}"


def _fields(part: Any) -> set[str]:
    """Names of all fields anywhere in a JSON Schema."""
    if isinstance(part, list):
        return set().union(*map(_fields, part))
    if not isinstance(part, dict):
        return set()
    return set(part.get("properties", ())).union(*map(_fields, part.values()))


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
    root: Path,
    techniques: Mapping[str, schema.Technique],
    paths: Mapping[str, Path],
    tables: Mapping[str, Any],
    edges: Mapping[Path, schema.Influence],
    stacks: Mapping[Path, schema.StackNode],
) -> list[str]:
    """What no single file can know: that every id named anywhere exists."""
    metrics = set(tables["metrics.yml"]) | {a for m in tables["metrics.yml"].values() for a in m.aliases}
    kinds, workloads = tables["kinds.yml"], set(tables["workloads.yml"])
    # A file that is wrong itself is reported already: what names it is right.
    known_techniques = {path.stem for level in schema.LEVELS for path in root.glob(f"{level}/*/*.yml")}
    references = {path.stem for path in root.glob("references/*.yml")}
    baselines = set(kinds.baselines) | known_techniques
    problems: list[str] = []
    aliases: dict[str, str] = {}
    depth = schema.LEVELS.index

    def check(path: Path, loc: tuple[Any, ...], what: str, names: Iterable[str], known: Iterable[str]) -> None:
        known = set(known)
        for name in names:
            if name not in known:
                problems.append(_at(path, loc, f"unknown {what} {name!r}{nearest(name, known)}", root))

    for node in techniques.values():
        path = paths[node.id]
        check(path, ("improves",), "metric", node.improves, metrics)
        check(path, ("references",), "reference", node.references, references)
        check(path, ("baseline",), "baseline", [node.baseline], baselines)
        check(path, ("exploited_by",), "technique", node.exploited_by, known_techniques)
        for below in node.exploited_by:
            if below in techniques and depth(techniques[below].level) <= depth(node.level):
                message = f"{below!r} is no technique of a lower level than {node.level}"
                problems.append(_at(path, ("exploited_by",), message, root))
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
        check(root / "kinds.yml", ("kinds", kind, "exemplar"), "technique", [entry.exemplar], known_techniques)
    for path, edge in edges.items():
        check(path, ("source",), "technique", [edge.source], known_techniques)
        check(path, ("target",), "technique", [edge.target], known_techniques)
        check(path, ("metric",), "metric", [edge.metric], metrics)
        check(path, ("workloads",), "workload", edge.workloads, workloads)
    for path, stack in stacks.items():
        if stack.id != path.stem or stack.id in techniques:
            problems.append(_at(path, ("id",), f"id {stack.id!r} is a technique's, or not the file's name", root))
        check(path, ("parts",), "technique", stack.parts, known_techniques)
        check(path, ("workloads",), "workload", stack.workloads, workloads)
        for i, variant in enumerate(stack.variants):
            check(path, ("variants", i), "part", (name.partition(".")[0] for name in variant), stack.parts)
    return problems
