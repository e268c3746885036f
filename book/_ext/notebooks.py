"""Every page with cells offers itself as a notebook, executed, beside its source."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

FOLDER = "notebooks"
ROLE = re.compile(r"\{(measured|measured-value|finding|cite|technique|metric|doc)\}`([^`]*)`")
LISTING = re.compile(r"```\{listing\} *(\S+) *(\S*)\n```")


def in_words(text, unknown=None):
    """Markdown whose roles and lists, which only the book understands, have become the words that the book shows.

    A figure that nobody measured leaves the role's text; `unknown`, a list, takes the reasons.
    """
    from listing import LISTS
    from measured import Unknown, shown
    from sources import short

    import taxonomy

    tx = taxonomy.load()

    def words(match):
        role, named = match[1], match[2]
        if role == "doc":
            return named.partition("<")[0].strip() or named
        if role == "technique":
            return tx[named].name
        if role == "metric":
            return tx.metrics[tx.metric(named)].name.lower()
        if role == "cite":
            reference = tx.references[named]
            return f"[{short(reference)}]({reference.url})" if reference.url else short(reference)
        try:
            return shown(role, named)[0]
        except Unknown as error:
            if unknown is not None:
                unknown.append(str(error))
            return named

    text = LISTING.sub(lambda match: "\n".join(LISTS[match[1]](tx, match[2])), text)
    return ROLE.sub(words, text)


def executed(app, pagename):
    path = Path(app.outdir).parent / "jupyter_execute" / f"{pagename}.ipynb"
    return path if path.exists() else None


def offer(app, pagename, templatename, context, doctree):
    """A button in the page's download menu."""
    if app.builder.format != "html" or not executed(app, pagename):
        return
    for group in context.get("header_buttons", []):
        if group.get("label") == "download-buttons":
            url = context["pathto"](f"{FOLDER}/{pagename}.ipynb", 1)
            group["buttons"].insert(0, {
                "type": "link", "url": url, "text": "Notebook with its results", "icon": "fas fa-book-open",
                "tooltip": "Download the executed notebook", "label": "download-executed-button",
            })  # fmt: skip


def copy(app, exception):
    """The executed notebooks, in words that need no book."""
    if exception or app.builder.format != "html":
        return
    for pagename in app.env.found_docs:
        source = executed(app, pagename)
        if source is None:
            continue
        target = Path(app.outdir) / FOLDER / f"{pagename}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        notebook = json.loads(source.read_text("utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = in_words("".join(cell["source"]))
        target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.rmtree(Path(app.outdir) / "reports", ignore_errors=True)


def setup(app):
    app.connect("html-page-context", offer, priority=900)
    app.connect("build-finished", copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
