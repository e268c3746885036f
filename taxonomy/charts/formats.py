"""All number formats at a glance: what a bit buys on real weights, where the values lie, what a network notices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from taxonomy.charts.look import PALETTE, SHAPES, WIDTH, Row, axis, data, finish, listed, rule_at
from taxonomy.quantity import interval

if TYPE_CHECKING:
    import altair as alt
    import numpy as np

    from taxonomy.query import Taxonomy

__all__ = ["accuracy_by_bits", "format_map", "value_density"]

REAL = ("efficientnet-lite0", "silero-vad", "mnist-cnn")
HARD = ("noisy-digits-cnn", "mnist-cnn", "vowels-gru")
OTHERS = "other families"
HEIGHT = 210


def format_map(
    tx: Taxonomy, family: str | None = None, workloads: Sequence[str] = REAL, root: str = "../", *, title: str = ""
) -> alt.TopLevelMixin:
    """Signal to noise of a network's weights against bits a number: better is higher and further left.

    Parameters
    ----------
    family : str, optional
        Whose formats have colours; the others are grey. All are coloured by family without it.
    workloads : sequence of str
        A panel each.
    root : str
        The way from the page to the folder of all pages; marks and the table link to the techniques' pages.
    title : str
        The finding, a sentence.

    Raises
    ------
    ValueError
        If no format has both figures on these workloads.
    """
    import altair as alt

    rows = _figures(tx, "sqnr", workloads, family, root, on=("weights",))
    for row in rows:
        octaves = row["range"] / (20 * math.log10(2)) if math.isfinite(row["range"]) else None
        row["reach"] = f"{octaves:.0f} octaves" if octaves else "set by each block"
        row["size"] = min(octaves or 40, 260)
    colour, shape = _legend(rows)
    marks = (
        alt.Chart()
        .mark_point(filled=True, opacity=0.9)
        .encode(
            x=alt.X("bits:Q", scale=alt.Scale(type="log", domain=[1.8, 36]), axis=_bits_axis()),
            y=alt.Y("value:Q", axis=axis("sqnr", "dB")),
            size=alt.Size("size:Q", scale=alt.Scale(domain=[0, 260], range=[35, 230]), legend=None),
            color=colour, shape=shape, href="href:N", order=alt.Order("rank:Q"),
            tooltip=[alt.Tooltip(f"{name}:N") for name in ("format", "text", "reach")],
        )
    )  # fmt: skip
    text = (
        f"Signal to noise of weights against bits a number, by format, on {listed(workloads)}; larger marks reach wider"
    )
    chart = alt.layer(
        marks,
        data=data(rows, ("bits", "value", "group", "format", "text", "reach", "size", "workload", "href", "rank")),
    )
    columns = ("workload", "format", "bits", "sqnr", "range")
    table = [
        [row["workload"], (row["format"], row["href"]), f"{row['bits']:.2f}", row["text"], row["reach"]] for row in rows
    ]
    return finish(_panels(chart, workloads), text, {"columns": list(columns), "rows": table}, title=title)


def accuracy_by_bits(
    tx: Taxonomy, family: str | None = None, workloads: Sequence[str] = HARD, root: str = "../", *, title: str = ""
) -> alt.TopLevelMixin:
    """Accuracy lost against bits a number, with weights, layer inputs or both in the format; at the rule nothing is.

    Parameters
    ----------
    family : str, optional
        Only its formats; all of them without it.
    workloads : sequence of str
        A panel each.
    root : str
        The way from the page to the folder of all pages; marks and the table link to the techniques' pages.
    title : str
        The finding, a sentence.

    Raises
    ------
    ValueError
        If no format has both figures on these workloads.
    """
    import altair as alt

    rows = [row for row in _figures(tx, "accuracy", workloads, family, root) if family is None or row["rank"]]
    for row in rows:
        row["value"] = 100 * (row["before"] - row["value"])
        row["label"] = {"both": "both", "weights": "weights", "activations": "layer inputs"}[row["on"]]
    names = ["weights", "layer inputs", "both"]
    colours = [PALETTE["blue"], PALETTE["vermilion"], PALETTE["green"]]
    ticks = alt.Axis(values=[-3, -1, -0.3, 0, 0.3, 1, 3, 10, 30, 90], format="~r", labelOverlap=True)
    y = alt.Y("value:Q", title="accuracy lost (points)", scale=alt.Scale(type="symlog", constant=0.5), axis=ticks)
    marks = (
        alt.Chart()
        .mark_point(filled=True, size=60, opacity=0.8)
        .encode(
            x=alt.X("bits:Q", scale=alt.Scale(type="log", domain=[1.8, 36]), axis=_bits_axis()), y=y,
            color=alt.Color("label:N", scale=alt.Scale(domain=names, range=colours), legend=alt.Legend(title=None)),
            shape=alt.Shape("label:N", scale=alt.Scale(domain=names, range=SHAPES[:3]), legend=alt.Legend(title=None)),
            href="href:N", tooltip=[alt.Tooltip(f"{name}:N") for name in ("format", "label", "text")],
        )
    )  # fmt: skip
    level = rule_at(alt.Chart(), y=alt.datum(0))
    text = f"Accuracy lost against bits a number, by what is rounded, on {listed(workloads)}"
    chart = alt.layer(level, marks, data=data(rows, ("bits", "value", "label", "format", "text", "workload", "href")))
    columns = ("workload", "format", "rounded", "bits", "accuracy")
    table = [
        [row["workload"], (row["format"], row["href"]), row["label"], f"{row['bits']:.2f}", row["text"]] for row in rows
    ]
    return finish(_panels(chart, workloads), text, {"columns": list(columns), "rows": table}, title=title)


def value_density(grids: Mapping[str, np.ndarray], *, title: str = "") -> alt.TopLevelMixin:
    """How many positive values a format has in each octave, from 2^k up to 2^(k + 1).

    Parameters
    ----------
    grids : dict of str to ndarray
        Names and what their `values()` give.
    title : str
        The finding, a sentence.

    Raises
    ------
    ValueError
        If there are no grids, or one has no positive value.

    Examples
    --------
    >>> import numpy as np
    >>> chart = value_density({"integers": np.arange(9.0), "powers": 2.0 ** np.arange(4)})
    >>> chart.usermeta["table"]["rows"][:3]
    [['integers', '0', '1'], ['integers', '1', '2'], ['integers', '2', '4']]
    """
    import altair as alt
    import numpy as np

    rows: list[Row] = []
    for name, grid in grids.items():
        positive = np.asarray(grid, np.float64)
        positive = positive[positive > 0]
        if not positive.size:
            raise ValueError(f"grids: expected positive values of {name}, got none")
        octaves = np.floor(np.log2(positive)).astype(int)
        for octave, count in zip(*np.unique(octaves, return_counts=True), strict=True):
            rows.append({"group": name, "octave": int(octave), "count": int(count)})
    if not rows:
        raise ValueError("grids: expected at least one format, got none")
    for row in rows:
        row["text"] = f"{row['count']} values from 2^{row['octave']} to 2^{row['octave'] + 1}"
    colour, shape = _legend([{**row, "rank": 1} for row in rows])
    base = alt.Chart().encode(
        x=alt.X("octave:Q", title="octave, from 2^x", axis=alt.Axis(format="d", tickCount=8)),
        y=alt.Y(
            "count:Q", title="values", scale=alt.Scale(type="log", base=2), axis=alt.Axis(tickCount=6, format="~s")
        ),
        color=colour,
    )
    tips = [alt.Tooltip("group:N", title="format"), alt.Tooltip("text:N", title="values")]
    marks = base.mark_point(filled=True, size=40, opacity=1).encode(shape=shape, tooltip=tips)
    chart = alt.layer(base.mark_line(strokeWidth=2), marks, data=data(rows)).properties(width=WIDTH, height=HEIGHT)
    table = [[row["group"], str(row["octave"]), str(row["count"])] for row in rows]
    columns = ["format", "octave", "values"]
    return finish(chart, f"Values in each octave of {listed(grids)}", {"columns": columns, "rows": table}, title=title)


def _figures(
    tx: Taxonomy,
    metric: str,
    workloads: Sequence[str],
    family: str | None,
    root: str,
    on: Sequence[str] = ("weights", "activations", "both"),
) -> list[Row]:
    """A row for each format, variant, workload and what is rounded that has the metric and its bits."""
    rows = []
    for node in tx.find(kind="number-format"):
        held: dict[tuple[str, ...], dict[tuple[str, str], Any]] = {}
        for row in tx.measurements(node.id).to_dict("records"):
            if row["workload"] in workloads and row["conditions"].get("on") in on:
                key = (row["variant"], row["workload"], row["conditions"]["on"])
                held.setdefault(key, {})[row["who"], row["metric"]] = row
        for (_, workload, rounded), figures in held.items():
            own, bits = figures.get(("self", metric)), figures.get(("self", "bits_per_number"))
            if own is None or bits is None or not math.isfinite(own["value"]):
                continue
            reach, before = figures.get(("self", "dynamic_range")), figures.get(("baseline", metric))
            inside = family is None or node.family == family
            group = node.name if family else tx.families[node.family].title
            words = ", ".join(
                v if isinstance(v, str) else f"{k.replace('_', ' ')} {v}" for k, v in own["parameters"].items()
            )
            rows.append({
                "format": f"{node.name} ({words})" if words else node.name, "group": group if inside else OTHERS,
                "workload": workload, "on": rounded, "bits": bits["value"], "value": own["value"],
                "before": before["value"] if before else math.nan, "range": reach["value"] if reach else math.nan,
                "text": interval(own["value"], own["low"], own["high"], own["unit"]) + ", stale" * bool(own["stale"]),
                "href": f"{root}{node.address}.html", "rank": int(inside),
            })  # fmt: skip
    if not rows:
        raise ValueError(f"no format has {metric} and bits_per_number on {listed(workloads)}")
    return sorted(rows, key=lambda row: (row["rank"], row["format"]))


def _legend(rows: Sequence[Row]) -> tuple[Any, Any]:
    """Colour and shape by group, the others in grey."""
    import altair as alt

    names = list(dict.fromkeys(row["group"] for row in sorted(rows, key=lambda row: -row["rank"])))
    bright = [colour for name, colour in PALETTE.items() if name != "grey"]
    colours = [PALETTE["grey"] if name == OTHERS else bright[i % len(bright)] for i, name in enumerate(names)]
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(names))]
    legend = alt.Legend(title=None, columns=1 if max(map(len, names)) > 26 else 2)
    return (
        alt.Color("group:N", sort=names, scale=alt.Scale(domain=names, range=colours), legend=legend),
        alt.Shape("group:N", sort=names, scale=alt.Scale(domain=names, range=shapes), legend=legend),
    )


def _bits_axis() -> Any:
    import altair as alt

    return alt.Axis(title="bits a number, scales included", values=[2, 4, 6, 8, 12, 16, 32], format="d")


def _panels(chart: Any, workloads: Sequence[str]) -> Any:
    """One panel a workload, below each other."""
    import altair as alt

    sized = chart.properties(width=WIDTH, height=HEIGHT)
    facet = alt.Facet("workload:N", sort=list(workloads), title=None)
    return sized.facet(facet=facet, columns=1, spacing=18).resolve_scale(y="independent")
