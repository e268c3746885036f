"""The objective by hand, the look-up table against whole networks, and searches against the known optimum."""

from __future__ import annotations

from itertools import product
from statistics import mean, median

import pytest
from scipy.stats import kendalltau

import datasets
from datasets.workloads.digits_latency import latencies, lowest, operation_calls, parts
from kernels.model.architecture_search.evolutionary_search import EvolutionarySearch
from kernels.model.architecture_search.hardware_aware_search import HardwareAwareSearch, weighed
from kernels.model.architecture_search.random_search import RandomSearch


@pytest.fixture(scope="module")
def table():
    return datasets.workload("digits-search")


def every(table):
    return [dict(zip(table.space, values, strict=True)) for values in product(*table.space.values())]


def test_the_weighing_by_hand():
    assert weighed(0.8, 4.0, 2.0, -0.5, -0.5) == pytest.approx(0.8 / 2**0.5)
    assert weighed(0.8, 1.0, 2.0, -0.5, -1.0) == pytest.approx(0.8 * 2**0.5)
    assert weighed(0.8, 1.0, 2.0, 0.0, -1.0) == weighed(0.8, 2.0, 2.0, 0.0, -1.0) == 0.8
    assert weighed(0.8, 4.0, 2.0, 0.0, -1.0) == pytest.approx(0.4)


def test_what_is_looked_up_is_a_sum_over_the_places(table):
    held = latencies()
    one = {"first": "residual", "second": "identity", "third": "separable", "width": 8, "norm": True}
    assert parts(one) == [("first", "residual", 8, True), ("third", "separable", 8, True), ("ends", "ends", 8, False)]
    assert held.predicted(one) == pytest.approx(sum(median(held.operations[part]) for part in parts(one)))
    assert table.task(0).latency(one) == held.predicted(one) != table.latency(one) == held.measured(one)
    assert {part for other in every(table) for part in parts(other)} == set(held.operations)
    assert len(held.networks) == len(table.entries)


def test_it_ranks_whole_networks_and_multiplications_do_not(table):
    measured = [table.latency(a) for a in every(table)]
    assert kendalltau([table.task(0).latency(a) for a in every(table)], measured).statistic > 0.9
    assert kendalltau([table.entry(a).macs for a in every(table)], measured).statistic < 0.3


def test_a_part_is_timed_alone_and_the_lowest_round_counts():
    calls = operation_calls()
    assert set(calls) == set(latencies().operations)
    assert calls["second", "separable", 8, True]().shape == (1, 8, 4, 4) and calls["ends", "ends", 4, False]().shape[1]
    found = lowest({"short": lambda: sum(range(100)), "long": lambda: sum(range(10_000))}, rounds=3)
    assert 0 < found["short"] < found["long"]


def test_judged_by_measured_time_and_by_what_was_not_seen(table):
    search = HardwareAwareSearch()
    problem, worth = search.restated(table), {}
    for a in every(table):
        accuracy = (table.entry(a).validation[1] + table.entry(a).validation[2]) / 2
        worth[tuple(a.values())] = accuracy * (table.latency(a) / 50e-6) ** -0.07
    for a in every(table)[::37]:
        assert problem.regret(a, 0) == pytest.approx(max(worth.values()) - worth[tuple(a.values())])
        seen = table.entry(a).validation[0] * (table.latencies.predicted(a) / 50e-6) ** -0.07
        assert problem.task(0).evaluate(a) == pytest.approx(seen)
    best = dict(zip(table.space, max(worth, key=worth.get), strict=True))
    assert problem.regret(best, 0) == 0 and table.latency(best) < table.latency(table.best)


def test_shown_multiplications_it_is_judged_by_time_all_the_same(table):
    problem = HardwareAwareSearch(cost="macs").restated(table)
    by_time = HardwareAwareSearch().restated(table)
    a, b = every(table)[5], every(table)[300]
    assert problem.regret(a, 1) == by_time.regret(a, 1)
    ratio = problem.task(0).evaluate(a) / problem.task(0).evaluate(b)
    shares = [table.entry(x).validation[0] * table.entry(x).macs ** -0.07 for x in (a, b)]
    assert ratio == pytest.approx(shares[0] / shares[1])


def test_it_finds_faster_networks_than_a_search_for_accuracy_and_beats_chance(table):
    search = HardwareAwareSearch()
    problem = search.restated(table)
    found = {
        who: [searcher.search(p.space, p.task(seed), 1080, seed)[0] for seed in range(12)]
        for who, searcher, p in (
            ("time", search, problem), ("chance", RandomSearch(), problem), ("accuracy", EvolutionarySearch(), table)
        )
    }  # fmt: skip
    regret = {who: mean(problem.regret(a, seed) for seed, a in enumerate(those)) for who, those in found.items()}
    assert regret["time"] < regret["chance"]
    assert mean(map(table.latency, found["time"])) < mean(map(table.latency, found["accuracy"]))
    once, again = (search.search(problem.space, problem.task(1), 300, 1) for _ in range(2))
    assert once == again


def test_wrong_input_is_named(table):
    for wrong, what in (
        ({"target": 0.0}, "target: expected seconds"), ({"cost": "energy"}, "cost: expected one of latency, macs"),
        ({"over": 0.1}, "under, over: expected exponents of at most 0"), ({"sample": 11}, "sample: expected"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=what):
            HardwareAwareSearch(**wrong)
    with pytest.raises(ValueError, match="architecture: expected one value"):
        table.latency({"width": 8})
