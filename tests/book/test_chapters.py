"""Every chapter has one skeleton, so that a reader knows where to look."""

import re
from pathlib import Path

import pytest
import yaml
from contents import contents

import taxonomy

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted(
    path for level in ("model", "arithmetic", "implementation") for path in (ROOT / "book" / level).glob("*.md")
)
SECTIONS = ["The answer first", "Where it stands", "Summary", "Exercises", "Further reading"]


def prose(text: str) -> str:
    """The text without front matter, cells and roles."""
    text = re.sub(r"\A---.*?\n---\n", "", text, flags=re.S)
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    return re.sub(r"\{[\w-]+\}`[^`]*`", "", text)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_skeleton(path):
    text = path.read_text("utf-8")
    headings = re.findall(r"^## (.+)$", text, re.M)
    assert [heading for heading in headings if heading in SECTIONS] == SECTIONS
    assert headings[0] == SECTIONS[0], "the answer comes first"
    before = text.split("## ", 1)[0]
    assert re.search(r"\*\*You need\*\*", before), "prerequisites"
    assert re.search(r"\*\*Reading time\*\*: \d+ minutes", before), "time to read"
    answer = text.split(f"## {SECTIONS[0]}", 1)[1].split("\n## ", 1)[0]
    assert "{measured" in answer or "{finding" in answer, "the answer has measured numbers"
    exercises = text.split("## Exercises", 1)[1].split("\n## ", 1)[0]
    asked, answered = len(re.findall(r"^\*\*\d+\.\*\*", exercises, re.M)), exercises.count("{dropdown} Answer")
    assert asked and asked == answered, "every exercise has a hidden answer"
    assert len(re.findall(r"\bcharts\.\w+\(", text)) <= 5, "at most five charts"


def test_every_family_with_techniques_has_a_chapter_and_the_contents_are_up_to_date():
    tx = taxonomy.load()
    for name in {node.family for node in tx}:
        address = f"{tx.families[name].level}/{name}"
        assert (ROOT / "book" / f"{address}.md").is_file(), f"{address} has techniques and no chapter"
        assert {"file": address, "sections": [{"glob": f"{address}/*"}]} in chapters()
    assert contents() == (ROOT / "_toc.yml").read_text("utf-8"), "build the book: it writes _toc.yml"
    assert all((ROOT / "book" / f"{entry['file']}.md").is_file() for entry in chapters())


def chapters():
    return [entry for part in yaml.safe_load(contents())["parts"] for entry in part["chapters"]]
