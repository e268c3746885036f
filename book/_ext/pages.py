"""One page a technique, written from what is known and measured of it; a page is written only when its text changes.

The pages lie at `book/<level>/<family>/<id>.md`, are git-ignored, and are MyST notebooks like every chapter: the
example runs, and the charts are drawn by cells that a reader can run and change.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

BOOK = Path(__file__).resolve().parents[1]
MOST_CHARTS = 6
MOST_MARKS = 600
"""In all charts of a page: more weigh more than a page may."""
MOST_LINES = 4
ALONG = ("density", "bits", "threshold", "rate", "ratio", "size", "rank")
"""Strengths first; else whichever number the figures can be drawn along."""

ATTRIBUTION = {
    "survey-text": "the survey treats it",
    "survey-secondary": "a later overview credits the survey with it",
    "likely-high": "this book's taxonomy places it here",
    "likely-medium": "this book's taxonomy places it here",
    "likely-low": "this book's taxonomy places it here",
    "field": "from the field, beyond the survey",
}
RUNS = {
    "native": "natively: all of its figures are real on a CPU",
    "emulated": "emulated: numerics and bytes are real, speed and energy on this CPU are not its own",
    "simulated": "simulated: its figures come from a cost model",
}
HEAD = """---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {display_name: Python 3, language: python, name: python3}
---
"""


def page(tx, node):
    """The MyST text of a technique's page."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a broken record is the measuring run's to report
        rows = tx.measurements(node.id).to_dict("records")
    parts = [
        HEAD + f"# {node.name}",
        node.definition,
        _facts(tx, node),
        "## The idea",
        node.idea.strip(),
        *([f"$$\n{node.equation.strip()}\n$$"] if node.equation else []),
        _when(node),
        "## It at work",
        _cell(node.example.strip()),
        *_figures(tx, node, rows),
        "## Influences",
        *_influences(tx, node),
        "## The reference implementation",
        _code(node),
        *_measuring(tx, node, rows),
        *_references(tx, node),
    ]
    return "\n\n".join(parts) + "\n"


def _cell(code, tags=()):
    tagged = f":tags: [{', '.join(tags)}]\n\n" if tags else ""
    return f"```{{code-cell}} python\n{tagged}{code}\n```"


def _facts(tx, node):
    family, kind = tx.families[node.family], tx.kinds[node.kind]
    there = (BOOK / node.level / f"{node.family}.md").exists()
    chapter = f"[{family.title}](../{node.family}.md)" if there else family.title
    improves = ", ".join(f"{{metric}}`{metric}`" for metric in node.improves)
    facts = {
        "Level": f"{node.level}, {chapter}",
        "Kind": f"{kind.title.lower()}: `{kind}`",
        "Meant to improve": improves,
        "Runs here": RUNS[node.runs],
        "In the survey": ATTRIBUTION[node.attribution],
    }
    if node.leaves:
        facts["Leaves"] = node.leaves
    below, above = node.exploited_by, [other.id for other in tx if node.id in other.exploited_by]
    for name, others in (("Exploited by", below), ("Exploits", above)):
        if others:
            facts[name] = ", ".join(f"{{technique}}`{other}`" for other in others)
    rows = "\n".join(f"* - {name}\n  - {fact}" for name, fact in facts.items())
    return f":::{{list-table}}\n:stub-columns: 1\n:width: 100%\n:widths: auto\n\n{rows}\n:::"


def _when(node):
    def sentence(text):
        text = text.strip()
        return text[:1].upper() + text[1:]

    return (
        f":::{{admonition}} Use it when\n:class: tip\n{sentence(node.use_when)}\n:::\n\n"
        f":::{{admonition}} Avoid it when\n:class: warning\n{sentence(node.avoid_when)}\n:::"
    )


def _code(node):
    module, _, name = node.implementation.partition(":")
    path = module.replace(".", "/") + ".py"
    return f"`{name}`, from `{path}`:\n\n```{{literalinclude}} ../../../{path}\n:language: python\n```"


# --- figures --------------------------------------------------------------------------------------------------------


def charts_of(node, metrics, rows):
    """Which charts a page draws: `(metric, the call that draws it)`, those first that say what the technique is for.

    A figure that is the same everywhere is no chart; it stands in the table.
    """
    present = {}
    for row in rows:
        if math.isfinite(row["value"]):
            present.setdefault(row["metric"], []).append(row)
    wanted = ["accuracy", "sqnr", "speedup", *node.improves]
    called = f', names={{"baseline": "{node.baseline.replace("-", " ")}"}}' if node.baseline else ""
    ranked = [m for m in dict.fromkeys([*wanted, *metrics]) if m in present]
    chosen, marks = [], 0
    for metric in ranked:
        own = present[metric]
        flat = len({row["value"] for row in own}) < 2
        absent = metric != "speedup" and all(row["who"] != "self" for row in own)
        if flat or absent or metric in ("latency", "throughput") or (chosen and marks + len(own) > MOST_MARKS):
            continue
        marks += len(own)
        if metric == "speedup":
            call = f"charts.ratio_strip(rows{called})"
        elif along := _strength(own):
            call = f'charts.curve(rows, "{along}", "{metric}"{called})'
        else:
            call = f'charts.beside_peers(rows, "{metric}"{called})'
        chosen.append((metric, call))
    return chosen[:MOST_CHARTS]


def _strength(rows):
    """The number along which a technique's figures make a few lines of at least four points; None if there is none."""
    own = [({**row["parameters"], **row["conditions"]}, row["workload"]) for row in rows if row["who"] == "self"]
    names = dict.fromkeys(name for stands, _ in own for name in stands)
    for name in dict.fromkeys([*ALONG, *names]):
        lines = {}
        for stands, workload in own:
            value = stands.get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                others = tuple((other, str(stands[other])) for other in sorted(stands) if other != name)
                lines.setdefault((workload, others), set()).add(value)
        if lines and len({others for _, others in lines}) <= MOST_LINES and min(map(len, lines.values())) >= 4:
            return name
    return None


def _figures(tx, node, rows):
    if not rows:
        return [
            "## Its figures",
            "No record of it is held yet: `python -m taxonomy measure " + node.id + "` takes them.",
        ]
    chosen = charts_of(node, tx.metrics, rows)
    setup = f'import taxonomy\nfrom taxonomy import charts\n\ntx = taxonomy.load()\nrows = tx.measurements("{node.id}")'
    parts = ["## Its figures"]
    for number, (metric, call) in enumerate(chosen):
        entry = tx.metrics[metric]
        better = {"higher": "Higher is better.", "lower": "Lower is better."}.get(entry.direction, "")
        parts += [
            f"**{entry.name}** ({{metric}}`{metric}`). {better}",
            _cell(call if number else f"{setup}\n{call}", ["hide-input"]),
        ]
    parts.append(_all_figures(rows))
    return parts


def _all_figures(rows):
    """Everything measured, as one table: what no chart shows, and what cannot be had, with the reason."""
    from taxonomy.quantity import interval

    lines = ["| workload | variant | setting | who | metric | value | n |", "|---|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (row["workload"], row["metric"])):
        known = math.isfinite(row["value"])
        value = interval(row["value"], row["low"], row["high"], row["unit"]) if known else f"none: {row['reason']}"
        mark = " (here)" if row["store"] == "here" else ""
        mark += " (stale)" if row["stale"] else ""
        cells = (
            row["workload"],
            row["variant"] or "—",
            row["setting"] or "—",
            row["who"],
            row["metric"],
            value + mark,
            row["n"],
        )
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return ":::{dropdown} All figures\n:class-container: all-figures\n\n" + "\n".join(lines) + "\n:::"


# --- influences, provenance, references -----------------------------------------------------------------------------


def _influences(tx, node):
    out, into = tx.influences(source=node.id), tx.influences(target=node.id)
    if not out and not into:
        return ["None is recorded, out of it or into it."]
    lines = ["| from | to | metric | claimed | found |", "|---|---|---|---|---|"]
    for edge in (*out, *into):
        found = "; ".join(_found(finding) for finding in edge.findings) or "not measured"
        ends = [
            f"**{tx[end].name}**" if end == node.id else f"{{technique}}`{end}`" for end in (edge.source, edge.target)
        ]
        lines.append(f"| {ends[0]} | {ends[1]} | {{metric}}`{edge.metric}` | {edge.sign} | {found} |")
    depth = "../../"
    return ["\n".join(lines), f"How an influence is claimed, measured and judged: [Influences]({depth}influences.md)."]


def _found(finding):
    from taxonomy.charts.traces import effect

    text = f"**{finding.verdict}**, {effect(finding)}"
    if finding.crossover:
        text += ", crossing at {:.2g} ({:.2g} to {:.2g})".format(*finding.crossover)
    where = ", ".join(part for part in (finding.workload, finding.setting) if part)
    notes = [word for word, holds in (("by construction", finding.by_construction), ("stale", finding.stale)) if holds]
    return f"{text} ({'; '.join([where, *notes])})"


def _measuring(tx, node, rows):
    from taxonomy import store

    records = store.reference.records(node.address) + store.here.records(node.address)
    if not records:
        return []
    stale = sum(row["stale"] for row in rows)
    badge = (
        f"{{bdg-warning}}`{stale} of {len(rows)} figures are stale: the code has changed since`"
        if stale
        else "{bdg-success}`every figure stands for the code above`"
    )
    lines = [badge, ""]
    timing = sum(record["type"] == "timing" for record in records)
    minutes = sum(record["provenance"].get("seconds", 0) for record in records) / 60
    took = f"{minutes:.0f} minutes" if minutes >= 1.5 else "a minute"
    lines.append(
        f"- {len(records)} records: {len(records) - timing} of quality, {timing} of time; they took {took} of one core."
        + (f" Why so long: {node.budget.strip().rstrip('.')}." if node.budget else "")
    )
    machines = {r["provenance"].get("cpu", "?"): r["provenance"] for r in sorted(records, key=lambda r: r["type"])}
    for cpu, seen in machines.items():
        parts = [f"{name} {seen[name]}" for name in ("python", "torch", "numpy", "numba") if name in seen]
        parts += [f"one core's peak {seen['peak_flops'] / 1e9:.0f} GFLOP/s"] if "peak_flops" in seen else []
        lines.append(f"- Machine: {cpu}; {', '.join(parts)}.")
    dates = sorted({record["provenance"]["date"] for record in records if "date" in record["provenance"]})
    if dates:
        lines.append(f"- Taken {dates[0]}" + (f" to {dates[-1]}." if len(dates) > 1 else "."))
    lines.append(
        "- Intervals are 95 %: Student's t over seeds for quality, over fresh processes for time (each the median of "
        "interleaved rounds, one thread). [How each metric is measured](../../metrics.md)."
    )
    lines += [f"- Not measured on {workload}: {why}" for workload, why in node.unfit.items()]
    return ["## How it was measured", "\n".join(lines)]


def _references(tx, node):
    if not node.references:
        return []
    return ["## References", "\n".join(f"- {entry(tx.references[key])}" for key in node.references)]


def entry(reference):
    """A bibliography entry in Markdown.

    Examples
    --------
    >>> from types import SimpleNamespace as R
    >>> entry(R(authors="A. Author", title="On *stars*", year=2020, venue="Venue", url="https://doi.org/1", note=None))
    'A. Author (2020). [On \\\\*stars\\\\*](https://doi.org/1). Venue.'
    """
    title = reference.title.replace("*", "\\*")
    linked = f"[{title}]({reference.url})" if reference.url else title
    tail = "".join(f" {part}." for part in (reference.venue, reference.note) if part)
    return f"{reference.authors} ({reference.year}). {linked}.{tail}"


# --- writing --------------------------------------------------------------------------------------------------------


def write(book=BOOK, tx=None):
    """Write the pages that changed, remove those whose technique is gone; the paths written."""
    if tx is None:
        import taxonomy

        tx = taxonomy.load()
    wanted = {book / f"{node.address}.md": page(tx, node) for node in tx}
    for level in ("model", "arithmetic", "implementation"):
        for path in (book / level).glob("*/*.md"):
            if path not in wanted:
                path.unlink()
    written = []
    for path, text in wanted.items():
        if path.exists() and path.read_text("utf-8") == text:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
        written.append(path)
    return written


def setup(app):
    app.connect("config-inited", lambda app, config: write(Path(app.srcdir)), priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
