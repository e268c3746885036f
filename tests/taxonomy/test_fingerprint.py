"""Staleness by reached definitions, on a small house of its own and on this one."""

import shutil
from dataclasses import replace

import pytest

import taxonomy
from taxonomy.fingerprint import ROOT, closure, protocol_version, workload_key
from taxonomy.freshness import expected

SHARED = '''LIMIT = 3

def helper(x):
    """Say."""
    return x + LIMIT

def other(x):
    return x
'''
LATE = """def round_it(x):
    from kernels import shared
    return shared.other(x)

class C:
    run = round_it
"""
FILES = {
    "kernels/__init__.py": "",
    "kernels/shared.py": SHARED,
    "kernels/a.py": "from kernels.shared import helper\nclass A:\n    def round(self, x):\n        return helper(x)\n",
    "kernels/b.py": "import kernels.shared as s\nclass B:\n    def round(self, x):\n        return s.helper(x)\n",
    "kernels/c.py": LATE,
    "datasets/__init__.py": "",
}


@pytest.fixture
def house(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def closures(house):
    return {name: closure([f"kernels.{name}:{name.upper()}"], house) for name in "abc"}


def edit(house, old, new, file="kernels/shared.py"):
    path = house / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def changed(house, *edits):
    before = closures(house)
    edit(house, *edits)
    after = closures(house)
    return {name for name in before if before[name] != after[name]}


def test_a_shared_helper_reaches_exactly_those_that_use_it(house):
    assert set(closures(house)["a"]) == {"kernels.a:A", "kernels.shared:helper", "kernels.shared:LIMIT"}
    assert changed(house, "return x + LIMIT", "return x - LIMIT") == {"a", "b"}


def test_a_constant_and_an_import_inside_a_function_are_reached(house):
    assert changed(house, "LIMIT = 3", "LIMIT = 4") == {"a", "b"}
    assert changed(house, "def other(x):\n    return x", "def other(x):\n    return -x") == {"c"}


def test_docstrings_and_comments_reach_nobody(house):
    assert changed(house, '"""Say."""', '"""Say more."""\n    # and why') == set()


def test_what_does_not_exist_is_named(house):
    with pytest.raises(LookupError, match=r"kernels\.a:Z"):
        closure(["kernels.a:Z"], house)


def test_in_this_house_a_shared_helper_makes_exactly_its_users_stale(tmp_path):
    left_out = shutil.ignore_patterns("*.npz", "__pycache__", "measurements")
    for name in ("kernels", "datasets"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=left_out)
    tx = taxonomy.load()
    starts = {node.id: [node.implementation, *node.reaches] for node in tx}
    shared = "kernels.arithmetic.number_format:NumberFormat"
    users = {name for name, start in starts.items() if shared in closure(start, tmp_path)}
    assert {"posit", "bfloat16"} <= users < set(starts)
    before = {name: closure(start, tmp_path) for name, start in starts.items()}
    path = tmp_path / "kernels/arithmetic/number_format.py"
    text = path.read_text()
    path.write_text(text.replace("    bits: int\n", "    bits: int\n    edited = True\n", 1))
    after = {name: closure(start, tmp_path) for name, start in starts.items()}
    touched = {name for name in starts if before[name] != after[name]}
    assert touched == users


def test_fingerprints_depend_on_conditions_data_and_version():
    tx = taxonomy.load()
    node = tx["posit"]
    base = expected(tx, node, {"bits": 8, "es": 0}, "mnist-cnn", {"on": "weights"})
    assert base == expected(tx, node, {"es": 0, "bits": 8}, "mnist-cnn", {"on": "weights"})
    others = {
        expected(tx, node, {"bits": 8, "es": 1}, "mnist-cnn", {"on": "weights"}),
        expected(tx, node, {"bits": 8, "es": 0}, "digits-mlp", {"on": "weights"}),
        expected(tx, node, {"bits": 8, "es": 0}, "mnist-cnn", {"on": "both"}),
    }
    assert base not in others and len(others) == 3


def test_every_kind_declares_its_protocols_version():
    for kind in taxonomy.load().kinds:
        assert protocol_version(kind) >= 1


def test_a_workload_is_known_by_its_data_and_weights():
    keys = {name: workload_key(name) for name, node in taxonomy.load().workloads.items() if node.kind == "network"}
    assert len(set(keys.values())) == len(keys)
    unweighed = {name for name, value in keys.items() if "null" in value.rsplit("[", 1)[-1]}
    assert unweighed == {"new-speakers-gru"}  # trained when it is asked for: code and data say all


def test_what_lies_beside_a_table_is_part_of_it(tmp_path):
    """A search's table whose figures come from a second file too is another workload when that file changes."""
    folder = tmp_path / "datasets" / "workloads"
    folder.mkdir(parents=True)
    (folder / "table.py").write_text("def workload():\n    return 1\n")
    keys = []
    for times in ("1", "2"):
        (folder / "card.yml").write_text(f'table: {{sha256: "a", beside: [times]}}\ntimes: {{sha256: "{times}"}}\n')
        keys.append(workload_key("table", root=tmp_path, state=times))
    assert keys[0] != keys[1]
    (folder / "card.yml").write_text('table: {sha256: "a"}\n')
    assert workload_key("table", root=tmp_path, state="3").endswith('["a"]]')


def test_how_many_records_are_owed_does_not_change_what_one_means():
    tx = taxonomy.load()
    node = tx["slimmable-network"]

    def now(**settings):
        changed = node.model_copy(update={"settings": {**node.settings, **settings}})
        return expected(replace(tx, techniques={node.id: changed}), changed, {"width": 0.5}, "noisy-digits-cnn", {})

    assert now() == now(orders=3, dial=None) != now(timed=[])
