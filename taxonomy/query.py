"""The query face: what a reader or a program asks of the taxonomy."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taxonomy import schema

if TYPE_CHECKING:
    import networkx
    import pandas as pd

__all__ = ["Selection", "Taxonomy"]


class Selection(tuple[schema.Technique, ...]):
    """Some techniques, in the order of the survey's levels; `frame()` is a pandas DataFrame, one row each."""

    def ids(self) -> list[str]:
        return [node.id for node in self]

    def frame(self) -> pd.DataFrame:
        import pandas as pd

        columns = ("id", "name", "level", "family", "kind", "runs", "definition")
        return pd.DataFrame([{c: getattr(node, c) for c in columns} for node in self], columns=list(columns))

    def __repr__(self) -> str:
        return f"Selection({', '.join(self.ids())})"


@dataclass(frozen=True)
class Taxonomy:
    """Techniques, what links them, and what was measured of them; immutable.

    Examples
    --------
    >>> import taxonomy
    >>> tx = taxonomy.load()
    >>> tx["posit"].kind
    'number-format'
    >>> tx.find("magnitude*").ids()
    ['magnitude-pruning']
    >>> tx["posits"]
    Traceback (most recent call last):
    ...
    KeyError: "unknown technique 'posits'; did you mean posit?"
    """

    techniques: Mapping[str, schema.Technique]
    _influences: tuple[schema.Influence, ...]
    stacks: Mapping[str, schema.StackNode]
    metrics: Mapping[str, schema.Metric]
    families: Mapping[str, schema.Family]
    references: Mapping[str, schema.Reference]
    papers: tuple[schema.Paper, ...]
    workloads: Mapping[str, schema.WorkloadNode]
    kinds: Mapping[str, schema.KindNode]
    baselines: Mapping[str, str]
    root: Path

    def __len__(self) -> int:
        return len(self.techniques)

    def __iter__(self) -> Iterator[schema.Technique]:
        return iter(self.techniques.values())

    def __contains__(self, identifier: object) -> bool:
        return identifier in self.techniques or identifier in self._aliases

    def __getitem__(self, identifier: str) -> schema.Technique:
        node = self.techniques.get(self._aliases.get(identifier, identifier))
        if node is None:
            raise KeyError(_unknown("technique", identifier, [*self.techniques, *self._aliases]))
        return node

    def __hash__(self) -> int:
        return id(self)

    @cached_property
    def _aliases(self) -> dict[str, str]:
        return {alias: node.id for node in self for alias in node.aliases}

    @property
    def nodes(self) -> tuple[Any, ...]:
        """Everything that is measured: techniques, influences and stacks."""
        return (*self, *self._influences, *self.stacks.values())

    def metric(self, identifier: str) -> str:
        """The id of a metric from its id or an alias.

        Raises
        ------
        KeyError
            If there is none; the message names the nearest.
        """
        if identifier in self.metrics:
            return identifier
        for name, node in self.metrics.items():
            if identifier in node.aliases:
                return name
        known = [*self.metrics, *(alias for node in self.metrics.values() for alias in node.aliases)]
        raise KeyError(_unknown("metric", identifier, known))

    def find(self, pattern: str = "*", **criteria: str | None) -> Selection:
        """Techniques whose id, name or alias matches a wildcard and whose fields have the values asked for.

        Parameters
        ----------
        pattern : str
            Shell wildcards, case-insensitive.
        **criteria : str
            `level`, `family`, `kind`, `runs`, `attribution`, or `improves` (a metric's id or alias).

        Raises
        ------
        TypeError
            If a criterion is unknown.
        KeyError
            If the metric of `improves` is unknown.
        """
        allowed = ("level", "family", "kind", "runs", "attribution", "improves")
        for name in criteria:
            if name not in allowed:
                raise TypeError(f"find: unknown criterion {name!r}; it takes {', '.join(allowed)}")
        wanted = {name: value for name, value in criteria.items() if value is not None}
        metric = wanted.pop("improves", None)
        if metric is not None:
            metric = self.metric(metric)
        matches = [
            node
            for node in self
            if any(fnmatch.fnmatch(w.lower(), pattern.lower()) for w in (node.id, node.name, *node.aliases))
            and all(getattr(node, name) == value for name, value in wanted.items())
            and (metric is None or metric in map(self.metric, node.improves))
        ]
        return Selection(matches)

    def influences(
        self, source: str | None = None, target: str | None = None, measured: bool | None = None
    ) -> tuple[schema.Influence, ...]:
        """Edges out of `source`, into `target`, with (True) or without (False) a finding."""
        source = source and self[source].id
        target = target and self[target].id
        edges = [e for e in self._influences if source in (None, e.source) and target in (None, e.target)]
        return tuple(e for e in edges if measured is None or (e.finding is not None) == measured)

    def measurements(self, technique: str | None = None, **conditions: Any) -> pd.DataFrame:
        """What the stores hold, tidy: technique, variant, workload, setting, who, metric, value, unit, low, high, n.

        Parameters
        ----------
        technique : str, optional
            An id, of a technique or of a stack; all techniques if absent.
        **conditions : str
            Values of the columns `metric`, `workload`, `who`, `variant`, `setting`, `store`.
        """
        from taxonomy.measurements import frame

        if technique is not None and technique not in self.stacks:
            technique = self[technique].id
        if conditions.get("metric") is not None:
            conditions["metric"] = self.metric(conditions["metric"])
        if conditions.get("workload") not in (None, *self.workloads):
            raise KeyError(_unknown("workload", conditions["workload"], self.workloads))
        return frame(self, technique, **conditions)

    def related(self, identifier: str, relation: str | None = None, depth: int = 1) -> Selection:
        """Techniques reached from one along the graph's edges, in either direction.

        Parameters
        ----------
        relation : str, optional
            `influence`, `within`, `exploited-by` or `family`; all if absent. `influences` is understood.
        depth : int
            How many edges far.
        """
        from taxonomy.graph import reached

        return Selection(self[name] for name in reached(self, self[identifier].id, relation, depth))

    @cached_property
    def graph(self) -> networkx.MultiDiGraph:
        """Techniques, families, levels and papers as nodes; a plain networkx graph."""
        from taxonomy.graph import build

        return build(self)

    def workload(self, identifier: str) -> Any:
        """A workload that can be run: its network, data and recipe, or its operands' shapes."""
        if identifier not in self.workloads:
            raise KeyError(_unknown("workload", identifier, self.workloads))
        from taxonomy.measure.workloads import resolve

        return resolve(self, identifier)

    def stack(self, *parts: str) -> Any:
        """Techniques of several levels to be applied together: `tx.stack("magnitude-pruning:density=0.1", "csr")`."""
        from taxonomy.measure.stack import Stack

        return Stack(*parts, taxonomy=self)

    def best(self, metric: str, workload: str, subject_to: Mapping[str, float] | None = None) -> pd.DataFrame:
        """The stacks, among those measured, that no other beats, the best in `metric` first.

        Parameters
        ----------
        metric : str
            An id or alias of metrics.yml, e.g. ``"stored_bits"``.
        workload : str
        subject_to : mapping of str to float, optional
            Bounds on other metrics, e.g. ``{"accuracy": 0.96}``: at least that where higher is better, else at most.
            A bound of accuracy is held by the accuracy on the validation split, since a choice must not see the test.

        Returns
        -------
        pandas.DataFrame
            A row a stack: `parts` (what `tx.stack` takes, joined by " + "), `id`, the metric with its interval (`low`,
            `high`), its `ratio` to the untouched network's, and the means of the bounded metrics. Left out is what
            fails a bound, and what another stack equals or beats in the metric and in every bounded one.

        Raises
        ------
        KeyError
            If a metric or the workload is unknown, or no stack has figures of the metric there.

        Examples
        --------
        >>> import taxonomy
        >>> best = taxonomy.load().best("stored_bits", workload="mnist-cnn", subject_to={"accuracy": 0.95})
        >>> bool(best.ratio.iloc[0] > 10)
        True
        """
        from taxonomy.best import best

        if workload not in self.workloads:
            raise KeyError(_unknown("workload", workload, self.workloads))
        bounds = {self.metric(name): bound for name, bound in (subject_to or {}).items()}
        return best(self, self.metric(metric), workload, bounds)

    def __repr__(self) -> str:
        return f"Taxonomy({len(self)} techniques, {len(self._influences)} influences, {len(self.papers)} papers)"


def _unknown(what: str, word: str, known: Any) -> str:
    from taxonomy.load import nearest

    return f"unknown {what} {word!r}{nearest(str(word), list(known))}"
