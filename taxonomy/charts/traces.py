"""Findings: an influence along its strength, or several beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taxonomy.charts.look import (
    PALETTE,
    ROW,
    WIDTH,
    Row,
    data,
    finish,
    lines,
    rule_at,
    times_axis,
    times_scale,
)  # fmt: skip
from taxonomy.quantity import interval

if TYPE_CHECKING:
    import altair as alt

    from taxonomy.schema import Influence
    from taxonomy.verdict import Finding, Point

__all__ = ["effect", "effects", "findings_table", "trace"]

VOTES = {"+": PALETTE["blue"], "-": PALETTE["vermilion"], "0": PALETTE["grey"], "?": PALETTE["ochre"]}
MARKS = dict(zip(VOTES, ("triangle-up", "triangle-down", "circle", "diamond"), strict=True))
WORDED = (
    "datum.value == '+' ? '+ better' : datum.value == '-' ? '− worse' : datum.value == '0' ? '0 neither' : '? open'"
)


def effect(finding: Finding | None) -> str:
    """The contrast farthest from nothing, as a reader sees it: points of accuracy, else times better.

    Examples
    --------
    >>> effect(None)
    '—'
    """
    if finding is None:
        return "—"
    return _text(max(finding.points, key=lambda point: abs(point.c)), finding.metric)


def findings_table(edges: Sequence[Influence]) -> str:
    """Every finding of these edges as an HTML table; q is the p-value adjusted for there being many of them.

    p is that of the hypothesis that no point of the trace lies beyond the smallest effect; q controls the share of
    false discoveries over the whole table (Benjamini and Hochberg, 1995). What follows from counting has neither: no
    chance is in it, and sure discoveries among them would make the others look better.
    """
    from taxonomy.charts.rendering import table
    from taxonomy.statistics import benjamini_hochberg

    pairs = [(edge, finding) for edge in edges for finding in edge.findings]
    adjusted = iter(benjamini_hochberg([finding.p for _, finding in pairs if not finding.by_construction]))
    columns = ("influence", "workload", "conditions", "metric", "claimed", "largest effect", "verdict", "q")
    rows = []
    for edge, finding in pairs:
        verdict, q = str(finding.verdict), math.nan
        if finding.by_construction:
            verdict += ", by construction"
        else:
            q = next(adjusted)
        rows.append((
            edge.id.replace("--", " → "), finding.workload, finding.setting, finding.metric.replace("_", " "),
            edge.sign, effect(finding), verdict, "—" if math.isnan(q) else "< 0.001" if q < 0.001 else f"{q:.2g}",
        ))  # fmt: skip
    return table(columns, rows)


def trace(finding: Finding, along: str = "strength") -> alt.TopLevelMixin:
    """An influence along its strength: above the band it helps, below it harms; where it crosses is the crossover.

    Parameters
    ----------
    finding : Finding
        One whose points have strengths.
    along : str
        What the strength is called on the axis.

    Raises
    ------
    ValueError
        If no point has a strength.
    """
    import altair as alt

    from taxonomy.verdict import smallest_effect

    rows = [_row(point, finding.metric) for point in finding.points if point.strength is not None]
    if not rows:
        raise ValueError(f"finding {finding.influence!r} has no strength; draw it with effects()")
    plain = finding.metric == "accuracy"
    small = smallest_effect(finding.metric)
    inside = [{"low": _shown(-small, finding.metric), "high": _shown(small, finding.metric)}]
    scale = alt.Scale(zero=False) if plain else alt.Scale(type="log")
    spread = max(row["x"] for row in rows) / min(row["x"] for row in rows) if min(row["x"] for row in rows) > 0 else 1
    x = alt.X(
        "x:Q", title=along.replace("_", " "), axis=alt.Axis(format=".4~g", tickCount=5, labelOverlap=True),
        scale=alt.Scale(type="log" if spread >= 10 else "linear", nice=False, padding=12, zero=False),
    )  # fmt: skip
    named = finding.metric.replace("_", " ")
    points = alt.Axis(title=f"{named}, points gained", labelExpr="format(datum.value * 100, '~g')", tickCount=5)
    y = alt.Y("value:Q", scale=scale, axis=points if plain else times_axis(f"{named}, times better", rows))
    colour, shape = _votes()
    base = alt.Chart(data(rows)).encode(x=x)
    band = alt.Chart(data(inside)).mark_rect(opacity=0.2, color=PALETTE["grey"])
    layers = [
        band.encode(y=alt.Y("low:Q", scale=scale), y2="high:Q"),
        rule_at(alt.Chart(data(inside)), y=alt.datum(0 if plain else 1)),
        base.mark_line(strokeWidth=1.5, color=PALETTE["grey"]).encode(y=y),
        base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour),
        base.mark_point(filled=True, size=90, opacity=1).encode(
            y=y,
            color=colour,
            shape=shape,
            tooltip=[alt.Tooltip("x:Q", title=along), alt.Tooltip("text:N", title="effect")],
        ),
    ]
    if finding.crossover:
        root = alt.Chart(data([dict(zip(("x", "left", "right"), finding.crossover, strict=True))]))
        layers.append(root.mark_rect(opacity=0.2, color=PALETTE["purple"]).encode(x="left:Q", x2="right:Q"))
        layers.append(root.mark_rule(strokeWidth=2, strokeDash=[2, 2], color=PALETTE["purple"]).encode(x="x:Q"))
    where = ", ".join(part for part in (finding.workload, finding.setting) if part)
    chart = alt.layer(*layers).properties(width=WIDTH, height=240, title=where)
    table = {
        "columns": [along, "effect", "vote", "n"],
        "rows": [[f"{row['x']:g}", row["text"], row["vote"], str(row["n"])] for row in rows],
    }
    text = f"{finding.influence.replace('--', ' on ')}, {where}: {named} along {along}; {finding.because}"
    return finish(chart, text, table)


def effects(findings: Sequence[Finding]) -> alt.TopLevelMixin:
    """Findings beside each other: effect with interval, every point one mark.

    Raises
    ------
    ValueError
        If there is no finding.
    """
    import altair as alt

    if not findings:
        raise ValueError("no finding to draw")
    rows = []
    for finding in findings:
        named = finding.metric.replace("_", " ")
        if len({other.metric for other in findings}) < len(findings):
            named += ": " + ", ".join(part for part in (finding.workload, finding.setting) if part)
        for point in finding.points:
            row = _row(point, finding.metric)
            if finding.metric == "accuracy":  # points of accuracy on an axis of ratios: one plus the gain
                row.update({name: 1 + row[name] for name in ("value", "low", "high")})
            rows.append({**row, "label": named})
    colour, shape = _votes()
    scale = times_scale(rows)
    base = alt.Chart(data(rows)).encode(y=lines(list(dict.fromkeys(row["label"] for row in rows))))
    layers = [
        rule_at(alt.Chart(data(rows)), x=alt.datum(1)),
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", color=colour),
        base.mark_point(filled=True, size=90, opacity=1).encode(
            x=alt.X("value:Q", scale=scale, axis=times_axis("times better", rows)), color=colour, shape=shape,
            tooltip=[alt.Tooltip("label:N", title="of"), alt.Tooltip("text:N", title="effect")],
        ),
    ]  # fmt: skip
    chart = alt.layer(*layers).properties(width=WIDTH, height=alt.Step(ROW))
    table = {
        "columns": ["of", "effect", "vote", "n"],
        "rows": [[row["label"], row["text"], row["vote"], str(row["n"])] for row in rows],
    }
    return finish(chart, f"Effects of {findings[0].influence.replace('--', ' on ')}", table)


def _row(point: Point, metric: str) -> Row:
    values = {
        name: _shown(getattr(point, key), metric) for name, key in (("value", "c"), ("low", "low"), ("high", "high"))
    }
    return {"x": point.strength, **values, "vote": point.vote, "n": point.n, "text": _text(point, metric)}


def _shown(c: float, metric: str) -> float:
    """The contrast as drawn: points of accuracy as they are, all else as a ratio."""
    return c if metric == "accuracy" else math.exp(max(-50.0, min(50.0, c)))


def _text(point: Point, metric: str) -> str:
    value, low, high = (_shown(value, metric) for value in (point.c, point.low, point.high))
    return interval(value, low, high, "fraction" if metric == "accuracy" else "ratio")


def _votes() -> tuple[Any, Any]:
    import altair as alt

    legend = alt.Legend(title=None, columns=2, labelExpr=WORDED)
    return (
        alt.Color("vote:N", scale=alt.Scale(domain=list(VOTES), range=list(VOTES.values())), legend=legend),
        alt.Shape("vote:N", scale=alt.Scale(domain=list(MARKS), range=list(MARKS.values())), legend=legend),
    )
