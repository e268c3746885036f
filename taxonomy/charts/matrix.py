"""The taxonomy at a glance: families by what their techniques are meant to improve."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from taxonomy.charts.look import LEVELS, PALETTE, WIDTH, data, finish, words

if TYPE_CHECKING:
    import altair as alt

    from taxonomy.query import Taxonomy

__all__ = ["taxonomy_matrix"]


def taxonomy_matrix(tx: Taxonomy) -> alt.TopLevelMixin:
    """How many techniques of each family improve which metric; a cell leads to the family's chapter."""
    import altair as alt

    counts = Counter((node.family, tx.metric(metric)) for node in tx for metric in node.improves)
    families = sorted(tx.families, key=lambda name: (LEVELS.index(tx.families[name].level), tx.families[name].order))
    rows = [
        {
            "family": tx.families[name].title, "level": tx.families[name].level, "metric": words(metric),
            "count": counts[name, metric], "href": f"{tx.families[name].level}/{name}.html",
            "tip": f"{tx.families[name].title}: {counts[name, metric]} for {metric.replace('_', ' ')}",
        }
        for name in families for metric in tx.metrics if (name, metric) in counts
    ]  # fmt: skip
    metrics = [words(metric) for metric in tx.metrics]
    titles = [tx.families[name].title for name in families]
    labels: Any = {"ticks": False, "domain": False}
    base = alt.Chart(data(rows)).encode(
        x=alt.X("metric:N", sort=metrics, title=None, axis=alt.Axis(orient="top", labelAngle=-60, **labels)),
        y=alt.Y("family:N", sort=titles, title=None, axis=alt.Axis(labelLimit=220, **labels)),
        href="href:N", description="tip:N",
    )  # fmt: skip
    colours = alt.Scale(domain=list(LEVELS), range=[PALETTE[name] for name in ("blue", "vermilion", "green")])
    cells = base.mark_rect(cornerRadius=3).encode(
        color=alt.Color("level:N", scale=colours, legend=alt.Legend(title=None, columns=3)),
        tooltip=alt.Tooltip("tip:N", title="techniques"),
    )
    numbers = base.mark_text(fontSize=13, color="white", fontWeight="bold").encode(text="count:Q")
    chart = alt.layer(cells, numbers).properties(width=WIDTH, height=alt.Step(26))
    table = {
        "columns": ["family", "level", "improves", "techniques"],
        "rows": [[(row["family"], row["href"]), row["level"], row["metric"], str(row["count"])] for row in rows],
    }
    return finish(chart, "How many techniques of each family are meant to improve which metric", table, least=520)
