"""Findings: an influence along its strength, or several beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taxonomy.charts.look import (
    MOST_TICKS,
    PALETTE,
    SHAPES,
    SHORT,
    WIDTH,
    Row,
    data,
    decades,
    finish,
    lines,
    log_scale,
    natural,
    rule_at,
    step,
    times_axis,
    times_scale,
    words,
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


def effect(finding: Finding | None, strength: float | None = None) -> str:
    """The contrast at a strength, or farthest from nothing, as a reader sees it: points of accuracy, else times better.

    Raises
    ------
    ValueError
        If the finding has no point of that strength.

    Examples
    --------
    >>> effect(None)
    '—'
    """
    if finding is None:
        return "—"
    points = [point for point in finding.points if strength is None or point.strength == strength]
    if not points:
        there = ", ".join(f"{point.strength:g}" for point in finding.points if point.strength is not None)
        raise ValueError(f"strength: expected one of {there or 'none'}, got {strength:g}")
    return _text(max(points, key=lambda point: abs(point.c)), finding.metric)


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
    columns = ("influence", "verdict", "largest effect", "claimed", "metric", "workload", "conditions", "q")
    rows = []
    for edge, finding in pairs:
        verdict, q = str(finding.verdict), math.nan
        if finding.by_construction:
            verdict += ", by construction"
        else:
            q = next(adjusted)
        rows.append((
            edge.id.replace("--", " → "), verdict, effect(finding), edge.sign, words(finding.metric), finding.workload,
            finding.setting, "—" if math.isnan(q) else "< 0.001" if q < 0.001 else f"{q:.2g}",
        ))  # fmt: skip
    return table(columns, rows)


def trace(findings: Finding | Sequence[Finding], along: str = "strength", *, title: str = "") -> alt.TopLevelMixin:
    """Influences along their strength: above the band they help, below it they harm; one crosses at its crossover.

    Parameters
    ----------
    findings : Finding or sequence of Finding
        Those whose points have strengths, of one metric; several have a colour each.
    along : str
        What the strength is called on the axis.
    title : str
        The finding, a sentence.

    Raises
    ------
    ValueError
        If no point has a strength.
    """
    import altair as alt

    from taxonomy.verdict import Finding

    findings = [findings] if isinstance(findings, Finding) else list(findings)
    findings = [
        finding for _, finding in sorted(zip(_apart(findings), findings, strict=True), key=lambda p: natural(p[0]))
    ]
    named = _apart(findings)
    rows = [
        {**_row(point, finding.metric), "of": name}
        for finding, name in zip(findings, named, strict=True)
        for point in finding.points
        if point.strength is not None
    ]
    if not rows:
        raise ValueError(f"{_influence(findings)} has no strength; draw it with effects()")
    several, metric = len(findings) > 1, findings[0].metric
    y, scale, nothing = _gained(rows, metric)
    colour, shape, line = _named(named) if several else (*_votes(), alt.value(PALETTE["grey"]))
    base = alt.Chart(data(rows)).encode(x=_strengths(rows, along))
    tips = [alt.Tooltip("of:N", title="of"), alt.Tooltip("x:Q", title=along), alt.Tooltip("text:N", title="effect")]
    layers = [
        *_no_effect(metric, scale, nothing),
        base.mark_line(strokeWidth=1.5).encode(y=y, color=line, detail="of:N"),
        base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour),
        base.mark_point(filled=True, size=90, opacity=1).encode(y=y, color=colour, shape=shape, tooltip=tips),
        *_crossovers(findings, named, colour if several else alt.value(PALETTE["purple"])),
    ]
    shared = "" if len({finding.workload for finding in findings}) > 1 else findings[0].workload
    where = ", ".join(part for part in (shared, "" if several else findings[0].setting) if part)
    sizes: Any = {"width": WIDTH, "height": 240}
    chart = alt.layer(*layers).properties(**sizes, **({"title": where} if where and not title else {}))
    columns: dict[str, Any] = {"of": lambda row: row["of"]} if several else {}
    columns |= {along: lambda row: f"{row['x']:g}", "effect": lambda row: row["text"]}
    columns |= {"vote": lambda row: row["vote"], "n": lambda row: str(row["n"])}
    table = {"columns": list(columns), "rows": [[get(row) for get in columns.values()] for row in rows]}
    text = f"{_influence(findings)}: {words(metric)} along {along.replace('_', ' ')}; {findings[0].because}"
    return finish(chart, text, table, title=title)


def _strengths(rows: Sequence[Row], along: str) -> Any:
    """The axis of the strengths; of a rescue it says who is alone and who is not."""
    import altair as alt

    xs = sorted({row["x"] for row in rows})
    if xs == [0, 1]:
        known = alt.Axis(title=None, values=xs, labelExpr="datum.value == 0 ? 'alone' : 'together'")
        return alt.X("x:Q", axis=known, scale=alt.Scale(nice=False, padding=40))
    log = xs[0] > 0 and xs[-1] / xs[0] >= 10
    ticks: Any = {"values": decades(xs)} if log else {"values": xs} if len(xs) <= MOST_TICKS else {"tickCount": 5}
    axis: Any = alt.Axis(title=along.replace("_", " "), format=".4~g", labelOverlap=True, **ticks)
    return alt.X("x:Q", axis=axis, scale=log_scale(xs) if log else alt.Scale(nice=False, padding=12))


def _gained(rows: Sequence[Row], metric: str) -> tuple[Any, Any, float]:
    """The axis of the effects, its scale, and where on it there is none."""
    import altair as alt

    if metric == "accuracy":
        scale = alt.Scale(zero=False)
        axis = alt.Axis(title="points of accuracy gained", labelExpr="format(datum.value * 100, '~g')", tickCount=5)
        return alt.Y("value:Q", scale=scale, axis=axis), scale, 0
    scale = times_scale(rows)
    return alt.Y("value:Q", scale=scale, axis=times_axis(f"{words(metric)}, times better", rows)), scale, 1


def _no_effect(metric: str, scale: Any, nothing: float) -> list[Any]:
    """The band of effects too small to count, and the rule in its middle."""
    import altair as alt

    from taxonomy.verdict import smallest_effect

    small = smallest_effect(metric)
    inside = data([{"low": _shown(-small, metric), "high": _shown(small, metric)}])
    band = alt.Chart(inside).mark_rect(opacity=0.2, color=PALETTE["grey"])
    return [
        band.encode(y=alt.Y("low:Q", scale=scale), y2="high:Q"),
        rule_at(alt.Chart(inside), y=alt.datum(nothing)),
    ]


def _named(names: Sequence[str]) -> tuple[Any, Any, Any]:
    """Colour, shape and line of several findings, by their names."""
    import altair as alt

    colours = [PALETTE[name] for name in ("blue", "vermilion", "green", "purple", "ochre")]
    drawn = alt.Scale(domain=list(names), range=[colours[i % len(colours)] for i in range(len(names))])
    key = alt.Legend(title=None, columns=2 if max(map(len, names)) <= SHORT else 1)
    colour = alt.Color("of:N", scale=drawn, sort=list(names), legend=key)
    shapes = alt.Scale(domain=list(names), range=[SHAPES[i % len(SHAPES)] for i in range(len(names))])
    return colour, alt.Shape("of:N", scale=shapes, sort=list(names), legend=key), colour


def _crossovers(findings: Sequence[Finding], names: Sequence[str], colour: Any) -> list[Any]:
    """Where each finding crosses, and the interval of that."""
    import altair as alt

    crossed = [
        {"of": name, **dict(zip(("x", "left", "right"), finding.crossover, strict=True))}
        for finding, name in zip(findings, names, strict=True)
        if finding.crossover
    ]
    if not crossed:
        return []
    root = alt.Chart(data(crossed)).encode(color=colour)
    return [
        root.mark_rect(opacity=0.15).encode(x="left:Q", x2="right:Q"),
        root.mark_rule(strokeWidth=2, strokeDash=[2, 2]).encode(x="x:Q"),
    ]


def _influence(findings: Sequence[Finding]) -> str:
    return f"influence of {findings[0].influence.replace('--', ' on ')}"


def _apart(findings: Sequence[Finding]) -> list[str]:
    """What tells each finding from the others: those of workload and conditions that are not the same for all."""
    parts = [[f.workload, *(part for part in f.setting.split(", ") if part)] for f in findings]
    same = set.intersection(*map(set, parts))
    return [", ".join(part.replace("=", " ") for part in own if part not in same) or own[0] for own in parts]


def effects(findings: Sequence[Finding], *, title: str = "") -> alt.TopLevelMixin:
    """Findings beside each other: effect with interval, every point one mark.

    Parameters
    ----------
    findings : sequence of Finding
        A line each.
    title : str
        What they show, a sentence.

    Raises
    ------
    ValueError
        If there is no finding.
    """
    import altair as alt

    if not findings:
        raise ValueError("no finding to draw")
    rows, metrics = [], [words(finding.metric) for finding in findings]
    apart = _apart(findings)
    for finding, metric, own in zip(findings, metrics, apart, strict=True):
        several = len(set(metrics)) > 1
        named = f"{metric}: {own}" if several and len(set(metrics)) < len(findings) else metric if several else own
        for point in finding.points:
            row = _row(point, finding.metric)
            if finding.metric == "accuracy":  # points of accuracy on an axis of ratios: one plus the gain
                row.update({name: 1 + row[name] for name in ("value", "low", "high")})
            rows.append({**row, "label": named})
    colour, shape = _votes()
    scale, order = times_scale(rows), list(dict.fromkeys(row["label"] for row in rows))
    better = f"{metrics[0]}, times better" if len(set(metrics)) == 1 else "times better"
    base = alt.Chart(data(rows)).encode(y=lines(order))
    layers = [
        rule_at(alt.Chart(data(rows)), x=alt.datum(1)),
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", color=colour),
        base.mark_point(filled=True, size=90, opacity=1).encode(
            x=alt.X("value:Q", scale=scale, axis=times_axis(better, rows)), color=colour, shape=shape,
            tooltip=[alt.Tooltip("label:N", title="of"), alt.Tooltip("text:N", title="effect")],
        ),
    ]  # fmt: skip
    chart = alt.layer(*layers).properties(width=WIDTH, height=step(order))
    table = {
        "columns": ["of", "effect", "vote", "n"],
        "rows": [[row["label"], row["text"], row["vote"], str(row["n"])] for row in rows],
    }
    return finish(chart, f"Effects of {findings[0].influence.replace('--', ' on ')}", table, title=title)


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
