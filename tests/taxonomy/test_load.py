"""The loader: every mistake of every file at once, each with its line."""

import shutil

import pytest

import taxonomy
from taxonomy.load import ROOT, TaxonomyError, load

TABLES = ("metrics.yml", "families.yml", "workloads.yml", "kinds.yml", "papers.yml")
FOLDERS = ("model", "arithmetic", "implementation", "references", "influences")


@pytest.fixture
def copy(tmp_path):
    for name in (*TABLES, *FOLDERS):
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


def test_what_a_technique_leaves_is_exploited_below_it(copy):
    path = copy / "model/pruning/n-m-pruning.yml"
    path.write_text(path.read_text().replace("exploited_by: [two-four-sparse]", "exploited_by: [two-for-sparse, gptq]"))
    with pytest.raises(TaxonomyError) as error:
        load(copy)
    unknown, level = error.value.problems
    assert "unknown technique 'two-for-sparse'; did you mean two-four-sparse" in unknown
    assert level.endswith("'gptq' is no technique of a lower level than model")


def test_a_reference_and_an_influence_are_files_of_their_own(copy):
    edge = copy / "influences/magnitude-pruning--csr.yml"
    edge.write_text(edge.read_text().replace("target: csr", "target: crs"))
    (copy / "references/new2026.yml").write_text("authors: A. New\ntitle: News\nyaer: 2026\n")
    with pytest.raises(TaxonomyError) as error:
        load(copy)
    problems = "\n".join(error.value.problems)
    assert "influences/magnitude-pruning--csr.yml:1: 'magnitude-pruning--crs' differs from the file's name" in problems
    assert "references/new2026.yml:3: yaer: no such field; did you mean year?" in problems
    assert "references/new2026.yml:1: year: missing" in problems
    assert "unknown technique 'crs'" in problems and len(error.value.problems) == 4
    (copy / "references/new2026.yml").unlink()
    edge.write_text(edge.read_text().replace("crs", "csr").replace("metric: latency", "metric: latncy"))
    with pytest.raises(TaxonomyError, match=r"csr.yml:3: unknown metric 'latncy'; did you mean latency"):
        load(_fresh(copy))


def _fresh(folder):
    """The same folder under another name: the loader caches by path."""
    return folder.rename(folder.with_name(folder.name + "_again"))


def test_the_taxonomy_is_immutable():
    tx = taxonomy.load()
    with pytest.raises(Exception, match="frozen"):
        tx["posit"].name = "Unum"
    with pytest.raises(AttributeError):
        tx.papers = ()
