"""Numbers in prose come from records: {measured}`posit:accuracy:workload=mnist-cnn,bits=8,es=2`.

`technique:metric@who:conditions`, or a stack in the technique's place; who is the technique itself unless named
(baseline, random, a peer). Conditions are workload, variant and setting, enough of them to leave one record; where
records differ only in a parameter or a condition more, such as two threads, the plain one answers. {measured-value}
leaves the interval to the tooltip.
{finding}`magnitude-pruning--csr:crossover:columns=64` says verdict, effect or crossover of an influence; the effect is
the largest, or that at a strength (`density=0.1`).
What no record answers, or more than one, is an error that names the nearest.
"""

from __future__ import annotations

import html
import math
from functools import lru_cache

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

logger = logging.getLogger(__name__)
PLACES = ("workload", "store")
Row = dict


class Unknown(LookupError):
    """No record, or more than one, answers."""


@lru_cache(maxsize=1)
def _taxonomy():
    import taxonomy

    return taxonomy.load()


@lru_cache(maxsize=512)
def _rows(technique):
    return _taxonomy().measurements(technique).to_dict("records")


def _conditions(text):
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if broken := [name for name, equals, _ in pairs if not equals]:
        raise Unknown(f"condition {broken[0]!r} has no value; write name=value")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _has(row, name, value):
    if name in PLACES:
        return row[name] == value
    held = {**row["parameters"], **row["conditions"]}.get(name)
    return held is not None and _same(held, value)


def _same(held, value):
    try:
        return float(held) == float(value)
    except (TypeError, ValueError):
        return str(held) == value


def _plain(found):
    """The record whose parameters and conditions all others share and add to, if there is one."""

    def extends(other, row):
        same = all(other[name] == row[name] for name in ("workload", "store"))
        return same and all(row[name].items() <= other[name].items() for name in ("parameters", "conditions"))

    return [row for row in found if all(extends(other, row) for other in found)]


def _written(row):
    parts = {"workload": row["workload"], **row["parameters"], **row["conditions"]}
    return ",".join(f"{name}={value}" for name, value in parts.items())


def lookup(text):
    """The one tidy row that `technique:metric@who:conditions` names.

    Raises
    ------
    Unknown
        With the nearest that there are.
    """
    technique, _, rest = text.strip().partition(":")
    metric, _, conditions = rest.partition(":")
    metric, _, who = metric.partition("@")
    tx, technique = _taxonomy(), technique.strip()
    try:
        node, metric = tx.stacks.get(technique) or tx[technique], tx.metric(metric.strip())
    except KeyError as error:
        raise Unknown(error.args[0]) from None
    wanted = _conditions(conditions)
    rows = [row for row in _rows(node.id) if row["metric"] == metric]
    if not rows:
        held = sorted({row["metric"] for row in _rows(node.id)})
        raise Unknown(f"no record of {metric!r} for {node.id!r}; there are {', '.join(held) or 'none at all'}")
    named = [row for row in rows if row["who"] == (who or "self")]
    if not named:
        raise Unknown(f"nobody called {who or 'self'!r} there; there are {', '.join(sorted({r['who'] for r in rows}))}")
    found = [row for row in named if all(_has(row, *pair) for pair in wanted.items())]
    if "store" not in wanted:
        found = [row for row in found if row["store"] == "reference"] or found
    found = _plain(found) or found
    if len(found) == 1:
        row = found[0]
        if math.isnan(row["value"]):
            raise Unknown(f"{text!r} has no value: {row['reason']}")
        return row
    nearest = sorted(found or named, key=lambda row: -sum(_has(row, *pair) for pair in wanted.items()))
    problem = f"{len(found)} records answer {text!r}" if found else f"no record answers {text!r}"
    raise Unknown(f"{problem}; near are " + " | ".join(dict.fromkeys(map(_written, nearest[:4]))))


def conclusion(text):
    """Verdict, effect or crossover of the finding that `source--target:what:conditions` names, with the finding."""
    from taxonomy.charts.traces import effect
    from taxonomy.load import nearest

    name, _, rest = text.strip().partition(":")
    what, _, conditions = rest.partition(":")
    edges = {edge.id: edge for edge in _taxonomy().influences()}
    if name not in edges:
        raise Unknown(f"unknown influence {name!r}{nearest(name, edges)}")
    wanted = _conditions(conditions)
    at = wanted.pop(edges[name].along, None)
    findings = [f for f in edges[name].findings if all(_stands(f, *pair) for pair in wanted.items())]
    if len(findings) != 1:
        near = " | ".join(f"workload={f.workload},metric={f.metric},{f.setting}" for f in edges[name].findings)
        raise Unknown(f"{len(findings)} findings answer {text!r}; there are {near or 'none'}")
    finding = findings[0]
    if what == "verdict":
        return finding.verdict, finding
    if what == "effect":
        try:
            return effect(finding, None if at is None else float(at)), finding
        except ValueError as error:
            raise Unknown(f"{text!r}: {error}") from None
    if what == "crossover":  # votes one way only are a result too
        centre, low, high = finding.crossover or (None, None, None)
        return f"{centre:.2g} ({low:.2g} to {high:.2g})" if finding.crossover else "(none found)", finding
    raise Unknown(f"{name!r} has no {what!r}; ask for verdict, effect or crossover")


def _stands(finding, name, value):
    if name in ("workload", "metric"):
        return getattr(finding, name) == value
    held = dict(part.split("=", 1) for part in finding.setting.split(", ") if part)
    return name in held and _same(held[name], value)


def shown(role, text):
    """What a role shows, and what it tells on a closer look.

    Returns
    -------
    text : str
    title : str
    stale : bool

    Raises
    ------
    Unknown
        If no record answers, or more than one.
    """
    from taxonomy.quantity import interval, quantity

    if role == "finding":
        words, finding = conclusion(text)
        return words, f"{finding.workload} {finding.setting}: {finding.because}", finding.stale
    row = lookup(text)
    full, short = interval(row["value"], row["low"], row["high"], row["unit"]), quantity(row["value"], row["unit"])
    whose = row["who"] if row["who"] != "self" else row["technique"]
    title = f"{row['metric']} of {whose}, {_written(row)}; {full}, n = {row['n']}"
    return (short if role == "measured-value" else full), title, row["stale"]


class Measured(SphinxRole):
    def run(self):
        try:
            text, title, stale = shown(self.name, self.text)
        except Unknown as error:
            logger.warning("%s: %s", self.name, error, location=self.get_location(), type="measured")
            return [nodes.problematic(self.rawtext, self.text)], []
        if stale:
            title += "; stale: the code has changed since"
        raw = (
            f'<span class="measured{" stale" if stale else ""}" title="{html.escape(title)}">{html.escape(text)}</span>'
        )
        return [nodes.raw("", raw, format="html"), _Elsewhere("", text)], []


class _Elsewhere(nodes.Inline, nodes.TextElement):
    """The words for builders other than HTML."""

    def __init__(self, rawsource="", text="", *children, **attributes):
        super().__init__(rawsource, text, *children, **attributes)


def _skip(translator, node):
    raise nodes.SkipNode


def _pass(translator, node):
    pass


def setup(app):
    for name in ("measured", "measured-value", "finding"):
        app.add_role(name, Measured())
    app.add_node(_Elsewhere, html=(_skip, None), latex=(_pass, _pass), text=(_pass, _pass))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
