"""Which of the measured stacks to take: the best in one metric under bounds on others, and whom no other beats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from taxonomy import store as stores
from taxonomy.measurements import rows

if TYPE_CHECKING:
    import pandas as pd

    from taxonomy.query import Taxonomy

__all__ = ["best"]

UNSEEN = {"accuracy": "validation_accuracy"}
"""A choice must not see the test split, so what bounds or ranks it is the figure on the validation split."""


def best(tx: Taxonomy, metric: str, workload: str, bounds: Mapping[str, float]) -> pd.DataFrame:
    """The rows of `Taxonomy.best`, whose docstring says what they hold; metrics by their ids."""
    import pandas as pd

    candidates = [row for row in _candidates(tx, workload) if all(name in row["self"] for name in (metric, *bounds))]
    if not candidates:
        known = sorted({name for row in _candidates(tx, workload) for name in row["self"]})
        raise KeyError(f"{metric}: no stack has it on {workload}; measured there: {', '.join(known) or 'nothing'}")
    watched = {name: _sign(tx, name) for name in (metric, *bounds)}

    def merit(row: Mapping[str, Any]) -> tuple[float, ...]:
        return tuple(sign * row["self"][UNSEEN.get(name, name)]["value"] for name, sign in watched.items())

    limits = {name: watched[name] * bound for name, bound in bounds.items()}
    feasible = [
        row
        for row in candidates
        if all(merit(row)[list(watched).index(name)] >= limit for name, limit in limits.items())
    ]
    front = [row for row in feasible if not any(_beats(merit(other), merit(row)) for other in feasible)]
    front.sort(key=merit, reverse=True)
    columns = ["parts", "id", metric, "low", "high", "ratio", *(name for name in bounds if name != metric)]
    return pd.DataFrame([_shown(row, metric, bounds) for row in front], columns=columns)


def _candidates(tx: Taxonomy, workload: str) -> Iterator[dict[str, Any]]:
    """Every variant of every stack with fresh records: what it is, and its figures by who and metric."""
    for node in tx.stacks.values():
        for store in (stores.reference, stores.here):
            by_variant: dict[str, dict[str, Any]] = {}
            for row in rows(tx, node, store.records(node.address), store.name):
                if row["workload"] == workload and not row["stale"] and row["n"]:
                    found = by_variant.setdefault(row["variant"], {"node": node, "variant": row["parameters"]})
                    found.setdefault(row["who"], {})[row["metric"]] = row
            yield from (found for found in by_variant.values() if "self" in found)


def _sign(tx: Taxonomy, metric: str) -> int:
    return 1 if tx.metrics[metric].direction == "higher" else -1


def _beats(other: tuple[float, ...], one: tuple[float, ...]) -> bool:
    return other != one and all(a >= b for a, b in zip(other, one, strict=True))


def _shown(row: Mapping[str, Any], metric: str, bounds: Mapping[str, float]) -> dict[str, Any]:
    own, untouched = row["self"][metric], row.get("baseline", {}).get(metric)
    return {
        "parts": " + ".join(row["node"].words(row["variant"])),
        "id": row["node"].id,
        metric: own["value"],
        "low": own["low"],
        "high": own["high"],
        "ratio": untouched["value"] / own["value"] if untouched and own["value"] else float("nan"),
        **{name: row["self"][name]["value"] for name in bounds},
    }
