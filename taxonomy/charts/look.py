"""What all charts share: palette, type, axes, and the passage from plain rows to Altair."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taxonomy.quantity import symbol

if TYPE_CHECKING:
    import altair as alt

__all__ = [
    "LEVELS", "MOST_TICKS", "NEUTRAL", "PALETTE", "ROW", "SHAPES", "SHORT", "WIDTH", "Row", "axis", "data", "decades",
    "finish", "lines", "listed", "log_scale", "natural", "reach", "rule_at", "step", "times_axis", "times_scale",
    "words",
]  # fmt: skip

Row = dict[str, Any]
LEVELS = ("model", "arithmetic", "implementation")
PALETTE = {
    "blue": "#2b7bba", "vermilion": "#d1590b", "green": "#0a8a60", "purple": "#b0609a", "ochre": "#a07a10",
    "grey": "#7d7d7d",
}  # fmt: skip
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
NEUTRAL = "#767676"
"""Of text, where no page gives it a better colour; book.css replaces exactly this one."""
WIDTH = 460
ROW = 24
MOST_TICKS = 8
SHORT = 16
"""Characters of a name that two columns of a legend have room for on a phone."""
LONG = 22
"""Characters beyond which a name stands above its line, not beside it."""


def data(rows: Sequence[Row], names: Iterable[str] | None = None) -> Any:
    """Rows inline, with the fields named (or all); what is not finite is null."""
    import altair as alt

    def clean(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    fields = list(names or dict.fromkeys(name for row in rows for name in row))
    return alt.Data(values=[{name: clean(row.get(name)) for name in fields} for row in rows])


def words(metric: str) -> str:
    """A metric's id as an axis says it.

    Examples
    --------
    >>> words("effective_macs")
    'effective multiply-accumulates'
    """
    return metric.replace("_", " ").replace("macs", "multiply-accumulates").replace("sqnr", "signal to noise")


def axis(metric: str, unit: str, values: Sequence[float] | None = None) -> Any:
    """An axis of a metric, labelled in its unit; ticked at `values` where they are given."""
    import altair as alt

    mark = symbol(unit)
    title = words(metric) + (f" ({mark})" if mark and mark != "MAC" else "")
    ticks: Any = {"tickCount": 5} if values is None else {"values": list(values)}
    if unit == "fraction":
        return alt.Axis(title=title, labelExpr="format(datum.value * 100, '~g')", **ticks)
    return alt.Axis(title=title, format=".4~g" if unit in ("dB", "ratio") else "~s", labelOverlap=True, **ticks)


def decades(values: Iterable[float]) -> list[float]:
    """Ticks of a logarithmic axis: 1, 2 and 5 of each ten; the tens alone where it spans more than three of them.

    Examples
    --------
    >>> decades([0.3, 7])
    [0.5, 1.0, 2.0, 5.0]
    """
    low, high = _reach(values)
    steps = (1, 2, 5) if high / low < 1e3 else (1,)
    tens = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    ticks = [t for p in tens for s in steps if low <= (t := float(f"{s}e{p}")) <= high]
    return ticks[:: 1 + len(ticks) // 9]


def log_scale(values: Iterable[float]) -> Any:
    """A logarithmic scale that ends where the values do."""
    import altair as alt

    low, high = _reach(values)
    room = (high / low) ** 0.03
    return alt.Scale(type="log", domain=[low / room, high * room], nice=False)


def _reach(values: Iterable[float]) -> tuple[float, float]:
    known = [value for value in values if value and value > 0 and math.isfinite(value)]
    return min(known), max(known)


def reach(rows: Sequence[Row]) -> list[float]:
    """All that is drawn of these rows: values and the ends of their intervals."""
    return [row[name] for row in rows for name in ("value", "low", "high")]


def lines(order: Sequence[str], field: str = "label") -> Any:
    """A named line for each of several things; nothing where there is only one."""
    import altair as alt

    if len(order) == 1:
        return alt.Y(f"{field}:N", axis=None)
    inside: Any = {"labelAlign": "left", "labelPadding": -1, "labelOffset": -12, "labelBaseline": "middle"}
    long = max(map(len, order)) > LONG
    look: Any = {
        "grid": True,
        "domain": False,
        "ticks": False,
        **(inside if long else {}),
        "labelLimit": 330,
        "zindex": 1,
    }
    return alt.Y(f"{field}:N", sort=list(order), title=None, axis=alt.Axis(**look))


def step(order: Sequence[str]) -> Any:
    """The height of such a line: long names stand above their lines, so that a phone shows them whole."""
    import altair as alt

    return alt.Step(ROW if max(map(len, order)) <= LONG else 40)


def times_scale(rows: Sequence[Row]) -> Any:
    """A logarithmic scale of ratios that always shows the one."""
    import altair as alt

    low, high = _reach([0.8, 1.25, *reach(rows)])
    return alt.Scale(type="log", domain=[low * 0.95, high * 1.05], nice=False)


def times_axis(title: str, rows: Sequence[Row]) -> Any:
    """The axis of such a scale."""
    import altair as alt

    ticks = decades(times_scale(rows).domain)
    return alt.Axis(title=title, labelExpr="format(datum.value, '~g') + '×'", labelOverlap=True, values=ticks)


def rule_at(base: Any, **at: Any) -> Any:
    """A dashed rule where nothing is gained or lost."""
    return base.mark_rule(color=PALETTE["grey"], strokeDash=[5, 4], strokeWidth=1.5).encode(**at)


def natural(label: str) -> list[Any]:
    """Sort numbers within words by their size.

    Examples
    --------
    >>> sorted(["n 1024", "n 64", "density 0.1", "density 0.05"], key=natural)
    ['density 0.05', 'density 0.1', 'n 64', 'n 1024']
    """
    return [float(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+\.?\d*(?:e[+-]?\d+)?)", label))]


def listed(names: Iterable[str]) -> str:
    """Names as a sentence has them.

    Examples
    --------
    >>> listed(["posit", "bfloat16", "posit", "fp32"])
    'posit, bfloat16 and fp32'
    """
    unique = list(dict.fromkeys(names))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} and {unique[-1]}"


def finish(
    chart: Any, description: str, table: Mapping[str, Any] | None = None, least: int | None = None, title: str = ""
) -> alt.TopLevelMixin:
    """One look for all: no ground, readable type, the legend below, so that a phone keeps its width for the figures.

    The title is the chart's finding, a sentence; it is set by the page, where it breaks into lines and can be searched.
    """
    from taxonomy.charts.rendering import enable

    enable()
    usermeta = {key: value for key, value in (("table", table), ("least", least), ("title", title)) if value}
    type_ = {"labelFontSize": 13, "titleFontSize": 13, "labelColor": NEUTRAL, "titleColor": NEUTRAL}
    return (
        chart.properties(description=description, usermeta=usermeta, background="transparent", padding=4)
        .configure(font="Liberation Sans, Helvetica, Arial, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            titleFontWeight="normal", gridColor="#8884", domainColor="#888", tickColor="#888", labelLimit=190,
            titlePadding=8, labelSeparation=6, **type_,
        )
        .configure_legend(
            orient="bottom", direction="horizontal", columns=2, labelLimit=220, symbolStrokeWidth=2, symbolOpacity=1,
            titleFontWeight="normal", **type_,
        )
        .configure_title(fontSize=13, color=NEUTRAL, anchor="start", fontWeight="bold")
        .configure_header(labelFontSize=13, labelColor=NEUTRAL, title=None, labelAnchor="start", labelFontWeight="bold")
    )  # fmt: skip
