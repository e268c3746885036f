"""The quire against exact rationals rounded once, and against SoftPosit's."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.arithmetic.alternative_numbers.posit import Posit, posit_value
from kernels.arithmetic.alternative_numbers.quire import Quire, exact_dot

FORMATS = [Posit(8, 0), Posit(8, 1), Posit(8, 2), Posit(16, 0), Posit(16, 1), Posit(16, 2)]
formats = pytest.mark.parametrize("posit", FORMATS, ids=str)


def nearest(x, posit):
    """The nearest posit of a rational: between two codes the code of one bit more decides, ties to the even code."""
    if x == 0:
        return 0.0
    size, low, high = abs(x), 1, 2 ** (posit.bits - 1) - 1
    while low < high:  # the last code that is not above
        middle = (low + high + 1) // 2
        low, high = (middle, high) if Fraction(posit_value(middle, posit.bits, posit.es)) <= size else (low, middle - 1)
    if low < 2 ** (posit.bits - 1) - 1:
        between = Fraction(posit_value(2 * low + 1, posit.bits + 1, posit.es))
        low += size > between or (size == between and low % 2 == 1)
    value = posit_value(low, posit.bits, posit.es)
    return -value if x < 0 else value


@formats
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_one_rounding_of_the_exact_sum(posit, spread):
    rng = np.random.default_rng(posit.bits + posit.es)
    for n in (1, 2, 3, 17, 100):
        a, b = (posit.round(rng.standard_normal(n) * 2.0 ** (spread * rng.standard_normal(n))) for _ in range(2))
        assert Quire(posit).dot(a, b) == nearest(exact_dot(a, b), posit)


@formats
def test_the_ends_of_the_range_cancel_exactly(posit):
    scale = (posit.bits - 2) << posit.es
    large, small = 2.0**scale, 2.0**-scale
    quire = Quire(posit)
    assert quire.dot([large, small, -large], [large, small, large]) == small  # the sum is minpos², rounded up to minpos
    assert quire.dot([large, large], [large, -large]) == 0
    assert quire.dot([large] * 5, [large] * 5) == large
    assert quire.dot([-large, small], [large, 1]) == -large
    assert quire.dot([large, -small, -large], [1, small, 1]) == -small


def test_the_last_bit_of_the_register_decides_a_tie():
    quire, small = Quire(Posit(16, 1)), 2.0**-28
    tie, half = 1 + 2.0**-12, 2.0**-7
    for last, expected in ((0.0, 1.0), (small, tie), (-small, 1.0)):
        assert quire.dot([1, half, last], [1, 2.0**-6, small]) == expected
        assert quire.dot([-1, half, last], [1, -(2.0**-6), -small]) == -expected
    for last, expected in ((0.0, 1 + 2.0**-11), (small, 1 + 2.0**-11), (-small, tie)):
        assert quire.dot([tie, half, last], [1, 2.0**-6, small]) == expected


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 2**16 - 1), st.integers(1, 2**16 - 1)), max_size=12), st.sampled_from([0, 1, 2])
)
def test_any_codes(pairs, es):
    posit = Posit(16, es)
    pairs = [pair for pair in pairs if 2**15 not in pair]
    a, b = (np.array([posit_value(pair[side], 16, es) for pair in pairs]) for side in (0, 1))
    assert Quire(posit).dot(a, b) == nearest(exact_dot(a, b), posit)


@pytest.mark.parametrize("bits, es", [(8, 0), (16, 1)])
def test_softposits_quire(bits, es):
    softposit = pytest.importorskip("softposit")
    make, quire = (softposit.posit8, softposit.quire8) if bits == 8 else (softposit.posit16, softposit.quire16)
    rng, posit = np.random.default_rng(0), Posit(bits, es)
    for n in (1, 5, 30):
        a, b = (posit.round(rng.standard_normal(n) * 2) for _ in range(2))
        total = quire()
        total.clr()
        for x, y in zip(a, b, strict=True):
            total.qma(make(float(x)), make(float(y)))
        assert Quire(posit).dot(a, b) == float(total.toPosit())


@formats
def test_a_wide_enough_register_is_exact_and_a_narrow_one_is_not(posit):
    rng = np.random.default_rng(0)
    a, b = (posit.round(rng.standard_normal(50)) for _ in range(2))
    exact = exact_dot(a, b)
    errors = []
    for width, low in ((62, -40), (20, -10), (12, -4)):
        total = sum(Fraction(float(x)) * Fraction(float(y)) // Fraction(2) ** low for x, y in zip(a, b, strict=True))
        limit = 2 ** (width - 1) - 1
        assert abs(total) < limit
        result = Quire(posit, width=width, low=low).dot(a, b)
        assert result == nearest(total * Fraction(2) ** low, posit)
        errors.append(abs(Fraction(float(result)) - exact))
    assert errors[0] <= errors[2]


@pytest.mark.parametrize("last", [1, 0, -1])
def test_a_wide_register_is_rounded_once(last):
    """The last of its bits decides a tie that float64 does not see."""
    posit = Posit(16, 1)
    a, b = [1.0, 2.0**-7, 2.0**-28], [1.0, 2.0**-6 / 2, last * 2.0**-28]  # 1 + 2^-14 and no more: below the tie
    for second in (2.0**-5, 2.0**-6 + 2.0**-5):  # 1 + 2^-12 is the tie, 1 + 3 2^-13 is none
        b[1] = second
        assert Quire(posit, width=62, low=-58).dot(a, b) == nearest(exact_dot(a, b), posit)
        assert Quire(posit, width=62, low=-58).dot(np.negative(a), b) == -nearest(exact_dot(a, b), posit)


def test_posits_beyond_float32_stay_what_they_are():
    posit = Posit(16, 4)
    for size in (2.0**100, 2.0**-100, 2.0**112):
        assert Quire(posit).dot([size], [size]) == size**2
    assert Quire(posit).dot([2.0**200, -1], [2.0**200, 1]) == 2.0**224  # the largest


def test_a_register_that_is_full_stays_so():
    quire = Quire(Posit(16, 1), width=8, low=0)
    assert quire.dot([100, 100, -50], [1, 1, 1]) == 77  # 127, less 50
    assert quire.dot([-1000, 5], [1, 1]) == -122
    assert Quire(Posit(16, 1), width=8).dot([2.0**-3], [2.0**-3]) == 0  # four bits below one


def test_matrices_tensors_and_special_numbers():
    rng, posit = np.random.default_rng(1), Posit(16, 1)
    a, b = rng.standard_normal((6, 40)), rng.standard_normal((40, 5))
    expected = [[nearest(exact_dot(posit.round(row), posit.round(column)), posit) for column in b.T] for row in a]
    np.testing.assert_array_equal(Quire(posit).matmul(a, b), expected)
    np.testing.assert_array_equal(Quire(posit).matmul(np.asfortranarray(a), b[:, ::-1])[:, ::-1], expected)
    assert torch.equal(Quire(posit).matmul(torch.tensor(a), torch.tensor(b)), torch.tensor(expected).float())
    for quire in (Quire(posit), Quire(posit, width=40)):
        assert np.isnan(quire.dot([np.nan, 1], [1, 1])) and np.isnan(quire.dot([np.inf, 1], [0, 1]))
        assert quire.dot([], []) == 0 and quire.dot([-0.0], [1]) == 0
        assert quire.matmul(np.ones((0, 3)), np.ones((3, 2))).shape == (0, 2)


def test_registers_have_the_standards_order_of_size():
    assert [Quire(posit).bits for posit in FORMATS] == [56, 80, 128, 88, 144, 256]  # 16 n for es = 2


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Quire(Posit(32, 2)), "posit: expected a Posit of at most 16 bits"),
        (lambda: Quire(Posit(), width=1), "width: expected an integer from 2 to 62, got 1"),
        (lambda: Quire(Posit(), low=3), "low: expected an integer from -500 to 500, beside a width, got 3"),
        (lambda: Quire(Posit()).matmul(np.ones((2, 3)), np.ones((2, 3))), "b: expected 3 rows"),
        (lambda: Quire(Posit()).dot(np.ones((2, 3)), np.ones(3)), "a: expected an array of 1 dimensions"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
