"""Stochastic rounding: probabilities against the definition and the binomial law, neighbours, stagnation, threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kernels.arithmetic.floating_point.bfloat16 import BFloat16
from kernels.arithmetic.mixed_precision.stochastic_rounding import FORMATS, StochasticRounding, stochastic_round
from kernels.arithmetic.rounding import random_bits

every_format = pytest.mark.parametrize("name", FORMATS)


def grid_of(name: str) -> np.ndarray:
    return StochasticRounding(name).values()


def inside(name: str, size: int, seed: int = 0) -> np.ndarray:
    """Float32 within the grid's ends, of all its sizes."""
    random = np.random.default_rng(seed)
    grid = grid_of(name)
    smallest, largest = np.log2(grid[grid > 0][0]), np.log2(grid[-1])
    x = random.choice([-1, 1], size) * np.exp2(random.uniform(max(smallest - 2, -120), largest, size))
    return x.astype(np.float32)


@every_format
def test_every_code_and_every_number_of_the_grid_stays(name):
    form, grid = StochasticRounding(name, seed=5), grid_of(name)
    np.testing.assert_array_equal(form.round(grid), grid)
    codes = np.arange(2**form.bits).astype(form.code_dtype)
    decoded = form.decode(type(form.encode(grid))(codes, None, codes.shape))
    number = np.isfinite(decoded)
    np.testing.assert_array_equal(form.encode(decoded).codes[number], codes[number])


@every_format
def test_only_the_neighbours_are_drawn(name):
    form, grid = StochasticRounding(name), grid_of(name)
    x = inside(name, 200_000)
    rounded = form.round(x).astype(np.float64)
    below = np.clip(np.searchsorted(grid, x, side="right") - 1, 0, len(grid) - 2)
    assert np.all((rounded == grid[below]) | (rounded == grid[below + 1]))
    np.testing.assert_array_equal(form.decode(form.encode(x)), form.round(x))


@every_format
def test_the_mean_is_the_number(name):
    """Of 2^16 draws each the count of the upper neighbour is binomial; 40 numbers, each at a significance of 1e-6."""
    form, grid, n = StochasticRounding(name, seed=11), grid_of(name), 1 << 16
    for x in inside(name, 40, seed=1):
        below = min(np.searchsorted(grid, x, side="right") - 1, len(grid) - 2)
        a, b = grid[below], grid[below + 1]
        p = (float(x) - a) / (b - a)
        ups = int(np.sum(form.round(np.full(n, x)).astype(np.float64) == b))
        assert stats.binomtest(ups, n, min(max(p, 0.0), 1.0)).pvalue > 1e-6


@every_format
def test_errors_cancel(name):
    """Over 2^20 different numbers the sum of errors, in steps, stays within five standard deviations of zero."""
    form, grid = StochasticRounding(name, seed=2), grid_of(name)
    x = inside(name, 1 << 20, seed=3)
    below = np.clip(np.searchsorted(grid, x, side="right") - 1, 0, len(grid) - 2)
    a, step = grid[below], grid[below + 1] - grid[below]
    p = (x - a) / step
    errors = (form.round(x) - x.astype(np.float64)) / step
    assert abs(np.sum(errors)) < 5 * np.sqrt(np.sum(p * (1 - p)))


def test_plain_statement_with_the_same_bits():
    """bfloat16's probability is what it drops, over 2^16, and the draw the lower half of the hash."""
    x = np.abs(inside("bfloat16", 20_000))
    draws = np.array([1 - (random_bits(i, 9) % 2**16) / 2**16 for i in range(x.size)])  # up where dropped + bits carry
    up = stochastic_round(x, grid_of("bfloat16"), draws - 2.0**-17)
    np.testing.assert_array_equal(StochasticRounding("bfloat16", seed=9).round(x), up)


@every_format
@pytest.mark.parametrize("threads", [2, 5])
def test_threads_draw_what_one_draws(name, threads):
    x = inside(name, 100_003)
    form = StochasticRounding(name, seed=3)
    np.testing.assert_array_equal(form.round(x, threads=threads), form.round(x))
    np.testing.assert_array_equal(form.encode(x, threads=threads).codes, form.encode(x).codes)


@every_format
def test_seeds_and_places_draw_differently(name):
    x = np.full(10_000, 0.3, np.float32)
    draws = [StochasticRounding(name, seed=seed).round(x) for seed in (0, 1, 2)]
    assert len({draw.tobytes() for draw in draws}) == 3
    for a, b in ((draws[0], draws[1]), (draws[0][1:], draws[0][:-1])):  # other seed, next place
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
    np.testing.assert_array_equal(StochasticRounding(name, seed=1).round(x), draws[1])


def test_small_updates_are_not_lost():
    """A weight of 1 and a thousand updates of 2^-10: to nearest it stays, by chance it comes near 2."""
    weight = np.ones(256, np.float32)
    stuck = weight.copy()
    for step in range(1000):
        weight = StochasticRounding(seed=step).round(weight + np.float32(2.0**-10))
        stuck = BFloat16().round(stuck + np.float32(2.0**-10))
    assert np.all(stuck == 1)
    assert abs(weight.mean() - (1 + 1000 / 1024)) < 5 * np.sqrt(1000 * 2.0**-7 * 2.0**-10 / 256)


@given(st.sampled_from([*FORMATS]), st.lists(st.floats(-30, 30, width=32), min_size=1), st.integers(0, 2**32 - 1))
def test_symmetric_or_within_a_step(name, xs, seed):
    form, x = StochasticRounding(name, seed), np.float32(xs)
    rounded = form.round(x)
    if name != "fixed-point":  # there chance goes up, not away from zero
        np.testing.assert_array_equal(form.round(-x), -rounded)
    np.testing.assert_array_equal(form.round(rounded), rounded)


def test_special_numbers_and_shapes():
    form = StochasticRounding()
    x = np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0])
    np.testing.assert_array_equal(form.round(x), x)
    assert np.signbit(form.round(x)[-1])
    assert StochasticRounding("fp8-e4m3").round(np.float32(1e9)) == 448
    assert StochasticRounding("fixed-point").round(np.float32(1e9)) == 32 - 2.0**-10
    assert form.round(np.float32([])).shape == (0,) and form.round(np.float64(0.1)).shape == ()
    many = np.random.default_rng(0).standard_normal((30, 40)).astype(np.float32)
    np.testing.assert_array_equal(form.round(many.T).T, form.round(many))  # places are those in memory
    assert form.stored_bits((3, 5)) == 240 and StochasticRounding("fp8-e5m2").stored_bits((3,)) == 24


def test_an_unknown_format_is_refused():
    with pytest.raises(
        ValueError, match="format: expected bfloat16, fp16, fp8-e4m3, fp8-e5m2, fixed-point, got 'int8'"
    ):
        StochasticRounding("int8")
