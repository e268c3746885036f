"""How far the book is: implemented, completely measured, stale; influences with findings."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from taxonomy import store as stores
from taxonomy.fingerprint import snapshot
from taxonomy.freshness import is_stale
from taxonomy.store import key

if TYPE_CHECKING:
    from taxonomy.query import Taxonomy

__all__ = ["complaints", "status"]


def status(tx: Taxonomy) -> dict[str, Any]:
    """Counts, level by level, and what is missing.

    A technique is completely measured when every variant on every fitting workload has every record that its protocol
    owes, fresh, and every required metric has a value or a reason.
    """
    levels: dict[str, dict[str, int]] = {
        level: {"techniques": 0, "implemented": 0, "measured": 0, "stale": 0} for level in dict.fromkeys(
            family.level for family in sorted(tx.families.values(), key=lambda f: f.order))
    }  # fmt: skip
    missing: dict[str, list[str]] = {}
    state = snapshot()
    for node in tx:
        row = levels[node.level]
        row["techniques"] += 1
        broken = _broken(node)
        row["implemented"] += broken is None
        stale = sum(is_stale(tx, node, record, state) for record in stores.reference.records(node.address))
        row["stale"] += bool(stale)
        problems = [broken] if broken else complaints(tx, node)
        row["measured"] += not problems
        if problems:
            missing[node.id] = problems
    missing |= {node.id: problems for node in tx.stacks.values() if (problems := complaints(tx, node))}
    edges = tx.influences()
    with_finding = [edge for edge in edges if edge.finding is not None]
    return {
        "techniques": len(tx),
        "kinds": len({node.kind for node in tx}),
        "implemented": sum(row["implemented"] for row in levels.values()),
        "measured": sum(row["measured"] for row in levels.values()),
        "stale": sum(row["stale"] for row in levels.values()),
        "influences": len(edges),
        "influences_with_findings": len(with_finding),
        "influences_stale": sum(any(finding.stale for finding in edge.findings) for edge in edges),
        "stacks": len(tx.stacks),
        "papers": len(tx.papers),
        "levels": levels,
        "missing": missing,
    }


def _broken(node: Any) -> str | None:
    """Why the implementation cannot be had, where it cannot: one broken technique must not hide the others."""
    try:
        node.reference()
    except Exception as error:
        return f"implementation: {type(error).__name__}: {error}"
    return None


def complaints(tx: Taxonomy, node: Any) -> list[str]:
    """What keeps a technique or an influence from being completely measured by the reference store, if anything."""
    from taxonomy.measure.runner import jobs, protocol_of, superfluous

    records = stores.reference.records(node.address)
    state = snapshot()
    fresh = {key(record): record for record in records if not is_stale(tx, node, record, state)}
    owed = list(jobs(tx, [node.id]))
    absent = [job for job in owed if job.key not in fresh]
    found = [f"{len(absent)} of {len(owed)} records missing or stale, first: {absent[0]}"] if absent else []
    if gone := superfluous(tx, [node.id], stores.reference).get(node.address):
        found.append(f"{len(gone)} records that nothing owes: python -m taxonomy measure --reference --prune {node.id}")
    if not fresh or not hasattr(node, "kind"):
        return found
    from taxonomy.measurements import label, rows

    required = {tx.metric(name) for name in (*protocol_of(node.kind).metrics, *node.improves)}
    have: dict[str, set[str]] = defaultdict(set)
    others: set[str] = set()
    for row in rows(tx, node, fresh.values()):
        if row["who"] == "self":
            have[row["variant"]].add(row["metric"])
        others.add(row["who"])
    for variant in node.variants:
        for metric in sorted(required - have[label(variant)]):
            found.append(f"{label(variant) or 'its only variant'}: no value and no reason for {metric}")
    if "baseline" not in others:
        found.append(f"no record of its baseline, {node.baseline}")
    for peer in node.peers:
        if peer not in others:
            found.append(f"no record of its peer {peer}, nor a reason")
    return found
