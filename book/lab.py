"""The pages as notebooks in JupyterLab: `python book/lab.py` writes them into `_build/lab` and opens it there.

`python book/lab.py --run model/pruning` only runs that page's cells and looks up its figures, in seconds; `--run` alone
does so for every page.

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


def run(names: list[str], lab: Path = LAB, book: Path = BOOK) -> list[str]:
    """Run the cells of pages in fresh kernels, and look up their figures; what went wrong, page by page.

    Parameters
    ----------
    names : list of str
        Addresses of pages, such as ``model/pruning``; all that have cells if empty.

    Raises
    ------
    ValueError
        If there is no such page with cells.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from notebooks import in_words

    there = {path.relative_to(lab).with_suffix("").as_posix(): path for path in write(lab, book)}
    if missing := [name for name in names if name not in there]:
        raise ValueError(f"no page with cells at {', '.join(missing)}; there are {', '.join(there)}")
    wrong = []
    for name in names or there:
        unknown: list[str] = []
        in_words((book / f"{name}.md").read_text("utf-8"), unknown)
        wrong += [f"{name}: {reason}" for reason in unknown]
        notebook, start = nbformat.read(there[name], 4), time.perf_counter()
        try:
            NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(there[name].parent)}}).execute()
        except CellExecutionError as error:
            wrong.append(f"{name}: {error}")
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return wrong


def _sources(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("options", nargs="*", help="for JupyterLab, after --, such as -- --no-browser")
    parser.add_argument("--run", nargs="*", metavar="PAGE", help="only run these pages, or all")
    given = parser.parse_args()
    import pages

    pages.write()
    if given.run is not None:
        try:
            wrong = run(given.run)
        except ValueError as error:
            parser.error(str(error))
        print("\n".join(wrong) or "every cell ran, and every figure is there")
        return 1 if wrong else 0
    print(f"{len(write())} notebooks in {LAB.relative_to(ROOT)}", flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", str(LAB / "intro.ipynb"), *given.options])


if __name__ == "__main__":
    raise SystemExit(main())
