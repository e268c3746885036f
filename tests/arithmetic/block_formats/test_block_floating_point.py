"""Block floating point against exact rationals, and its products against exact integers."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.arithmetic.block_formats.block_floating_point import BlockFloatingPoint, block_floating_point_round
from kernels.arithmetic.number_format import Encoded

formats = st.builds(BlockFloatingPoint, st.integers(2, 16), st.one_of(st.integers(1, 40), st.just("tensor")))
floats = st.floats(-(2.0**60), 2.0**60, width=32)
rows = st.lists(floats, min_size=1, max_size=70).map(np.float32)


def nearest(x: Fraction) -> int:
    """The nearest integer, ties to even, in rationals."""
    low = floor(x)
    rest = x - low
    return low + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2 == 1))


def exact(x: np.ndarray, form: BlockFloatingPoint) -> list[Fraction]:
    """The paper's equation in rationals."""
    length = x.size if form.block == "tensor" else form.block
    result = []
    for first in range(0, x.size, length):
        block = [Fraction(float(value)) for value in x[first : first + length]]
        top = max(abs(value) for value in block)
        e = -127
        while e < 127 and Fraction(2) ** (e + 1) <= top:
            e += 1
        step = Fraction(2) ** (e - (form.mantissa_bits - 2))
        most = 2 ** (form.mantissa_bits - 1) - 1
        result += [min(max(nearest(value / step), -most), most) * step for value in block]
    return result


@given(rows, formats)
def test_exact_rationals(x, form):
    assert [Fraction(float(value)) for value in form.round(x)] == exact(x, form)


@given(rows, formats)
def test_rounding_again_changes_nothing(x, form):
    once = form.round(x)
    np.testing.assert_array_equal(form.round(once), once)


@given(rows, formats, st.integers(-30, 30))
def test_signs_and_powers_of_two_come_through(x, form, k):
    x = np.where(np.abs(x) < 2.0**-20, np.float32(0), x)
    np.testing.assert_array_equal(form.round(-x), -form.round(x))
    scale = np.float32(2.0**k)
    np.testing.assert_array_equal(form.round(x * scale), form.round(x) * scale)


@given(rows, formats)
def test_the_error_is_half_a_step_except_at_the_top(x, form):
    encoded = form.encode(x)
    length = x.size if form.block == "tensor" else form.block
    steps = np.repeat(encoded.scales.astype(np.float64), length)[: x.size] * 2.0 ** (2 - form.mantissa_bits)
    most = (2 ** (form.mantissa_bits - 1) - 1) * steps
    within = np.abs(x) <= most
    error = np.abs(form.round(x) - x.astype(np.float64))
    assert np.all(error[within] <= steps[within] / 2) and np.all(error <= steps)


@pytest.mark.parametrize("bits", range(2, 17))
def test_every_code(bits):
    form = BlockFloatingPoint(bits, 1)
    codes = np.arange(2**bits).astype(form.code_dtype)
    signed = np.where(codes >= 2 ** (bits - 1), codes.astype(int) - 2**bits, codes)
    decoded = form.decode(Encoded(codes, np.full(codes.size, 8, np.float32), codes.shape))
    np.testing.assert_array_equal(decoded, signed * 8.0 * 2.0 ** (2 - bits))
    kept = signed > -(2 ** (bits - 1))  # the one code that has no opposite is never written
    whole = BlockFloatingPoint(bits, "tensor")
    again = whole.encode(decoded[kept])
    np.testing.assert_array_equal(again.codes, codes[kept])


def test_float64_is_rounded_once():
    x = np.array([1.0, 0.5 + 2.0**-7 + 2.0**-40])  # just above a tie, which float32 would hit
    form = BlockFloatingPoint(8, 2)
    np.testing.assert_array_equal(form.round(x), [1.0, 0.515625])
    np.testing.assert_array_equal(form.round(x), block_floating_point_round(x, 8, 2))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 40), formats, st.integers(0, 99))
def test_products_are_exact(m, n, k, form, seed):
    random = np.random.default_rng(seed)
    a, b = (random.integers(-99, 99, (rows, k)) * 2.0 ** random.integers(-4, 5, (rows, k)) for rows in (m, n))
    a, b = a.astype(np.float32), b.astype(np.float32)
    product = form.matmul(a, b)
    left, right = form.round(a), form.round(b)
    for i in range(m):
        for j in range(n):
            total = sum(Fraction(float(p)) * Fraction(float(q)) for p, q in zip(left[i], right[j], strict=True))
            assert Fraction(product[i, j]) == total
    assert form.dot(left[0], right[0]) == BlockFloatingPoint.matmul(form, left[:1], right[:1])[0, 0]


@pytest.mark.parametrize("block", [4, "tensor"])
@pytest.mark.parametrize(("m", "n", "k"), [(2, 3, 0), (0, 3, 5), (2, 0, 5)])
def test_products_of_nothing(m, n, k, block):
    product = BlockFloatingPoint(block=block).matmul(np.ones((m, k), np.float32), np.ones((n, k), np.float32))
    np.testing.assert_array_equal(product, np.ones((m, k)) @ np.ones((k, n)))


def test_the_widest_sums_do_not_overflow():
    ones = np.full((1, 70_000), 1.9999, np.float32)
    for bits in (8, 12, 16):
        form = BlockFloatingPoint(bits, "tensor")
        value = float(form.round(ones[0, :1])[0])
        assert form.matmul(ones, ones)[0, 0] == pytest.approx(70_000 * value**2, rel=1e-12)


def test_bad_parameters_and_operands():
    with pytest.raises(ValueError, match="mantissa_bits: expected an integer from 2 to 16, got 17"):
        BlockFloatingPoint(17)
    for bad in (0, 1.5, "row"):
        with pytest.raises(ValueError, match="block: expected a positive integer or 'tensor'"):
            BlockFloatingPoint(8, bad)
    with pytest.raises(ValueError, match="b: expected rows of length 3"):
        BlockFloatingPoint().matmul(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="a: expected 1 dimensions"):
        BlockFloatingPoint().dot(np.ones((2, 3)), np.ones(3))
