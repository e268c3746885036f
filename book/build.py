"""Build the book: `python book/build.py` writes `_build/html`; warnings, failing cells among them, are errors."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
JOBS = 2


def build(root: Path = ROOT, output: Path | None = None, jobs: int = JOBS, fresh: bool = False) -> int:
    """Build the book of the house at `root`.

    Parameters
    ----------
    output : path, optional
        The folder to hold `html`; `_build` in the house by default.
    jobs : int
        Processes that read and write pages.
    fresh : bool
        Read every page again, whether it has changed or not.

    Returns
    -------
    int
        0 if it was built without a warning.
    """
    from jupyter_book.sphinx import build_sphinx
    from warm import warm

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # inherited by the kernels of the pages
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    output = output or root / "_build"
    doctrees = output / ".doctrees"
    before = Path.cwd()
    os.chdir(root)  # the paths in _config.yml start here
    try:
        with warm():
            result = build_sphinx(
                root / "book",
                output / "html",
                doctreedir=doctrees,
                noconfig=True,
                path_config=root / "_config.yml",
                confoverrides={"external_toc_path": str(root / "_toc.yml"), "latex_individualpages": False},
                warningiserror=True,
                keep_going=True,
                freshenv=fresh,
                jobs=jobs,
                quiet=True,
            )
    finally:
        os.chdir(before)
    if isinstance(result, Exception) and jobs > 1:
        print("a page failed: once more, one page at a time, to show where", file=sys.stderr, flush=True)
        return build(root, output, 1, fresh)
    if result != 0:  # Sphinx would not read the page again, and its warning would be gone
        doctrees.joinpath("environment.pickle").unlink(missing_ok=True)
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="folder to hold html (default: _build)")
    parser.add_argument("--jobs", type=int, default=JOBS, help="processes (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="read every page again")
    options = parser.parse_args()
    start = time.perf_counter()
    output = (options.output or ROOT / "_build").resolve()
    print("building the book: pages whose code or records changed are run again", flush=True)
    if build(ROOT, output, options.jobs, options.fresh):
        print("the book was not built: see the messages above", file=sys.stderr)
        return 1
    page = output / "html" / "intro.html"
    print(f"built in {time.perf_counter() - start:.0f} s; open {page.as_uri()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
