"""`tx.best`: of the stacks measured, those that meet the bounds and that no other beats."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import taxonomy
from taxonomy import cli
from taxonomy.best import best
from taxonomy.schema import StackNode
from taxonomy.status import complaints

tx = taxonomy.load()


@pytest.mark.parametrize("node", list(tx.stacks.values()), ids=lambda node: node.id)
def test_every_stack_is_completely_measured(node):
    assert complaints(tx, node) == []


@pytest.mark.parametrize("node", list(tx.stacks.values()), ids=lambda node: node.id)
def test_the_words_of_a_variant_make_the_stack(node):
    for variant in node.variants:
        assert node.reference(**variant).parts == tx.stack(*node.words(variant)).parts


def figures(monkeypatch, points):
    """Let the stacks measured be these (bits, validation accuracy, test accuracy)."""

    def candidates(tx, workload):
        node = StackNode(
            id="a-stack",
            name="A stack",
            parts=("int8",),
            variants=({"int8.symmetric": True},),
            idea="",
            workloads=("x",),
        )
        for bits, seen, unseen in points:
            own = {"stored_bits": bits, "validation_accuracy": seen, "accuracy": unseen}
            rows = {name: {"value": value, "low": value, "high": value} for name, value in own.items()}
            yield {"node": node, "variant": {}, "self": rows, "baseline": {"stored_bits": {"value": 100.0}}}

    monkeypatch.setattr("taxonomy.best._candidates", candidates)


def test_validation_decides_and_test_is_shown(monkeypatch):
    figures(monkeypatch, [(10, 0.8, 0.99), (20, 0.95, 0.7), (40, 0.99, 0.6)])
    found = best(tx, "stored_bits", "mnist-cnn", {"accuracy": 0.9})
    assert found.stored_bits.tolist() == [20, 40] and found.accuracy.tolist() == [0.7, 0.6]
    assert found.ratio.tolist() == [5, 2.5]
    assert best(tx, "accuracy", "mnist-cnn", {"stored_bits": 15}).accuracy.tolist() == [0.99]
    assert best(tx, "accuracy", "mnist-cnn", {}).accuracy.tolist() == [0.6]
    assert best(tx, "stored_bits", "mnist-cnn", {"accuracy": 0.999}).empty


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12), st.integers(1, 9))
def test_what_is_left_out_is_beaten_and_what_is_kept_is_not(pairs, bound):
    with pytest.MonkeyPatch.context() as monkeypatch:
        figures(monkeypatch, [(bits, right, right) for bits, right in pairs])
        found = best(tx, "stored_bits", "mnist-cnn", {"accuracy": bound})
    kept = list(zip(found.stored_bits, found.accuracy, strict=True))
    allowed = [pair for pair in pairs if pair[1] >= bound]
    assert set(kept) <= set(allowed) and kept == sorted(kept)
    for bits, right in allowed:
        assert any(b <= bits and r >= right for b, r in kept)
    assert not any(b <= bits and r >= right and (b, r) != (bits, right) for bits, right in kept for b, r in allowed)


def test_what_is_unknown_is_named():
    with pytest.raises(KeyError, match="unknown workload 'mnist'; did you mean mnist-cnn"):
        tx.best("stored_bits", workload="mnist")
    with pytest.raises(KeyError, match="unknown metric 'stored_bit'; did you mean stored_bits"):
        tx.best("stored_bit", workload="mnist-cnn")
    with pytest.raises(KeyError, match="regret: no stack has it on mnist-cnn; measured there: accuracy"):
        tx.best("regret", workload="mnist-cnn")
    with pytest.raises(KeyError, match="no stack has it on gemv; measured there: nothing"):
        tx.best("stored_bits", workload="gemv")


def test_the_command_line_says_the_same(capsys):
    assert cli.main(["best", "stored_bits", "--workload", "mnist-cnn", "--subject-to", "accuracy=0.9", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    frame = tx.best("stored_bits", workload="mnist-cnn", subject_to={"accuracy": 0.9})
    assert [row["parts"] for row in rows] == frame.parts.tolist() and len(rows) > 0
    assert cli.main(["best", "stored_bits", "--workload", "mnist-cnn", "--subject-to", "accuracy"]) == 2
    assert "expected METRIC=BOUND" in capsys.readouterr().err
