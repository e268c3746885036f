"""Figures of techniques beside their baselines and peers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from taxonomy.charts.look import (
    PALETTE,
    ROW,
    SHAPES,
    WIDTH,
    Row,
    axis,
    data,
    finish,
    lines,
    listed,
    rule_at,
    times_axis,
    times_scale,
)  # fmt: skip
from taxonomy.quantity import interval

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

__all__ = ["beside_peers", "curve", "ratio_strip", "trade_off"]

FIELDS = ("contestant", "label", "workload", "value", "low", "high", "text", "hollow", "x")


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
    wide = _wide([row["value"] for row in rows], unit)
    if wide:
        _from_the_edge(rows)
    scale = alt.Scale(type="log") if wide else alt.Scale(zero=unit not in ("fraction", "dB"))
    x = alt.X("value:Q", scale=scale, axis=axis(metric, unit))
    chart = alt.layer(*_marks(rows, x, scale), data=data(rows, FIELDS)).properties(width=WIDTH, height=alt.Step(ROW))
    text = f"{metric.replace('_', ' ')} of {listed(row['contestant'] for row in rows)}, by variant and setting"
    return finish(_by_workload(chart, rows, "x", "y"), text, _table(rows, metric))


def ratio_strip(frame: pd.DataFrame, metric: str = "speedup") -> alt.TopLevelMixin:
    """How many times faster than each contestant, on a logarithmic axis; left of the rule at one it is slower.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows of `tx.measurements`; those whose metric is a paired ratio are drawn.

    Raises
    ------
    ValueError
        If the rows hold no figure of the metric.
    """
    import altair as alt

    rows = _rows(frame, metric)
    _label(rows)
    scale = times_scale(rows)
    x = alt.X("value:Q", scale=scale, axis=times_axis("times faster than", rows))
    layers = [rule_at(alt.Chart(), x=alt.datum(1)), *_marks(rows, x, scale)]
    chart = alt.layer(*layers, data=data(rows, FIELDS)).properties(width=WIDTH, height=alt.Step(ROW))
    text = f"Times faster than {listed(row['contestant'] for row in rows)}, by variant and setting"
    return finish(_by_workload(chart, rows, "y"), text, _table(rows, metric))


def curve(frame: pd.DataFrame, along: str, metric: str) -> alt.TopLevelMixin:
    """A metric along a numeric parameter or condition, such as density or bits; one line a contestant.

    Parameters
    ----------
    along : str
        A name among the rows' parameters or conditions; rows without a number for it are left out.
    metric : str
        The id of the metric to be drawn.

    Raises
    ------
    ValueError
        If the rows hold no figure of the metric, or none has a number for `along`.
    """
    import altair as alt

    rows = _rows(frame, metric)
    known = [row for row in rows if isinstance(row["stands"].get(along), (int, float))]
    if not known:
        names = ", ".join(sorted({name for row in rows for name in row["stands"]})) or "no condition"
        raise ValueError(f"no row has a number for {along!r}; they have {names}")
    _label(known, without=(along,))
    several = len({row["label"] for row in known}) > 1
    for row in known:
        row["x"] = row["stands"][along]
        row["contestant"] += f", {row['label']}" if several else ""
    unit, xs = known[0]["unit"], sorted({row["x"] for row in known if row["x"] != 0})
    if log := len(xs) > 2 and xs[0] > 0 and xs[-1] / xs[0] >= 10:
        known = [row for row in known if row["x"] > 0]  # zero has no place there; the table has it
    wide = _wide([row["value"] for row in known], unit)
    if wide:
        _from_the_edge(known)
    scale = alt.Scale(type="log") if wide else alt.Scale(zero=unit not in ("fraction", "dB"))
    colour, shape = _contestants(known)
    x = alt.X(
        "x:Q", title=along.replace("_", " "), scale=alt.Scale(type="log" if log else "linear", zero=False),
        axis=alt.Axis(tickCount=5, format=".4~g", labelOverlap=True),
    )  # fmt: skip
    y = alt.Y("value:Q", scale=scale, axis=axis(metric, unit))
    base = alt.Chart().encode(x=x)
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour)
    line = base.mark_line(strokeWidth=2).encode(y=y, color=colour)
    marks = base.mark_point(filled=True, size=60, opacity=1).encode(
        y=y, tooltip=_tips("contestant", "x", "text"), **_filled(known, colour, shape)
    )
    chart = alt.layer(band, line, marks, data=data(known, FIELDS)).properties(width=WIDTH, height=240)
    text = f"{metric.replace('_', ' ')} along {along.replace('_', ' ')} for {listed(r['contestant'] for r in known)}"
    return finish(_by_workload(chart, known, "y"), text, _table(rows, metric))


def trade_off(frame: pd.DataFrame, x: str, y: str) -> alt.TopLevelMixin:
    """Worth against cost: each variant a point with the interval of its worth, the baseline's worth a rule.

    Parameters
    ----------
    x, y : str
        Ids of the metrics on the axes. The two figures of a variant are paired by workload and setting, or by
        variant alone where the cost does not depend on them.

    Raises
    ------
    ValueError
        If the rows hold no figure of either, or no variant has both.
    """
    import altair as alt

    costs, rows = _rows(frame, x), _rows(frame, y)
    _label(rows)
    paired = _paired(costs, rows)
    if not paired:
        raise ValueError(f"no variant has both {x!r} and {y!r}")
    wide = _wide([row["x"] for row in paired], costs[0]["unit"])
    colour, shape = _contestants(paired)
    scale = alt.Scale(zero=False)
    base = alt.Chart().encode(
        x=alt.X("x:Q", axis=axis(x, costs[0]["unit"]), scale=alt.Scale(type="log" if wide else "linear", zero=False))
    )
    spread = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour)
    marks = base.mark_point(filled=True, size=80, opacity=1).encode(
        y=alt.Y("value:Q", scale=scale, axis=axis(y, rows[0]["unit"])), tooltip=_tips("contestant", "label", "text"),
        **_filled(paired, colour, shape),
    )  # fmt: skip
    layers = [spread, marks]
    if any(row["who"] == "baseline" for row in paired):
        level = alt.Chart().transform_filter("indexof(datum.contestant, 'baseline') == 0")
        layers.append(rule_at(level, y="mean(value):Q"))
    chart = alt.layer(*layers, data=data(paired, FIELDS)).properties(width=WIDTH, height=260)
    text = f"{y.replace('_', ' ')} against {x.replace('_', ' ')} for {listed(row['contestant'] for row in paired)}"
    return finish(_by_workload(chart, paired, "y"), text, _table(paired, y))


# --- from tidy rows to what is drawn --------------------------------------------------------------------------------


def _rows(frame: pd.DataFrame, metric: str) -> list[Row]:
    """The frame's rows of one metric that have a value, each with a name for its contestant and its text."""
    every = frame.to_dict("records")
    rows = [row for row in every if row["metric"] == metric and math.isfinite(row["value"])]
    if not rows:
        held = ", ".join(sorted({row["metric"] for row in every})) or "nothing"
        raise ValueError(f"no figure of {metric!r} in these rows; they hold {held}")
    several = len({row["technique"] for row in rows}) > 1
    for row in rows:
        own, other = row["who"] == "self", f" of {row['technique']}" if several else ""
        row["contestant"] = row["technique"] if own else f"{row['who']}{other}"
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
        words = [value for _, value in parts if isinstance(value, str)]
        sizes: dict[tuple[type, str], list[str]] = {}  # names of equal numbers are said together: k=m=n 512
        for name, value in parts:
            if not isinstance(value, str):
                sizes.setdefault((type(value), _plain(value)), []).append(name)
        words += [f"{'='.join(names)} {size}" for (_, size), names in sizes.items()]
        row["label"] = ", ".join(words) or "all"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _natural(label: str) -> list[Any]:
    """Sort numbers within words by their size.

    Examples
    --------
    >>> sorted(["n 1024", "n 64", "density 0.1", "density 0.05"], key=_natural)
    ['density 0.05', 'density 0.1', 'n 64', 'n 1024']
    """
    return [float(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+\.?\d*(?:e[+-]?\d+)?)", label))]


def _wide(values: Sequence[float], unit: str) -> bool:
    """Whether the values want a logarithmic axis."""
    return unit != "fraction" and min(values) > 0 and max(values) / min(values) > 30


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


def _marks(rows: Sequence[Row], x: Any, scale: Any) -> list[Any]:
    """Intervals and marks on one named line each."""
    import altair as alt

    colour, shape = _contestants(rows)
    order = sorted({row["label"] for row in rows}, key=_natural)
    base = alt.Chart().encode(y=lines(order))
    spread = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", color=colour)
    marks = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=x, tooltip=_tips("contestant", "label", "text"), **_filled(rows, colour, shape)
    )
    return [spread, marks]


def _contestants(rows: Sequence[Row]) -> tuple[Any, Any]:
    """Colour and shape by who: the technique first, then its peers; what it is measured against in grey."""
    import altair as alt

    names = list(dict.fromkeys(row["contestant"] for row in sorted(rows, key=lambda row: row["who"] != "self")))
    grey = {row["contestant"] for row in rows if row["who"] in ("baseline", "random", "fine-tuned")}
    bright = [colour for name, colour in PALETTE.items() if name != "grey"]
    coloured = [name for name in names if name not in grey]
    colours = [PALETTE["grey"] if n in grey else bright[coloured.index(n) % len(bright)] for n in names]
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(names))]
    columns = 1 if max(map(len, names)) > 20 else 2  # what a phone is wide
    legend = alt.Legend(title=None, columns=columns) if len(names) > 1 or rows[0]["who"] != "self" else None
    return (
        alt.Color("contestant:N", sort=names, scale=alt.Scale(domain=names, range=colours), legend=legend),
        alt.Shape("contestant:N", sort=names, scale=alt.Scale(domain=names, range=shapes), legend=legend),
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
