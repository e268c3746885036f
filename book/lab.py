"""The pages as notebooks in JupyterLab: `python book/lab.py` writes them into `_build/lab` and opens it there.

A notebook holds a page's own cells, and its prose with the figures filled in. One that was changed there stays as it
is; when its page changes it is kept under the date, and the page's new notebook takes its name.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

BOOK = Path(__file__).resolve().parent
ROOT = BOOK.parent
LAB = ROOT / "_build" / "lab"
sys.path.insert(0, str(BOOK / "_ext"))


def write(lab: Path = LAB, book: Path = BOOK) -> list[Path]:
    """Write a notebook for each page that has cells; the paths of all of them.

    Parameters
    ----------
    lab : path
        Where they go, at the pages' own addresses.
    book : path
        Where the pages are.
    """
    import nbformat
    import yaml
    from myst_nb.core.read import read_myst_markdown_notebook
    from myst_parser.config.main import MdParserConfig
    from notebooks import in_words

    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    syntax = MdParserConfig(enable_extensions=config["parse"]["myst_enable_extensions"])
    paths = []
    for page in sorted(book.rglob("*.md")):
        text = page.read_text("utf-8")
        if "{code-cell}" not in text:
            continue
        notebook = read_myst_markdown_notebook(text, syntax, path=str(page))
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = in_words(cell.source).replace(".md)", ".ipynb)")
        path = lab / page.relative_to(book).with_suffix(".ipynb")
        paths.append(path)
        if path.exists():
            if _sources(nbformat.read(path, 4)) == _sources(notebook):
                continue
            path.rename(path.with_name(f"{path.stem} {time.strftime('%Y-%m-%d %H.%M.%S')}.ipynb"))
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)
    return paths


def _sources(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("options", nargs="*", help="for JupyterLab, after --, such as -- --no-browser")
    options = parser.parse_args().options
    import pages

    pages.write()
    print(f"{len(write())} notebooks in {LAB.relative_to(ROOT)}", flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", str(LAB / "intro.ipynb"), *options])


if __name__ == "__main__":
    main()
