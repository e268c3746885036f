"""Regularized evolution by its definition, on a problem worked by hand, and against random search."""

from __future__ import annotations

from statistics import mean

import pytest

from kernels.model.architecture_search import evolutionary_search
from kernels.model.architecture_search.evolutionary_search import EvolutionarySearch, mutate
from kernels.model.architecture_search.random_search import RandomSearch

SPACE = {f"bit {i}": (0, 1) for i in range(30)}


class OneMax:
    """Score: how many bits are set; the classical test of evolution. The optimum is all of them."""

    def __init__(self, cost=1):
        self.price, self.asked = cost, []

    def evaluate(self, candidate):
        self.asked.append(candidate)
        return sum(candidate.values())

    def cost(self, candidate):
        return self.price


class Script:
    """Random numbers as planned: choice() and choices() take the given positions in order."""

    def __init__(self, *positions):
        self.positions = list(positions)

    def choice(self, values):
        return values[self.positions.pop(0)]

    def choices(self, values, k):
        return [values[self.positions.pop(0)] for _ in range(k)]


def test_a_run_worked_by_hand(monkeypatch):
    """P = 2, S = 2. The best, {x: 4}, dies of age before anything as good is found."""
    script = Script(4, 0, *(0, 1, 0, 2), *(1, 1, 0, 1), *(0, 0, 0, 1), *(0, 0, 0, 0))  # the last child is not paid for
    monkeypatch.setattr(evolutionary_search.random, "Random", lambda seed: script)
    space, score = {"x": (0, 1, 2, 3, 4)}, [0, 1, 2, 3, 9]

    class Table:
        cost = staticmethod(lambda candidate: 1)
        evaluate = staticmethod(lambda candidate: score[candidate["x"]])

    best, history = EvolutionarySearch(population=2, sample=2).search(space, Table(), budget=5, seed=0)
    # drawn 4 and 0; the best of (4, 0) is 4, its child is the third of (0, 1, 2, 3), so 2, and 4 dies;
    # sampled (2, 2): child is the second of (0, 1, 3, 4), so 1, and 0 dies; the parent of (2, 2) has the child 1
    assert [candidate["x"] for candidate, _, _ in history] == [4, 0, 2, 1, 1]
    assert [spent for _, _, spent in history] == [1, 2, 3, 4, 5]
    assert best == {"x": 4} and not script.positions


@pytest.mark.parametrize(("population", "sample"), [(10, 1), (10, 4), (25, 25)])
def test_every_child_differs_in_one_choice_from_one_of_the_last_p(population, sample):
    task = OneMax()
    _, history = EvolutionarySearch(population, sample).search(SPACE, task, budget=200, seed=3)
    members = [candidate for candidate, _, _ in history]
    assert members == task.asked and len(members) == 200
    for n in range(population, len(members)):
        distances = [sum(members[n][c] != parent[c] for c in SPACE) for parent in members[n - population : n]]
        assert min(distances) in (0, 1) and 1 in distances


def test_pressure_grows_with_the_sample_and_one_is_a_random_walk():
    final = {
        sample: mean(
            mean(score for _, score, _ in EvolutionarySearch(20, sample).search(SPACE, OneMax(), 400, seed)[1][-50:])
            for seed in range(5)
        )
        for sample in (1, 2, 10)
    }
    assert abs(final[1] - 15) < 2.5 and final[1] + 3 < final[2] < final[10] and final[10] > 27


def test_it_beats_random_search_where_good_neighbours_are_alike():
    """All of 30 bits: chance needs 2^30 draws on average, evolution a few hundred."""
    for seed in range(3):
        best, _ = EvolutionarySearch(20, 10).search(SPACE, OneMax(), 600, seed)
        random, _ = RandomSearch().search(SPACE, OneMax(), 600, seed)
        assert sum(best.values()) == 30 > sum(random.values())


def test_random_search_finds_the_optimum_as_often_as_chance_says():
    """n draws of m candidates contain the best with probability 1 - (1 - 1/m)^n."""
    m, n, runs = 50, 50, 400

    class Table:
        cost = staticmethod(lambda candidate: 1)
        evaluate = staticmethod(lambda candidate: candidate["x"])

    space = {"x": tuple(range(m))}
    hits = sum(RandomSearch().search(space, Table(), n, seed)[0]["x"] == m - 1 for seed in range(runs))
    expected = 1 - (1 - 1 / m) ** n
    assert abs(hits / runs - expected) < 4 * (expected * (1 - expected) / runs) ** 0.5


@pytest.mark.parametrize("searcher", [EvolutionarySearch(5, 2), RandomSearch()])
def test_budget_is_kept_and_seeds_decide(searcher):
    task = OneMax(cost=12)
    best, history = searcher.search(SPACE, task, budget=100, seed=1)
    assert len(history) == 8 == len(task.asked) and history[-1][2] == 96
    assert best == max(history, key=lambda entry: entry[1])[0]
    assert searcher.search(SPACE, OneMax(12), 100, 1) == (best, history)
    assert searcher.search(SPACE, OneMax(12), 100, 2)[1] != history
    with pytest.raises(ValueError, match="budget: 11 epochs do not pay for one evaluation"):
        searcher.search(SPACE, OneMax(12), budget=11, seed=0)
    with pytest.raises(ValueError, match="task: expected a positive cost"):
        searcher.search(SPACE, OneMax(0), budget=11, seed=0)


def test_mutation_changes_exactly_one_choice_to_another_value():
    import random

    space = {"one": (7,), "two": (0, 1), "many": tuple("abcdef")}
    start = {"one": 7, "two": 0, "many": "a"}
    children = [mutate(start, space, random.Random(seed)) for seed in range(200)]
    assert all(sum(child[c] != start[c] for c in space) == 1 for child in children)
    assert {child["many"] for child in children} == set("abcdef") and start == {"one": 7, "two": 0, "many": "a"}
    assert 60 < sum(child["two"] == 1 for child in children) < 140


def test_wrong_input_is_named():
    for population, sample in ((5, 6), (5, 0), (0, 0)):
        with pytest.raises(ValueError, match="sample: expected 1 <= sample <= population"):
            EvolutionarySearch(population, sample)
    with pytest.raises(ValueError, match="space: expected a choice of at least two values"):
        EvolutionarySearch().search({"x": (1,)}, OneMax(), 10, 0)
