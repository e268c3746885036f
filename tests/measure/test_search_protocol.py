"""The search protocol on a table of three architectures: its figures are worked by hand."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

import datasets
from datasets.workloads.digits_search import Entry, SearchWorkload
from kernels.model.architecture_search.evolutionary_search import EvolutionarySearch
from kernels.model.architecture_search.restated import Restated
from taxonomy.measure.protocol import Case
from taxonomy.measure.protocols.search import BUDGETS, protocol

TABLE = SearchWorkload("three", {"width": (1, 2, 3)}, {
    (1,): Entry((0.5, 0.9), (0.6, 0.8), 10, 100, 5),
    (2,): Entry((0.8, 0.8), (0.7, 0.7), 20, 200, 5),
    (3,): Entry((0.7, 0.7), (0.5, 0.5), 30, 300, 5),
})  # fmt: skip


@dataclass
class Everything:
    """Looks at all three: it takes the best that the one seed shows it."""

    def search(self, space, task, budget, seed):
        history = [({"width": w}, task.evaluate({"width": w}), 5.0 * n) for n, w in enumerate(space["width"], 1)]
        return max(history, key=lambda entry: entry[1])[0], history


def case(subject, workload, budget, seed=0):
    return Case(SimpleNamespace(settings={}), {}, subject, workload, {"budget": budget}, seed)


def test_figures_by_hand():
    """Seed 0 shows width 2 as the best, which seed 1 gives 0.8, and width 1 0.9; seed 1 shows width 1: 0.5, not 0.8."""
    values = protocol.quality(case(Everything(), TABLE, budget=15))["self"]
    assert values == pytest.approx(
        {"regret": (0.1 + 0.3) / 2, "accuracy": (0.7 + 0.6) / 2, "search_cost": 15, "parameters": 15, "macs": 150}
    )


def test_luck_that_made_a_search_choose_earns_it_nothing():
    """Candidates that are all the same but for luck: whatever is chosen is in the mean as good as any other."""
    rng, gains = np.random.default_rng(0), {"all": [], "others": []}
    for seed in range(60):
        luck = {(w,): Entry(tuple(rng.normal(0.8, 0.05, 3)), (0.8,) * 3, 1, 1, 1) for w in range(30)}
        table = SearchWorkload("luck", {"width": tuple(range(30))}, luck)
        best = max(range(30), key=lambda w: table.task(seed).evaluate({"width": w}))
        for judge, shown in (("all", None), ("others", seed)):
            every = [table.regret({"width": w}, shown) for w in range(30)]
            gains[judge].append((np.mean(every) - every[best]) / np.std(every))
    assert np.mean(gains["all"]) > 0.8, "judged by all seeds a choice is credited with its luck"
    assert abs(np.mean(gains["others"])) < 0.4


def test_both_keep_the_same_budget():
    values = protocol.quality(case(EvolutionarySearch(2, 2), TABLE, budget=52))
    assert values["self"]["search_cost"] == values["baseline"]["search_cost"] == 50


def test_evolution_beats_random_search_on_the_houses_table():
    table = datasets.workload("digits-search")
    values = protocol.quality(case(EvolutionarySearch(), table, budget=BUDGETS[-1]))
    assert 0 < values["self"]["regret"] < values["baseline"]["regret"]
    assert {*protocol.metrics, "latency", "peak_activation_bytes", "memory_footprint"} == set(values["self"])


def test_before_the_population_is_full_it_is_random_search():
    table = datasets.workload("digits-search")
    values = protocol.quality(case(EvolutionarySearch(population=20), table, budget=20 * 12, seed=3))
    assert values["self"] == values["baseline"]


def test_trials_are_seeds_of_each_budget():
    trials = protocol.trials(None, {}, TABLE)
    assert len(trials) == len(BUDGETS) * 5 and not any(trial.timing for trial in trials)


@dataclass
class Scoring(Everything):
    """Orders all three by a score, and says what it is worth under an objective of its own."""

    def scores(self, space, task, seed):
        return [-float(w) for w in space["width"]]

    def restated(self, problem):
        return Restated(problem, lambda accuracy, costs, candidate: accuracy - candidate["width"] / 10)


def test_a_technique_may_restate_the_problem_and_order_the_candidates():
    """By seed 1 alone: 0.9, 0.8, 0.7 of widths 1, 2, 3, ranked as scored; by seed 0: 0.5, 0.8, 0.7."""
    values = protocol.quality(case(Scoring(), TABLE, budget=15))
    assert values["self"]["rank_correlation"] == pytest.approx((1 - 1 / 3) / 2)
    assert "rank_correlation" not in values["baseline"]
    # seed 0 shows 0.4, 0.6, 0.4: width 2, worth 0.6 of 0.8 by seed 1
    # seed 1 shows 0.8, 0.6, 0.4: width 1, worth 0.4 of 0.6 by seed 0
    assert values["self"]["regret"] == pytest.approx(0.2)


def test_a_technique_sets_its_own_budgets_and_searches():
    node = SimpleNamespace(settings={"budgets": [5, 10], "searches": 1})
    assert [t.setting["budget"] for t in protocol.trials(node, {}, TABLE)] == [5] * 5 + [10] * 5
    values = protocol.quality(Case(node, {}, Everything(), TABLE, {"budget": 15}, 0))
    assert values["self"]["regret"] == pytest.approx(0.1)  # seed 0 alone: width 2, worth 0.8 of 0.9 by seed 1
