"""Does a record still stand for the code, the data and the conditions as they are now?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from taxonomy import schema
from taxonomy.fingerprint import closure, fingerprint, protocol_version, snapshot, workload_key

if TYPE_CHECKING:
    from taxonomy.query import Taxonomy

Measured = schema.Technique | schema.Influence | schema.StackNode

__all__ = ["expected", "is_stale"]

OWED = ("orders", "dial")
"""Settings that say how many records there are and what they share, not what one of them means."""


def expected(
    tx: Taxonomy,
    node: Measured,
    variant: Mapping[str, Any],
    workload: str,
    setting: Any,
    state: Any = None,
) -> str:
    """The fingerprint that a record of these conditions has if it is measured now.

    `state` is a `fingerprint.snapshot` taken just before, for those who ask often.
    """
    basis = _basis(tx, node.id, workload, state or snapshot())
    return fingerprint({"basis": basis, "variant": variant, "setting": setting})


@lru_cache(maxsize=4096)
def _basis(tx: Taxonomy, name: str, workload: str, state: Any) -> str:
    """What all records of a node on a workload depend on."""
    node = next(node for node in tx.nodes if node.id == name)
    settings: Any = {}
    if isinstance(node, schema.Technique):
        start, version, settings = _reached(tx, node), protocol_version(node.kind), _conditions(node)
    elif isinstance(node, schema.StackNode):
        start, version = [name for part in node.parts for name in _reached(tx, tx[part])], protocol_version(node.kind)
    else:
        ends = [tx[node.source], tx[node.target]]
        start = [name for end in ends for name in _reached(tx, end)] + [*node.reaches]
        version = node.version
    shapes = tx.workloads[workload].settings if workload in tx.workloads else ()
    return fingerprint({
        "protocol": version, "reached": closure(start, state=state), "settings": settings,
        "workload": workload_key(workload, shapes, state=state),
    })  # fmt: skip


def _reached(tx: Taxonomy, node: schema.Technique) -> list[str]:
    baseline = [tx[node.baseline].implementation] if node.baseline in tx else []
    return [node.implementation, *node.reaches, *baseline]


def _conditions(node: schema.Technique) -> dict[str, Any]:
    return {name: value for name, value in node.settings.items() if name not in OWED}


def is_stale(tx: Taxonomy, node: Measured, record: Mapping[str, Any], state: Any = None) -> bool:
    """Whether something that the record depends on has changed since it was taken."""
    now = expected(tx, node, record["variant"], record["workload"], record["setting"], state)
    return record["fingerprint"] != now
