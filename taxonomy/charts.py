"""The book's charts: each a function from tidy rows (`tx.measurements(...)`) to one declarative Altair chart.

A chart has no colour of its own for text, axes or ground: the page's light or dark theme gives them. Marks differ in
shape as well as in colour, every colour has a contrast of at least three to one on both grounds, and every chart
carries its figures as a table. A record taken on the reader's machine is drawn hollow beside the reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taxonomy.quantity import interval, symbol

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from taxonomy.query import Taxonomy
    from taxonomy.verdict import Finding

__all__ = [
    "PALETTE", "beside_peers", "curve", "effects", "influence_graph", "ratio_strip", "taxonomy_matrix", "trace",
    "trade_off",
]  # fmt: skip

PALETTE = {
    "blue": "#2b7bba", "vermilion": "#d1590b", "green": "#0a8a60", "purple": "#b0609a", "grey": "#7d7d7d",
    "ochre": "#a07a10",
}  # fmt: skip
NEUTRAL = "#767676"
"""Of text, where no page gives it a better colour; book.css replaces exactly this one."""
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
SIGNS = {"+": PALETTE["blue"], "-": PALETTE["vermilion"], "mixed": PALETTE["purple"], "needs": PALETTE["green"]}
LEVELS = ("model", "arithmetic", "implementation")
WIDTH = 460
ROW = 24
Row = dict[str, Any]


# --- from tidy rows to what is drawn --------------------------------------------------------------------------------


def _rows(frame: pd.DataFrame, metric: str) -> list[Row]:
    """The frame's rows of one metric that have a value, each with a name for its contestant and its text."""
    rows = [row for row in frame.to_dict("records") if row["metric"] == metric and math.isfinite(row["value"])]
    if not rows:
        held = ", ".join(sorted(set(frame["metric"]))) or "nothing"
        raise ValueError(f"no figure of {metric!r} in these rows; they hold {held}")
    several = len({row["technique"] for row in rows}) > 1
    for row in rows:
        own = row["who"] == "self"
        row["contestant"] = row["technique"] if own else f"{row['who']}{' of ' + row['technique'] if several else ''}"
        row["text"] = interval(row["value"], row["low"], row["high"], row["unit"])
        row["stands"] = {**row["parameters"], **row["conditions"]}
    return rows


def _label(rows: Sequence[Row], without: Iterable[str] = ()) -> None:
    """Name each row by those of its conditions that vary among the rows: the rest is the same for all."""
    names = dict.fromkeys(name for row in rows for name in row["stands"])
    varying = [n for n in names if n not in without and len({str(row["stands"].get(n)) for row in rows}) > 1]
    for row in rows:
        parts = [(name, row["stands"][name]) for name in varying if name in row["stands"]]
        row["label"] = ", ".join(str(v) if isinstance(v, str) else f"{name} {_plain(v)}" for name, v in parts) or "all"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _wide(values: Sequence[float], unit: str) -> bool:
    """Whether the values want a logarithmic axis."""
    return unit != "fraction" and min(values) > 0 and max(values) / min(values) > 30


def _table(rows: Sequence[Row], metric: str) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "workload": lambda row: row["workload"], "technique": lambda row: row["technique"],
        "contestant": lambda row: row["who"], "variant": lambda row: row["variant"] or "—",
        "setting": lambda row: row["setting"] or "—", metric: lambda row: row["text"], "n": lambda row: row["n"],
        "taken": lambda row: ("here" if row["store"] == "here" else "reference") + (", stale" if row["stale"] else ""),
    }  # fmt: skip
    kept = {name: get for name, get in columns.items() if name == metric or len({get(row) for row in rows}) > 1}
    return {"columns": list(kept), "rows": [[str(get(row)) for get in kept.values()] for row in rows]}


def _data(rows: Sequence[Row], names: Sequence[str]) -> Any:
    import altair as alt

    def clean(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return alt.Data(values=[{name: clean(row.get(name)) for name in names} for row in rows])  # type: ignore[no-untyped-call]


def _finish(
    chart: Any, alt_text: str, table: Mapping[str, Any] | None = None, least: int | None = None
) -> alt.TopLevelMixin:
    """One look for all: no ground, readable type, legend below, so that a phone keeps the width for the figures."""
    from taxonomy.rendering import enable

    enable()
    usermeta = {key: value for key, value in (("table", table), ("least", least)) if value}
    return (
        chart.properties(description=alt_text, usermeta=usermeta, background="transparent", padding=4)
        .configure(font="Liberation Sans, Helvetica, Arial, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            labelFontSize=13, titleFontSize=13, titleFontWeight="normal", labelColor=NEUTRAL, titleColor=NEUTRAL,
            gridColor="#8884", domainColor="#888", tickColor="#888", labelLimit=170, titlePadding=8,
        )
        .configure_legend(
            orient="bottom", direction="horizontal", columns=2, labelFontSize=13, titleFontSize=13, labelLimit=220,
            labelColor=NEUTRAL, titleColor=NEUTRAL, symbolStrokeWidth=2,
        )
        .configure_header(labelFontSize=13, labelColor=NEUTRAL, title=None, labelAnchor="start", labelFontWeight="bold")
        .configure_title(fontSize=14, color=NEUTRAL, anchor="start")
    )  # fmt: skip


def _contestants(rows: Sequence[Row], field: str = "contestant", title: str | None = None) -> tuple[Any, Any]:
    """Colour and shape by who: the technique first, then its peers; baselines grey."""
    import altair as alt

    names = list(dict.fromkeys(row[field] for row in sorted(rows, key=lambda row: row["who"] != "self")))
    grey = {row[field] for row in rows if row["who"] in ("baseline", "random")}
    bright = [colour for name, colour in PALETTE.items() if name != "grey"]
    taken = iter(range(len(names)))
    colours = [PALETTE["grey"] if name in grey else bright[next(taken) % len(bright)] for name in names]
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(names))]
    legend = alt.Legend(title=title) if len(names) > 1 else None
    return (
        alt.Color(f"{field}:N", sort=names, scale=alt.Scale(domain=names, range=colours), legend=legend),
        alt.Shape(f"{field}:N", sort=names, scale=alt.Scale(domain=names, range=shapes), legend=legend),
    )


def _axis(metric: str, unit: str, **options: Any) -> Any:
    import altair as alt

    mark = symbol(unit)
    title = metric.replace("_", " ") + (f" ({mark})" if mark else "")
    form = {"fraction": "datum.value * 100", "ratio": "format(datum.value, '~g')"}.get(unit)
    if form:
        return alt.Axis(title=title, labelExpr=form, tickCount=5, **options)
    return alt.Axis(title=title, format="~s", tickCount=5, labelOverlap=True, **options)


def _by_workload(chart: Any, rows: Sequence[Row], independent: str | None = None) -> Any:
    import altair as alt

    if len({row["workload"] for row in rows}) == 1:
        return chart
    faceted = chart.facet(facet=alt.Facet("workload:N", title=None), columns=1, spacing=18)
    return faceted.resolve_scale(**{independent: "independent"}) if independent else faceted


FIELDS = ("contestant", "label", "workload", "value", "low", "high", "text", "hollow", "x", "row")


def _hollow(rows: Sequence[Row], colour: Any, shape: Any) -> dict[str, Any]:
    import altair as alt

    for row in rows:
        row["hollow"] = row["store"] == "here"
    inside = alt.condition("datum.hollow", alt.value("transparent"), colour)
    return {"color": colour, "shape": shape, "fill": inside} if any(r["hollow"] for r in rows) else {
        "color": colour, "shape": shape
    }  # fmt: skip


# --- figures of techniques ------------------------------------------------------------------------------------------


def beside_peers(frame: pd.DataFrame, metric: str) -> alt.TopLevelMixin:
    """One line a variant and setting, one mark a contestant, with its interval.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows of `tx.measurements`.
    metric : str
        The id of the metric to be drawn.

    Raises
    ------
    ValueError
        If the rows hold no figure of the metric.
    """
    import altair as alt

    rows = _rows(frame, metric)
    _label(rows)
    unit = rows[0]["unit"]
    order = list(dict.fromkeys(row["label"] for row in rows))
    log = _wide([row["value"] for row in rows], unit)
    scale = alt.Scale(type="log") if log else alt.Scale(zero=unit not in ("fraction", "dB"), nice=True)
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(grid=True, domain=False, ticks=False))
    base = alt.Chart(_data(rows, FIELDS)).encode(y=y if len(order) > 1 else alt.Y("label:N", axis=None))
    colour, shape = _contestants(rows)
    x = alt.X("value:Q", scale=scale, axis=_axis(metric, unit))
    spread = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", color=colour)
    marks = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=x, tooltip=_tips("contestant", "label", "text"), **_hollow(rows, colour, shape)
    )
    chart = alt.layer(spread, marks).properties(width=WIDTH, height=alt.Step(ROW))
    best = f"{metric.replace('_', ' ')} of {_listed(row['contestant'] for row in rows)}, by variant and setting"
    return _finish(_by_workload(chart, rows, "y"), best, _table(rows, metric))


def curve(frame: pd.DataFrame, along: str, metric: str) -> alt.TopLevelMixin:
    """A metric along a numeric parameter or condition, such as density or bits; one line a contestant.

    Parameters
    ----------
    along : str
        A name among the rows' parameters or conditions; rows without it (a baseline) become horizontal rules.
    metric : str
        The id of the metric to be drawn.

    Raises
    ------
    ValueError
        If the rows hold no figure of the metric, or none has a number for `along`.
    """
    import altair as alt

    rows = _rows(frame, metric)
    _label(rows, without=(along,))
    unit = rows[0]["unit"]
    known = [row for row in rows if isinstance(row["stands"].get(along), (int, float))]
    if not known:
        names = ", ".join(sorted({name for row in rows for name in row["stands"]})) or "no condition"
        raise ValueError(f"no row has a number for {along!r}; they have {names}")
    single = len({row["label"] for row in rows}) == 1
    for row in rows:
        row["x"] = row["stands"].get(along)
        row["contestant"] = row["contestant"] if single else f"{row['contestant']}, {row['label']}"
    xs = sorted({row["x"] for row in known})
    log_x = len(xs) > 2 and xs[0] > 0 and xs[-1] / xs[0] >= 10
    log_y = _wide([row["value"] for row in rows], unit)
    y_scale = alt.Scale(type="log") if log_y else alt.Scale(zero=unit not in ("fraction", "dB"))
    colour, shape = _contestants(rows)
    base = alt.Chart(_data(known, FIELDS)).encode(
        x=alt.X(
            "x:Q",
            scale=alt.Scale(type="log" if log_x else "linear", zero=False),
            title=along.replace("_", " "),
            axis=alt.Axis(tickCount=5, format="~g", labelOverlap=True),
        )  # fmt: skip
    )
    y = alt.Y("value:Q", scale=y_scale, axis=_axis(metric, unit))
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", scale=y_scale), y2="high:Q", color=colour)
    line = base.mark_line(strokeWidth=2).encode(y=y, color=colour)
    marks = base.mark_point(filled=True, size=60, opacity=1).encode(
        y=y, tooltip=_tips("contestant", "x", "text"), **_hollow(known, colour, shape)
    )
    chart = alt.layer(band, line, marks).properties(width=WIDTH, height=240)
    best = f"{metric.replace('_', ' ')} along {along.replace('_', ' ')} for {_listed(r['contestant'] for r in known)}"
    return _finish(_by_workload(chart, known, "y"), best, _table(rows, metric))


def trade_off(frame: pd.DataFrame, x: str, y: str) -> alt.TopLevelMixin:
    """Cost against worth: each variant a point with the interval of its worth, the baseline's worth a rule.

    Parameters
    ----------
    x, y : str
        Ids of the metrics on the axes; the figures of one variant are paired by workload and setting, or by variant
        alone where the cost does not depend on them.

    Raises
    ------
    ValueError
        If the rows hold no figure of either, or no variant has both.
    """
    import altair as alt

    costs, rows = _rows(frame, x), _rows(frame, y)
    _label(rows)
    keys = [("technique", "variant", "who", "workload", "setting"), ("technique", "variant", "who", "workload"),
            ("technique", "variant", "who")]  # fmt: skip
    found: dict[tuple[Any, ...], Row] = {}
    for names in keys:
        for cost in costs:
            found.setdefault(tuple(cost[name] for name in names), cost)
    paired = []
    for row in rows:
        cost = next((found[k] for names in keys if (k := tuple(row[n] for n in names)) in found), None)
        if cost is not None:
            paired.append({**row, "x": cost["value"], "text": f"{row['text']} at {cost['text']}"})
    if not paired:
        raise ValueError(f"no variant has both {x!r} and {y!r}")
    unit, x_unit = rows[0]["unit"], costs[0]["unit"]
    log = _wide([row["x"] for row in paired], x_unit)
    colour, shape = _contestants(paired)
    y_scale = alt.Scale(zero=False)
    base = alt.Chart(_data(paired, FIELDS)).encode(
        x=alt.X("x:Q", scale=alt.Scale(type="log" if log else "linear", zero=False), axis=_axis(x, x_unit))
    )
    spread = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", scale=y_scale), y2="high:Q", color=colour)
    marks = base.mark_point(filled=True, size=80, opacity=1).encode(
        y=alt.Y("value:Q", scale=y_scale, axis=_axis(y, unit)), tooltip=_tips("contestant", "label", "text"),
        **_hollow(paired, colour, shape),
    )  # fmt: skip
    rule = (
        alt.Chart()
        .mark_rule(strokeDash=[5, 4], strokeWidth=1.5, color=PALETTE["grey"])
        .transform_filter("indexof(datum.contestant, 'baseline') == 0")
        .encode(y="mean(value):Q")
    )
    layers = [spread, marks]
    if any(row["who"] == "baseline" for row in paired):
        layers.append(rule)
    chart = alt.layer(*layers, data=_data(paired, FIELDS)).properties(width=WIDTH, height=260)
    best = f"{y.replace('_', ' ')} against {x.replace('_', ' ')} for {_listed(row['contestant'] for row in paired)}"
    return _finish(_by_workload(chart, paired, "y"), best, _table(paired, y))


def ratio_strip(frame: pd.DataFrame, metric: str = "speedup") -> alt.TopLevelMixin:
    """How many times faster than each contestant, on a logarithmic axis; left of the rule at one it is slower.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows whose metric is a paired ratio.

    Raises
    ------
    ValueError
        If the rows hold no figure of the metric.
    """
    import altair as alt

    rows = _rows(frame, metric)
    _label(rows)
    order = list(dict.fromkeys(row["label"] for row in rows))
    colour, shape = _contestants(rows, title="over")
    reach = [value for row in rows for value in (row["value"], row["low"], row["high"]) if value and value > 0]
    scale = alt.Scale(type="log", domain=[min(0.8, *reach) * 0.95, max(1.25, *reach) * 1.05])
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(grid=True, domain=False, ticks=False))
    base = alt.Chart(_data(rows, FIELDS)).encode(y=y if len(order) > 1 else alt.Y("label:N", axis=None))
    axis = alt.Axis(title="times faster than the contestant", labelExpr="datum.value + '×'", labelOverlap=True)
    x = alt.X("value:Q", scale=scale, axis=axis)
    one = base.mark_rule(color=PALETTE["grey"], strokeDash=[5, 4], strokeWidth=1.5).encode(x=alt.datum(1))
    spread = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", color=colour)
    marks = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=x, tooltip=_tips("contestant", "label", "text"), **_hollow(rows, colour, shape)
    )
    chart = alt.layer(one, spread, marks).properties(width=WIDTH, height=alt.Step(ROW))
    best = f"Times faster than {_listed(row['contestant'] for row in rows)}, by variant and setting"
    return _finish(_by_workload(chart, rows, "y"), best, _table(rows, metric))


def _tips(*fields: str) -> list[Any]:
    import altair as alt

    titles = {"contestant": "who", "label": "conditions", "text": "value", "x": "at"}
    return [alt.Tooltip(f"{field}:{'Q' if field == 'x' else 'N'}", title=titles.get(field, field)) for field in fields]


def _listed(names: Iterable[str]) -> str:
    unique = list(dict.fromkeys(names))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} and {unique[-1]}"


# --- influences -----------------------------------------------------------------------------------------------------


def _contrast(c: float, metric: str) -> float:
    """The contrast as drawn: points of accuracy as they are, all else as a ratio."""
    return c if metric == "accuracy" else math.exp(max(-50.0, min(50.0, c)))


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

    points = [point for point in finding.points if point.strength is not None]
    if not points:
        raise ValueError(f"finding {finding.influence!r} has no strength; draw it with effects()")
    metric, identity = finding.metric, 0.0 if finding.metric == "accuracy" else 1.0
    small = smallest_effect(metric)
    low, high = sorted((_contrast(-small, metric), _contrast(small, metric)))
    unit = "fraction" if metric == "accuracy" else "ratio"
    rows = [
        {"x": p.strength, "value": _contrast(p.c, metric), "low": _contrast(p.low, metric),
         "high": _contrast(p.high, metric), "vote": p.vote, "n": p.n,
         "text": interval(*(_contrast(v, metric) for v in (p.c, p.low, p.high)), unit)}
        for p in points
    ]  # fmt: skip
    y_scale = alt.Scale(type="linear" if metric == "accuracy" else "log", zero=False)
    votes = {"+": PALETTE["blue"], "-": PALETTE["vermilion"], "0": PALETTE["grey"], "?": PALETTE["ochre"]}
    x = alt.X(
        "x:Q", title=along.replace("_", " "), scale=alt.Scale(type="log", nice=False, padding=12),
        axis=alt.Axis(format="~g", tickCount=5, labelOverlap=True),
    )  # fmt: skip
    title = f"{metric.replace('_', ' ')}, " + ("points gained" if metric == "accuracy" else "times better")
    base = alt.Chart(_data(rows, ("x", "value", "low", "high", "vote", "text"))).encode(x=x)
    axis = alt.Axis(
        title=title, labelExpr="datum.value * 100" if unit == "fraction" else "datum.value + '×'", tickCount=5
    )
    y = alt.Y("value:Q", scale=y_scale, axis=axis)
    band = alt.Chart(_data([{"low": low, "high": high}], ("low", "high"))).mark_rect(opacity=0.2, color=PALETTE["grey"])
    layers = [
        band.encode(y=alt.Y("low:Q", scale=y_scale), y2="high:Q"),
        base.mark_rule(strokeDash=[5, 4], color=PALETTE["grey"]).encode(x=alt.value(0), x2=alt.value("width"), y=alt.datum(identity)),
        base.mark_line(strokeWidth=1.5, color=PALETTE["grey"]).encode(y=y),
        base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", scale=y_scale), y2="high:Q", color=_votes(votes)),
        base.mark_point(filled=True, size=90, opacity=1).encode(
            y=y, color=_votes(votes), tooltip=[alt.Tooltip("x:Q", title=along), alt.Tooltip("text:N", title="effect")],
            shape=alt.Shape("vote:N", scale=alt.Scale(domain=list(votes), range=["triangle-up", "triangle-down", "circle", "diamond"]),
                            legend=alt.Legend(title="vote")),
        ),
    ]  # fmt: skip
    if finding.crossover:
        centre, left, right = finding.crossover
        at = _data([{"x": centre, "left": left, "right": right}], ("x", "left", "right"))
        layers.append(
            alt.Chart(at).mark_rule(strokeWidth=1.5, strokeDash=[2, 2], color=PALETTE["purple"]).encode(x="x:Q")
        )
        layers.append(alt.Chart(at).mark_rect(opacity=0.25, color=PALETTE["purple"]).encode(x="left:Q", x2="right:Q"))
    chart = alt.layer(*layers).properties(width=WIDTH, height=240)
    table = {
        "columns": [along, "effect", "vote", "n"],
        "rows": [[_plain(row["x"]), row["text"], row["vote"], str(row["n"])] for row in rows],
    }
    return _finish(
        chart, f"{finding.influence.replace('--', ' on ')}: {metric} along {along}; {finding.because}", table
    )


def _votes(votes: Mapping[str, str]) -> Any:
    import altair as alt

    return alt.Color(
        "vote:N", scale=alt.Scale(domain=list(votes), range=list(votes.values())), legend=alt.Legend(title="vote")
    )


def effects(findings: Sequence[Finding]) -> alt.TopLevelMixin:
    """Findings beside each other: effect with interval, every point of a trace one mark.

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
        unit = "fraction" if finding.metric == "accuracy" else "ratio"
        for point in finding.points:
            values = [_contrast(v, finding.metric) for v in (point.c, point.low, point.high)]
            shown = [1 + v for v in values] if finding.metric == "accuracy" else values
            where = ", ".join(part for part in (finding.workload, finding.setting) if part)
            rows.append({
                "label": f"{finding.metric.replace('_', ' ')}: {where}", "value": shown[0], "low": shown[1],
                "high": shown[2], "text": interval(*values, unit), "vote": point.vote, "n": point.n,
            })  # fmt: skip
    votes = {"+": PALETTE["blue"], "-": PALETTE["vermilion"], "0": PALETTE["grey"], "?": PALETTE["ochre"]}
    reach = [row[name] for row in rows for name in ("value", "low", "high") if row[name] > 0]
    scale = alt.Scale(type="log", domain=[min(0.8, *reach) * 0.95, max(1.25, *reach) * 1.05])
    base = alt.Chart(_data(rows, ("label", "value", "low", "high", "vote", "text"))).encode(
        y=alt.Y(
            "label:N",
            title=None,
            sort=[row["label"] for row in rows],
            axis=alt.Axis(ticks=False, domain=False, labelLimit=260, orient="right" if False else "left"),
        )
    )
    one = base.mark_rule(color=PALETTE["grey"], strokeDash=[5, 4]).encode(x=alt.datum(1))
    spread = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", color=_votes(votes))
    marks = base.mark_point(filled=True, size=90, opacity=1).encode(
        x=alt.X("value:Q", scale=scale, axis=alt.Axis(title="times better", labelExpr="datum.value + '×'")), color=_votes(votes),
        tooltip=[alt.Tooltip("label:N", title="of"), alt.Tooltip("text:N", title="effect")],
    )  # fmt: skip
    chart = alt.layer(one, spread, marks).properties(width=WIDTH, height=alt.Step(ROW))
    table = {"columns": ["of", "effect", "vote", "n"],
             "rows": [[row["label"], row["text"], row["vote"], str(row["n"])] for row in rows]}  # fmt: skip
    return _finish(chart, f"Effects of {findings[0].influence.replace('--', ' on ')}", table)


def influence_graph(tx: Taxonomy, technique: str | None = None) -> alt.TopLevelMixin:
    """Influences between techniques in three columns, one a level: effect as width, sign as colour, unmeasured dashed.

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
    lines, arrows = _paths(edges, place)
    nodes = [{"x": x, "y": y, "name": tx[node].name, "href": f"{tx[node].address}.html", "level": tx[node].level}
             for node, (x, y) in place.items()]  # fmt: skip
    heads = [{"x": i, "y": -1.0, "name": level.upper(), "level": level, "href": None} for i, level in enumerate(LEVELS)]
    rows = max(y for _, y in place.values()) + 1
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-0.05, 2.05], nice=False, zero=False))
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[rows - 0.4, -1.3], nice=False, zero=False))
    worded = "datum.value == '+' ? '+ better' : datum.value == '-' ? '− worse' : datum.value"
    colour = alt.Color(
        "sign:N", scale=alt.Scale(domain=list(SIGNS), range=list(SIGNS.values())),
        legend=alt.Legend(title="claimed", columns=4, labelExpr=worded, symbolType="stroke", symbolStrokeWidth=3),
    )  # fmt: skip
    tip = alt.Tooltip("tip:N", title="influence")

    def layer(data: Sequence[Row]) -> Any:
        return alt.Chart(_data(data, tuple(dict.fromkeys(key for row in data for key in row)))).encode(x=x, y=y)

    def named(data: Sequence[Row], level: str, align: str, **mark: Any) -> Any:
        own = [row for row in data if row["level"] == level]
        shift = {"left": -6, "center": 0, "right": 6}[align]
        words = layer(own).mark_text(color=NEUTRAL, align=align, dx=shift, **mark).encode(text="name:N")
        return words.encode(href="href:N", description="name:N") if own[0]["href"] else words

    drawn = layer(lines).mark_line().encode(
        detail="edge:N", order="order:Q", color=colour, tooltip=tip, strokeWidth=alt.StrokeWidth("width:Q", scale=None),
        strokeDash=alt.condition("datum.measured", alt.value([1, 0]), alt.value([4, 4])),
    )  # fmt: skip
    points = layer(arrows).mark_point(filled=True, size=110, opacity=1).encode(
        color=colour, tooltip=tip, shape=alt.Shape("towards:N", scale=None, legend=None)
    )  # fmt: skip
    dots = layer(nodes).mark_point(filled=True, size=100, color=PALETTE["grey"], opacity=1).encode(
        href="href:N", tooltip=alt.Tooltip("name:N", title="technique"), description="name:N"
    )  # fmt: skip
    sides = tuple(zip(LEVELS, ("left", "center", "right"), strict=True))
    used = {row["level"] for row in nodes}
    texts = [named(nodes, level, align, fontSize=13, dy=-13) for level, align in sides if level in used]
    titles = [named(heads, level, align, fontSize=12, fontWeight="bold") for level, align in sides]
    chart = alt.layer(drawn, points, dots, *texts, *titles).properties(width=600, height=int(44 * rows) + 50)
    table = {
        "columns": ["source", "target", "metric", "claimed", "effect", "verdict"],
        "rows": [[(tx[e.source].name, f"{tx[e.source].address}.html"), (tx[e.target].name, f"{tx[e.target].address}.html"),
                  e.metric, e.sign, _effect(e.finding), _verdict(e)] for e in edges],
    }  # fmt: skip
    text = f"{len(edges)} influences between techniques of the three levels; the table below lists them"
    return _finish(chart, text, table, least=560)


def _paths(edges: Sequence[Any], place: Mapping[str, tuple[float, float]]) -> tuple[list[Row], list[Row]]:
    """The lines of the graph, point by point, and an arrow head on the middle of each."""
    lines, arrows = [], []
    for edge in edges:
        start, end, finding = place[edge.source], place[edge.target], edge.finding
        inside = start[0] == end[0]
        bulge = (0.25 if start[0] < 2 else -0.25) if inside else 0.0
        path = [_bezier(i / 24, start, end, bulge) for i in range(25)]
        about = {
            "edge": edge.id, "sign": edge.sign, "measured": finding is not None, "width": 1.5,
            "tip": f"{edge.source} on {edge.target}: {edge.metric}, claimed {edge.sign}, {_verdict(edge)}",
        }  # fmt: skip
        if finding is not None:
            whole = 0.05 if finding.metric == "accuracy" else 1.0
            about["width"] = round(1.5 + 4.5 * math.tanh(abs(finding.effect) / whole), 2)
        lines += [{**about, "x": round(x, 4), "y": round(y, 4), "order": i} for i, (x, y) in enumerate(path)]
        down = "triangle-down" if end[1] > start[1] else "triangle-up"
        arrows.append({**about, "x": path[14][0], "y": path[14][1], "towards": down if inside else "triangle-right"})
    return lines, arrows


def _effect(finding: Finding | None) -> str:
    if finding is None:
        return "—"
    point = max(finding.points, key=lambda point: abs(point.c))
    values = [_contrast(v, finding.metric) for v in (point.c, point.low, point.high)]
    return interval(*values, "fraction" if finding.metric == "accuracy" else "ratio")


def _verdict(edge: Any) -> str:
    finding = edge.finding
    if finding is None:
        return "not measured"
    return (
        finding.verdict
        + (", by construction" if finding.by_construction else "")
        + (", stale" if finding.stale else "")
    )


def _columns(tx: Taxonomy, edges: Sequence[Any]) -> dict[str, tuple[float, float]]:
    """Level as column; within one, techniques near what they are linked to (barycentres, a few rounds)."""
    ids = list(dict.fromkeys(name for edge in edges for name in (edge.source, edge.target)))
    columns = {level: [n for n in ids if tx[n].level == level] for level in LEVELS}
    position = {name: float(i) for column in columns.values() for i, name in enumerate(column)}
    linked: dict[str, list[str]] = {name: [] for name in ids}
    for edge in edges:
        linked[edge.source].append(edge.target)
        linked[edge.target].append(edge.source)
    for _ in range(8):
        for column in columns.values():
            column.sort(key=lambda n: sum(position[m] for m in linked[n]) / len(linked[n]))
            position.update({name: float(i) for i, name in enumerate(column)})
    tallest = max(map(len, columns.values()))
    return {name: (float(LEVELS.index(level)), (i + 0.5) * tallest / len(column) - 0.5)
            for level, column in columns.items() for i, name in enumerate(column)}  # fmt: skip


def _bezier(t: float, a: tuple[float, float], b: tuple[float, float], bulge: float) -> tuple[float, float]:
    """A point of the edge: an S between columns, a bow beside the column within one."""
    if bulge:
        x = a[0] + bulge * 4 * t * (1 - t)
        return x, a[1] + (b[1] - a[1]) * t
    ease = t * t * (3 - 2 * t)
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * ease


# --- the taxonomy ---------------------------------------------------------------------------------------------------


def taxonomy_matrix(tx: Taxonomy) -> alt.TopLevelMixin:
    """Families by what their techniques improve: how many do, each cell a link to the family's chapter."""
    import altair as alt

    families = sorted(tx.families.items(), key=lambda item: (LEVELS.index(item[1].level), item[1].order))
    counts: dict[tuple[str, str], int] = {}
    for node in tx:
        for metric in node.improves:
            cell = (node.family, tx.metric(metric))
            counts[cell] = counts.get(cell, 0) + 1
    metrics = [name for name in tx.metrics if any(metric == name for _, metric in counts)]
    order = [family.title for name, family in families if any(name == own for own, _ in counts)]
    rows = [
        {"family": tx.families[name].title, "level": tx.families[name].level, "metric": metric.replace("_", " "),
         "count": n, "href": f"{tx.families[name].level}/{name}.html",
         "tip": f"{tx.families[name].title}: {n} for {metric.replace('_', ' ')}"}
        for (name, metric), n in counts.items()
    ]  # fmt: skip
    levels = dict(zip(LEVELS, (PALETTE["blue"], PALETTE["vermilion"], PALETTE["green"]), strict=True))
    base = alt.Chart(_data(rows, ("family", "level", "metric", "count", "href", "tip"))).encode(
        x=alt.X("metric:N", sort=[m.replace("_", " ") for m in metrics], title=None,
                axis=alt.Axis(orient="top", labelAngle=-60, ticks=False, domain=False, labelLimit=200)),
        y=alt.Y("family:N", sort=order, title=None, axis=alt.Axis(ticks=False, domain=False)),
    )  # fmt: skip
    cells = base.mark_rect(cornerRadius=3, stroke="transparent").encode(
        color=alt.Color("level:N", scale=alt.Scale(domain=list(levels), range=list(levels.values())), legend=alt.Legend(title=None, columns=3)),
        href="href:N", tooltip=alt.Tooltip("tip:N", title="techniques"), description="tip:N",
    )  # fmt: skip
    numbers = base.mark_text(fontSize=13, color="white", fontWeight="bold").encode(
        text="count:Q", href="href:N", description="tip:N"
    )
    chart = alt.layer(cells, numbers).properties(width=WIDTH, height=alt.Step(26))
    table = {"columns": ["family", "level", "improves", "techniques"],
             "rows": [[(row["family"], row["href"]), row["level"], row["metric"], str(row["count"])] for row in rows]}  # fmt: skip
    return _finish(chart, "How many techniques of each family improve which metric", table)
