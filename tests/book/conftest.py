"""A book to look at: the built one where it shows the house as it is, else a small one built on the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
sys.path.insert(0, str(BOOK / "_ext"))

HEAD = """---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {display_name: Python 3, language: python, name: python3}
---
"""
CHART = """```{code-cell} python
import os

import pandas as pd
from taxonomy import charts

if "COUNT" in os.environ:
    with open(os.environ["COUNT"], "a") as file:
        file.write("ran\\n")
row = {"technique": "posit", "variant": "bits=8", "workload": "mnist-cnn", "setting": "", "who": "self",
       "metric": "accuracy", "value": 0.9, "unit": "fraction", "low": 0.89, "high": 0.91, "n": 5, "stale": False,
       "store": "reference", "parameters": {"bits": 8}, "conditions": {}, "reason": ""}
frame = pd.DataFrame([row, row | {"who": "baseline", "value": 0.95, "low": 0.94, "high": 0.96},
                      row | {"workload": "digits-mlp", "store": "here"}])
charts.beside_peers(frame, "accuracy")
```
"""
PAGES = {
    "intro": f"{HEAD}# Small\n\nA formula $x^2$, a [second page](second.md).\n\n$$ y = \\sum_i x_i $$\n\n{CHART}",
    "second": f"# A second page\n\nSee {{metric}}`accuracy`.\n\n{'|wide' * 14}|\n{'|-' * 14}|\n{'|word' * 14}|\n",
    "metrics": "# Metrics\n\n```{listing} metrics derived\n```\n\n```{listing} metrics stored\n```\n",
    "references": "# References\n\n(ref-lee2021survey)=\nThe survey.\n\n(ref-horowitz2014)=\nEnergies.\n",
}


class MiniHouse:
    """A house of a few pages with this book's configuration and extensions."""

    def __init__(self, root: Path, pages: dict[str, str]):
        self.root, self.count = root, root / "count"
        (root / "book").mkdir(parents=True)
        for name in ("_ext", "_static", "_extra", "build.py", "warm.py"):
            source = BOOK / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, root / "book" / name)
        config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
        for name in ("contents", "pages"):  # this house has neither chapters nor techniques
            del config["sphinx"]["local_extensions"][name]
        (root / "_config.yml").write_text(yaml.safe_dump(config), "utf-8")
        names = list(pages)
        toc = {"format": "jb-book", "root": names[0], "chapters": [{"file": name} for name in names[1:]]}
        (root / "_toc.yml").write_text(yaml.safe_dump(toc), "utf-8")
        (root / "kernels").mkdir()
        for name, text in pages.items():
            (root / "book" / f"{name}.md").write_text(text, "utf-8")

    @property
    def html(self) -> Path:
        return self.root / "_build" / "html"

    def build(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(self.root / "book" / "build.py"), "--jobs", "1"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "COUNT": str(self.count)},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> MiniHouse:
    """A small book, built."""
    house = MiniHouse(tmp_path_factory.mktemp("house"), PAGES)
    done = house.build()
    assert done.returncode == 0, done.stdout + done.stderr
    return house


def built() -> Path | None:
    """The checkout's own book, if it shows the house as it is now."""
    from house import STAMP, digest

    html = ROOT / "_build" / "html"
    stamp = html / STAMP
    if not stamp.exists() or stamp.read_text("utf-8") != digest():
        return None
    newest = max(path.stat().st_mtime for path in BOOK.rglob("*.md"))
    return html if stamp.stat().st_mtime >= newest else None


@pytest.fixture
def house_of(tmp_path: Path):
    """Makes a house of the pages given, not yet built."""
    return lambda **pages: MiniHouse(tmp_path / "house", {"intro": "# Intro\n", **pages})


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest) -> Path:
    """The folder of a built book."""
    return built() or request.getfixturevalue("mini").html


def chromium() -> str | None:
    """Where a Chromium is, if any."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, without any network of its own."""
    path = chromium()
    if path is None:
        pytest.skip("no Chromium on this machine: install it to run the browser tests (apt-get install chromium)")
    sync = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -r requirements.txt"
    )
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    with sync.sync_playwright() as driver:
        chrome = driver.chromium.launch(executable_path=path, args=quiet)
        yield chrome
        chrome.close()
