"""From records to tidy rows: one row a technique, variant, workload, setting, who and metric, with its interval.

Times are stored raw, round by round; read, they give latency, throughput, the speed-up over each contestant (the
median of the paired ratios of a repetition) and, for floating-point work, the share of the machine's peak, measured in
the same rounds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from taxonomy import store as stores
from taxonomy.fingerprint import canonical, snapshot
from taxonomy.freshness import is_stale
from taxonomy.statistics import median, t_interval

if TYPE_CHECKING:
    import pandas as pd

    from taxonomy.query import Taxonomy

__all__ = ["BEYOND_ONE", "COLUMNS", "frame", "label", "rows"]

COLUMNS = (
    "technique", "variant", "workload", "setting", "who", "metric", "value", "unit", "low", "high", "n", "stale",
    "store", "parameters", "conditions", "reason",
)  # fmt: skip
RATIOS = ("speedup",)
BEYOND_ONE = ("core_utilization", "regret")
"""Fractions of something that is no whole: FP32's own peak, which narrower numbers exceed, and the optimum's cost."""


def label(conditions: Mapping[str, Any]) -> str:
    """Conditions as a reader sees them.

    Examples
    --------
    >>> label({"bits": 16, "es": 1})
    'bits=16, es=1'
    """
    return ", ".join(f"{name}={value}" for name, value in conditions.items())


def frame(tx: Taxonomy, technique: str | None = None, **conditions: Any) -> pd.DataFrame:
    """What both stores hold, as a DataFrame with `COLUMNS`."""
    import pandas as pd

    allowed = ("metric", "workload", "who", "variant", "setting", "store")
    if unknown := [name for name in conditions if name not in allowed]:
        raise TypeError(f"measurements: unknown condition {unknown[0]!r}; it takes {', '.join(allowed)}")
    wanted = {name: value for name, value in conditions.items() if value is not None}
    nodes: list[Any] = [tx.stacks.get(technique) or tx[technique]] if technique else list(tx)
    state = snapshot()
    found = [
        row
        for node in nodes
        for store in (stores.reference, stores.here)
        for row in rows(tx, node, store.records(node.address), store.name, state)
        if all(row[name] == value for name, value in wanted.items())
    ]
    return pd.DataFrame(found, columns=list(COLUMNS))


def rows(
    tx: Taxonomy, node: Any, records: Iterable[Mapping[str, Any]], store: str = "here", state: Any = None
) -> list[dict[str, Any]]:
    """Tidy rows of one technique's records."""
    state = state or snapshot()
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        if record["subject"] == node.id:
            groups[canonical([record[name] for name in ("variant", "workload", "setting")])].append(record)
    found = []
    for group in groups.values():
        first = group[0]
        # a repetition whose definition has changed must not blur those that have not
        fresh = [record for record in group if not is_stale(tx, node, record, state)]
        samples, reasons, units = _samples(fresh or group)
        order = {canonical(variant): variant for variant in (*node.variants, *getattr(node, "elsewhere", ()))}
        parameters = order.get(canonical(first["variant"]), first["variant"])
        for (who, metric), values in samples.items():
            unit = units.get(metric) or (tx.metrics[metric].unit if metric in tx.metrics else "")
            centre, low, high = _interval(metric, values, unit)
            found.append({
                "technique": node.id, "variant": label(parameters), "workload": first["workload"],
                "setting": label(first["setting"]), "who": who, "metric": metric, "value": centre,
                "unit": unit, "low": low, "high": high, "n": len(values), "stale": not fresh, "store": store,
                "parameters": parameters, "conditions": first["setting"], "reason": reasons.get((who, metric), ""),
            })  # fmt: skip
    return found


def _interval(metric: str, values: list[float], unit: str) -> tuple[float, float, float]:
    """Mean and interval; of shares, the part of it that a share can have."""
    if not values:
        return math.nan, math.nan, math.nan
    if metric in RATIOS:
        logs = t_interval([math.log(value) for value in values])
        return tuple(math.exp(value) for value in logs)  # type: ignore[return-value]
    centre, low, high = t_interval(values)
    if unit == "fraction" and metric not in BEYOND_ONE and len(values) > 1:
        low, high = max(low, 0.0), min(high, 1.0)
    return centre, low, high


def _samples(records: Iterable[Mapping[str, Any]]) -> tuple[dict[Any, list[float]], dict[Any, str], dict[str, str]]:
    samples: dict[Any, list[float]] = defaultdict(list)
    reasons: dict[Any, str] = {}
    units: dict[str, str] = {}
    for record in sorted(records, key=lambda record: (record["type"], record["seed"])):
        for who, metric, value in _values(record):
            samples[who, metric].append(value)
        for who, missing in record.get("missing", {}).items():
            for metric, reason in missing.items():
                samples.setdefault((who, metric), [])
                reasons[who, metric] = reason
        if record.get("unit"):
            units["throughput"] = f"{record['unit']}/s"
    return samples, reasons, units


def _values(record: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    for who, values in record.get("values", {}).items():
        for metric, value in values.items():
            yield who, metric, float(value)
    times, works, missing = record.get("times", {}), record.get("works", {}), record.get("missing", {})
    for who, seconds in times.items():
        latency, work = median(seconds), works.get(who, record.get("work"))
        yield who, "latency", latency
        if work:
            yield who, "throughput", work / latency
        peak = record["provenance"].get("peak_flops") if record.get("unit") == "flop" else None
        if peak and "core_utilization" not in missing.get(who, {}):
            yield who, "core_utilization", work / latency / peak
        if who != "self" and "self" in times:  # contestants of unequal work are compared by their rates
            share = works.get("self", 1.0) / works.get(who, 1.0)
            ratios = (theirs / own for theirs, own in zip(seconds, times["self"], strict=True))
            yield who, "speedup", share * median(ratios)
