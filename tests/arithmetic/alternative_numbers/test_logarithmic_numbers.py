"""Logarithmic numbers against logarithms of sixty digits and powers of integers; every pair of 8-bit codes is added."""

from __future__ import annotations

from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.arithmetic.alternative_numbers.logarithmic_numbers import (
    METHODS,
    LogarithmicNumbers,
    _octave,
    logarithmic_round,
)
from kernels.arithmetic.number_format import Encoded

VARIANTS = [(8, 3), (8, 4), (8, 0), (16, 10), (16, 12), (4, 0), (3, 1), (12, 9)]
getcontext().prec = 60
LN2 = Decimal(2).ln()


def every(form: LogarithmicNumbers) -> Encoded:
    """All codes that the format makes: with the sign, and c from 1; and zero."""
    half = 2 ** (form.bits - 1)
    codes = np.array([0, *range(1, half), *range(half + 1, 2 * half)]).astype(form.code_dtype)
    return Encoded(codes, form._scales(), codes.shape)


def logs(form: LogarithmicNumbers, codes: np.ndarray) -> np.ndarray:
    """k = 2^F log2 |x| of codes, by the definition."""
    largest = 2 ** (form.bits - 1) - 1
    return (codes.astype(np.int64) & largest) - largest + form.exponent * 2**form.fraction_bits


@pytest.mark.parametrize("fraction_bits", range(13))
def test_the_border_between_two_logarithms_is_exact(fraction_bits):
    """A fraction n lies beyond 2^((2j + 1) / 2^(F + 1)) if and only if its power by 2^(F + 1) does: integers decide."""
    root = 2 ** (fraction_bits + 1)
    _, _, borders = _octave(fraction_bits)
    borders = np.unique(borders[borders < 2**23])
    assert len(borders) == 2**fraction_bits
    for j in range(0, 2**fraction_bits, max(2**fraction_bits // 16, 1)):
        n = 2**23 + int(borders[j])
        power = 2 ** (2 * j + 1 + 23 * root)
        assert (n - 1) ** root < power < n**root
    exact = [(Decimal(2 * j + 1) / root * LN2).exp() * 2**23 - 2**23 for j in range(2**fraction_bits)]
    assert [int(border) - 1 < e < int(border) for border, e in zip(borders, exact, strict=True)].count(False) == 0


@pytest.mark.parametrize(("bits", "fraction_bits"), VARIANTS)
@pytest.mark.parametrize("exponent", [0, -3, 9])
def test_every_code_is_the_nearest_float(bits, fraction_bits, exponent):
    form = LogarithmicNumbers(bits, fraction_bits, max(exponent, LogarithmicNumbers(bits, fraction_bits)._exponents[0]))
    codes = every(form)
    values = form.decode(codes)
    assert values[0] == 0 and len(form.values()) == 2**bits - 1
    np.testing.assert_array_equal(form.encode(values).codes, codes.codes)
    np.testing.assert_array_equal(form.round(values), values)
    ks = logs(form, codes.codes)
    np.testing.assert_allclose(np.abs(values[1:]), np.exp2(ks[1:] / 2**fraction_bits), rtol=2.0**-24)
    for i in range(1, len(values), max(len(values) // 64, 1)):
        exact = Fraction(Decimal.exp(Decimal(int(ks[i])) / 2**fraction_bits * LN2))
        beside = [Fraction(float(np.nextafter(abs(values[i]), np.float32(end)))) for end in (0, np.inf)]
        error = abs(Fraction(float(abs(values[i]))) - exact)
        assert all(error <= abs(other - exact) for other in beside)
    assert np.array_equal(np.signbit(values), codes.codes >> (bits - 1) == 1)


@pytest.mark.parametrize(("bits", "fraction_bits"), VARIANTS)
def test_rounding_agrees_with_logarithms(bits, fraction_bits):
    """Everywhere but within 2^-40 of a border, which the test above decides."""
    random = np.random.default_rng(0)
    x = random.integers(0, 2**32, 100_000, np.uint32).view(np.float32)
    x = np.concatenate([x[~np.isnan(x)], random.standard_normal(50_000).astype(np.float32)])
    for exponent in (0, 5):
        exponent = max(exponent, LogarithmicNumbers(bits, fraction_bits)._exponents[0])
        form = LogarithmicNumbers(bits, fraction_bits, exponent)
        expected = logarithmic_round(x, bits, fraction_bits, exponent)
        np.testing.assert_allclose(form.round(x), expected, rtol=2.0**-23)
        np.testing.assert_array_equal(form.decode(form.encode(x)), form.round(x))


@pytest.mark.parametrize(("bits", "fraction_bits"), [(8, 3), (8, 4), (8, 0), (6, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_every_pair_is_added(bits, fraction_bits, method):
    """Sums in float64, which is checked to err by less than the distance of any logarithm from a tie."""
    form = LogarithmicNumbers(bits, fraction_bits, exponent=2)
    codes = every(form)
    a, b = (Encoded(c, codes.scales, c.shape) for c in (codes.codes[:, None], codes.codes[None, :]))
    k, one = logs(form, codes.codes), 2**fraction_bits
    values = np.where(codes.codes == 0, 0.0, np.exp2(k / one)) * np.where(codes.codes >> (bits - 1), -1.0, 1.0)
    exact = values[:, None] + values[None, :]
    exact[values[:, None] == -values[None, :]] = 0
    got = form.add(a, b, method)
    ks = logs(form, got.codes)
    with np.errstate(divide="ignore"):
        want = one * np.log2(np.abs(exact))
    smallest, largest = k[1], form.exponent * one
    zero = (exact == 0) | (np.rint(want) < smallest - one) if method == "table" else got.codes == 0
    np.testing.assert_array_equal(got.codes == 0, zero)
    some = ~zero
    np.testing.assert_array_equal((got.codes >> (bits - 1) == 1)[some], (exact < 0)[some])
    if method == "table":
        clipped = np.clip(want[some], smallest, largest)
        assert np.min(np.abs(np.abs(clipped - np.rint(clipped)) - 0.5)) > 1e-6
        np.testing.assert_array_equal(ks[some], np.rint(clipped))
    inside = some & (want > smallest) & (want < largest)
    error = np.abs(ks - want)[inside].max()
    assert error <= one * form.largest_error(method)
    assert error > 0.4
    difference = form.subtract(a, b, method)
    np.testing.assert_array_equal(
        form.decode(difference), form.decode(form.add(a, form.encode(-form.decode(b)), method))
    )


@pytest.mark.parametrize("fraction_bits", [8, 10, 12])
def test_sums_of_wide_numbers_stay_within_the_bound(fraction_bits):
    random = np.random.default_rng(0)
    form = LogarithmicNumbers(16, fraction_bits, exponent=20 if fraction_bits == 8 else 3)
    k = random.integers(2**14, 2**15 - 2 ** (fraction_bits + 1), (2, 200_000))
    k[1] = k[0] + random.integers(-4 * 2**fraction_bits, 2**fraction_bits, 200_000)
    a, b = (Encoded(c.astype(np.uint16), form._scales(), c.shape) for c in k)
    for operation in (form.add, form.subtract):
        sign = 1 if operation == form.add else -1
        x, y = (np.longdouble(2) ** (logs(form, c.codes) / np.longdouble(2**fraction_bits)) for c in (a, b))
        exact = np.log2(np.abs(x + sign * y)[k[0] != k[1]])
        for method in METHODS:
            got = logs(form, operation(a, b, method).codes)[k[0] != k[1]] / np.longdouble(2**fraction_bits)
            kept = exact > logs(form, np.array([1]))[0] / 2**fraction_bits
            error = np.abs(got - exact)[kept].max()
            assert error <= form.largest_error(method) * (1 + 1e-9)
            assert error > 0.9 * form.largest_error("table")
    assert form.entries("interpolation") < form.entries("table") / 5


def test_every_pair_is_multiplied():
    form = LogarithmicNumbers(8, 3, exponent=1)
    codes = every(form)
    a, b = (Encoded(c, codes.scales, c.shape) for c in (codes.codes[:, None], codes.codes[None, :]))
    wide = LogarithmicNumbers(8, 3).multiply(a, b)
    assert wide.scales == 4
    k = logs(form, codes.codes)
    for got, own in ((wide, LogarithmicNumbers(8, 3, 2)), (form.multiply(a, b), form)):
        sums = k[:, None] + k[None, :]
        smallest, largest = logs(own, np.array([1]))[0], own.exponent * 8
        zero = (codes.codes[:, None] == 0) | (codes.codes[None, :] == 0) | (sums < smallest - 8)
        np.testing.assert_array_equal(got.codes == 0, zero)
        np.testing.assert_array_equal(logs(own, got.codes)[~zero], np.clip(sums, smallest, largest)[~zero])
        negative = (codes.codes[:, None] ^ codes.codes[None, :]) >> 7 == 1
        np.testing.assert_array_equal((got.codes >> 7 == 1)[~zero], negative[~zero])


def test_sums_of_different_exponents():
    a = LogarithmicNumbers(8, 3, 5).encode(np.float32([16.0, -3.0, 0.0, 32.0]))
    b = LogarithmicNumbers(8, 3, -2).encode(np.float32([0.25, 0.25, -0.125, 0.0]))
    form = LogarithmicNumbers(8, 3)
    got = form.add(a, b)
    assert got.scales == 2.0**6
    reals = LogarithmicNumbers(8, 3, 5).decode(a).astype(np.float64) + LogarithmicNumbers(8, 3, -2).decode(b)
    np.testing.assert_allclose(np.log2(np.abs(form.decode(got))), np.log2(np.abs(reals)), atol=1 / 16 + 1e-6)
    np.testing.assert_array_equal(np.sign(form.decode(got)), np.sign(reals))


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1), st.sampled_from(VARIANTS))
def test_fit_holds_the_largest(xs, variant):
    form = LogarithmicNumbers(*variant).fit(np.float32(xs))
    largest = max(abs(Fraction(x)) for x in xs)
    assert largest <= Fraction(2) ** form.exponent
    assert form.exponent == form._exponents[0] or not largest or largest > Fraction(2) ** (form.exponent - 1)
    rounded = form.round(np.float32(xs))
    np.testing.assert_array_equal(rounded, LogarithmicNumbers(*variant).round(np.float32(xs)))
    some = rounded != 0
    smallest = form.values()[2 ** (form.bits - 1)]
    inside = some & (np.abs(np.float32(xs)) >= smallest)
    relative = np.abs(np.log2(np.abs(rounded[inside]).astype(np.float64) / np.abs(np.array(xs)[inside])))
    assert np.all(relative <= 0.5 / 2 ** variant[1] + 1e-6)


def test_special_numbers_layouts_and_refusals():
    form = LogarithmicNumbers(8, 3, 0)
    x = np.float32([np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38])
    np.testing.assert_array_equal(form.round(x), [1, -1, 0, 0, 0, 0, 1])
    assert not np.signbit(form.round(x)[2:6]).any()
    for verb in (form.round, form.encode):
        with pytest.raises(ValueError, match="x: expected numbers, got NaN, which has no logarithm"):
            verb(np.float32([1, np.nan]))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="x: expected finite numbers to fit an exponent to"):
            LogarithmicNumbers().round(np.float32([1, bad]))
    x = np.random.default_rng(0).standard_normal((6, 8, 10)).astype(np.float32)
    x.flags.writeable = False
    for view in (x, x.T, x[::2, ::-1, 1::3], x[:0], x[0, 0, 0], x.astype(np.float64), x.astype(np.float16)):
        form = LogarithmicNumbers().fit(view)
        np.testing.assert_allclose(form.round(view), logarithmic_round(view, 8, 3, form.exponent), rtol=2.0**-23)
        np.testing.assert_array_equal(form.round(view, threads=2), form.decode(LogarithmicNumbers().encode(view)))
    assert isinstance(form.round(torch.ones(3)), torch.Tensor) and form.stored_bits((3, 4)) == 8 * 12 + 8
    for parameters, error in (
        ({"bits": 2}, "bits: expected an integer from 3 to 16, got 2"),
        ({"bits": 17}, "bits: expected an integer from 3 to 16, got 17"),
        ({"fraction_bits": 7}, "fraction_bits: expected an integer from 0 to 6, got 7"),
        ({"bits": 16, "fraction_bits": 7}, "fraction_bits: expected an integer from 8 to 12, got 7"),
        ({"exponent": 128}, "exponent: expected an integer from -109 to 127, got 128"),
    ):
        with pytest.raises(ValueError, match=error):
            LogarithmicNumbers(**parameters)
    codes = form.encode(np.float32([1.0]))
    with pytest.raises(ValueError, match="method: expected table or interpolation, got 'guess'"):
        form.add(codes, codes, "guess")
    with pytest.raises(TypeError, match="b: expected codes of dtype uint8"):
        form.add(codes, Encoded(np.zeros(1, np.uint16), codes.scales, (1,)))
    with pytest.raises(ValueError, match="encoded: expected one power of two as a scale"):
        form.decode(Encoded(codes.codes, np.float32([3]), (1,)))
