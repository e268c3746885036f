"""The loader: every mistake of every file at once, each with its line."""

import shutil

import pytest

import taxonomy
from taxonomy.load import ROOT, TaxonomyError, load

TABLES = ("metrics.yml", "families.yml", "references.yml", "workloads.yml", "kinds.yml", "papers.yml", "influences.yml")


@pytest.fixture
def copy(tmp_path):
    for name in (*TABLES, "model", "arithmetic", "implementation"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    return tmp_path


def test_a_copy_loads_like_the_original(copy):
    assert list(load(copy).techniques) == list(taxonomy.load().techniques)


def test_three_mistakes_come_at_once_with_file_line_and_remedy(copy):
    path = copy / "arithmetic/alternative_numbers/posit.yml"
    text = path.read_text()
    text = text.replace("kind: number-format", "kind: number-fromat")
    text = text.replace("baseline: fp32", "baseline: fp23")
    path.write_text(text + "\nuse_wehn: never\n")
    lines = path.read_text().splitlines()
    with pytest.raises(TaxonomyError) as error:
        load(copy)
    problems = error.value.problems
    # the wrong kind and the unknown field are the file's own; the unknown baseline shows once the file stands
    assert any(f":{lines.index('kind: number-fromat') + 1}:" in p and "'number-format'" in p for p in problems)
    assert any(f":{lines.index('use_wehn: never') + 1}:" in p and "use_when" in p for p in problems)
    path.write_text(text.replace("number-fromat", "number-format"))
    with pytest.raises(TaxonomyError, match="unknown baseline 'fp23'; did you mean fp32"):
        load(_fresh(copy))


def test_mistakes_of_two_files_come_together(copy):
    a, b = copy / "arithmetic/alternative_numbers/posit.yml", copy / "arithmetic/floating_point/bfloat16.yml"
    a.write_text(a.read_text().replace("runs: emulated", "runs: imagined"))
    b.write_text("id: [unclosed\n")
    with pytest.raises(TaxonomyError) as error:
        load(copy)
    assert {p.split(":")[0].rsplit("/", 1)[-1] for p in error.value.problems} >= {"posit.yml", "bfloat16.yml"}


def test_an_id_must_be_the_files_name_and_a_reference_must_exist(copy):
    path = copy / "arithmetic/alternative_numbers/posit.yml"
    path.write_text(path.read_text().replace("id: posit", "id: unum").replace("[gustafson2017", "[gustafson2071"))
    with pytest.raises(TaxonomyError, match="differs from the file's name") as error:
        load(copy)
    assert len(error.value.problems) >= 1


def _fresh(folder):
    """The same folder under another name: the loader caches by path."""
    return folder.rename(folder.with_name(folder.name + "_again"))


def test_the_taxonomy_is_immutable():
    tx = taxonomy.load()
    with pytest.raises(Exception, match="frozen"):
        tx["posit"].name = "Unum"
    with pytest.raises(AttributeError):
        tx.papers = ()
