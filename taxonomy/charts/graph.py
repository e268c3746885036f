"""Influences as a graph of three columns, one a level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taxonomy.charts.look import LEVELS, NEUTRAL, PALETTE, Row, data, finish
from taxonomy.charts.traces import effect
from taxonomy.statistics import median

if TYPE_CHECKING:
    import altair as alt

    from taxonomy.query import Taxonomy

__all__ = ["influence_graph"]

SIGNS = {"+": PALETTE["blue"], "-": PALETTE["vermilion"], "mixed": PALETTE["purple"], "needs": PALETTE["green"]}
WORDED = "datum.value == '+' ? '+ better' : datum.value == '-' ? '− worse' : datum.value"
ALIGN = dict(zip(LEVELS, ("left", "center", "right"), strict=True))
Place = Mapping[str, tuple[float, float]]


def influence_graph(tx: Taxonomy, technique: str | None = None) -> alt.TopLevelMixin:
    """Influences between techniques: effect as width, claimed sign as colour, what is not measured dashed.

    Parameters
    ----------
    technique : str, optional
        Draw only the edges out of and into this one.

    Raises
    ------
    ValueError
        If there is no such influence.
    """
    import altair as alt

    edges = [e for e in tx.influences() if technique in (None, e.source, e.target)]
    if not edges:
        raise ValueError(f"no influence to draw{f' of {technique!r}' if technique else ''}")
    place = _columns(tx, edges)
    nodes = [
        {"x": x, "y": y, "name": tx[name].name, "href": f"{tx[name].address}.html", "level": tx[name].level}
        for name, (x, y) in place.items()
    ]
    heads = [{"x": i, "y": -1.0, "name": level.upper(), "level": level} for i, level in enumerate(LEVELS)]
    rows = max(y for _, y in place.values()) + 1
    axes = {
        "x": alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-0.05, 2.05], nice=False)),
        "y": alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[rows - 0.4, -1.3], nice=False)),
    }
    layers = [*_edges(edges, place, axes)]
    layers.append(
        alt.Chart(data(nodes)).mark_point(filled=True, size=100, color=PALETTE["grey"], opacity=1)
        .encode(**axes, href="href:N", tooltip=alt.Tooltip("name:N", title="technique"), description="name:N")
    )  # fmt: skip
    for level in LEVELS:
        if own := [row for row in nodes if row["level"] == level]:
            layers.append(_words(own, axes, dy=-13, fontSize=13).encode(href="href:N", description="name:N"))
        layers.append(_words([heads[LEVELS.index(level)]], axes, fontSize=12, fontWeight="bold"))
    chart = alt.layer(*layers).properties(width=600, height=int(44 * rows) + 50)
    table = {
        "columns": ["source", "target", "metric", "claimed", "effect", "verdict"],
        "rows": [[*map(_link(tx), (e.source, e.target)), e.metric, e.sign, _effect(e), _verdict(e)] for e in edges],
    }
    text = f"{len(edges)} influences between techniques of the three levels; the table below lists them"
    names = [[tx[name].name for name, (x, _) in place.items() if x == column] for column in range(len(LEVELS))]
    room = 24 + 7 * sum(max(map(len, column), default=8) for column in names)
    return finish(chart, text, table, least=min(560, room))


def _edges(edges: Sequence[Any], place: Place, axes: Mapping[str, Any]) -> tuple[Any, Any]:
    """The lines, and an arrow head on the middle of each."""
    import altair as alt

    lines, arrows = _paths(edges, place)
    legend = alt.Legend(title="claimed", columns=4, labelExpr=WORDED, symbolType="stroke", symbolStrokeWidth=3)
    colour = alt.Color("sign:N", scale=alt.Scale(domain=list(SIGNS), range=list(SIGNS.values())), legend=legend)
    shared = {**axes, "color": colour, "tooltip": alt.Tooltip("tip:N", title="influence")}
    drawn = alt.Chart(data(lines)).mark_line().encode(
        detail="edge:N", order="order:Q", strokeWidth=alt.StrokeWidth("width:Q", scale=None),
        strokeDash=alt.condition("datum.measured", alt.value([1, 0]), alt.value([4, 4])), **shared,
    )  # fmt: skip
    heads = alt.Chart(data(arrows)).mark_point(filled=True, opacity=1)
    return drawn, heads.encode(
        size=alt.Size("size:Q", scale=None), shape=alt.Shape("towards:N", scale=None, legend=None), **shared
    )


def _paths(edges: Sequence[Any], place: Place) -> tuple[list[Row], list[Row]]:
    """Every edge point by point: an S between columns, a bow beside the column within one."""
    lines, arrows = [], []
    for edge in edges:
        (x1, y1), (x2, y2), findings = place[edge.source], place[edge.target], _own(edge)
        about = {
            "edge": edge.id, "sign": edge.sign, "measured": bool(findings), "width": 1.5,
            "tip": f"{edge.source} on {edge.target}: {edge.metric}, claimed {edge.sign}, {_verdict(edge)}",
        }  # fmt: skip
        if findings:
            whole = 0.05 if findings[0].metric == "accuracy" else 1.0
            typical = median(abs(finding.effect) for finding in findings)
            about["width"] = round(1.5 + 4.5 * math.tanh(typical / whole), 2)
        bow = 0.0 if x1 != x2 else 0.25 if x1 < 2 else -0.25
        path = []
        for t in (i / 24 for i in range(25)):
            ease = t if bow else t * t * (3 - 2 * t)
            path.append((round(x1 + (x2 - x1) * t + bow * 4 * t * (1 - t), 4), round(y1 + (y2 - y1) * ease, 4)))
        lines += [{**about, "x": x, "y": y, "order": i} for i, (x, y) in enumerate(path)]
        towards = "triangle-right" if not bow else "triangle-down" if y2 > y1 else "triangle-up"
        arrows.append(
            {
                **about,
                "x": path[14][0],
                "y": path[14][1],
                "towards": towards,
                "size": round(60 + 6 * about["width"] ** 2),
            }
        )
    return lines, arrows


def _words(rows: Sequence[Row], axes: Mapping[str, Any], **mark: Any) -> Any:
    import altair as alt

    align: Any = ALIGN[rows[0]["level"]]
    shift = {"left": -6, "center": 0, "right": 6}[align]
    return alt.Chart(data(rows)).mark_text(color=NEUTRAL, align=align, dx=shift, **mark).encode(text="name:N", **axes)


def _link(tx: Taxonomy) -> Any:
    return lambda name: (tx[name].name, f"{tx[name].address}.html")


def _verdict(edge: Any) -> str:
    own = _own(edge)
    notes = [note for note, holds in (
        ("by construction", any(finding.by_construction for finding in own)),
        ("stale", any(finding.stale for finding in own)),
    ) if holds]  # fmt: skip
    return ", ".join([edge.verdict, *notes])


def _own(edge: Any) -> list[Any]:
    """Findings on the edge's own metric, from the worst effect to the best."""
    found = edge.findings
    return sorted((f for f in found if f.metric == found[0].metric), key=lambda finding: finding.effect)


def _effect(edge: Any) -> str:
    """Of several findings the worst and the best, without intervals."""
    own = _own(edge)
    if len(own) < 2:
        return effect(edge.finding)
    return " to ".join(effect(finding).partition(" (")[0] for finding in (own[0], own[-1]))


def _columns(tx: Taxonomy, edges: Sequence[Any]) -> dict[str, tuple[float, float]]:
    """Level as column; within one, techniques near what they are linked to (barycentres, a few rounds)."""
    ids = list(dict.fromkeys(name for edge in edges for name in (edge.source, edge.target)))
    columns = {level: [name for name in ids if tx[name].level == level] for level in LEVELS}
    position = {name: float(i) for column in columns.values() for i, name in enumerate(column)}
    linked: dict[str, list[str]] = {name: [] for name in ids}
    for edge in edges:
        linked[edge.source].append(edge.target)
        linked[edge.target].append(edge.source)

    def centre(name: str) -> float:
        return sum(position[other] for other in linked[name]) / len(linked[name])

    for _ in range(8):
        for column in columns.values():
            column.sort(key=centre)
            position.update({name: float(i) for i, name in enumerate(column)})
    tallest = max(map(len, columns.values()))
    return {
        name: (float(LEVELS.index(level)), (i + 0.5) * tallest / len(column) - 0.5)
        for level, column in columns.items()
        for i, name in enumerate(column)
    }
