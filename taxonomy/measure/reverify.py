"""Stale, or only rewritten? Repeat two seeds of each stale quality record; what comes out bit-equal is stamped anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from taxonomy.freshness import expected, is_stale
from taxonomy.measure.protocol import Trial
from taxonomy.measure.runner import Job, take
from taxonomy.store import Store

__all__ = ["reverify"]


def reverify(tx: Any, names: Sequence[str] | None, store: Store) -> list[str]:
    """Repeat the first and the last seed of every stale group of quality records; stamp it if both are bit-equal.

    One seed is not enough: an accuracy of some hundred items is coarse, and stays what it was by chance though the
    network behind it is another. Timing is never stamped: it is always taken again.

    Returns
    -------
    list of str
        A line a group: what it is, and whether it was stamped or has changed.
    """
    lines = []
    for node in tx.nodes:
        if names and node.id not in names:
            continue
        groups: dict[str, list[Any]] = defaultdict(list)
        for record in store.records(node.address):
            if record["type"] == "quality" and is_stale(tx, node, record):
                groups[str([record[part] for part in ("variant", "workload", "setting")])].append(record)
        for group in groups.values():
            group.sort(key=lambda record: record["seed"])
            first = group[0]
            same = True
            for record in group[:1] + group[1:][-1:]:
                job = Job(node, record["variant"], record["workload"], Trial(record["setting"], record["seed"]))
                again = take(tx, job)
                same = all(again.get(part) == record.get(part) for part in ("values", "missing"))
                if not same:
                    break
            if same:
                now = expected(tx, node, first["variant"], first["workload"], first["setting"])
                date = again["provenance"]["date"]
                store.write(node.address, [
                    {**r, "fingerprint": now, "provenance": {**r["provenance"], "reverified": date}} for r in group
                ])  # fmt: skip
            lines.append(f"{job}: {'bit-equal, stamped anew' if same else 'changed, to be measured again'}")
    return lines
