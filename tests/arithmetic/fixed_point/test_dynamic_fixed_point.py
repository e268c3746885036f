"""Dynamic fixed point against exact rationals, PyTorch, and the paper's update rule worked by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.arithmetic.fixed_point.dynamic_fixed_point import DynamicFixedPoint, dynamic_round, overflows
from kernels.arithmetic.fixed_point.fixed_point import FixedPoint
from kernels.arithmetic.number_format import Encoded

floats = st.floats(-(2.0**100), 2.0**100, width=32)


def exact(x: float, bits: int, exponent: int) -> Fraction:
    k = round(Fraction(x) / Fraction(2) ** exponent)
    top = 2 ** (bits - 1)
    return min(max(k, -top), top - 1) * Fraction(2) ** exponent


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("exponent", [-126, -20, 0, 3, 100])
def test_every_decision_is_exact(bits, exponent):
    x = np.arange(-(2 ** (bits + 1)), 2 ** (bits + 1)) / 4.0 * 2.0**exponent
    x = np.concatenate([x, np.nextafter(x, -np.inf), np.nextafter(x, np.inf)])
    form = DynamicFixedPoint(bits, exponent=exponent)
    assert [Fraction(float(value)) for value in form.round(x)] == [exact(value, bits, exponent) for value in x.tolist()]
    np.testing.assert_array_equal(form.decode(form.encode(x)), form.round(x))
    np.testing.assert_array_equal(dynamic_round(x, bits, exponent), form.round(x))


@pytest.mark.parametrize("bits", [8, 16])
def test_every_code(bits):
    form = DynamicFixedPoint(bits, exponent=-5)
    codes = np.arange(2**bits).astype(form.code_dtype)
    encoded = Encoded(codes, np.float32([2.0**-5]), codes.shape)
    values = codes.view(np.int8 if bits == 8 else np.int16) * 2.0**-5
    for own in (form, DynamicFixedPoint(bits), DynamicFixedPoint(bits, exponent=7)):  # what is encoded says its scale
        np.testing.assert_array_equal(own.decode(encoded), values)
    np.testing.assert_array_equal(form.encode(values).codes, codes)
    np.testing.assert_array_equal(form.values(), np.sort(values))


@pytest.mark.parametrize("rounding", ["nearest-even", "toward-zero", "stochastic"])
@pytest.mark.parametrize("bits", [4, 8, 16, 28])
def test_it_is_fixed_point_with_a_fitted_place(bits, rounding):
    for seed, size in enumerate((2.0**-30, 1e-3, 1.0, 77.0)):
        x = (np.random.default_rng(seed).standard_normal((20, 30)) * size).astype(np.float32)
        form = DynamicFixedPoint(bits, rounding, seed).fit(x)
        fixed = FixedPoint(bits + form.exponent, -form.exponent, rounding, seed)
        np.testing.assert_array_equal(form.round(x), fixed.round(x))
        np.testing.assert_array_equal(form.round(x), DynamicFixedPoint(bits, rounding, seed).round(x, threads=2))
        np.testing.assert_array_equal(form.encode(x).codes, fixed.encode(x).codes)
        top = 2 ** (bits - 1)
        if rounding == "nearest-even" and bits <= 24:
            theirs = torch.fake_quantize_per_tensor_affine(
                torch.from_numpy(x), 2.0**form.exponent, 0, -top, top - 1
            )  # a power of two: dividing and multiplying by the inverse are one
            np.testing.assert_array_equal(form.round(x), theirs.numpy())


@given(st.lists(floats, min_size=1), st.integers(2, 24))
def test_fit_is_the_smallest_exponent_that_holds_the_largest(xs, bits):
    form = DynamicFixedPoint(bits).fit(np.float32(xs))
    largest = max(abs(Fraction(x)) for x in xs)
    reach = [Fraction(2) ** (bits - 1 + e) for e in (form.exponent, form.exponent - 1)]
    assert largest < reach[0]
    assert form.exponent == -126 or largest >= reach[1] or largest == 0
    assert largest or form.exponent == 2 - bits
    assert np.all(np.abs(form.round(np.float32(xs)).astype(np.float64) - xs) <= 2.0**form.exponent)


@settings(max_examples=60)
@given(
    st.lists(floats, min_size=1, max_size=300),
    st.integers(2, 12),
    st.integers(-20, 20),
    st.sampled_from([0, 0.01, 0.3]),
)
def test_update_is_the_papers_rule(xs, bits, exponent, rate):
    """Algorithm 1 of Courbariaux et al., with the counts done in rationals."""

    def share(factor: int) -> Fraction:
        k = [factor * Fraction(x) / Fraction(2) ** exponent for x in xs]
        return Fraction(sum(not -(2 ** (bits - 1)) <= value <= 2 ** (bits - 1) - 1 for value in k), len(xs))

    expected = exponent + 1 if share(1) > rate else exponent - 1 if share(2) <= rate else exponent
    form = DynamicFixedPoint(bits, overflow_rate=rate, exponent=exponent)
    assert form.update(np.float32(xs)).exponent == expected
    assert form.update(np.array(xs)[::-1]).exponent == expected
    assert overflows(np.array(xs), bits, exponent) == float(share(1))


def test_updates_follow_the_numbers_and_rest():
    x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    form = DynamicFixedPoint(8, exponent=20)
    seen = []
    for _ in range(40):
        form = form.update(x)
        seen.append(form.exponent)
    assert seen[:3] == [19, 18, 17] and len(set(seen[30:])) == 1  # down by ones, then at rest
    assert overflows(x, 8, form.exponent) <= 1e-4 < overflows(x, 8, form.exponent - 1)
    assert form.update(8 * x).exponent == form.exponent + 1
    assert DynamicFixedPoint(8).update(x) == DynamicFixedPoint(8).fit(x)
    one = DynamicFixedPoint(8, exponent=0)  # each end counts, and the doubles' by itself
    for number, next_exponent in ((-129, 1), (-128, 0), (-65, 0), (-64, -1), (128, 1), (127, 0), (64, 0), (63, -1)):
        assert one.update(np.float32([number])).exponent == next_exponent
    assert form.update(x[:0]) is form and form.update(torch.from_numpy(x)).exponent == form.exponent
    assert DynamicFixedPoint(8, exponent=-126).update(np.zeros(9)).exponent == -126
    assert DynamicFixedPoint(8, exponent=120).update(np.full(9, np.inf)).exponent == 120


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">f8"])
def test_update_leaves_its_argument_alone(dtype):
    x = np.arange(60).astype(dtype)
    before, form = x.copy(), DynamicFixedPoint(6, exponent=0)
    assert form.update(x[::2]).exponent == 1 and form.update(x[:6:2]).exponent == -1
    np.testing.assert_array_equal(x, before)
    x.setflags(write=False)
    assert form.update(x).exponent == 1


def test_special_numbers():
    form = DynamicFixedPoint(8, exponent=0)
    x = np.float32([np.inf, -np.inf, 0.0, -0.0, 1e-45, -0.4, 3.4e38])
    np.testing.assert_array_equal(form.round(x), [127, -128, 0, 0, 0, 0, 127])
    assert not np.signbit(form.round(x)[2:6]).any()
    for verb in (form.round, form.encode, form.update):
        with pytest.raises(ValueError, match="x: expected numbers, got NaN"):
            verb(np.float32([1, np.nan]))
    for bad in (np.nan, np.inf, -np.inf):
        for verb in (DynamicFixedPoint().round, DynamicFixedPoint().fit, DynamicFixedPoint().update):
            with pytest.raises(ValueError, match="x: expected finite numbers to fit an exponent to"):
                verb(np.float32([1, bad]))
    assert DynamicFixedPoint().fit(np.float32(3.4e38)).exponent == 120  # beyond 2^127 it saturates
    for size in (1e-45, 1e-38, 1.6e38):  # exponents neither vanish nor overflow
        rounded = DynamicFixedPoint().round(np.float32([size, -size]))
        assert np.isfinite(rounded).all() and np.all(np.abs(rounded - np.float32([size, -size])) <= size / 100 + 1e-38)


def test_layouts_and_refusals():
    x = np.random.default_rng(0).standard_normal((6, 8, 10)).astype(np.float32)
    x.flags.writeable = False
    for view in (x, x.T, x[::2, ::-1, 1::3], x[:0], x[0, 0, 0], x.astype(np.float64), x.astype(np.float16)):
        form = DynamicFixedPoint(6).fit(view)
        expected = dynamic_round(view, 6, form.exponent)
        np.testing.assert_array_equal(DynamicFixedPoint(6).round(view), expected)
        np.testing.assert_array_equal(form.decode(DynamicFixedPoint(6).encode(view)), expected)
    assert DynamicFixedPoint(6).stored_bits((3, 4)) == 6 * 12 + 8
    assert DynamicFixedPoint(23).dtype == np.float32 and DynamicFixedPoint(24).dtype == np.float64
    for scales in (np.float32([3.0]), np.float32([1, 2]), np.float32([-2.0])):
        with pytest.raises(ValueError, match="encoded: expected one power of two as a scale"):
            DynamicFixedPoint().decode(Encoded(np.zeros(2, np.uint8), scales, (2,)))
    for parameters, error in (
        ({"bits": 1}, "bits: expected an integer from 2 to 32, got 1"),
        ({"bits": 33}, "bits: expected an integer from 2 to 32, got 33"),
        ({"rounding": "up"}, "rounding: expected nearest-even"),
        ({"overflow_rate": 1.0}, "overflow_rate: expected a share from 0 to below 1, got 1.0"),
        ({"exponent": 121}, "exponent: expected an integer from -126 to 120, got 121"),
        ({"exponent": 0.5}, "exponent: expected an integer"),
    ):
        with pytest.raises(ValueError, match=error):
            DynamicFixedPoint(**parameters)
