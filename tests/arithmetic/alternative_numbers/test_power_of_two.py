"""Powers of two against exact rationals and the codebook written out, over every code and every decision."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.arithmetic.alternative_numbers.power_of_two import PowerOfTwo, power_of_two_round
from kernels.arithmetic.number_format import Encoded

WINDOWS = [(bits, exponent) for bits in (2, 3, 4, 5) for exponent in (0, -7, 20, 2 ** (bits - 2) - 126, 127)]
WINDOWS += [(6, 3), (7, -94), (8, -62)]


def codebook(bits: int, exponent: int) -> list[Fraction]:
    """The paper's P_l, its magnitudes in ascending order, by its own equations."""
    n2 = exponent + 1 - 2 ** (bits - 1) // 2
    return [Fraction(0), *(Fraction(2) ** n for n in range(n2, exponent + 1))]


def exact(x: float, bits: int, exponent: int) -> Fraction:
    """Equation 4: beta sgn(x) where (alpha + beta) / 2 <= |x| < 3 beta / 2, in rationals; beyond the top, the top."""
    values = codebook(bits, exponent)
    for alpha, beta in zip(values[::-1][1:], values[::-1], strict=False):
        if (alpha + beta) / 2 <= abs(Fraction(x)):
            return beta if x > 0 else -beta
    return Fraction(0)


@pytest.mark.parametrize(("bits", "exponent"), WINDOWS)
def test_every_decision_is_exact(bits, exponent):
    powers = 2.0 ** np.arange(max(exponent - 2 ** (bits - 2) - 3, -140), min(exponent + 3, 128))
    points = np.concatenate([[0.0], *(powers * f for f in (0.5, 0.75, 1, 1.25, 1.5, 1.75))])
    x = np.concatenate([points, np.nextafter(points, 0), np.nextafter(points, np.inf)])
    near = points.astype(np.float32)
    near = np.concatenate([near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(3e38))])
    form = PowerOfTwo(bits, exponent)
    for numbers in (x, -x, near, -near):
        rounded = form.round(numbers)
        assert [Fraction(float(v)) for v in rounded] == [exact(v, bits, exponent) for v in numbers.tolist()]
        np.testing.assert_array_equal(form.decode(form.encode(numbers)), rounded)
        np.testing.assert_array_equal(power_of_two_round(numbers, bits, exponent), rounded)


@pytest.mark.parametrize(("bits", "exponent"), WINDOWS)
def test_every_code(bits, exponent):
    form = PowerOfTwo(bits, exponent)
    codes = np.arange(2**bits).astype(np.uint8)
    values = form.decode(Encoded(codes, form._scales(), codes.shape))
    magnitudes = codebook(bits, exponent)[1:]
    expected = [Fraction(0)] * 2 ** (bits - 1) + magnitudes + [-m for m in magnitudes]
    assert [Fraction(float(v)) for v in values] == expected
    made = codes[2 ** (bits - 1) :]
    np.testing.assert_array_equal(form.encode(values[2 ** (bits - 1) :]).codes, made)
    assert len(form.values()) == 2 ** (bits - 1) + 1


def test_the_papers_example_of_a_window():
    """'If b = 3 and n1 = -1, n2 = -2': the set is 0 and plus or minus 2^-1, 2^-2."""
    form = PowerOfTwo(bits=3).fit(np.float32([0.5, -0.1]))
    assert form.exponent == -1 and form.smallest == -2
    np.testing.assert_array_equal(form.values(), [-0.5, -0.25, 0, 0.25, 0.5])


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1), st.integers(2, 8))
def test_the_window_is_the_papers(xs, bits):
    form = PowerOfTwo(bits).fit(np.float32(xs))
    largest = max(abs(Fraction(x)) for x in xs)
    if largest == 0:
        assert form.exponent == 0
    elif form.exponent > 2 ** (bits - 2) - 126:  # n1 = floor(log2(4 s / 3))
        assert Fraction(2) ** form.exponent <= 4 * largest / 3 < Fraction(2) ** (form.exponent + 1)
    np.testing.assert_array_equal(form.round(np.float32(xs)), PowerOfTwo(bits).round(np.float32(xs)))


def test_fast_equals_plain_over_all_floats():
    x = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32).view(np.float32)
    x = x[~np.isnan(x)]
    for bits, exponent in ((5, 0), (4, -30), (8, 60), (2, 127)):
        np.testing.assert_array_equal(PowerOfTwo(bits, exponent).round(x), power_of_two_round(x, bits, exponent))


@pytest.mark.parametrize("bits", [2, 4, 5, 6])
def test_products_by_shifts_are_exact(bits):
    random = np.random.default_rng(0)
    form = PowerOfTwo(bits).fit(random.standard_normal(500))
    weights = form.encode(random.standard_normal((20, 30)))
    for dtype in (np.int8, np.int16, np.int32, np.uint8):
        info = np.iinfo(dtype)
        q = random.integers(info.min, info.max, 30, dtype, endpoint=True)
        got = form.multiply(q, weights)
        assert got.dtype == np.int64
        exactly = q.astype(np.float64) * form.decode(weights) / 2.0**form.smallest
        np.testing.assert_array_equal(got, exactly)
    for bad in (np.ones(3), np.ones(3, np.uint64)):
        with pytest.raises(TypeError, match="q: expected signed integers"):
            form.multiply(bad, form.encode(np.ones(3)))


def test_special_numbers_and_layouts():
    form = PowerOfTwo(4, 0)
    x = np.float32([np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38])
    np.testing.assert_array_equal(form.round(x), [1, -1, 0, 0, 0, 0, 1])
    assert not np.signbit(form.round(x)[2:6]).any()
    for verb in (form.round, form.encode):
        with pytest.raises(ValueError, match="x: expected numbers, got NaN, which is no power of two"):
            verb(np.float32([1, np.nan]))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="x: expected finite numbers to fit an exponent to"):
            PowerOfTwo().round(np.float32([1, bad]))
    x = np.random.default_rng(0).standard_normal((6, 8, 10)).astype(np.float32)
    x.flags.writeable = False
    for view in (x, x.T, x[::2, ::-1, 1::3], x[:0], x[0, 0, 0], x.astype(np.float64), x.astype(np.float16)):
        form = PowerOfTwo().fit(view)
        np.testing.assert_array_equal(form.round(view), power_of_two_round(view, 5, form.exponent))
        np.testing.assert_array_equal(form.round(view, threads=2), form.decode(PowerOfTwo().encode(view)))
    assert isinstance(form.round(torch.ones(3)), torch.Tensor) and form.stored_bits((3, 4)) == 5 * 12 + 8


def test_bad_parameters():
    for parameters, error in (
        ({"bits": 1}, "bits: expected an integer from 2 to 8, got 1"),
        ({"bits": 9}, "bits: expected an integer from 2 to 8, got 9"),
        ({"exponent": 128}, "exponent: expected an integer from -118 to 127, got 128"),
        ({"exponent": -119}, "exponent: expected an integer from -118 to 127, got -119"),
    ):
        with pytest.raises(ValueError, match=error):
            PowerOfTwo(**parameters)
    with pytest.raises(ValueError, match="encoded: expected one power of two as a scale"):
        PowerOfTwo().decode(Encoded(np.zeros(2, np.uint8), np.float32([3]), (2,)))
