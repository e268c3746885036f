"""What all charts share: palette, type, axes, and the passage from plain rows to Altair."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taxonomy.quantity import symbol

if TYPE_CHECKING:
    import altair as alt

__all__ = [
    "LEVELS",
    "NEUTRAL",
    "PALETTE",
    "ROW",
    "SHAPES",
    "WIDTH",
    "Row",
    "axis",
    "data",
    "finish",
    "listed",
    "rule_at",
]

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


def data(rows: Sequence[Row], names: Iterable[str] | None = None) -> Any:
    """Rows inline, with the fields named (or all); what is not finite is null."""
    import altair as alt

    def clean(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    fields = list(names or dict.fromkeys(name for row in rows for name in row))
    return alt.Data(values=[{name: clean(row.get(name)) for name in fields} for row in rows])


def axis(metric: str, unit: str) -> Any:
    """An axis of a metric, labelled in its unit."""
    import altair as alt

    mark = symbol(unit)
    title = metric.replace("_", " ") + (f" ({mark})" if mark else "")
    if unit == "fraction":
        return alt.Axis(title=title, labelExpr="format(datum.value * 100, '~g')", tickCount=5)
    return alt.Axis(title=title, format=".4~g" if unit in ("dB", "ratio") else "~s", tickCount=5, labelOverlap=True)


def lines(order: Sequence[str], field: str = "label") -> Any:
    """A named line for each of several things; nothing where there is only one."""
    import altair as alt

    if len(order) == 1:
        return alt.Y(f"{field}:N", axis=None)
    return alt.Y(f"{field}:N", sort=list(order), title=None, axis=alt.Axis(grid=True, domain=False, ticks=False))


def times_scale(rows: Sequence[Row]) -> Any:
    """A logarithmic scale of ratios that always shows the one."""
    import altair as alt

    reach = [row[name] for row in rows for name in ("value", "low", "high") if row[name] and row[name] > 0]
    return alt.Scale(type="log", domain=[min(0.8, *reach) * 0.95, max(1.25, *reach) * 1.05])


def times_axis(title: str, rows: Sequence[Row]) -> Any:
    """The axis of such a scale, ticked at 1, 2 and 5; at the tens alone where it spans more than three of them."""
    import altair as alt

    low, high = times_scale(rows).domain
    steps = (1, 2, 5) if high / low < 1e3 else (1,)
    ticks = [t for p in range(-6, 7) for s in steps if low <= (t := float(f"{s}e{p}")) <= high]
    return alt.Axis(title=title, labelExpr="format(datum.value, '~g') + '×'", labelOverlap=True, values=ticks)


def rule_at(base: Any, **at: Any) -> Any:
    """A dashed rule where nothing is gained or lost."""
    return base.mark_rule(color=PALETTE["grey"], strokeDash=[5, 4], strokeWidth=1.5).encode(**at)


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
    chart: Any, description: str, table: Mapping[str, Any] | None = None, least: int | None = None
) -> alt.TopLevelMixin:
    """One look for all: no ground, readable type, the legend below, so that a phone keeps its width for the figures."""
    from taxonomy.charts.rendering import enable

    enable()
    usermeta = {key: value for key, value in (("table", table), ("least", least)) if value}
    words = {"labelFontSize": 13, "titleFontSize": 13, "labelColor": NEUTRAL, "titleColor": NEUTRAL}
    return (
        chart.properties(description=description, usermeta=usermeta, background="transparent", padding=4)
        .configure(font="Liberation Sans, Helvetica, Arial, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            titleFontWeight="normal", gridColor="#8884", domainColor="#888", tickColor="#888", labelLimit=190,
            titlePadding=8, **words,
        )
        .configure_legend(
            orient="bottom", direction="horizontal", columns=2, labelLimit=220, symbolStrokeWidth=2, symbolOpacity=1,
            titleFontWeight="normal", **words,
        )
        .configure_title(fontSize=13, color=NEUTRAL, anchor="start", fontWeight="bold")
        .configure_header(labelFontSize=13, labelColor=NEUTRAL, title=None, labelAnchor="start", labelFontWeight="bold")
    )  # fmt: skip
