"""From repetitions to a verdict: planted effects are found, shuffled arms are not."""

import math
import random
from importlib import import_module

import pytest

import taxonomy
from taxonomy import store as stores
from taxonomy.freshness import expected
from taxonomy.verdict import TIMES, break_even, conclude, contrast, crossover, findings, judge, smallest_effect, vote

tx = taxonomy.load()
CROSSOVER = next(edge for edge in tx.influences() if edge.estimand == "crossover" and edge.metric == "latency")


def record(times, setting, seed):
    return {"subject": CROSSOVER.id, "variant": {}, "workload": CROSSOVER.workloads[0], "setting": setting,
            "type": "timing", "seed": seed, "times": times, "fingerprint": ""}  # fmt: skip


def synthetic(effect, strengths=(0.05, 0.1, 0.2, 0.5), noise=0.03, seed=0, repetitions=5):
    rng = random.Random(seed)
    records = []
    for repetition in range(repetitions):
        drift = rng.gauss(0, 0.2)  # a machine is faster or slower as a whole: paired ratios do not see it
        for strength in strengths:
            base = [math.exp(drift + rng.gauss(0, noise)) for _ in range(15)]
            own = [math.exp(drift - effect(strength) + rng.gauss(0, noise)) for _ in range(15)]
            times = {"baseline": base, "self": own}
            records.append(record(times, {CROSSOVER.along: strength}, repetition))
    return records


def shuffled(records, seed):
    """Arms exchanged at random, repetition by repetition: that is the unit that was drawn.

    With five repetitions all keep or all change their arms once in sixteen shuffles, and the effect stands: no rule
    that finds it at all can reject less often than that.
    """
    rng = random.Random(seed)
    swapped = {repetition: rng.random() < 0.5 for repetition in sorted({one["seed"] for one in records})}
    return [exchange(one) if swapped[one["seed"]] else one for one in records]


def exchange(one):
    partner = {"baseline": "self", "self": "baseline", "source": "both", "both": "source",
               "neither": "target", "target": "neither"}  # fmt: skip
    parts = [part for part in ("times", "values", "works") if part in one]
    return {**one, **{part: {partner[arm]: values for arm, values in one[part].items()} for part in parts}}


def test_a_planted_crossover_is_recovered():
    planted = 0.15
    found = findings(CROSSOVER, synthetic(lambda d: math.log(planted / d)))
    assert len(found) == 1
    finding = found[0]
    assert finding.verdict == "supported"
    value, low, high = finding.crossover
    assert low <= planted <= high and value == pytest.approx(planted, rel=0.1)


def test_a_planted_effect_of_one_sign_contradicts_mixed():
    finding = findings(CROSSOVER, synthetic(lambda d: 0.5))[0]
    assert finding.verdict == "contradicted" and finding.crossover is None
    assert all(point.vote == "+" for point in finding.points)


@pytest.mark.parametrize("noise", [0.03, 0.1, 0.3])
def test_shuffled_arms_reject_at_most_as_often_as_they_may(noise):
    rejections = 0
    measured = synthetic(lambda d: math.log(0.15 / d), noise=noise)
    for seed in range(200):
        records = shuffled(measured, seed)
        found = findings(CROSSOVER, records)
        rejections += any(point.vote in "+-" for f in found for point in f.points)
    assert rejections / 200 <= 0.08


@pytest.mark.parametrize("edge", tx.influences(), ids=lambda edge: edge.id)
def test_the_stored_records_with_shuffled_arms_reject_at_most_as_often(edge):
    records = stores.reference.records(edge.address)
    assert records, "not measured"
    rejected = sum(
        any(point.vote in "+-" for f in findings(edge, shuffled(records, seed)) for point in f.points)
        for seed in range(200)
    )
    assert rejected / 200 <= 0.08


def test_accuracy_is_a_difference_and_interactions_are_differences_of_contrasts():
    edge = CROSSOVER.model_copy(update={"metric": "accuracy"})
    assert contrast(edge, {"values": {"baseline": {"accuracy": 0.9}, "self": {"accuracy": 0.93}}}, "accuracy", True) \
        == pytest.approx(0.03)  # fmt: skip
    both = CROSSOVER.model_copy(update={"estimand": "interaction"})
    cells = {"neither": [8.0] * 3, "target": [4.0] * 3, "source": [3.0] * 3, "both": [3.0] * 3}
    assert contrast(both, {"times": cells}, "latency", False) == pytest.approx(-math.log(2))


def test_ten_decibels_are_a_factor_of_ten():
    edge = tx.influences(source="bfloat16", target="loop-tiling")[0]
    values = {"baseline": {"sqnr": 20.0}, "self": {"sqnr": 30.0}}
    assert contrast(edge, {"values": values}, "sqnr", True) == pytest.approx(math.log(10))


def test_votes_follow_the_smallest_effect():
    small = smallest_effect("latency")
    assert small == pytest.approx(math.log(1.1))
    assert vote([small * 3 + e for e in (-0.01, 0, 0.01, 0.005, -0.005)], small).vote == "+"
    assert vote([-small * 3 + e for e in (-0.01, 0, 0.01, 0.005, -0.005)], small).vote == "-"
    assert vote([e for e in (-0.01, 0, 0.01, 0.005, -0.005)], small).vote == "0"
    assert vote([-1.0, 1.0, 0.5, -0.5, 0.2], small).vote == "?"
    assert vote([5.0, 5.01, 5.02], small).vote == "?", "fewer than five repetitions decide nothing"


def test_the_table_of_verdicts():
    assert judge("+", "0?") == judge("-", "+0".replace("+", "?")) == "inconclusive"
    assert judge("mixed", "00") == "contradicted" and judge("mixed", "+-") == "supported"
    assert judge("needs", "--") == "inconclusive"


def test_a_rescue_is_found_where_the_source_fails_alone():
    edge = next(edge for edge in tx.influences() if edge.id == "bfloat16--master-weights")
    assert edge.sign == "needs" and edge.estimand == "rescue"

    def finding(alone, together, repetitions=5):
        rng = random.Random(1)
        samples = {0.0: alone, 1.0: together}
        return conclude(edge, {s: [c + rng.gauss(0, 0.001) for _ in range(repetitions)] for s, c in samples.items()})

    saved = finding(-0.3, 0.0)
    assert saved.verdict == "supported" and [point.vote for point in saved.points] == ["-", "0"]
    assert saved.effect == pytest.approx(-0.3, abs=0.01) and saved.crossover is None
    assert finding(0.0, 0.0).verdict == "contradicted", "it did not fail: nothing was needed"
    assert finding(-0.3, -0.1).verdict == "inconclusive", "it was not saved"
    assert finding(-0.3, 0.0, repetitions=3).verdict == "inconclusive"


def test_crossover_is_none_without_a_change_of_sign_in_some_repetition():
    assert crossover([0.1, 1.0], [[1.0, -1.0], [1.0, 0.5]]) is None


def test_a_change_of_sign_around_nothing_is_no_crossover():
    rng = random.Random(0)
    noise = {s: [rng.gauss(0, 0.01) for _ in range(5)] for s in (0.1, 0.2, 0.5)}
    assert conclude(CROSSOVER, noise).crossover is None


def test_a_trace_that_starts_at_nothing_crosses_where_its_sign_changes():
    """c = 0 is no sign: what rises from nothing and falls below it crosses once, on the way down."""
    root, low, high = crossover([0.01, 0.1, 1.0, 100.0], [[0.0, 0.3, 0.2, -0.2], [0.0, 0.3, 0.1, -0.1]])
    assert root == pytest.approx(10.0) and low == pytest.approx(10.0) == high
    assert crossover([1.0, 10.0, 100.0], [[1.0, 0.0, -1.0]])[0] == pytest.approx(10.0)
    assert crossover([0.1, 1.0], [[0.0, 1.0]]) is None


def test_a_crossover_is_sought_where_the_votes_turn():
    rng = random.Random(3)  # at the first two strengths only noise, whose sign changes
    planted = {0.001: 0.0, 0.01: 0.0, 0.1: 0.4, 1.0: -0.4}
    found = conclude(CROSSOVER, {s: [c + rng.gauss(0, 0.02) for _ in range(10)] for s, c in planted.items()})
    assert [point.vote for point in found.points] == ["0", "0", "+", "-"]
    assert found.crossover[0] == pytest.approx(10**-0.5, rel=0.1)


def test_an_operators_own_times_say_where_it_breaks_even():
    """Against each contestant, variant by variant; a setting that was not timed beside it says nothing."""
    planted = {"baseline": 0.15, "mkl": 5.0}
    records = []
    for who, strength in planted.items():
        for one in synthetic(lambda d, root=strength: math.log(root / d)):
            times = {who: one["times"]["baseline"], "self": one["times"]["self"]}
            setting = {"m": 64, "n": 8, "k": 64, **one["setting"]}
            records.append({**one, "subject": "csr", "variant": {"index_bits": 16}, "setting": setting, "times": times})
    records.append({**records[0], "type": "quality", "times": {}})
    (found,) = break_even("csr", records=records)
    assert found.crossover[0] == pytest.approx(planted["baseline"], rel=0.1) and found.stale
    assert found.setting == "index_bits=16, m=64, n=8, k=64" and found.influence == "density--csr"
    (against,) = break_even("csr", who="mkl", records=records)
    assert against.crossover is None and against.turn == "always ahead"
    assert found.turn.startswith("0.15 [") and break_even("csr", records=records, n=8, index_bits=16)
    assert break_even("csr", who="scipy", records=records) == break_even("csr", records=records, n=9) == ()


def test_repetitions_that_are_all_the_same_are_no_evidence():
    """Ten draws in which a fault of 3.6 in a hundred did not happen: seven times in ten they say nothing happens."""
    assert vote([0.0] * 10, 0.005).vote == vote([-0.3] * 10, 0.005).vote == "?"
    assert vote([0.0] * 10, 0.005, counted=True).vote == "0"
    counting = tx.influences(source="bfloat16", target="loop-tiling")[0]
    assert counting.by_construction and findings(counting)[0].verdict == "supported"


@pytest.mark.parametrize("repetitions", [5, 10])
def test_an_effect_as_large_as_the_smallest_is_seldom_said_to_be_beyond_it_or_within(repetitions):
    """The rate of error that is promised, on normal repetitions: 2.5 % of all traces, whatever their length."""
    rng = random.Random(repetitions)
    for points in (1, 3, 7):
        wrong = {"+": 0, "0": 0}
        for _ in range(600):
            ballot = {
                vote([0.1 + rng.gauss(0, 0.03) for _ in range(repetitions)], 0.1, points).vote for _ in range(points)
            }
            for symbol in wrong:
                wrong[symbol] += symbol in ballot
        assert max(wrong.values()) / 600 < 0.045


def test_an_arm_that_is_not_measured_yet_decides_nothing():
    edge = next(edge for edge in tx.influences() if edge.sign == "needs")
    assert conclude(edge, {0.0: [-0.3, -0.31, -0.29, -0.3, -0.32]}).verdict == "inconclusive"


def test_no_range_of_strengths_is_asked_for_where_both_arms_of_a_rescue_are_decided():
    edge = next(edge for edge in tx.influences() if edge.sign == "needs")
    finding = conclude(edge, {0.0: [-0.3, -0.31, -0.29, -0.3, -0.32], 1.0: [-0.2, -0.21, -0.19, -0.2, -0.22]})
    assert finding.verdict == "inconclusive" and "with the target too" in finding.because


@pytest.mark.parametrize("edge", tx.influences(), ids=lambda edge: edge.id)
def test_the_version_of_an_experiment_is_raised_where_it_is_read(edge):
    """Fingerprints hold the edge's version; one raised in the experiment would make nothing stale, without a word."""
    assert import_module(edge.implementation).protocol.version == 1, f"raise it in taxonomy/influences/{edge.id}.yml"


def test_stale_records_do_not_blur_fresh_ones():
    edge = tx.influences(source="depthwise-separable", target="direct-convolution")[0]
    fresh = [
        {**record, "fingerprint": expected(tx, edge, record["variant"], record["workload"], record["setting"])}
        for record in stores.reference.records(edge.address)
    ]
    old = [{**exchange(record), "seed": record["seed"] + 5, "fingerprint": "another"} for record in fresh]
    assert findings(edge, fresh + old) == findings(edge, fresh) and not any(f.stale for f in findings(edge, fresh))
    assert all(finding.stale for finding in findings(edge, old))


def test_an_edge_is_not_judged_by_the_finding_that_comes_first():
    edge = tx.influences(source="depthwise-separable", target="direct-convolution")[0]
    assert len({finding.verdict for finding in edge.findings}) == 2
    assert (
        edge.verdict
        == "3 supported, 3 contradicted"
        == tx.graph.edges[edge.source, edge.target, edge.metric]["verdict"]
    )


def test_conclusion_says_what_would_decide():
    finding = conclude(CROSSOVER, {0.1: [0.3, 0.31], 0.2: [-0.3, -0.31]})
    assert finding.verdict == "inconclusive" and "5 repetitions are needed" in finding.because


def test_times_are_the_metrics_of_time():
    assert set(TIMES) <= set(tx.metrics)
