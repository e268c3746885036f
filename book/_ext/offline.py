"""Pages that ask nothing of a network, even opened as files: formulas and charts come from the book's own folder.

MathJax is vendored in `_extra`; the bundle that brings charts alive is taken from vl-convert, so that it has the
version the charts were made with. It is wrapped in a function: as a plain script it would declare names twice.
"""

from __future__ import annotations

import re
from pathlib import Path

EXTRA = Path(__file__).resolve().parents[1] / "_extra"
VEGA = "vendor/vega/vega.js"
THEBE = re.compile(r'<script type="text/x-thebe-config">.*?</script>', re.S)
PRELOAD = re.compile(r'<link rel="preload" as="font"[^>]*>\n?')


def vendor(app, config):
    config.html_extra_path = [*config.html_extra_path, str(EXTRA)]


def bundle_vega(app, exception):
    if exception or app.builder.format != "html":
        return
    import vl_convert
    from house import CACHES

    kept = CACHES / f"vega-{vl_convert.__version__}.js"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(f"(function () {{\n{vl_convert.javascript_bundle()}\n}})();\n", encoding="utf-8")
    target = Path(app.outdir) / VEGA
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() or target.read_bytes() != kept.read_bytes():
        target.write_bytes(kept.read_bytes())


def drop_preloads(app, exception):
    """The theme asks for its icon fonts twice, once across origins: a page opened from a file may not."""
    if exception or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        text = path.read_text("utf-8")
        if lighter := PRELOAD.sub("", text) if PRELOAD.search(text) else None:
            path.write_text(lighter, encoding="utf-8")


def drop_thebe(app, pagename, templatename, context, doctree):
    """Thebe starts kernels in somebody's cloud; its scripts come even when it is off, and declare a constant twice."""

    def is_thebe(asset):
        body = getattr(asset, "attributes", {}).get("body") or ""
        return "thebe" in str(getattr(asset, "filename", "") or "") or "THEBE_JS_URL" in body

    for files in ("script_files", "css_files"):
        context[files] = [asset for asset in context.get(files, []) if not is_thebe(asset)]
    context["body"] = THEBE.sub("", context.get("body", ""))


def setup(app):
    app.connect("config-inited", vendor)
    app.connect("html-page-context", drop_thebe, priority=950)
    app.connect("build-finished", bundle_vega)
    app.connect("build-finished", drop_preloads)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
