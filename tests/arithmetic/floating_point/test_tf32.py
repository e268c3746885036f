"""TF32 and DLFloat against exact rationals, TF32 besides against integer arithmetic and what bfloat16 implies."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.arithmetic.floating_point.minifloat import minifloat_round
from kernels.arithmetic.floating_point.tf32 import FIELDS, TF32
from kernels.arithmetic.number_format import Encoded

ROUNDINGS = ("nearest-even", "nearest-away", "toward-zero")


def spread() -> np.ndarray:
    """2^24 floats: low bits 000 meet every tie, 1ff the floats just below."""
    high = np.arange(2**24, dtype=np.uint32)
    return (high << np.uint32(8) | (high & np.uint32(1)) * np.uint32(0xFF)).view(np.float32)


def exact(x: float, bits: int, lowest: int, rounding: str) -> Fraction:
    """A number to `bits` fraction bits, in rationals; exponents end at `lowest`."""
    if x == 0:
        return Fraction(0)
    magnitude = abs(Fraction(x))
    exponent = lowest
    while magnitude >= Fraction(2) ** (exponent + 1):
        exponent += 1
    step = Fraction(2) ** (exponent - bits)
    quotient, rest = divmod(magnitude, step)
    up = rest * 2 > step or (rest * 2 == step and (rounding == "nearest-away" or quotient % 2 == 1))
    value = (quotient + (up and rounding != "toward-zero")) * step
    return value if x > 0 else -value


def test_tf32_over_the_floats_is_one_addition_and_a_mask():
    x = spread()
    finite = np.isfinite(x)
    pattern = x.view(np.uint32).astype(np.uint64)
    sign, magnitude = pattern & np.uint64(0x80000000), pattern & np.uint64(0x7FFFFFFF)
    last = magnitude >> np.uint64(13) & np.uint64(1)
    for rounding, add in (("nearest-even", last + np.uint64(0xFFF)), ("nearest-away", 0x1000), ("toward-zero", 0)):
        cut = (magnitude + np.uint64(add) if np.isscalar(add) else magnitude + add) & np.uint64(0xFFFFE000)
        form = TF32(rounding=rounding)
        rounded, codes = form.round(x), form.encode(x).codes
        assert np.array_equal(rounded.view(np.uint32)[finite], (sign | cut)[finite].astype(np.uint32))
        assert np.array_equal(codes[finite], ((sign | cut) >> np.uint64(13)).astype(np.uint32)[finite])
        assert np.array_equal(rounded[~finite], x[~finite], equal_nan=True)


def test_tf32_twice_rounded_to_bfloat16_is_ml_dtypes_where_it_was_no_tie():
    """TF32 has three bits more than bfloat16: what it keeps apart from bfloat16's ties rounds on as x itself."""
    x = spread()[::5]
    x = x[np.isfinite(x)]
    once = TF32("tf32").round(x)
    tie = once.view(np.uint32) & np.uint32(0xFFFF) == np.uint32(0x8000)
    with np.errstate(over="ignore"):
        assert np.array_equal(once[~tie].astype(ml_dtypes.bfloat16), x[~tie].astype(ml_dtypes.bfloat16))


def test_every_code_of_dlfloat():
    codes = np.arange(2**16, dtype=np.uint16)
    form = TF32("dlfloat")
    decoded = form.decode(Encoded(codes, None, codes.shape))
    for code in range(2**15):
        field, f = divmod(code, 2**9)
        if code == 2**15 - 1:
            assert np.isnan(decoded[code]) and np.isnan(decoded[code + 2**15])
            continue
        expected = Fraction(2) ** (field - 31) * (1 + Fraction(f, 2**9)) if code else Fraction(0)
        assert Fraction(float(decoded[code])) == expected == -Fraction(float(decoded[code + 2**15]))
    number = ~np.isnan(decoded)
    for rounding in ROUNDINGS:
        np.testing.assert_array_equal(TF32("dlfloat", rounding).encode(decoded).codes[number], codes[number])
    assert form.encode(np.float32([np.nan, np.inf, -1e30])).codes.tolist() == [0x7FFF, 0x7FFF, 0xFFFF]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@given(data=st.data())
def test_dlfloat_is_exact(rounding, data):
    x = data.draw(st.floats(2.0**-30, 2.0**32 * 1.5, width=32) | st.floats(2.0**-30, 2.0**32 * 1.5))
    x = data.draw(st.sampled_from([x, float(np.round(x, 2)), 1 + round(x % 1 * 1024) / 1024]))
    assert Fraction(float(TF32("dlfloat", rounding).round(np.float64(x)))) == exact(x, 9, -31, rounding)
    assert TF32("dlfloat", rounding).round(np.float64(-x)) == -TF32("dlfloat", rounding).round(np.float64(x))
    assert Fraction(float(TF32("tf32", rounding).round(np.float64(x)))) == exact(x, 10, -126, rounding)


def test_the_ends_of_dlfloat():
    smallest, largest = 2.0**-31 * (1 + 2.0**-9), 2.0**32 * (2 - 2.0**-8)
    tie = largest + 2.0**22
    x = np.array([smallest / 2, np.nextafter(smallest / 2, 1), 2.0**-31, tie, np.nextafter(tie, 0), np.inf])
    np.testing.assert_array_equal(TF32("dlfloat").round(x), [0, smallest, smallest, largest, largest, np.nan])
    away = TF32("dlfloat", "nearest-away").round(x)
    np.testing.assert_array_equal(away[1:], [smallest, smallest, np.nan, largest, np.nan])
    cut = TF32("dlfloat", "toward-zero").round(x)
    np.testing.assert_array_equal(cut, [0, 0, 0, largest, largest, np.nan])


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("rounding", ["nearest-even", "toward-zero"])
def test_fast_equals_plain(name, rounding):
    random = np.random.default_rng(2)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38, 2.0**-31, 2.0**-32]
    for x in (random.standard_normal(100_000) * 2.0 ** random.uniform(-140, 130, 100_000), np.array(special)):
        e, m, bias, subnormals, specials = FIELDS[name]
        plain = minifloat_round(x, e, m, bias, subnormals, specials, rounding=rounding)
        rounded = TF32(name, rounding).round(x)
        np.testing.assert_array_equal(rounded, plain.astype(np.float32))
        number = ~np.isnan(x)
        np.testing.assert_array_equal(np.signbit(rounded[number]), np.signbit(x[number]))


def test_memory_and_codes():
    assert TF32().bits == 19 and TF32().code_dtype is np.uint32
    assert TF32().stored_bits((3, 4)) == 12 * 32 and TF32("dlfloat").stored_bits((3, 4)) == 12 * 16
    encoded = TF32().encode(np.float32([1.0, -2.0, np.inf]))
    assert [f"{code:019b}" for code in encoded.codes] == [
        "0011111110000000000",
        "1100000000000000000",
        "0111111110000000000",
    ]
    np.testing.assert_array_equal(TF32().decode(encoded), [1, -2, np.inf])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "tf16"}, "format: expected tf32 or dlfloat, got 'tf16'"),
        ({"rounding": "up"}, "rounding: expected nearest-even or nearest-away or toward-zero, got 'up'"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TF32(**fields)
