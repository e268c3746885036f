"""Numbers in prose: one record answers, or the error names those near."""

import math
from dataclasses import replace

import measured
import notebooks
import pytest

import taxonomy
from taxonomy.charts.traces import effect

ROWS = [
    {"technique": "posit", "metric": "accuracy", "who": who, "workload": w, "parameters": {"bits": b, "es": 2},
     "conditions": {"on": on}, "value": 0.9 + b / 1000, "low": 0.9, "high": 0.92, "unit": "fraction", "n": 5,
     "store": "reference", "stale": False, "reason": ""}
    for who in ("self", "baseline") for w in ("mnist-cnn", "digits-mlp") for b in (8, 16) for on in ("weights", "both")
]  # fmt: skip


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    here = {**ROWS[0], "store": "here", "value": 0.5}
    missing = {**ROWS[0], "metric": "energy", "value": math.nan, "reason": "no cited coefficient"}
    monkeypatch.setattr(measured, "_rows", lambda technique: [*ROWS, here, missing])


def test_conditions_leave_one_record():
    row = measured.lookup("posit:accuracy:workload=mnist-cnn,bits=8,on=both")
    assert row["value"] == 0.908 and row["who"] == "self"
    assert measured.lookup("posit:accuracy@baseline:workload=mnist-cnn,bits=16,on=both")["who"] == "baseline"


def test_the_reference_speaks_unless_this_machine_is_asked():
    text = "posit:accuracy:workload=mnist-cnn,bits=8,on=weights"
    assert measured.lookup(text)["store"] == "reference"
    assert measured.lookup(f"{text},store=here")["value"] == 0.5


def test_numbers_are_compared_as_numbers():
    assert measured.lookup("posit:accuracy:workload=mnist-cnn,bits=8.0,on=both")["value"] == 0.908


@pytest.mark.parametrize(
    "text, says",
    [
        ("posti:accuracy:", "unknown technique 'posti'; did you mean posit"),
        ("posit:acuracy:", "unknown metric 'acuracy'; did you mean accuracy"),
        ("posit:latency:", "no record of 'latency'.*there are accuracy, energy"),
        ("posit:accuracy@torch:", "nobody called 'torch'.*baseline, self"),
        ("posit:accuracy:workload=mnist-cnn,bits=7,on=both", "no record answers.*workload=mnist-cnn,bits=8"),
        ("posit:accuracy:workload=mnist-cnn", "4 records answer.*bits=8"),
        ("posit:accuracy:bits", "'bits' has no value"),
        ("posit:energy:", "no cited coefficient"),
    ],
)
def test_what_is_unknown_is_an_error_that_names_the_nearest(text, says):
    with pytest.raises(measured.Unknown, match=says):
        measured.lookup(text)


def test_notebooks_get_words():
    text = "{technique}`posit` reaches {measured}`posit:accuracy:workload=mnist-cnn,bits=8,on=both`, {metric}`sqnr`"
    said = notebooks.in_words(
        f"{text} {{measured-value}}`posit:accuracy:workload=mnist-cnn,bits=8,on=both` {{cite}}`han2015`"
    )
    low = "Posit reaches 90.8 % (90.0 to 92.0), signal-to-quantization-noise ratio 90.8 % "
    assert said == low + "[Han et al. 2015](https://arxiv.org/abs/1506.02626)"
    assert "**Accuracy**" in notebooks.in_words("```{listing} metrics stored\n```")


def test_an_unknown_influence_is_an_error():
    with pytest.raises(measured.Unknown, match="unknown influence 'a--b'"):
        measured.conclusion("a--b:verdict")


def test_an_effect_may_be_asked_for_at_a_strength():
    (edge,) = measured._taxonomy().influences(source="magnitude-pruning", target="csr")
    text = "magnitude-pruning--csr:effect:columns=64"
    (finding,) = [finding for finding in edge.findings if finding.setting == "columns=64"]
    point = finding.points[0]
    said, found = measured.conclusion(f"{text},{edge.along}={point.strength}")
    assert found == finding and said == effect(replace(finding, points=(point,)))
    with pytest.raises(measured.Unknown, match=r"strength: expected one of .*, got 7"):
        measured.conclusion(f"{text},{edge.along}=7")


def test_the_plain_record_answers_where_others_only_add_a_condition():
    def held(bits=8, **conditions):
        return {
            "workload": "array-16m", "parameters": {"bits": bits}, "store": "reference", "conditions": conditions
        }  # fmt: skip

    plain, two, encode = held(elements=9), held(elements=9, threads=2), held(elements=9, operation="encode")
    assert measured._plain([two, plain, encode]) == [plain]
    other = {**plain, "parameters": {"bits": 8, "es": 2}}  # a variant that says one thing more
    assert measured._plain([other, plain]) == [plain]
    assert not measured._plain([other, {**plain, "parameters": {"bits": 8, "es": 1}}])
    assert measured._plain([two, encode]) == []
    assert measured._plain([plain, held(bits=4, elements=9)]) == []


def test_what_was_found_for_one_technique_is_not_said_of_another_that_leaves_the_same():
    """Filter pruning and group sparsity leave the same; only the first was measured with im2col."""
    rows = notebooks.in_words("```{listing} exploited pruning\n```").splitlines()
    (measured,) = [row for row in rows if row.startswith("| Filter pruning |")]
    (other,) = [row for row in rows if row.startswith("| Group sparsity |")]
    verdict = taxonomy.load().influences("filter-pruning", "im2col")[0].verdict
    assert f"({verdict})" in measured and "(" not in other.split("|")[3]
    alike = next(row for row in rows if "Lottery ticket" in row)
    assert "Movement pruning" in alike  # one row for those that nothing tells apart
