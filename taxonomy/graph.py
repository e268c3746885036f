"""The taxonomy as a plain `networkx.MultiDiGraph`.

Nodes carry `type` (level, family, technique, paper); edges carry `relation`: `part-of` (technique to family to level),
`influence` and `within` (technique to technique, with metric, sign and verdict), `exploited-by` (technique to one of a
lower level that makes use of what it leaves), `studies` (paper to technique).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import networkx

    from taxonomy.query import Taxonomy

__all__ = ["build", "reached"]

RELATIONS = ("influence", "within", "exploited-by", "family")


def build(tx: Taxonomy) -> networkx.MultiDiGraph:
    """The whole taxonomy as a graph.

    Examples
    --------
    >>> import taxonomy
    >>> taxonomy.load().graph.nodes["posit"]["level"]
    'arithmetic'
    """
    import networkx

    graph = networkx.MultiDiGraph()
    for level in {family.level: None for family in tx.families.values()}:
        graph.add_node(level, type="level", name=level.capitalize())
    for name, family in tx.families.items():
        graph.add_node(name, type="family", name=family.title, level=family.level)
        graph.add_edge(name, family.level, relation="part-of")
    for node in tx:
        graph.add_node(node.id, type="technique", name=node.name, level=node.level, family=node.family, kind=node.kind)
        graph.add_edge(node.id, node.family, relation="part-of")
        for below in node.exploited_by:
            graph.add_edge(node.id, below, relation="exploited-by")
    for edge in tx.influences():
        graph.add_edge(
            edge.source, edge.target, key=edge.metric, relation=edge.relation, metric=edge.metric, sign=edge.sign,
            estimand=edge.estimand, verdict=edge.verdict,
        )  # fmt: skip
    for paper in tx.papers:
        graph.add_node(paper.id, type="paper", name=paper.title, year=paper.year)
        for technique in paper.techniques:
            if technique in tx.techniques:
                graph.add_edge(paper.id, technique, relation="studies")
    return graph


def reached(tx: Taxonomy, start: str, relation: str | None, depth: int) -> list[str]:
    """Ids of the techniques at most `depth` edges away, nearest first; no edge is followed twice."""
    wanted = relation.removesuffix("s") if relation else None
    if wanted not in (None, *RELATIONS):
        raise ValueError(f"related: relation must be one of {', '.join(RELATIONS)}, got {relation!r}")
    neighbours: dict[str, list[str]] = {node.id: [] for node in tx}
    for edge in tx.influences():
        if wanted in (None, edge.relation):
            neighbours[edge.source].append(edge.target)
            neighbours[edge.target].append(edge.source)
    if wanted in (None, "exploited-by"):
        for node in tx:
            for below in node.exploited_by:
                neighbours[node.id].append(below)
                neighbours[below].append(node.id)
    if wanted in (None, "family"):
        for node in tx:
            neighbours[node.id] += [other.id for other in tx if other.family == node.family and other.id != node.id]
    found, front = [start], [start]
    for _ in range(depth):
        front = [far for near in front for far in neighbours[near] if far not in found]
        found += dict.fromkeys(front)
    return found[1:]
