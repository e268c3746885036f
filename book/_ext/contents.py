"""The contents of the book, `_toc.yml`: the families that have a chapter, in the order of families.yml."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAD = """\
# What is read, in order; written by book/_ext/contents.py. The pages below a chapter are generated, one a technique.
format: jb-book
root: intro
parts:
  - caption: Start here
    chapters:
      - file: how-to
      - file: metrics
      - file: techniques
      - file: influences
      - file: influences-traced
      - file: stacks
"""
TAIL = """\
  - caption: Behind the book
    chapters:
      - file: papers
      - file: references
"""


def contents(root: Path = ROOT) -> str:
    """The text of `_toc.yml` for the chapters that lie in the house at `root`."""
    import taxonomy

    families = sorted(taxonomy.load().families.items(), key=lambda item: item[1].order)
    text = HEAD
    for level in ("model", "arithmetic", "implementation"):
        there = [name for name, family in families if family.level == level]
        there = [name for name in there if (root / "book" / level / f"{name}.md").is_file()]
        text += f"  - caption: {level.capitalize()} level\n    chapters:\n" if there else ""
        for name in there:
            text += f"      - file: {level}/{name}\n        sections: [{{glob: {level}/{name}/*}}]\n"
    return text + TAIL


def write(root: Path = ROOT) -> None:
    """Write `_toc.yml` where it differs."""
    path = root / "_toc.yml"
    if not path.is_file() or path.read_text("utf-8") != contents(root):
        path.write_text(contents(root), encoding="utf-8")


def setup(app):
    app.connect("config-inited", lambda app, config: write(Path(app.srcdir).parent), priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
