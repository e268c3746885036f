"""NF4: levels against scipy's quantiles, codes against a search in rationals, scales against their own eight bits."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from kernels.arithmetic.block_formats.normal_float import (
    LEVELS,
    NormalFloat,
    double_quantize,
    dynamic_tree,
    normal_float_round,
)
from kernels.arithmetic.number_format import Encoded

SINGLE = NormalFloat(double_quantization=False)
rows = st.lists(st.floats(-(2.0**40), 2.0**40, width=32), min_size=1, max_size=150).map(np.float32)


def test_levels_are_quantiles_of_a_normal_distribution():
    d = (1 - 1 / 32 + 1 - 1 / 30) / 2
    positive = norm.ppf(np.linspace(0.5, d, 9))[1:]
    negative = norm.ppf(np.linspace(0.5, d, 8))[1:]
    expected = np.sort(np.concatenate([-negative, [0], positive])) / norm.ppf(d)
    np.testing.assert_allclose(LEVELS, expected, atol=1e-6)
    assert LEVELS[7] == 0 and LEVELS[0] == -1 and LEVELS[15] == 1


def test_every_code():
    codes = np.arange(16, dtype=np.uint8)
    decoded = SINGLE.decode(Encoded(codes, np.float32([3]), (16,)))
    np.testing.assert_array_equal(decoded, LEVELS * np.float32(3))
    np.testing.assert_array_equal(SINGLE.encode(decoded).codes, codes)


@given(rows)
def test_the_nearest_level_in_rationals(x):
    encoded = SINGLE.encode(x)
    levels = [Fraction(float(level)) for level in LEVELS]
    for i, value in enumerate(x):
        scale = Fraction(float(encoded.scales[i // 64])) or Fraction(1)
        distances = [abs(level * scale - Fraction(float(value))) for level in levels]
        assert int(encoded.codes[i]) == distances.index(min(distances))  # of two as near, the lower


@given(rows)
def test_rounding_again_changes_nothing(x):
    once = SINGLE.round(x)
    np.testing.assert_array_equal(SINGLE.round(once), once)


@given(rows, st.integers(-20, 20))
def test_powers_of_two_come_through(x, k):
    x = np.where(np.abs(x) < 2.0**-40, np.float32(0), x)
    scale = np.float32(2.0**k)
    np.testing.assert_array_equal(SINGLE.round(x * scale), SINGLE.round(x) * scale)


def test_levels_are_used_about_equally_often():
    """What they were made for: of a long normal sequence in one block none is empty, none has three times its share."""
    codes = (
        NormalFloat(block=64, double_quantization=False)
        .encode(np.random.default_rng(0).standard_normal(64 * 2000, np.float32))
        .codes
    )
    share = np.bincount(codes, minlength=16) / codes.size
    assert share.min() > 1 / 64 and share.max() < 3 / 16


def test_the_tree_of_scales():
    tree = dynamic_tree().astype(np.float64)
    assert tree.size == 256 == np.unique(tree).size and np.all(np.diff(tree) > 0)
    inner = tree[(tree != 0) & (tree != 1)]
    np.testing.assert_array_equal(np.sort(-inner), inner)
    for decade in range(7):  # each has twice the values of the one below
        inside = inner[(inner > 10.0 ** (decade - 7)) & (inner < 10.0 ** (decade - 6))]
        assert inside.size == 2**decade


@given(st.lists(st.floats(2.0**-20, 2.0**20, width=32), min_size=1, max_size=600).map(np.float32))
def test_scales_come_back_from_the_nearest_of_256_values(scales):
    back = double_quantize(scales).astype(np.float64)
    mean = np.float32(scales.mean(dtype=np.float64))
    for first in range(0, scales.size, 256):
        part = (scales - mean)[first : first + 256].astype(np.float64)
        second = np.abs(part).max()
        tree = dynamic_tree() * second
        nearest = np.abs(part[:, None] - tree).min(axis=1)
        error = np.abs(back[first : first + 256] - mean - part)
        clipped = back[first : first + 256] == 0
        slack = 1e-6 * (second + abs(mean))
        assert np.all((error <= nearest + slack) | clipped)


@pytest.mark.parametrize("double", [False, True])
def test_fast_equals_plain(double):
    random = np.random.default_rng(0)
    for shape in ((1000,), (3, 777), (4, 5, 67)):
        x = (random.standard_normal(shape) * np.exp2(random.integers(-9, 9, shape))).astype(np.float32)
        form = NormalFloat(double_quantization=double)
        np.testing.assert_array_equal(form.round(x), normal_float_round(x, 64, double))


def test_double_quantization_costs_little():
    x = np.random.default_rng(0).standard_normal(2**16, np.float32)

    def noise(form):
        return float(np.sum((x - form.round(x)) ** 2))

    assert noise(NormalFloat()) < 1.05 * noise(SINGLE)
    assert NormalFloat().stored_bits(x.shape) < 0.93 * SINGLE.stored_bits(x.shape)


def test_a_bad_block_is_refused():
    with pytest.raises(ValueError, match="block: expected a positive integer, got 0"):
        NormalFloat(block=0)
