"""Fixed point against exact rationals and PyTorch's fake quantization, over every code and every decision."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.arithmetic.fixed_point.fixed_point import FixedPoint, fixed_point_round
from kernels.arithmetic.number_format import Encoded

VARIANTS = [(8, 8), (4, 4), (2, 6), (4, 12), (1, 1), (2, 0), (-2, 10), (12, -4), (1, 23), (12, 20), (32, 0)]
NEAREST = ("nearest-even", "toward-zero")
finite = st.floats(allow_nan=False, allow_infinity=False)


def exact(x: float, il: int, fl: int, rounding: str) -> Fraction:
    """The definition in rationals: to a whole number of steps, then into the range."""
    steps = Fraction(x) * Fraction(2) ** fl
    k = round(steps) if rounding == "nearest-even" else int(steps)  # Python rounds a half to even, int() cuts
    top = 2 ** (il + fl - 1)
    return Fraction(min(max(k, -top), top - 1)) / Fraction(2) ** fl


def deciding(il: int, fl: int) -> np.ndarray:
    """Quarter steps over the whole range and beyond, with the floats beside them."""
    k = np.arange(-(2 ** (il + fl + 1)) - 9, 2 ** (il + fl + 1) + 10) / 4.0
    x = k * 2.0**-fl
    return np.concatenate([x, np.nextafter(x, -np.inf), np.nextafter(x, np.inf)])


@pytest.mark.parametrize("rounding", NEAREST)
@pytest.mark.parametrize(("il", "fl"), [(4, 4), (2, 6), (1, 1), (2, 0), (-2, 10), (12, -4)])
def test_every_decision_is_exact(il, fl, rounding):
    x, form = deciding(il, fl), FixedPoint(il, fl, rounding)
    expected = [exact(value, il, fl, rounding) for value in x.tolist()]
    rounded = form.round(x)
    assert [Fraction(float(value)) for value in rounded] == expected
    codes = form.encode(x).codes
    assert codes.tolist() == [int(r * Fraction(2) ** fl) % 2 ** (il + fl) for r in expected]
    np.testing.assert_array_equal(fixed_point_round(x, il, fl, rounding), rounded)


@pytest.mark.parametrize("rounding", NEAREST)
@pytest.mark.parametrize(("il", "fl"), [(8, 8), (4, 12), (16, 0)])
def test_every_16_bit_code_and_tie(il, fl, rounding):
    """In whole steps: the codes, the ties between them, and what lies a little beside either."""
    k = np.arange(-(2**15) - 2, 2**15 + 2, 0.5)
    x = np.concatenate([k, k - 2.0**-8, k + 2.0**-8]) * 2.0**-fl
    form = FixedPoint(il, fl, rounding)
    rounded = form.round(x.astype(np.float32))
    floors, parts = np.divmod(x * 2.0**fl, 1)
    up = (
        (parts > 0.5) | ((parts == 0.5) & (floors % 2 == 1)) if rounding == "nearest-even" else (floors < 0) * parts > 0
    )
    expected = np.clip(floors + up, -(2**15), 2**15 - 1)
    np.testing.assert_array_equal(rounded * 2.0**fl, expected)
    np.testing.assert_array_equal(form.encode(x).codes.view(np.int16), expected)
    every = np.arange(2**16).astype(np.uint16)
    np.testing.assert_array_equal(form.decode(Encoded(every, None, every.shape)), every.view(np.int16) * 2.0**-fl)
    np.testing.assert_array_equal(form.encode(form.values()).codes.view(np.int16), np.arange(-(2**15), 2**15))


@settings(max_examples=40)
@given(st.sampled_from(VARIANTS), st.sampled_from(NEAREST), st.lists(finite, min_size=1, max_size=6))
def test_any_float_is_exact(variant, rounding, xs):
    form = FixedPoint(*variant, rounding)
    near = [x % 2.0 ** (variant[0] - 1) for x in xs]
    for values in (np.array(xs + near), np.float32(near)):
        expected = [exact(value, *variant, rounding) for value in values.tolist()]
        assert [Fraction(float(value)) for value in form.round(values)] == expected
        np.testing.assert_array_equal(form.decode(form.encode(values)), form.round(values))


@pytest.mark.parametrize("bits", [22, 23, 24, 25, 32])
def test_beside_a_tie_of_the_largest_numbers(bits):
    """Closer to it than float32 can tell."""
    k = 2 ** (bits - 2) + np.arange(6) + 0.5
    for x in (k - 2.0**-18, k, k + 2.0**-18):
        assert [Fraction(v) for v in FixedPoint(bits, 0).round(x).tolist()] == [
            exact(v, bits, 0, "nearest-even") for v in x.tolist()
        ]


@pytest.mark.parametrize(("il", "fl"), [(8, 8), (4, 4), (2, 6), (1, 7), (4, 12), (-2, 10)])
def test_torch_fake_quantize_agrees(il, fl):
    x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32) * np.float32(2.0 ** (il - 1))
    top = 2 ** (il + fl - 1)
    expected = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), 2.0**-fl, 0, -top, top - 1)
    np.testing.assert_array_equal(FixedPoint(il, fl).round(x), expected.numpy())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_fast_equals_plain_over_all_floats(variant):
    random = np.random.default_rng(0)
    x = random.integers(0, 2**32, 100_000, np.uint32).view(np.float32)
    x = x[~np.isnan(x)]
    for rounding in NEAREST:
        expected = fixed_point_round(x, *variant, rounding)
        np.testing.assert_array_equal(FixedPoint(*variant, rounding).round(x), expected)


@pytest.mark.parametrize("variant", [(4, 4), (8, 8), (1, 23), (12, 20)], ids=str)
def test_stochastic_rounding_is_right_on_average(variant):
    step, n = 2.0 ** -variant[1], 200_000
    for share in (0.25, 0.5, 0.9):
        x = np.full(n, (1 + share) * step)
        for sign in (1, -1):
            rounded = FixedPoint(*variant, "stochastic", seed=3).round(sign * x)
            assert set(np.unique(rounded * sign / step)) == {1.0, 2.0}
            assert abs(np.mean(rounded * sign / step - 1) - share) < 5 * np.sqrt(share * (1 - share) / n)


def test_stochastic_rounding_draws_by_seed_and_place():
    x = np.random.default_rng(0).standard_normal(50_000, np.float32)
    form = FixedPoint(4, 4, "stochastic", seed=1)
    np.testing.assert_array_equal(form.round(x), form.round(x, threads=3))
    np.testing.assert_array_equal(form.decode(form.encode(x)), form.round(x))
    assert (form.round(x) != FixedPoint(4, 4, "stochastic", seed=2).round(x)).any()
    grid = form.values()
    np.testing.assert_array_equal(form.round(grid), grid)  # what is on the grid stays
    below = np.floor(x * 16) / 16
    assert np.all((form.round(x) == below) | (form.round(x) == below + 1 / 16))


@given(st.sampled_from(VARIANTS), st.sampled_from(NEAREST), st.lists(finite, min_size=2))
def test_idempotent_monotone_bounded(variant, rounding, xs):
    form, x = FixedPoint(*variant, rounding), np.sort(xs)
    rounded = form.round(x)
    np.testing.assert_array_equal(form.round(rounded), rounded)
    assert np.all(np.diff(rounded) >= 0)
    assert np.all(rounded >= -(2.0 ** (variant[0] - 1))) and np.all(rounded < 2.0 ** (variant[0] - 1))


@pytest.mark.parametrize("rounding", [*NEAREST, "stochastic"])
def test_special_numbers(rounding):
    form = FixedPoint(4, 4, rounding)
    x = np.float32([np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38])
    rounded = form.round(x)
    np.testing.assert_array_equal(rounded, [7.9375, -8, 0, 0, 0, 0, 7.9375, -8])
    assert not np.signbit(rounded[2:6]).any()
    np.testing.assert_array_equal(form.encode(x).codes, [127, 128, 0, 0, 0, 0, 127, 128])
    for verb in (form.round, form.encode):
        for bad in (np.float32([1, np.nan]), np.array([np.nan]), np.full(10_000, np.nan, np.float16)):
            with pytest.raises(ValueError, match="x: expected numbers, got NaN, for which an integer has no code"):
                verb(bad)
            with pytest.raises(ValueError, match="got NaN"):
                verb(np.resize(bad, 50_000), threads=2)


def test_layouts_and_types():
    x = np.random.default_rng(0).standard_normal((6, 8, 10)).astype(np.float32)
    form = FixedPoint(4, 4)
    expected = fixed_point_round(x, 4, 4)
    x.flags.writeable = False
    for index in (np.s_[...], np.s_[::2, ::-1, 1::3], np.s_[:0], np.s_[0, 0, 0]):
        for view, right in ((x[index], expected[index]), (x.T[index], expected.T[index])):
            np.testing.assert_array_equal(form.round(view), right)
            np.testing.assert_array_equal(form.decode(form.encode(view)), right)
    np.testing.assert_array_equal(form.round(torch.tensor(expected)).numpy(), expected)
    with pytest.raises(TypeError, match="x: expected float16"):
        form.round(np.arange(3))
    assert FixedPoint(1, 22).dtype == np.float32 and FixedPoint(1, 23).dtype == np.float64
    assert form.stored_bits((3, 4)) == 96 and form.fit(x) is form


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ((1, 0), "integer_bits . fraction_bits: expected a sum from 2 to 32, got 1"),
        ((30, 3), "expected a sum from 2 to 32, got 33"),
        ((4.5, 4), "integer_bits: expected an integer from -64 to 64, got 4.5"),
        ((65, -40), "integer_bits: expected an integer"),
        ((-40, 65), "fraction_bits: expected an integer"),
        ((4, 4, "up"), "rounding: expected nearest-even or toward-zero or stochastic, got 'up'"),
    ],
)
def test_bad_parameters(parameters, error):
    with pytest.raises(ValueError, match=error):
        FixedPoint(*parameters)
