"""Does a record still stand for the code, the data and the conditions as they are now?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from taxonomy import schema
from taxonomy.fingerprint import closure, fingerprint, protocol_version, workload_key

if TYPE_CHECKING:
    from taxonomy.query import Taxonomy

__all__ = ["expected", "is_stale"]


def expected(
    tx: Taxonomy, node: schema.Technique | schema.Influence, variant: Mapping[str, Any], workload: str, setting: Any
) -> str:
    """The fingerprint that a record of these conditions has if it is measured now."""
    if isinstance(node, schema.Technique):
        reached, version, settings = _reached(tx, node), protocol_version(node.kind), node.settings
    else:
        ends = [tx[node.source], tx[node.target]]
        start = [end.implementation for end in ends] + [name for end in ends for name in end.reaches]
        reached, version, settings = closure([*start, *node.reaches]), node.version, {}
    shapes = tx.workloads[workload].settings if workload in tx.workloads else ()
    return fingerprint({
        "protocol": version, "reached": reached, "workload": workload_key(workload, shapes), "settings": settings,
        "variant": variant, "setting": setting,
    })  # fmt: skip


def _reached(tx: Taxonomy, node: schema.Technique) -> dict[str, str]:
    start = [node.implementation, *node.reaches]
    if node.baseline in tx:
        start.append(tx[node.baseline].implementation)
    return closure(start)


def is_stale(tx: Taxonomy, node: schema.Technique | schema.Influence, record: Mapping[str, Any]) -> bool:
    """Whether something that the record depends on has changed since it was taken."""
    now = expected(tx, node, record["variant"], record["workload"], record["setting"])
    return record["fingerprint"] != now
