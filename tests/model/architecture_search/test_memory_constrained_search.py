"""What networks need, counted by hand; limits that are never broken; the part of the space that they choose."""

from __future__ import annotations

import random
from itertools import product
from statistics import mean

import pytest

import datasets
from kernels.model.architecture_search.evolutionary_search import EvolutionarySearch
from kernels.model.architecture_search.memory_constrained_search import MemoryConstrainedSearch, needs
from kernels.model.architecture_search.random_search import RandomSearch


@pytest.fixture(scope="module")
def table():
    return datasets.workload("digits-search")


def every(table):
    return [dict(zip(table.space, values, strict=True)) for values in product(*table.space.values())]


def test_needs_by_hand(table):
    """Width 8, a residual branch at the first place: its input, its convolution's output and their rectified copy."""
    plain = {"first": "identity", "second": "identity", "third": "identity", "width": 8, "norm": False}
    image, maps = 4 * 64, 4 * 8 * 64
    assert needs(plain).sram == 2 * maps > image  # the convolution's output and its rectified copy
    assert needs({**plain, "first": "residual"}).sram == 3 * maps
    assert needs(plain).flash == 4 * (8 * 9 + 8 + 10 * 32 + 10)
    for a in every(table)[::29]:
        assert needs(a).flash == 4 * table.entry(a).parameters and needs(a).macs == table.entry(a).macs


def test_judged_among_those_that_fit(table):
    search = MemoryConstrainedSearch(sram=4096, flash=4096)
    problem = search.restated(table)
    allowed = [a for a in every(table) if needs(a).sram <= 4096 and needs(a).flash <= 4096]
    assert 0 < len(allowed) < len(every(table))
    worth = {tuple(a.values()): table.unseen(table.entry(a).validation, 2) for a in allowed}
    for a in allowed[::11]:
        assert problem.regret(a, 2) == pytest.approx(max(worth.values()) - worth[tuple(a.values())])
    assert not search.fits(table.best) and problem.regret(table.best, 2) == float("inf")
    assert problem.task(2).evaluate(table.best) == float("-inf") and 0 < problem.task(2).cost(table.best) < 1e-3


@pytest.mark.parametrize("scale", ["width", "none"])
def test_limits_are_never_broken_and_no_training_is_spent_on_what_breaks_them(table, scale):
    search = MemoryConstrainedSearch(sram=8192, flash=6144, scale=scale)
    for task in (search.restated(table).task(0), table.task(0)):  # the limits are the search's own
        found, history = search.search(table.space, task, 540, 0)
        assert all(search.fits(a) for a, _, _ in history) and len(history) == 540 // 12
        assert found == max(history, key=lambda entry: entry[1])[0]


def test_the_part_with_the_most_work_within_the_limits_is_kept(table):
    """By enumeration of all networks of a width, in place of draws."""
    for sram, flash in ((6144, 12288), (8192, 16384), (16384, 8192), (1 << 20, 1 << 20)):
        search = MemoryConstrainedSearch(sram=sram, flash=flash, draws=300)
        work = {
            width: mean([needs(a).macs for a in every(table) if a["width"] == width and search.fits(a)] or [0])
            for width in table.space["width"]
        }
        kept = search.part(table.space, random.Random(0))
        assert kept["width"] == (max(work, key=work.get),) and kept["first"] == table.space["first"]


def test_it_beats_chance_within_the_limits_and_repeats_itself(table):
    search = MemoryConstrainedSearch(sram=16384, flash=8192)
    problem = search.restated(table)
    regret = {
        who: mean(problem.regret(s.search(problem.space, problem.task(i), 540, i)[0], i) for i in range(12))
        for who, s in (("self", search), ("chance", RandomSearch()))
    }
    assert regret["self"] < regret["chance"]
    assert search.search(table.space, problem.task(1), 200, 1) == search.search(table.space, problem.task(1), 200, 1)


def test_without_limits_it_is_evolution(table):
    free = MemoryConstrainedSearch(sram=1 << 30, flash=1 << 30, scale="none")
    assert free.search(table.space, table.task(0), 400, 0) == EvolutionarySearch().search(
        table.space, table.task(0), 400, 0
    )


def test_wrong_input_is_named(table):
    with pytest.raises(ValueError, match="sram, flash: expected bytes above 0"):
        MemoryConstrainedSearch(sram=0)
    with pytest.raises(ValueError, match="draws: expected a positive integer"):
        MemoryConstrainedSearch(draws=0)
    with pytest.raises(ValueError, match="scale: expected a choice of the space, one of first, second"):
        MemoryConstrainedSearch(scale="depth").search(table.space, table.task(0), 100, 0)
    with pytest.raises(ValueError, match="sram, flash: no network drawn fits in 100 and 100 bytes"):
        MemoryConstrainedSearch(100, 100).search(table.space, table.task(0), 100, 0)
    with pytest.raises(ValueError, match=r"space: none of .* candidates in a row fits"):
        EvolutionarySearch().search({"x": (0, 1)}, _Nothing(), 10, 0)


class _Nothing:
    fits = staticmethod(lambda candidate: False)
