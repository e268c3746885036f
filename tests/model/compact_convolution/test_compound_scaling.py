"""Scaled networks cost what the equation says, as counted; the grid's choice is that of looking at all of it."""

from __future__ import annotations

from itertools import product
from statistics import mean

import pytest
import torch

import datasets
from datasets.workloads.mnist_scaling import network
from kernels.counting import macs
from kernels.model.architecture_search.random_search import RandomSearch
from kernels.model.compact_convolution.compound_scaling import CompoundScaling, grid, scaled

PHIS = (1, 2, 3)
SCALES = ("searched", "evenly", "depth", "width", "resolution")


@pytest.fixture(scope="module")
def table():
    return datasets.workload("mnist-scaling")


def counted(candidate):
    return macs(network(candidate).eval(), torch.zeros(1, 1, 28, 28))


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_grid_keeps_the_constraint_and_holds_all_shares(steps):
    found = grid(steps)
    assert len(set(found)) == len(found) == (steps + 1) * (steps + 2) // 2
    for alpha, beta, gamma in found:
        assert alpha * beta**2 * gamma**2 == pytest.approx(2) and min(alpha, beta, gamma) >= 1
    for scale in SCALES[2:]:
        assert CompoundScaling(scale=scale).coefficients[0] in found
    assert (CompoundScaling(scale="evenly").coefficients[0] in found) == (steps == 3)


@pytest.mark.parametrize("phi", PHIS)
def test_counted_work_grows_by_two_to_the_phi(table, phi):
    smallest = counted(table.smallest)
    for coefficients in grid(3):
        growth = counted(scaled(table.space, coefficients, phi)) / smallest
        assert growth == pytest.approx(2**phi, rel=0.1)


def test_the_published_coefficients_scale_by_hand():
    """1.2, 1.1 and 1.15 of section 3.3: 1.92 times the work; at phi = 2 depth 1.44, width 1.21, resolution 1.3225."""
    every = tuple(range(100, 200))
    space = dict.fromkeys(("depth", "width", "resolution"), every)
    assert scaled(space, (1.2, 1.1, 1.15), 2) == {"depth": 144, "width": 121, "resolution": 132}
    alpha, beta, gamma = 1.2, 1.1, 1.15
    assert alpha * beta**2 * gamma**2 == pytest.approx(2, rel=0.05)


def test_values_between_two_go_to_the_nearer_by_ratio():
    space = {"depth": (10, 20, 40), "width": (1, 2), "resolution": (1, 2)}
    assert scaled(space, (2.8, 1.0, 1.0), 1)["depth"] == 20
    assert scaled(space, (2.9, 1.0, 1.0), 1)["depth"] == 40  # 2.83 is as far from 2 as from 4


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("seed", [0, 40, 80])
def test_it_chooses_what_looking_at_the_whole_grid_chooses(table, phi, seed):
    search = CompoundScaling(phi)
    task = search.restated(table).task(seed)
    score = {one: task.evaluate(scaled(table.space, one, 1)) for one in grid(3)}
    found, history = search.search(table.space, task, 150, seed)
    choices = [scaled(table.space, one, phi) for one in grid(3) if score[one] == max(score.values())]
    assert found in choices and len(history) == 10 + (phi > 1)
    spent = sum(task.cost(candidate) for candidate, _, _ in history)
    assert history[-1][2] == pytest.approx(spent) and spent <= 150
    assert phi == 1 or history[-1][0] == found


def test_of_a_small_budget_the_last_training_is_set_aside_and_the_rest_goes_to_the_grid(table):
    search = CompoundScaling(3)
    task = search.restated(table).task(0)
    few, all_of_it = (search.search(table.space, task, budget, 0)[1] for budget in (75, 150))
    assert 1 < len(few) < len(all_of_it) and few[-1][2] <= 75
    assert few[:-1] == all_of_it[: len(few) - 1]
    orders = {tuple(map(str, search.search(table.space, task, 150, seed)[1])) for seed in range(5)}
    assert len(orders) == 5, "the order of the grid is drawn"


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("scale", SCALES[2:])
def test_one_dimension_alone_leaves_the_others_and_trains_once(table, scale, phi):
    search = CompoundScaling(phi, scale)
    found, history = search.search(table.space, search.restated(table).task(0), 75, 0)
    changed = {choice for choice in table.space if found[choice] != table.smallest[choice]}
    assert changed == {scale} and len(history) == 1


@pytest.mark.parametrize("phi", PHIS)
def test_judged_among_the_networks_of_no_more_work(table, phi):
    """The optimum by looking at every network of the table."""
    problem = CompoundScaling(phi).restated(table)
    limit = 1.1 * 2**phi * table.entry(table.smallest).macs
    worth = {key: mean(e.validation[1:]) for key, e in table.entries.items() if e.macs <= limit}
    best = dict(zip(table.space, max(worth, key=worth.get), strict=True))
    assert problem.regret(best, 0) == 0
    assert problem.regret(table.smallest, 0) == pytest.approx(max(worth.values()) - worth[3, 8, 7])
    for scale in SCALES:
        found, _ = CompoundScaling(phi, scale).search(table.space, problem.task(0), 150, 0)
        assert 0 <= problem.regret(found, 0) < 1 and table.entry(found).macs <= limit


def test_random_search_keeps_the_same_limit_and_budget(table):
    problem = CompoundScaling(1).restated(table)
    found, history = RandomSearch().search(problem.space, problem.task(0), 75, 0)
    trained = [candidate for candidate, score, _ in history if score > 0]
    assert table.macs(found) <= 1.1 * 2 * table.macs(table.smallest)
    assert 75 - 10 < history[-1][2] <= 75 and sum(problem.task(0).cost(c) for c in trained) <= 75 + 1e-6


def test_every_combination_can_be_asked_whether_it_fits(table):
    """Those above the table's limit too: they are refused by counting, not looked up."""
    problem = CompoundScaling(3).restated(table)
    combinations = [dict(zip(table.space, values, strict=True)) for values in product(*table.space.values())]
    fitting = [one for one in combinations if problem.task(0).cost(one) > 1]
    assert len(fitting) < len(table.entries) and all(table.entry(one) for one in fitting)
    assert problem.task(0).evaluate(combinations[-1]) == float("-inf")


def test_wrong_input_is_named(table):
    for phi in (0, -1, float("inf"), float("nan"), "3"):
        with pytest.raises(ValueError, match="phi: expected a positive number of doublings"):
            CompoundScaling(phi)
    with pytest.raises(ValueError, match="scale: expected one of searched, evenly, depth, width, resolution"):
        CompoundScaling(scale="height")
    with pytest.raises(ValueError, match="steps: expected a positive integer"):
        CompoundScaling(steps=0)
    with pytest.raises(ValueError, match="space: expected the choices depth, width, resolution, got width"):
        CompoundScaling().search({"width": (1, 2)}, table.task(0), 10, 0)
    with pytest.raises(ValueError, match="space: expected a depth of 48, for phi = 4; it ends at 24"):
        CompoundScaling(4, "depth").search(table.space, table.task(0), 500, 0)
    with pytest.raises(ValueError, match="budget: 30 does not pay for training"):
        CompoundScaling(3, "depth").search(table.space, table.task(0), 30, 0)
    with pytest.raises(ValueError, match="do not pay for one evaluation"):
        CompoundScaling(3).search(table.space, table.task(0), 45, 0)
