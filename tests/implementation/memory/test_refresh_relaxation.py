"""Critical bits against numpy's frexp, flips by the binomial law in the relaxed part alone, refreshes by counting."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from kernels.implementation.memory.refresh_relaxation import RefreshRelaxation

WIDTHS = {"float32": 32, "bfloat16": 16, "int8": 8}
CRITICAL = {"float32": 9, "bfloat16": 9, "int8": 2}
each_format = pytest.mark.parametrize("format", list(WIDTHS))
NORMAL = np.random.default_rng(0).normal(0, 0.3, (20, 10)).astype(np.float32)
matrices = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=9),
    elements=st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda x: abs(x) > 2.0**-100),
)


@settings(max_examples=150, deadline=None)
@given(matrices, st.sampled_from(["float32", "bfloat16"]), st.integers(0, 2**32))
def test_a_float_keeps_its_sign_and_exponent(w, format, seed):
    dram = RefreshRelaxation(format)
    stored = dram.protect(w)
    clean, read = dram.recover(stored), dram.recover(dram.corrupt(stored, 0.5, seed))
    assert np.array_equal(np.frexp(read)[1], np.frexp(clean)[1])
    assert np.array_equal(np.signbit(read), np.signbit(clean))


def test_an_integer_moves_by_less_than_its_lowest_critical_bit():
    dram = RefreshRelaxation("int8", critical=3)
    stored = dram.protect(NORMAL)
    moved = dram.recover(dram.corrupt(stored, 1.0, 0)) - dram.recover(stored)
    assert np.abs(moved / stored.scale).max() < 32


@each_format
def test_flips_follow_the_binomial_law_in_the_relaxed_bits_alone(format):
    width, critical = WIDTHS[format], CRITICAL[format]
    dram = RefreshRelaxation(format, critical)
    stored = dram.protect(np.zeros((30_000, 1), np.float32))
    for rate in (0.0, 1e-3, 0.1, 1.0):
        words = dram.corrupt(stored, rate, 2).words
        assert not (words >> (width - critical)).any()
        low, high = stats.binom.interval(1 - 1e-6, 30_000 * (width - critical), rate)
        assert low <= np.bitwise_count(words).sum() <= high


@each_format
def test_the_same_seed_flips_the_same_bits_as_far_as_they_are_relaxed(format):
    dram = RefreshRelaxation(format, CRITICAL[format])
    plain, stored = dram.unprotected(), dram.protect(NORMAL)
    part, whole = (store.corrupt(stored, 0.05, 7).words ^ stored.words for store in (dram, plain))
    assert np.array_equal(part, whole & (2 ** (WIDTHS[format] - CRITICAL[format]) - 1)) and part.any()
    assert not np.array_equal(dram.corrupt(stored, 0.05, 8).words, dram.corrupt(stored, 0.05, 7).words)
    assert np.array_equal(dram.corrupt(stored, 0.0, 7).words, stored.words)
    assert np.array_equal(dram.recover(dram.protect(dram.recover(stored))), dram.recover(stored))


def test_vectors_are_critical_unless_told_otherwise():
    w = np.ones(1000, np.float32)
    dram = RefreshRelaxation()
    assert np.array_equal(dram.recover(dram.corrupt(dram.protect(w), 1.0, 0)), w)
    exposed = RefreshRelaxation(vectors=False)
    assert not np.array_equal(exposed.recover(exposed.corrupt(exposed.protect(w), 1.0, 0)), w)
    assert dram.relaxed_bits((1000,)) == 0 and exposed.relaxed_bits((1000,)) == 23_000


@pytest.mark.parametrize("interval", [1.0, 2.0, 16.0, 1e9])
def test_refreshes_are_counted_bit_by_bit(interval):
    shapes = [(16, 1, 3, 3), (16,), (10, 288)]
    dram = RefreshRelaxation(interval=interval)
    often, seldom = 9 * (144 + 2880) + 32 * 16, 23 * (144 + 2880)
    expected = (often + seldom / Fraction(interval)) / (often + seldom)
    assert dram.refresh_rate(shapes) == pytest.approx(float(expected))
    assert dram.unprotected().refresh_rate(shapes) == pytest.approx(1 / interval)
    assert RefreshRelaxation(critical=32).refresh_rate(shapes) == 1 == RefreshRelaxation().refresh_rate([])


@each_format
def test_edges(format):
    dram = RefreshRelaxation(format, CRITICAL[format])
    for w in (np.zeros((0, 3), np.float32), np.float32(0.5), NORMAL.T[::2], [[0.25, -0.5, 0.0]]):
        read = dram.recover(dram.corrupt(dram.protect(w), 0.0, 0))
        assert read.shape == np.shape(w) and np.allclose(read, w, atol=0.01)
    with pytest.raises(ValueError, match="weights: expected finite"):
        dram.protect(np.array([1, np.inf], np.float32))
    with pytest.raises(ValueError, match="rate"):
        dram.corrupt(dram.protect(NORMAL), np.nan, 0)


def test_peers_and_wrong_parameters():
    assert RefreshRelaxation().others() == {"by-tensor": RefreshRelaxation(critical=0)}
    assert RefreshRelaxation("int8", 2).stored_bits((9,)) == 9 * 8 + 32
    with pytest.raises(LookupError, match="refresh"):
        RefreshRelaxation().energy(32, 0.0)
    with pytest.raises(ValueError, match="critical: expected 0 to 8 bits of a int8, got 9"):
        RefreshRelaxation("int8")
    with pytest.raises(ValueError, match="interval: expected at least 1"):
        RefreshRelaxation(interval=0.5)
    with pytest.raises(ValueError, match="format: expected one of"):
        RefreshRelaxation("fp8")
