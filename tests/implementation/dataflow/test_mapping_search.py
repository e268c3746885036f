"""The search finds what looking at every mapping finds, and needs less of a budget than chance."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.implementation.dataflow.mapping_search import MappingProblem, MappingSearch, grown, neighbours
from kernels.model.architecture_search.random_search import RandomSearch

small = st.builds(MappingProblem, *[st.integers(1, 24)] * 3, kib=st.just(1))


@settings(max_examples=25, deadline=None)
@given(small)
def test_the_optimum_is_that_of_all_mappings_one_by_one(problem):
    every = [dict(zip(problem.space, values, strict=True)) for values in product(*problem.space.values())]
    scores = [problem.evaluate(candidate) for candidate in every]
    assert problem.evaluate(problem.best) == max(scores) <= problem.bound
    found, history = MappingSearch().search(problem.space, problem, budget=10**6, seed=0)
    assert problem.regret(found) == pytest.approx(0)
    assert len({tuple(c.values()) for c, _, _ in history}) == len(history)


@pytest.mark.parametrize("shape", [(256, 256, 256, 8), (3136, 64, 576, 16), (784, 128, 1152, 64), (49, 512, 4608, 64)])
def test_large_layers_at_a_small_budget(shape):
    problem = MappingProblem(*shape)
    own = [problem.regret(MappingSearch().search(problem.space, problem, 150, seed)[0]) for seed in range(5)]
    chance = [problem.regret(RandomSearch().search(problem.space, problem, 150, seed)[0]) for seed in range(5)]
    assert max(own) < 0.01 and np.mean(own) < np.mean(chance) / 4


def test_full_tiles_fit_and_cannot_grow():
    problem = MappingProblem(64, 48, 32, kib=1)
    space = problem.space
    for start in ({"m": 1, "n": 1, "k": 1}, {"m": 4, "n": 2, "k": 8}):
        tile = grown(start, "nkm", space, problem.fits)
        assert problem.fits(tile)
        for d in "mnk":
            larger = [v for v in space[d] if v > tile[d]]
            assert not larger or not problem.fits({**tile, d: larger[0]})
        for near in neighbours({"order": "mnk", **tile}, space, problem.fits):
            assert np.isfinite(problem.evaluate(near))


def test_a_bound_that_is_reached_ends_the_search():
    problem = MappingProblem(8, 8, 8, kib=64)
    found, history = MappingSearch().search(problem.space, problem, budget=1000, seed=0)
    assert problem.evaluate(found) == problem.bound and len(history) == 1


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="width: expected a positive integer, got 0"):
        MappingSearch(width=0)
    problem = MappingProblem(4, 4, 4)
    with pytest.raises(ValueError, match="budget: 0 epochs do not pay for one evaluation"):
        MappingSearch().search(problem.space, problem, budget=0, seed=0)
