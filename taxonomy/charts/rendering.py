"""A chart as HTML that asks nothing of a network: a static SVG, its data as a table, and the spec to bring it alive.

The SVG reads without scripts, in print and in a notebook; the book's own script replaces it by the live chart, fitted
to the width of the screen. Ids come from the spec's hash, so that the same figures give the same page.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["enable", "figure", "picture", "table"]

OUTSIDE = "https://vega.github.io/vega-datasets/"
"""vl-convert resolves relative links against this host; they are the book's own."""


def enable() -> None:
    """Let Altair show every chart by `figure`, in notebooks and in the book."""
    import altair

    altair.renderers.register("house", _renderer)
    altair.renderers.enable("house")


def _renderer(spec: Mapping[str, Any], **_: Any) -> dict[str, str]:
    return {"text/html": figure(spec), "text/plain": str(spec.get("description", "chart"))}


def figure(spec: Mapping[str, Any]) -> str:
    """The HTML of one chart.

    Parameters
    ----------
    spec : mapping
        Vega-Lite. `description` is its text for those who do not see it; `usermeta.title` the sentence that it shows;
        `usermeta.table` (`columns`, `rows`) its data; `usermeta.least` the width in pixels below which it scrolls
        instead of shrinking.
    """
    import vl_convert

    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    name = "chart-" + hashlib.sha256(text.encode()).hexdigest()[:10]
    svg = vl_convert.vegalite_to_svg(text, vl_version="6.4").replace(OUTSIDE, "")
    alt = html.escape(str(spec.get("description", "chart")), quote=True)
    about = spec.get("usermeta", {})
    data, least, title = about.get("table"), about.get("least"), about.get("title")
    live = {key: value for key, value in spec.items() if key != "usermeta"}
    embedded = json.dumps(live, sort_keys=True, separators=(",", ":")).replace("</", "<\\/")
    narrowest = f' data-least="{least}"' if least else ""
    parts = [
        f'<figure class="chart" id="{name}"{narrowest}>',
        f"<figcaption>{html.escape(title)}</figcaption>" if title else "",
        f'<div class="chart-view" role="group" aria-label="{alt}" tabindex="0">{_quiet(svg)}</div>',
        f'<script type="application/json" class="chart-spec">{embedded}</script>',
        f"<details><summary>The figures as a table</summary>{table(**data)}</details>" if data else "",
        "</figure>",
    ]
    return "\n".join(part for part in parts if part)


def _quiet(svg: str) -> str:
    """Leave out what a screen reader would read mark by mark (the description says it), and what is there twice."""
    svg = re.sub(r' (?:aria-[a-z]+|role|pointer-events)="[^"]*"| opacity="1"', "", svg)
    svg = re.sub(r'<path class="(?:back|fore)ground"[^>]*/>', "", svg)
    families = dict.fromkeys(re.findall(r' font-family="[^"]*"', svg))
    for family in families:
        svg = svg.replace(family, "")
    return svg.replace("<svg ", f'<svg focusable="false"{next(iter(families), "")} ', 1)


def picture(spec: Mapping[str, Any]) -> str:
    """A chart as a static SVG on a white ground, for where no page gives it one."""
    import vl_convert

    plain = {name: value for name, value in spec.items() if name != "usermeta"}
    text = json.dumps({**plain, "background": "white"}, sort_keys=True)
    return vl_convert.vegalite_to_svg(text, vl_version="6.4").replace(OUTSIDE, "").replace("currentColor", "#222")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table that scrolls by itself where the screen is narrow; a cell may be `(text, link)`.

    Examples
    --------
    >>> print(table(["n"], [[1]]))
    <div class="table-scroll" tabindex="0" role="group" aria-label="Table"><table class="table">
    <thead><tr><th scope="col">n</th></tr></thead>
    <tbody><tr><td>1</td></tr></tbody></table></div>
    """
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in columns)
    body = "\n".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        '<div class="table-scroll" tabindex="0" role="group" aria-label="Table"><table class="table">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Any) -> str:
    if isinstance(cell, (tuple, list)):
        text, link = cell
        return f'<a href="{html.escape(link, quote=True)}">{html.escape(str(text))}</a>' if link else html.escape(text)
    return html.escape(str(cell))
