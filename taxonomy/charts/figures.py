"""Figures of techniques beside their baselines and peers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taxonomy.charts.look import (
    MOST_TICKS,
    PALETTE,
    SHAPES,
    SHORT,
    WIDTH,
    Row,
    axis,
    data,
    decades,
    finish,
    lines,
    listed,
    log_scale,
    natural,
    reach,
    rule_at,
    step,
    times_axis,
    times_scale,
    words,
)  # fmt: skip
from taxonomy.quantity import interval

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

__all__ = ["beside_peers", "curve", "front", "ratio_strip", "trade_off"]

FIELDS = ("who", "contestant", "label", "workload", "value", "low", "high", "text", "hollow", "x")


def beside_peers(
    frame: pd.DataFrame, metric: str, *, title: str = "", names: Mapping[str, str] | None = None
) -> alt.TopLevelMixin:
    """One line a variant and setting, one mark a contestant, with its interval.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows of `tx.measurements`.
    metric : str
        The id of the metric to be drawn.
    title : str
        The finding, a sentence.
    names : mapping of str to str, optional
        What to call who was measured, such as `{"baseline": "untouched", "self": "pruned"}`.

    Raises
    ------
    ValueError
        If the rows hold no figure of the metric.
    """
    import altair as alt

    rows = _rows(frame, metric, names)
    _label(rows)
    scale, ticks = _scale(rows)
    x = alt.X("value:Q", scale=scale, axis=axis(metric, rows[0]["unit"], ticks))
    chart = alt.layer(*_marks(rows, x, scale), data=data(rows, FIELDS)).properties(width=WIDTH, height=_height(rows))
    text = f"{words(metric)} of {listed(row['contestant'] for row in rows)}, by variant and setting"
    independent = ("y",) if ticks else ("x", "y")
    return finish(_by_workload(chart, rows, *independent), text, _table(rows, metric), title=title)


def ratio_strip(
    frame: pd.DataFrame, metric: str = "speedup", *, title: str = "", names: Mapping[str, str] | None = None
) -> alt.TopLevelMixin:
    """How many times faster than each contestant, on a logarithmic axis; left of the rule at one it is slower.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows of `tx.measurements`; those whose metric is a paired ratio are drawn.
    title : str
        The finding, a sentence.
    names : mapping of str to str, optional
        What to call who was measured, such as `{"baseline": "untouched", "self": "pruned"}`.

    Raises
    ------
    ValueError
        If the rows hold no figure of the metric.
    """
    import altair as alt

    rows = _rows(frame, metric, names)
    _label(rows)
    scale, others = times_scale(rows), list(dict.fromkeys(row["contestant"] for row in rows))
    than = others[0] if len(others) == 1 else ""
    x = alt.X("value:Q", scale=scale, axis=times_axis(f"speed, {than} = 1" if than else "times as fast as", rows))
    layers = [rule_at(alt.Chart(), x=alt.datum(1)), *_marks(rows, x, scale, legend=not than)]
    chart = alt.layer(*layers, data=data(rows, FIELDS)).properties(width=WIDTH, height=_height(rows))
    text = f"Times as fast as {listed(others)}, by variant and setting"
    return finish(_by_workload(chart, rows, "y"), text, _table(rows, metric), title=title)


def curve(
    frame: pd.DataFrame, along: str, metric: str, *, title: str = "", names: Mapping[str, str] | None = None
) -> alt.TopLevelMixin:
    """A metric along a numeric parameter or condition, such as density or bits; one line a contestant.

    Parameters
    ----------
    along : str
        A name among the rows' parameters or conditions; rows without a number for it are left out.
    metric : str
        The id of the metric to be drawn.
    title : str
        The finding, a sentence.
    names : mapping of str to str, optional
        What to call who was measured, such as `{"baseline": "untouched", "self": "pruned"}`.

    Raises
    ------
    ValueError
        If the rows hold no figure of the metric, or none has a number for `along`.
    """
    import altair as alt

    rows = _rows(frame, metric, names)
    known = [row for row in rows if isinstance(row["stands"].get(along), (int, float))]
    if not known:
        held = ", ".join(sorted({name for row in rows for name in row["stands"]})) or "no condition"
        raise ValueError(f"no row has a number for {along!r}; they have {held}")
    _label(known, without=(along,))
    alone = len({row["technique"] for row in known}) == 1
    several = len({row["label"] for row in known}) > 1
    for row in known:
        row["x"] = row["stands"][along]
        if several:
            named = row["who"] != "self" or not alone or bool(names and "self" in names)
            row["contestant"] = f"{row['contestant']}, {row['label']}" if named else row["label"]
    unit, xs = known[0]["unit"], sorted({row["x"] for row in known if row["x"] != 0})
    if log := len(xs) > 2 and xs[0] > 0 and xs[-1] / xs[0] >= 10:
        known = [row for row in known if row["x"] > 0]  # zero has no place there; the table has it
    else:
        xs = sorted({row["x"] for row in known})
    marked: Any = {"values": xs} if len(xs) <= MOST_TICKS else {"values": decades(xs)} if log else {"tickCount": 5}
    scale, ticks = _scale(known)
    colour, shape = _contestants(known)
    x = alt.X(
        "x:Q", title=along.replace("_", " "), axis=alt.Axis(format=".4~g", labelOverlap=True, **marked),
        scale=log_scale(xs) if log else alt.Scale(zero=False, nice=False, padding=8),
    )  # fmt: skip
    y = alt.Y("value:Q", scale=scale, axis=axis(metric, unit, ticks))
    base = alt.Chart().encode(x=x)
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour)
    dash = alt.condition("datum.who == 'self'", alt.value([1, 0]), alt.value([5, 3]))
    line = base.mark_line(strokeWidth=2).encode(y=y, color=colour, strokeDash=dash, detail="contestant:N")
    marks = base.mark_point(filled=True, size=60, opacity=1).encode(
        y=y, tooltip=_tips("contestant", "x", "text"), **_filled(known, colour, shape)
    )
    height = 240 if len({row["workload"] for row in known}) == 1 else 150
    chart = alt.layer(band, line, marks, data=data(known, FIELDS)).properties(width=WIDTH, height=height)
    text = f"{words(metric)} along {along.replace('_', ' ')} for {listed(r['contestant'] for r in known)}"
    return finish(_by_workload(chart, known, "y"), text, _table(rows, metric), title=title)


def trade_off(
    frame: pd.DataFrame, x: str, y: str, *, title: str = "", names: Mapping[str, str] | None = None
) -> alt.TopLevelMixin:
    """Worth against cost: each variant a point with the interval of its worth, the baseline's worth a rule.

    Parameters
    ----------
    x, y : str
        Ids of the metrics on the axes. The two figures of a variant are paired by workload and setting, or by
        variant alone where the cost does not depend on them.
    title : str
        The finding, a sentence.
    names : mapping of str to str, optional
        What to call who was measured, such as `{"baseline": "untouched", "self": "pruned"}`.

    Raises
    ------
    ValueError
        If the rows hold no figure of either, or no variant has both.
    """
    import altair as alt

    costs, rows = _rows(frame, x, names), _rows(frame, y, names)
    _label(rows)
    paired = _paired(costs, rows)
    if not paired:
        raise ValueError(f"no variant has both {x!r} and {y!r}")
    spans, unit = [row["x"] for row in paired], costs[0]["unit"]
    ticks = decades(spans) if _wide(spans, unit) else None
    colour, shape = _contestants(paired)
    scale = alt.Scale(zero=False, nice=False, padding=10)
    base = alt.Chart().encode(
        x=alt.X(
            "x:Q", axis=axis(x, unit, ticks), scale=log_scale(spans) if ticks else alt.Scale(zero=False, padding=10)
        )
    )
    spread = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour)
    marks = base.mark_point(filled=True, size=80, opacity=1).encode(
        y=alt.Y("value:Q", scale=scale, axis=axis(y, rows[0]["unit"])), tooltip=_tips("contestant", "label", "text"),
        **_filled(paired, colour, shape),
    )  # fmt: skip
    layers = [spread, marks]
    if any(row["who"] == "baseline" for row in paired):
        level = alt.Chart().transform_filter("datum.who == 'baseline'")
        layers.append(rule_at(level, y="mean(value):Q"))
    height = 260 if len({row["workload"] for row in paired}) == 1 else 180
    chart = alt.layer(*layers, data=data(paired, FIELDS)).properties(width=WIDTH, height=height)
    text = f"{words(y)} against {words(x)} for {listed(row['contestant'] for row in paired)}"
    return finish(_by_workload(chart, paired, "y"), text, _table(paired, y), title=title)


def front(
    frame: pd.DataFrame, x: str, y: str, *, title: str = "", names: Mapping[str, str] | None = None
) -> alt.TopLevelMixin:
    """Worth against cost of several techniques, one colour each; a line joins what no other beats, by workload.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows of `tx.measurements`; the techniques' own are drawn, and one baseline a workload.
    x, y : str
        Ids of the metrics: a cost, of which less is better, and a worth, of which more is.
    title : str
        The finding, a sentence.
    names : mapping of str to str, optional
        What to call the baseline, such as `{"baseline": "untouched"}`, and the techniques, by their ids.

    Raises
    ------
    ValueError
        If the rows hold no figure of either, or no variant has both.
    """
    import altair as alt

    called = names or {}
    frame = frame[frame.who.isin(["self", "baseline"])]
    costs, rows = _rows(frame, x), _rows(frame, y)
    _label(rows)
    paired, seen = [], set()
    for row in _paired(costs, rows):
        if row["who"] == "baseline":
            if row["workload"] in seen:
                continue
            seen.add(row["workload"])
        who = "baseline" if row["who"] == "baseline" else row["technique"]
        paired.append({**row, "contestant": called.get(who, who)})
    if not paired:
        raise ValueError(f"no variant has both {x!r} and {y!r}")
    spans, unit = [row["x"] for row in paired], costs[0]["unit"]
    ticks = decades(spans) if _wide(spans, unit) else None
    colour, shape = _contestants(paired)
    scale = alt.Scale(zero=False, nice=False, padding=10)
    base = alt.Chart().encode(
        x=alt.X(
            "x:Q", axis=axis(x, unit, ticks), scale=log_scale(spans) if ticks else alt.Scale(zero=False, padding=10)
        ),
        y=alt.Y("value:Q", scale=scale, axis=axis(y, rows[0]["unit"])),
    )
    for row in paired:
        row["best"] = not any(_dominates(other, row) for other in paired)
    line = base.transform_filter("datum.best").mark_line(interpolate="step-after", strokeWidth=1, color=PALETTE["grey"])
    spread = base.mark_rule(strokeWidth=1).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour)
    marks = base.mark_point(filled=True, size=60, opacity=1).encode(
        tooltip=_tips("contestant", "label", "text"), **_filled(paired, colour, shape)
    )
    height = 300 if len({row["workload"] for row in paired}) == 1 else 220
    drawn = alt.layer(line, spread, marks, data=data(paired, (*FIELDS, "best"))).properties(width=WIDTH, height=height)
    text = f"{words(y)} against {words(x)} of {listed(row['contestant'] for row in paired)}; a line joins the best"
    return finish(_by_workload(drawn, paired, "x", "y"), text, _table(paired, y), title=title)


def _dominates(other: Row, one: Row) -> bool:
    """Whether another of the workload costs no more and is worth no less, and not the same."""
    if other["workload"] != one["workload"] or (other["x"], other["value"]) == (one["x"], one["value"]):
        return False
    return bool(other["x"] <= one["x"] and other["value"] >= one["value"])


# --- from tidy rows to what is drawn --------------------------------------------------------------------------------


def _rows(frame: pd.DataFrame, metric: str, names: Mapping[str, str] | None = None) -> list[Row]:
    """The frame's rows of one metric that have a value, each with a name for its contestant and its text."""
    every = frame.to_dict("records")
    rows = [row for row in every if row["metric"] == metric and math.isfinite(row["value"])]
    if not rows:
        held = ", ".join(sorted({row["metric"] for row in every})) or "nothing"
        raise ValueError(f"no figure of {metric!r} in these rows; they hold {held}")
    several = len({row["technique"] for row in rows}) > 1
    for row in rows:
        own, other = row["who"] == "self", f" of {row['technique']}" if several else ""
        called = (names or {}).get(row["who"])
        row["contestant"] = called + other if called else row["technique"] if own else f"{row['who']}{other}"
        row["text"] = interval(row["value"], row["low"], row["high"], row["unit"])
        row["stands"] = {**row["parameters"], **row["conditions"]}
        row["hollow"] = row["store"] == "here"
    return rows


def _label(rows: Sequence[Row], without: Iterable[str] = ()) -> None:
    """Name each row by those of its conditions that vary among the rows: the rest is the same for all."""
    names = dict.fromkeys(name for row in rows for name in row["stands"])
    varying = [n for n in names if n not in without and len({str(row["stands"].get(n)) for row in rows}) > 1]
    for row in rows:
        parts = [(name, row["stands"][name]) for name in varying if name in row["stands"]]
        said = [value for _, value in parts if isinstance(value, str)]
        sizes: dict[tuple[str, str], list[str]] = {}  # extents that are equal are said together: k=m=n 512
        for name, value in parts:
            if not isinstance(value, str):
                sizes.setdefault(("" if len(name) == 1 else name, _plain(value)), []).append(name)
        said += [f"{'='.join(names)} {size}".replace("_", " ") for (_, size), names in sizes.items()]
        row["label"] = ", ".join(said) or "all"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _wide(values: Sequence[float], unit: str) -> bool:
    """Whether the values want a logarithmic axis."""
    return unit != "fraction" and min(values) > 0 and max(values) / min(values) > 30


def _scale(rows: Sequence[Row]) -> tuple[Any, list[float] | None]:
    """The scale of the values, and its ticks where it is logarithmic."""
    import altair as alt

    unit = rows[0]["unit"]
    if _wide([row["value"] for row in rows], unit):
        _from_the_edge(rows)
        return log_scale(reach(rows)), decades(reach(rows))
    return alt.Scale(zero=unit not in ("fraction", "dB")), None


def _height(rows: Sequence[Row]) -> Any:
    return step(list(dict.fromkeys(row["label"] for row in rows)))


def _from_the_edge(rows: Sequence[Row]) -> None:
    """Let intervals that reach zero begin where the logarithmic axis does; the table says them whole."""
    edge = min(row[name] for row in rows for name in ("value", "low") if row[name] > 0)
    for row in rows:
        row["low"] = max(row["low"], edge) if math.isfinite(row["low"]) else row["low"]


def _paired(costs: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Each row of worth with its cost as `x`, found by ever fewer conditions."""
    every = ("technique", "variant", "who", "workload", "setting")
    keys = [every[:count] for count in (5, 4, 3)]
    found: dict[tuple[Any, ...], Row] = {}
    for names in keys:
        for cost in costs:
            found.setdefault(tuple(cost[name] for name in names), cost)
    paired = []
    for row in rows:
        held = [found[key] for names in keys if (key := tuple(row[name] for name in names)) in found]
        for cost in held[:1]:
            paired.append({**row, "x": cost["value"], "text": f"{row['text']} at {cost['text']}"})
    return paired


def _table(rows: Sequence[Row], metric: str) -> dict[str, Any]:
    """The drawn figures as a table; columns that say the same in every row are left out."""
    taken = {True: "here", False: "reference"}
    columns: dict[str, Any] = {
        "workload": lambda row: row["workload"], "technique": lambda row: row["technique"],
        "contestant": lambda row: row["who"], "variant": lambda row: row["variant"] or "—",
        "setting": lambda row: row["setting"] or "—", metric: lambda row: row["text"], "n": lambda row: row["n"],
        "taken": lambda row: taken[row["hollow"]] + (", stale" if row["stale"] else ""),
    }  # fmt: skip
    kept = {name: get for name, get in columns.items() if name == metric or len({get(row) for row in rows}) > 1}
    return {"columns": list(kept), "rows": [[str(get(row)) for get in kept.values()] for row in rows]}


# --- marks ----------------------------------------------------------------------------------------------------------


def _marks(rows: Sequence[Row], x: Any, scale: Any, legend: bool = True) -> list[Any]:
    """Intervals and marks on one named line each."""
    import altair as alt

    colour, shape = _contestants(rows, legend)
    order = sorted({row["label"] for row in rows}, key=natural)
    base = alt.Chart().encode(y=lines(order))
    spread = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", color=colour)
    marks = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=x, tooltip=_tips("contestant", "label", "text"), **_filled(rows, colour, shape)
    )
    return [spread, marks]


def _contestants(rows: Sequence[Row], legend: bool = True) -> tuple[Any, Any]:
    """Colour and shape by who: the technique first, then its peers; what it is measured against in grey."""
    import altair as alt

    names = list(dict.fromkeys(row["contestant"] for row in sorted(rows, key=lambda row: row["who"] != "self")))
    grey = (
        {row["contestant"] for row in rows if row["who"] in ("baseline", "random", "fine-tuned")} if legend else set()
    )
    bright = [colour for name, colour in PALETTE.items() if name != "grey"]
    coloured = [name for name in names if name not in grey]
    colours = [PALETTE["grey"] if n in grey else bright[coloured.index(n) % len(bright)] for n in names]
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(names))]
    columns = 2 if max(map(len, names)) <= SHORT else 1  # what a phone is wide
    shown = legend and (len(names) > 1 or rows[0]["who"] != "self")
    key = alt.Legend(title=None, columns=columns) if shown else None
    return (
        alt.Color("contestant:N", sort=names, scale=alt.Scale(domain=names, range=colours), legend=key),
        alt.Shape("contestant:N", sort=names, scale=alt.Scale(domain=names, range=shapes), legend=key),
    )


def _filled(rows: Sequence[Row], colour: Any, shape: Any) -> dict[str, Any]:
    """The reference filled, what was taken here hollow."""
    import altair as alt

    if not any(row["hollow"] for row in rows):
        return {"color": colour, "shape": shape}
    inside = alt.condition("datum.hollow", alt.value("transparent"), colour)
    return {"stroke": colour, "shape": shape, "fill": inside}


def _tips(*fields: str) -> list[Any]:
    import altair as alt

    titles = {"contestant": "who", "label": "conditions", "text": "value", "x": "at"}
    return [alt.Tooltip(f"{field}:{'Q' if field == 'x' else 'N'}", title=titles[field]) for field in fields]


def _by_workload(chart: Any, rows: Sequence[Row], *independent: str) -> Any:
    """One panel a workload, below each other, with scales of its own where they would hide what differs."""
    import altair as alt

    if len({row["workload"] for row in rows}) == 1:
        return chart
    panels = chart.facet(facet=alt.Facet("workload:N", title=None), columns=1, spacing=18)
    return panels.resolve_scale(**dict.fromkeys(independent, "independent"))
