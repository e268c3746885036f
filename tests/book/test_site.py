"""The built pages: links lead somewhere, nothing is asked of a network, no page is heavy."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

HEAVIEST = 1_000_000


class Page(HTMLParser):
    """What a page defines, links to, and loads."""

    LOADS = (("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("image", "href"))

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loads, self.images = set(), [], [], []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if values.get("id"):
            self.ids.add(values["id"])
        if tag == "a":
            target = values.get("href") or values.get("xlink:href")
            if target is not None:
                self.links.append(target)
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "modulepreload", "preconnect"):
            self.loads.append(values["href"])
        self.loads += [values[name] for kind, name in self.LOADS if kind == tag and values.get(name)]
        if tag == "img":
            self.images.append(values)


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if "vendor" not in path.parts}


def outside(target: str) -> bool:
    return bool(urlsplit(target).netloc)


def test_internal_links_and_anchors_resolve(site, pages):
    broken = []
    for path, page in pages.items():
        for target in page.links:
            parts = urlsplit(target)
            if parts.scheme in ("http", "https", "mailto", "javascript") or target in ("#", ""):
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not there.is_file():
                broken.append(f"{path.relative_to(site)}: {target} (no such file)")
            elif parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].ids:
                broken.append(f"{path.relative_to(site)}: {target} (no such anchor)")
    assert not broken, "\n".join(broken)


def test_nothing_is_loaded_from_outside(site, pages):
    asked = [
        f"{path.relative_to(site)}: {target}"
        for path, page in pages.items()
        for target in page.loads
        if outside(target)
    ]
    assert not asked, "\n".join(asked)
    styles = [
        path
        for path in site.rglob("*.css")
        if re.search(r"(url\(|@import)\s*['\"]?https?:", path.read_text("utf-8", "replace"))
    ]
    assert not styles


def test_no_page_is_heavy(site, pages):
    heavy = {str(path.relative_to(site)): size for path in pages if (size := path.stat().st_size) > HEAVIEST}
    assert not heavy


def test_scripts_of_other_peoples_clouds_are_gone(pages):
    for path in pages:
        text = path.read_text("utf-8")
        assert "thebe" not in text.lower().replace("thebelab-", ""), path
        assert "unpkg.com" not in text and "cdn.jsdelivr" not in text, path


def test_every_chart_has_words_and_a_table(pages):
    for path in pages:
        text = path.read_text("utf-8")
        for chart in re.findall(r'<figure class="chart".*?</figure>', text, re.S):
            assert re.search(r'aria-label="[^"]{15,}"', chart), path
            assert "<table" in chart and "<svg" in chart, path


def test_every_image_has_words(pages):
    for path, page in pages.items():
        assert all(image.get("alt") is not None for image in page.images), path


def test_vendored_mathjax_is_what_its_card_says():
    import hashlib

    import yaml

    folder = Path(__file__).parents[2] / "book" / "_extra" / "vendor" / "mathjax"
    card = yaml.safe_load((folder / "card.yml").read_text("utf-8"))
    assert hashlib.sha256((folder / "tex-svg.js").read_bytes()).hexdigest() == card["sha256"]
    assert "Apache License" in (folder / "LICENSE").read_text("utf-8")
