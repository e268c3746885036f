"""FP4: E2M1 against ml_dtypes over 2^24 floats, radix 4 against exact rationals; scales; and fast against plain."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.arithmetic.floating_point.fp4 import FP4, MAGNITUDES, fp4_round
from kernels.arithmetic.number_format import Encoded

CODES = np.arange(16, dtype=np.uint8)
both = pytest.mark.parametrize("name", MAGNITUDES)


def exact_code(x: float, name: str) -> int:
    """Of the eight magnitudes the nearest in rationals, of two as near that with the even code."""
    distances = [abs(Fraction(value) - abs(Fraction(x))) for value in MAGNITUDES[name]]
    near = [code for code in range(8) if distances[code] == min(distances)]
    return next((code for code in near if code % 2 == 0), near[0]) | (8 if np.signbit(x) else 0)


@both
def test_every_code(name):
    decoded = FP4(name, scale=1.0).decode(Encoded(CODES, np.float32([1]), CODES.shape))
    np.testing.assert_array_equal(decoded[:8], MAGNITUDES[name])
    np.testing.assert_array_equal(decoded[8:], -decoded[:8])
    assert np.signbit(decoded[8])
    np.testing.assert_array_equal(FP4(name, scale=1.0).encode(decoded).codes, CODES)
    if name == "e2m1":
        np.testing.assert_array_equal(decoded, CODES.view(ml_dtypes.float4_e2m1fn).astype(np.float32))


def test_floats_spread_over_all_patterns():
    """2^24 of them: low bits 000 meet every tie, 1ff the floats just below."""
    high = np.arange(2**24, dtype=np.uint32)
    x = (high << np.uint32(8) | (high & np.uint32(1)) * np.uint32(0xFF)).view(np.float32)
    with np.errstate(invalid="ignore"):
        expected = x.astype(ml_dtypes.float4_e2m1fn)
    form, number = FP4(scale=1.0), ~np.isnan(x)
    assert np.array_equal(form.encode(x).codes[number], expected.view(np.uint8)[number])
    assert np.array_equal(form.round(x)[number], expected.astype(np.float32)[number])
    nan = form.round(x[~number])
    assert not nan.any() and np.array_equal(np.signbit(nan), np.signbit(x[~number]))
    radix4 = FP4("radix4", scale=1.0).round(x[::7])
    with np.errstate(invalid="ignore"):  # signalling NaN, cast by numpy
        assert np.array_equal(radix4, fp4_round(x[::7], "radix4"))


@both
def test_ties_and_what_lies_beside(name):
    values = np.array(MAGNITUDES[name])
    ties = (values[:-1] + values[1:]) / 2
    x = np.concatenate([values, ties, np.nextafter(ties, 0), np.nextafter(ties, 100), values[-1:] * 3, [1e300]])
    x = np.concatenate([x, -x])
    codes = FP4(name, scale=1.0).encode(x).codes
    assert codes.tolist() == [exact_code(value, name) for value in x.tolist()]
    assert FP4(name, scale=1.0).round(np.float32(np.inf)) == values[-1]


@given(st.sampled_from([*MAGNITUDES]), st.floats(-200, 200), st.integers(-40, 40))
def test_exact_at_every_scale(name, x, exponent):
    form = FP4(name, scale=2.0**exponent)
    value = np.float32(x) * np.float32(2.0**exponent)
    if value == 0 or abs(value) > 1e-37:  # else a subnormal float32 has lost digits of x
        assert form.encode(value).codes == exact_code(float(np.float32(x)), name)
        np.testing.assert_array_equal(form.round(value), fp4_round(value, name, 2.0**exponent))


@both
def test_fast_equals_plain(name):
    random = np.random.default_rng(0)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-45, 1e300]
    for x in (random.standard_normal(50_000) * 2.0 ** random.uniform(-20, 10, 50_000), np.array(special)):
        for scale in (1.0, 2.0**-9, 2.0**30):
            rounded, plain = FP4(name, scale=scale).round(x), fp4_round(x, name, scale)
            np.testing.assert_array_equal(rounded, plain)
            np.testing.assert_array_equal(np.signbit(rounded), np.signbit(plain))


@both
def test_a_scale_a_tensor(name):
    form = FP4(name)
    for exponent in (-100, -9, 0, 60):
        x = (np.random.default_rng(0).standard_normal((30, 40)) * 2.0**exponent).astype(np.float32)
        own = form.fit(x)
        top = np.floor(np.log2(MAGNITUDES[name][-1]))
        assert np.log2(own.scale) == np.floor(np.log2(np.abs(x).max())) - top
        np.testing.assert_array_equal(form.round(x), fp4_round(x, name, own.scale))
        np.testing.assert_array_equal(form.round(x.T), fp4_round(x.T, name, own.scale))
        encoded = form.encode(x)
        assert encoded.scales == np.float32(own.scale)
        np.testing.assert_array_equal(form.decode(encoded), own.round(x))
        np.testing.assert_array_equal(form.round(x, threads=2), own.round(x))
    assert form.stored_bits((30, 40)) == own.stored_bits((30, 40)) == 4808
    for nothing in (np.zeros(3, np.float32), np.float32([]), np.float32([np.nan, -np.inf])):
        assert form.fit(nothing).scale == 1
    assert form.fit(np.float64([0.02, np.nan])).scale == form.fit(np.float32([-0.02, np.inf])).scale


@given(st.sampled_from([*MAGNITUDES]), st.lists(st.floats(-1e30, 1e30), min_size=2))
def test_idempotent_monotone_symmetric(name, xs):
    x = np.sort(xs)
    form = FP4(name).fit(x)
    rounded = form.round(x)
    np.testing.assert_array_equal(form.round(rounded), rounded)
    assert np.all(np.diff(rounded) >= 0)
    np.testing.assert_array_equal(form.round(-x), -rounded)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "e3m0"}, "format: expected e2m1 or radix4, got 'e3m0'"),
        ({"scale": 3.0}, r"scale: expected a power of two from 2\^-124 to 2\^105, got 3.0"),
        ({"scale": 0.0}, r"scale: expected a power of two"),
        ({"scale": "1"}, r"scale: expected a power of two"),
        ({"format": "radix4", "scale": 2.0**122}, r"scale: expected a power of two from 2\^-119 to 2\^121"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FP4(**fields)
