"""The query face, as a program meets it."""

import json
import subprocess
import sys

import networkx
import pytest

import taxonomy
from taxonomy.cli import main
from taxonomy.measurements import BEYOND_ONE

tx = taxonomy.load()


def test_unknown_ids_name_the_nearest():
    with pytest.raises(KeyError, match="did you mean posit"):
        tx["posti"]
    with pytest.raises(KeyError, match="did you mean mnist-cnn"):
        tx.workload("mnist-cn")
    with pytest.raises(KeyError, match="did you mean accuracy"):
        tx.measurements("posit", metric="acuracy")
    with pytest.raises(TypeError, match="unknown criterion 'levle'"):
        tx.find(levle="model")
    with pytest.raises(TypeError, match="unknown parameter 'bit'; it takes bits, es"):
        tx["posit"].reference(bit=8)


def test_find_combines_wildcard_and_criteria():
    assert tx.find("*prun*").ids() == [node.id for node in tx if "prun" in node.id]
    formats = tx.find(level="arithmetic", kind="number-format")
    assert set(formats.ids()) == {n.id for n in tx if n.kind == "number-format"}
    assert list(formats.frame()["id"]) == formats.ids()
    assert all("memory_footprint" in map(tx.metric, n.improves) for n in tx.find(improves="memory_footprint"))
    assert tx.find("no such thing") == ()


def test_the_graph_is_a_plain_multidigraph_with_every_node():
    graph = tx.graph
    assert type(graph) is networkx.MultiDiGraph
    by_type = networkx.get_node_attributes(graph, "type")
    assert sum(kind == "technique" for kind in by_type.values()) == len(tx)
    assert sum(kind == "paper" for kind in by_type.values()) == len(tx.papers) == 26
    for edge in tx.influences():
        assert graph.has_edge(edge.source, edge.target, key=edge.metric)


def test_every_technique_of_the_model_level_says_who_below_makes_use_of_it():
    for node in tx.find(level="model"):
        assert node.leaves and node.exploited_by
        for below in node.exploited_by:
            assert tx[below].level != "model"
            assert any(edge["relation"] == "exploited-by" for edge in tx.graph[node.id][below].values())


def test_related_follows_edges_both_ways_and_deeper():
    assert "csr" in tx.related("magnitude-pruning", "influences").ids()
    assert "magnitude-pruning" in tx.related("csr", "influences").ids()
    assert "loop-tiling" in tx.related("zero-space-ecc", "influences", depth=2).ids()
    assert "n-m-pruning" in tx.related("two-four-sparse", "exploited-by").ids()
    assert "two-four-sparse" in tx.related("n-m-pruning", "exploited-by").ids()
    with pytest.raises(ValueError, match="relation must be one of"):
        tx.related("csr", "friendship")


@pytest.mark.parametrize("node", list(tx), ids=lambda node: node.id)
def test_the_first_variant_is_the_default(node):
    assert node.reference() == node.reference(**node.variants[0])
    assert len({json.dumps(v, sort_keys=True) for v in node.variants}) == len(node.variants)


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["show", "posit"], ["find", "*sparse*"], ["related", "csr"], ["influences"], ["validate"],
     ["measurements", "posit", "--metric", "sqnr"], ["measure", "--plan", "posit"],
     ["bench", "loops", "csr"]],
)  # fmt: skip
def test_every_command_speaks_json(arguments, capsys):
    assert main([*arguments, "--json"]) == 0
    json.loads(capsys.readouterr().out)
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip()


def test_exit_codes(capsys):
    assert main(["show", "posti"]) == 2
    assert "did you mean posit" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["no-such-command"])
    assert stop.value.code == 2


def test_export_writes_what_it_says(tmp_path):
    from taxonomy.export import export

    paths = export(tx, tmp_path)
    assert len(json.loads(paths[0].read_text())["techniques"]) == len(tx)
    graph = networkx.read_graphml(paths[1], force_multigraph=True)
    assert set(graph.nodes) == set(tx.graph.nodes)
    assert paths[2].read_text().startswith("technique,variant,workload")


def test_the_exported_schema_is_the_one_that_editors_use():
    from taxonomy.load import ROOT
    from taxonomy.schema import json_schema

    assert json.loads((ROOT / "schema.json").read_text()) == json.loads(json.dumps(json_schema()))


def test_module_runs_as_a_command():
    out = subprocess.run([sys.executable, "-m", "taxonomy", "validate"], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr


def test_no_share_is_said_to_reach_below_none_or_beyond_all():
    found = tx.measurements(store="reference")
    shares = found[(found.unit == "fraction") & ~found.metric.isin(BEYOND_ONE) & (found.n > 1)]
    assert len(shares) > 400 and shares.low.min() >= 0 and shares.high.max() <= 1
    assert ((shares.low <= shares.value + 1e-9) & (shares.value <= shares.high + 1e-9)).all()
