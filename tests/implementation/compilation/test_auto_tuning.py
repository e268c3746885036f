"""A tuner on tables whose optimum is known: it finds it sooner than chance does, and is honest about its budget."""

from __future__ import annotations

from statistics import mean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

import datasets
from kernels.implementation.compilation.auto_tuning import SCHEDULES, AutoTuning, ProductTask, features, ranks
from kernels.implementation.loops.loop_tiling import error_bound
from kernels.model.architecture_search.random_search import RandomSearch


class Bowl:
    """Slowest away from one program, quadratically in the logarithms: what the model can learn whole."""

    def __init__(self, optimum):
        self.optimum, self.asked = optimum, []

    def cost(self, candidate):
        return 1

    def evaluate(self, candidate):
        self.asked.append(tuple(candidate.values()))
        return -sum((np.log2(candidate[c]) - np.log2(v)) ** 2 for c, v in self.optimum.items())


@pytest.mark.parametrize("seed", range(10))
def test_a_bowl_is_learned_from_few_measurements(seed):
    rng = np.random.default_rng(seed)
    optimum = {choice: int(rng.choice(values)) for choice, values in SCHEDULES.items()}
    found, history = AutoTuning(explore=0).search(SCHEDULES, Bowl(optimum), budget=40, seed=seed)
    assert found == optimum and len(history) <= 40


def test_no_program_is_measured_twice_and_the_space_is_an_end():
    space, task = {"mc": (8, 16, 32), "kind": ("a", "b")}, Bowl({"mc": 16})
    _, history = AutoTuning(batch=4).search(space, task, budget=100, seed=0)
    assert len(task.asked) == len(set(task.asked)) == len(history) == 6


def test_it_beats_random_search_on_the_measured_table():
    tiles = datasets.workload("gemm-tiles")
    regret = {
        type(s).__name__: mean(tiles.regret(s.search(tiles.space, tiles.task(i), 16, i)[0], i) for i in range(120))
        for s in (AutoTuning(), RandomSearch())
    }
    assert regret["AutoTuning"] < 0.9 * regret["RandomSearch"]


def test_the_table_is_whole_and_its_regret_is_by_what_was_not_seen():
    tiles = datasets.workload("gemm-tiles")
    for table in tiles.times.values():
        assert len(table) == np.prod([len(v) for v in tiles.space.values()]) == 126
        assert all(len(times) == 5 and min(times) > 0 for times in table.values())
    for seed in (0, 4, 8):
        table, shown = tiles._of(seed)
        key = next(iter(table))
        others = [t for i, t in enumerate(table[key]) if i != shown]
        candidate = dict(zip(tiles.space, key, strict=True))
        assert tiles.figures(candidate, seed)["latency"] == pytest.approx(np.mean(others))
        assert tiles.task(seed).evaluate(candidate) == -table[key][shown]
        assert tiles.regret(tiles.best(seed), seed) == 0 <= tiles.regret(candidate, seed)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=2, max_size=20))
def test_ranks_are_scipys_between_the_ends(values):
    values = np.array(values, float)
    expected = 2 * (rankdata(values) - 1) / (len(values) - 1) - 1
    assert np.allclose(ranks(values), expected)


def test_the_model_is_numpys_least_squares():
    """With a vanishing ridge the ranking is that of an ordinary fit."""
    rng = np.random.default_rng(0)
    candidates = [{c: int(rng.choice(v)) for c, v in SCHEDULES.items()} for _ in range(60)]
    phi, r = features(candidates, SCHEDULES), ranks(rng.standard_normal(60))
    expected = np.linalg.lstsq(phi, r, rcond=None)[0]
    found = np.linalg.solve(phi.T @ phi + 1e-9 * np.eye(phi.shape[1]), phi.T @ r)
    assert np.allclose(phi @ expected, phi @ found, atol=1e-5)


def test_every_program_computes_the_product():
    task = ProductTask(33, 20, 70)
    a, b = task.operands
    for candidate in ({"mc": 8, "kc": 16, "lanes": 4}, {"mc": 384, "kc": 1024, "lanes": 16}):
        assert (abs(task.call(candidate)() - a.astype(np.float64) @ b) <= error_bound(a, b)).all()
        assert task.evaluate(candidate) < 0


def test_bad_parameters_are_named():
    for options, message in (
        ({"batch": 0}, "batch: expected a positive integer"),
        ({"explore": 1.5}, "explore: expected a share from 0 to 1"),
        ({"ridge": 0}, "ridge: expected a positive number"),
    ):
        with pytest.raises(ValueError, match=message):
            AutoTuning(**options)
    with pytest.raises(ValueError, match="budget: 0 epochs do not pay for one evaluation"):
        AutoTuning().search(SCHEDULES, Bowl({"mc": 8}), budget=0, seed=0)
