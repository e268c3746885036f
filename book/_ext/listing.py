"""Lists that the taxonomy knows and nobody should type: ```{listing} metrics```.

`techniques <level or family>`, `exploited <family>`, `metrics <stored|derived>`, `references`, `papers`, `kinds`,
`workloads`.
"""

from __future__ import annotations

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


def techniques(tx, argument):
    """Family by family, each technique with its definition."""
    lines = []
    for name, family in sorted(tx.families.items(), key=lambda item: item[1].order):
        if argument not in (family.level, name):
            continue
        own = tx.find(family=name)
        if not own:
            continue
        if argument == family.level:
            lines += [f"**[{family.title}](/{family.level}/{name}.md)**: {family.definition}", ""]
        lines += [f"- [{node.name}](/{node.address}.md): {node.definition}" for node in own]
        lines.append("")
    return lines


def exploited(tx, argument):
    """What a family's techniques leave to the levels below, who makes use of it, and what was measured of that."""
    rows = {}
    for node in tx.find(family=argument):
        edges = [edge for edge in tx.influences(source=node.id) if edge.relation == "influence"]
        found = {edge.target: f" ({edge.verdict})" for edge in edges}
        users = [f"{{technique}}`{name}`{found.get(name, '')}" for name in dict.fromkeys([*node.exploited_by, *found])]
        if node.leaves:  # what was found for one technique is not said of another that leaves the same
            rows.setdefault((node.leaves, ", ".join(users)), []).append(f"{{technique}}`{node.id}`")
    lines = ["| technique | leaves | to be exploited by (and what was found) |", "|---|---|---|"]
    lines += [f"| {', '.join(own)} | {leaves} | {users} |" for (leaves, users), own in rows.items()]
    return lines if rows else []


def metrics(tx, argument):
    from taxonomy.quantity import symbol

    lines = []
    for name, metric in tx.metrics.items():
        if bool(metric.derived) != (argument == "derived"):
            continue
        better = {"higher": "higher is better", "lower": "lower is better"}.get(metric.direction, "no direction")
        unit = symbol(metric.unit) or {"relative": "relative"}.get(metric.unit, "count")
        lines += [f"(metric-{name})=", f"**{metric.name}** · `{name}` · {unit} · {better}", ""]
        lines += [_escape(metric.definition), ""]
        if metric.derived:
            lines += [f"$$\n{_formula(metric.derived)}\n$$", ""]
        if metric.caveat:
            lines += [f"*{_escape(metric.caveat)}*", ""]
        if metric.source:
            lines += [f"Source: {{cite}}`{metric.source}`.", ""]
    return lines


def _escape(text):
    return text.replace("*", "\\*").replace("_", "\\_").replace("$", "\\$").replace("|x|", "\\|x\\|")


def _formula(text):
    """`(a - b) / c_d` as a fraction of words."""
    top, _, bottom = text.partition(" / ")

    def words(part):
        part = part.strip("() ").replace("_", " ")
        return " - ".join(rf"\text{{{piece.strip()}}}" for piece in part.split(" - "))

    return rf"\frac{{{words(top)}}}{{{words(bottom)}}}"


def references(tx, argument):
    from pages import entry

    lines = []
    for key, reference in sorted(tx.references.items(), key=lambda item: (item[1].authors.split()[-1], item[1].year)):
        used = ", ".join(f"{{technique}}`{node.id}`" for node in tx if key in node.references)
        lines += [f"(ref-{key})=", f"{entry(reference)} {'For ' + used + '.' if used else ''}", ""]
    return lines


def papers(tx, argument):
    lines = []
    for paper in sorted(tx.papers, key=lambda paper: (-paper.year, paper.title)):
        known = [f"{{technique}}`{name}`" for name in paper.techniques if name in tx]
        lines += [f"**{paper.title}** ({paper.year}). {paper.experiment.rstrip('.')}. *Read: {paper.read_from}.*"
                  + (f" With {', '.join(known)}." if known else ""), ""]  # fmt: skip
    return lines


def workloads(tx, argument):
    return [f"- **{node.title}** (`{name}`): {node.description}" for name, node in tx.workloads.items()]


def kinds(tx, argument):
    return [f"- **{node.title}** (`{name}`): `{node}`" for name, node in tx.kinds.items()]


LISTS = {f.__name__: f for f in (techniques, exploited, metrics, references, papers, workloads, kinds)}


class Listing(SphinxDirective):
    required_arguments = 1
    optional_arguments = 1

    def run(self):
        import taxonomy

        name, argument = self.arguments[0], (self.arguments[1:] or [""])[0]
        if name not in LISTS:
            raise self.error(f"unknown list {name!r}; there are {', '.join(LISTS)}")
        lines = LISTS[name](taxonomy.load(), argument)
        if not lines:
            return []
        container = nodes.container(classes=["listing", f"listing-{name}"])
        self.state.nested_parse(StringList(lines, source=self.env.docname), self.content_offset, container)
        return [container]


def setup(app):
    app.add_directive("listing", Listing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
