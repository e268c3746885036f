"""FP32 against numpy's own conversion and against the definition; float32 is left as it is, bit for bit."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kernels.arithmetic.floating_point.fp32 import FP32, fp32_round
from kernels.arithmetic.number_format import Encoded

LARGEST = 2.0**128 - 2.0**104


def test_float32_is_left_as_it_is():
    patterns = np.arange(2**24, dtype=np.uint32) << np.uint32(8) | np.uint32(0x5A)
    x = patterns.view(np.float32)
    np.testing.assert_array_equal(FP32().round(x).view(np.uint32), patterns)
    np.testing.assert_array_equal(FP32().encode(x).codes, patterns)
    np.testing.assert_array_equal(FP32().decode(Encoded(patterns, None, patterns.shape)).view(np.uint32), patterns)


def test_float64_is_rounded_once_and_as_numpy_does():
    random = np.random.default_rng(0)
    with np.errstate(over="ignore", invalid="ignore"):
        x = random.integers(0, 2**64, 100_000, np.uint64).view(np.float64)
        x = np.concatenate([x, random.standard_normal(100_000) * 2.0 ** random.uniform(-160, 130, 100_000)])
        expected = x.astype(np.float32)
    np.testing.assert_array_equal(FP32().round(x), expected)
    np.testing.assert_array_equal(FP32().round(x, threads=3), expected)
    np.testing.assert_array_equal(FP32().round(x.reshape(400, 500).T), expected.reshape(400, 500).T)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(FP32().encode(x).codes[number], expected.view(np.uint32)[number])
    few = x[np.abs(x) < 1e300]
    np.testing.assert_array_equal(FP32().round(few), fp32_round(few).astype(np.float32))


@given(st.floats(-LARGEST, LARGEST))
def test_nearest_and_even(x):
    y = FP32().round(np.float64(x))
    with np.errstate(over="ignore"):  # infinity is beside the largest
        near = [np.nextafter(y, np.float32(-np.inf)), np.nextafter(y, np.float32(np.inf))]
    error = abs(Fraction(float(y)) - Fraction(x))
    for other in near:
        if np.isfinite(other):
            beside = abs(Fraction(float(other)) - Fraction(x))
            assert error < beside or (error == beside and y.view(np.uint32) % 2 == 0)


def test_overflow_and_underflow():
    tie = LARGEST + 2.0**103
    x = np.array([tie, -tie, np.nextafter(tie, 0), 1e300, np.inf, 2.0**-150, np.nextafter(2.0**-150, 1), -(2.0**-151)])
    expected = np.array([np.inf, -np.inf, LARGEST, np.inf, np.inf, 0, 2.0**-149, -0.0])
    rounded = FP32().round(x)
    np.testing.assert_array_equal(rounded, expected)
    np.testing.assert_array_equal(np.signbit(rounded), np.signbit(expected))


def test_float16_becomes_float32():
    x = np.arange(2**16, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(FP32().round(x), x.astype(np.float32))


def test_it_takes_what_it_takes():
    assert FP32().stored_bits((3, 5)) == 480 and FP32().fit(np.zeros(3, np.float32)) == FP32()
    assert FP32().round(np.float32([])).shape == (0,) and FP32().round(np.float64(0.1)) == np.float32(0.1)
