"""bfloat16 against ml_dtypes over 2 x 2^24 floats and all codes, against torch, and fast against plain."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.arithmetic.floating_point.bfloat16 import BFloat16, bfloat16_round
from kernels.arithmetic.number_format import Encoded

ROUNDINGS = ("nearest-even", "toward-zero")
CODES = np.arange(2**16, dtype=np.uint16)


def same_numbers(a, b):
    """Equal, zeros also in sign, or both NaN."""
    a, b = (np.asarray(v, np.float32) for v in (a, b))
    return np.array_equal(a, b, equal_nan=True) and np.array_equal(np.signbit(a[a == 0]), np.signbit(b[a == 0]))


def test_every_code():
    expected = CODES.view(ml_dtypes.bfloat16).astype(np.float32)
    decoded = BFloat16().decode(Encoded(CODES, None, CODES.shape))
    np.testing.assert_array_equal(decoded.view(np.uint32), expected.view(np.uint32))
    assert len(BFloat16().values()) == 2**16 - 2 * 2**7 - 1  # without infinities and NaN; one of two zeros
    kept = ~np.isnan(decoded)
    for rounding in (*ROUNDINGS, "stochastic"):
        np.testing.assert_array_equal(BFloat16(rounding).encode(decoded).codes[kept], CODES[kept])


@pytest.mark.parametrize("low", [0x00, 0xFF])
def test_floats_spread_over_all_patterns(low):
    """Low bits 00 meet every tie, ff the floats just below and above."""
    patterns = np.arange(2**24, dtype=np.uint32) << np.uint32(8) | np.uint32(low)
    x = patterns.view(np.float32)
    with np.errstate(invalid="ignore"):  # signalling NaN, cast by numpy
        expected = x.astype(ml_dtypes.bfloat16).view(np.uint16)
    codes = BFloat16().encode(x).codes
    number = ~np.isnan(x)
    assert np.array_equal(codes[number], expected[number])
    nan = codes[~number]
    assert np.all(nan & 0x7FC0 == 0x7FC0) and np.array_equal(nan >> 15, patterns[~number] >> 31)  # quiet, sign kept
    rounded = BFloat16().round(x).view(np.uint32)
    assert np.array_equal(rounded >> 16, codes) and not np.any(rounded & 0xFFFF)
    cut = BFloat16("toward-zero").round(x).view(np.uint32)
    assert np.array_equal(cut[number], patterns[number] & 0xFFFF0000)


def test_torch_agrees():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 2**32, 2**20, np.uint32).view(np.float32))
    assert same_numbers(BFloat16().round(x), x.bfloat16().float())


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_fast_equals_plain(rounding):
    random = np.random.default_rng(1)
    with np.errstate(invalid="ignore"):
        for x in (
            random.integers(0, 2**32, 100_000, np.uint32).view(np.float32),
            random.integers(0, 2**64, 100_000, np.uint64).view(np.float64),
            random.standard_normal(100_000) * 2.0 ** random.uniform(-140, 130, 100_000),
            np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 2.0**-134, 3 * 2.0**-134, 3.4e38]),
        ):
            assert same_numbers(BFloat16(rounding).round(x), bfloat16_round(x, rounding))


@given(st.lists(st.floats(allow_nan=False), min_size=1), st.sampled_from(ROUNDINGS))
def test_idempotent_monotone_symmetric(xs, rounding):
    form, x = BFloat16(rounding), np.sort(xs)
    rounded = form.round(x)
    np.testing.assert_array_equal(form.round(rounded), rounded)
    assert np.all(rounded[1:] >= rounded[:-1])
    np.testing.assert_array_equal(form.round(-x), -rounded)
    if rounding == "toward-zero":
        assert np.all(np.abs(rounded.astype(np.float64)) <= np.abs(x))


@given(st.floats(-3e38, 3e38))
def test_nearest(x):
    values = BFloat16().values()
    assert abs(float(BFloat16().round(x)) - x) == np.min(np.abs(values - x))


def test_overflow_is_that_of_the_rounding():
    largest = float(BFloat16().values()[-1])
    tie = largest + 2.0**119
    x = np.array([tie, -tie, np.nextafter(tie, 0), 1e300, np.inf])
    np.testing.assert_array_equal(BFloat16().round(x), [np.inf, -np.inf, largest, np.inf, np.inf])
    np.testing.assert_array_equal(BFloat16("toward-zero").round(x), [largest, -largest, largest, largest, np.inf])


def test_stochastic_rounding_leaves_the_mean():
    """Within five standard deviations of the mean of n draws; and the dropped half of a float32 is the probability."""
    n, step = 1 << 18, 2.0**-7
    for dropped in (1, 0x0800, 0x8000, 0xFFFF):
        x = np.uint32(0x3F800000 + dropped).view(np.float32)
        drawn = BFloat16("stochastic", seed=dropped).round(np.full(n, x))
        assert set(drawn.tolist()) <= {1.0, 1 + step}
        p = dropped / 2**16
        assert abs(np.mean(drawn == 1 + step) - p) <= 5 * np.sqrt(p * (1 - p) / n)


def test_an_unknown_rounding_is_refused():
    with pytest.raises(ValueError, match="rounding: expected nearest-even or toward-zero or stochastic, got 'up'"):
        BFloat16("up")
