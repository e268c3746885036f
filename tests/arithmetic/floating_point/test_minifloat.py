"""Floats of any shape against exact rationals and against ml_dtypes, in all roundings; and fast against plain."""

from __future__ import annotations

from bisect import bisect_right
from fractions import Fraction
from itertools import pairwise, product

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.arithmetic.floating_point.grid import biases, float_grid, round_all
from kernels.arithmetic.floating_point.minifloat import Minifloat, minifloat_round, minifloat_value
from kernels.arithmetic.number_format import Encoded

STANDARD = [  # exponent bits, mantissa bits, specials, the type of ml_dtypes
    (4, 3, "nan", ml_dtypes.float8_e4m3fn),
    (5, 2, "ieee", ml_dtypes.float8_e5m2),
    (4, 3, "ieee", ml_dtypes.float8_e4m3),
    (3, 4, "ieee", ml_dtypes.float8_e3m4),
    (2, 3, "none", ml_dtypes.float6_e2m3fn),
    (3, 2, "none", ml_dtypes.float6_e3m2fn),
    (2, 1, "none", ml_dtypes.float4_e2m1fn),
    (5, 10, "ieee", np.float16),
    (8, 7, "ieee", ml_dtypes.bfloat16),
]
SHAPES = [
    shape
    for e, m, bias, subnormals, specials in product(
        (1, 2, 3, 4), (0, 1, 2, 3), (None, -9, 0, 60), (True, False), ("ieee", "nan", "none")
    )
    if (specials != "ieee" or (e > 1 and m > 0)) and (e, m) != (1, 0)
    for shape in [(e, m, 2 ** (e - 1) - 1 if bias is None else bias, subnormals, specials)]
    if biases(e, m, subnormals, specials)[0] <= shape[2] <= biases(e, m, subnormals, specials)[1]
]
SHAPES += [  # at both ends of what float32 holds
    (e, m, bias, subnormals, specials)
    for e, m, specials in ((4, 3, "ieee"), (3, 2, "none"), (2, 1, "nan"), (5, 0, "none"), (6, 2, "ieee"))
    for subnormals in (True, False)
    for bias in biases(e, m, subnormals, specials)
]
finite = st.floats(allow_nan=False, allow_infinity=False)


def exact_grid(e: int, m: int, bias: int, subnormals: bool, specials: str) -> list[Fraction]:
    """The numbers from 0 up, by their codes, in rationals."""
    codes = 2 ** (e + m) - {"ieee": 2**m, "nan": 1, "none": 0}[specials]
    grid = []
    for code in range(codes):
        field, f = divmod(code, 2**m)
        leading = 0 if field == 0 and (subnormals or f == 0) else 1
        exponent = max(field, 1) if subnormals else field
        grid.append(Fraction(2) ** (exponent - bias) * (leading + Fraction(f, 2**m)))
    return grid


def exact_code(x: Fraction, grid: list[Fraction], step: Fraction, rounding: str) -> int:
    """The code of a number of 0 or more, one beyond the last where it is too large; `step` leads beyond the last."""
    below = bisect_right(grid, x) - 1
    if rounding == "toward-zero":
        return below
    above = grid[below + 1] if below + 1 < len(grid) else grid[-1] + step
    left, right = x - grid[below], above - x
    return below if left < right or (left == right and below % 2 == 0) else below + 1


def deciding(grid: list[Fraction], step: Fraction) -> list[Fraction]:
    """Every number, every middle, and what lies a little beside both."""
    points = [*grid, grid[-1] + step]
    middles = [(a + b) / 2 for a, b in pairwise(points)]
    near = [p + sign * p / 2**22 for p in points + middles for sign in (-1, 0, 1)]
    return [*near, grid[-1] * 2, grid[1] / 64]


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("rounding", ["nearest-even", "toward-zero"])
def test_every_shape_is_exact_where_it_decides(rounding, saturate):
    for e, m, bias, subnormals, specials in SHAPES:
        form = Minifloat(e, m, bias, subnormals, specials, saturate, rounding)
        grid = exact_grid(e, m, bias, subnormals, specials)
        step = exact_grid(e + 1, m, bias, subnormals, "none")[len(grid)] - grid[-1]  # to what the next code would be
        x = np.float32([float(p) for p in deciding(grid, step) if p < 2**128 - 2**104])
        points = [Fraction(float(p)) for p in x]
        codes = np.array([exact_code(p, grid, step, rounding) for p in points])
        largest = float(grid[-1])
        too_large = {"ieee": np.inf, "nan": np.nan, "none": largest}[specials]
        values = np.array([float(v) for v in grid] + [largest if saturate else too_large])
        expected = values[codes].astype(np.float32)
        rounded = form.round(x)
        np.testing.assert_array_equal(rounded, expected, err_msg=str(form))
        np.testing.assert_array_equal(form.round(-x), -expected)
        kept = np.minimum(codes, len(grid) - 1) if saturate or specials == "none" else codes
        encoded = form.encode(x)
        if specials == "nan" and not saturate:
            kept = np.where(codes == len(grid), 2 ** (e + m) - 1, codes)
        np.testing.assert_array_equal(encoded.codes, kept, err_msg=str(form))
        np.testing.assert_array_equal(form.decode(encoded), rounded)
        plain = minifloat_round(x, e, m, bias, subnormals, specials, saturate, rounding)
        np.testing.assert_array_equal(plain, rounded, err_msg=str(form))


@pytest.mark.parametrize(("e", "m", "bias", "subnormals", "specials"), SHAPES)
def test_values_are_exact(e, m, bias, subnormals, specials):
    form = Minifloat(e, m, bias, subnormals, specials)
    grid = exact_grid(e, m, bias, subnormals, specials)
    codes = np.arange(2**form.bits).astype(form.code_dtype)
    decoded = form.decode(Encoded(codes, None, codes.shape))
    half = len(codes) // 2
    assert [Fraction(float(v)) for v in decoded[: len(grid)]] == grid
    assert [Fraction(float(v)) for v in decoded[half : half + len(grid)]] == [-v for v in grid]
    assert np.signbit(decoded[half])
    rest = decoded[len(grid) : half]
    assert np.all(np.isnan(rest[1:])) and (len(rest) == 0 or np.isinf(rest[0]) == (specials == "ieee"))
    for code in range(0, len(codes), max(1, len(codes) // 64)):
        np.testing.assert_equal(float(decoded[code]), minifloat_value(code, e, m, bias, subnormals, specials))
    number = ~np.isnan(decoded)
    np.testing.assert_array_equal(form.encode(decoded[number]).codes, codes[number])


@pytest.mark.parametrize(("e", "m", "specials", "kind"), STANDARD)
def test_ml_dtypes_agrees(e, m, specials, kind):
    """All codes, and floats spread over all patterns: low bits 00 meet every tie, ff and 01 the floats beside them."""
    form = Minifloat(e, m, specials=specials)
    codes = np.arange(2**form.bits).astype(form.code_dtype)
    np.testing.assert_array_equal(form.decode(Encoded(codes, None, codes.shape)), codes.view(kind).astype(np.float32))
    for low, step in ((0x00, 3), (0xFF, 5), (0x01, 7)):
        x = (np.arange(low % step, 2**24, step, dtype=np.uint32) << np.uint32(8) | np.uint32(low)).view(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # signalling NaN, cast by numpy
            expected = x.astype(kind)
        number = ~np.isnan(x)
        codes = form.encode(x).codes
        rounded, expected_numbers = form.round(x), expected.astype(np.float32)
        np.testing.assert_array_equal(codes[number], expected.view(codes.dtype)[number])
        np.testing.assert_array_equal(rounded[number], expected_numbers[number])
        signs = np.signbit(rounded[number]) == np.signbit(x[number])
        assert np.all(signs)
        if specials != "none":
            assert np.all(np.isnan(rounded[~number]))
        else:  # ml_dtypes makes it a zero of the other sign
            assert not rounded[~number].any()
            assert np.array_equal(np.signbit(rounded[~number]), np.signbit(x[~number]))


@given(st.sampled_from(SHAPES), st.booleans(), st.sampled_from(["nearest-even", "toward-zero"]), st.lists(st.floats()))
def test_fast_equals_plain(shape, saturate, rounding, xs):
    x = np.array([*xs, 0.0, -0.0, np.inf, -np.inf, np.nan])
    form = Minifloat(*shape, saturate, rounding)
    plain = minifloat_round(x, *shape, saturate, rounding)
    rounded = form.round(x)
    np.testing.assert_array_equal(rounded, plain.astype(np.float32))
    number = ~np.isnan(rounded)
    np.testing.assert_array_equal(np.signbit(rounded[number]), np.signbit(x[number]))


@given(st.integers(1, 8), st.integers(13, 21), st.lists(st.floats(-1e300, 1e300), min_size=1))
def test_wide_mantissas_round_float64_once(e, m, xs):
    specials = "ieee" if e > 1 else "nan"
    form = Minifloat(e, m, specials=specials)
    x = np.array([*xs, *(1 + np.array([1, 1, 3]) * 2.0 ** -(m + 1) + np.array([2.0**-50, 0, -(2.0**-50)]))])
    plain = minifloat_round(x, e, m, 2 ** (e - 1) - 1, specials=specials)
    np.testing.assert_array_equal(form.round(x), plain.astype(np.float32))


@given(st.sampled_from(SHAPES), st.lists(finite, min_size=2))
def test_idempotent_monotone_symmetric(shape, xs):
    form, x = Minifloat(*shape, saturate=True), np.sort(xs)
    rounded = form.round(x)
    np.testing.assert_array_equal(form.round(rounded), rounded)
    assert np.all(np.diff(rounded.astype(np.float64)) >= 0)
    np.testing.assert_array_equal(form.round(-x), -rounded)


@pytest.mark.parametrize(
    "shape", [(4, 3, 7, True, "nan"), (5, 2, 15, True, "ieee"), (3, 2, 3, False, "none"), (8, 7, 127, True, "ieee")]
)
def test_stochastic_rounding_is_right_on_average(shape):
    """Over n draws the mean lies within 5 standard deviations, 5 step sqrt(p (1 - p) / n), and 2^-23 of a step."""
    form = Minifloat(*shape, saturate=True, rounding="stochastic", seed=7)
    near = Minifloat(*shape, saturate=True, rounding="toward-zero")
    n = 1 << 16
    grid = form.values()
    for x in np.float32([0.3, -1.7, 1.01, 5.3, grid[grid > 0][0] / 3, grid[grid > 0][0] * 1.25, grid[-1] * 0.999]):
        drawn = form.round(np.full(n, x)).astype(np.float64)
        low = abs(float(near.round(x)))
        beyond = grid[grid > low]
        if not len(beyond):
            continue
        step = beyond[0] - low
        p = (abs(float(x)) - low) / step
        assert set(np.abs(np.unique(drawn))) <= {low, low + step}
        assert abs(np.mean(drawn) - float(x)) <= step * (5 * np.sqrt(p * (1 - p) / n) + 2.0**-23)
    np.testing.assert_array_equal(form.round(grid.astype(np.float32)), grid)  # what is on the grid stays


def test_stochastic_rounding_is_that_of_seed_and_place():
    x = np.random.default_rng(0).standard_normal(100_003).astype(np.float32)
    form = Minifloat(4, 3, rounding="stochastic", seed=3)
    once = form.round(x)
    np.testing.assert_array_equal(form.round(x), once)
    np.testing.assert_array_equal(form.round(x, threads=3), once)
    np.testing.assert_array_equal(form.decode(form.encode(x, threads=2)), once)
    assert np.mean(Minifloat(4, 3, rounding="stochastic", seed=4).round(x) != once) > 0.2
    mirrored = form.round(-x)
    np.testing.assert_array_equal(mirrored, -once)


def test_a_bias_of_its_own_for_each_tensor():
    """AdaptivFloat: the largest exponent of the grid is that of the largest magnitude, whatever the tensor's size."""
    form = Minifloat(3, 2, bias="tensor", subnormals=False, specials="none")
    random = np.random.default_rng(0)
    for exponent in (-110, -30, -3, 0, 7, 90):
        x = (random.standard_normal(1000) * 2.0**exponent).astype(np.float32)
        own = form.fit(x)
        largest = own.values()[-1]
        assert np.floor(np.log2(largest)) == np.floor(np.log2(np.abs(x).max()))
        bias = 7 - int(np.floor(np.log2(np.abs(x).max())))  # algorithm 1 of the paper
        np.testing.assert_array_equal(form.round(x), minifloat_round(x, 3, 2, bias, False, "none").astype(np.float32))
        np.testing.assert_array_equal(own.round(x), form.round(x))
        np.testing.assert_array_equal(form.decode(form.encode(x)), form.round(x))
        assert form.encode(x).scales == np.float32(own.scale)
    assert own.stored_bits((1000,)) == form.stored_bits((1000,)) == 6008
    for empty in (np.zeros(3, np.float32), np.float32([]), np.float32([np.nan, np.inf])):
        assert form.fit(empty).scale == 1
    assert form.fit(np.float32([1e-45])).round(np.float32(1e-45)) == 0  # float32 holds no smaller grid
    assert Minifloat(3, 2).fit(x) == Minifloat(3, 2)


def test_ties_away_need_a_grid_without_subnormals_of_its_own():
    with pytest.raises(ValueError, match="ties: expected even, or away in a grid without subnormals"):
        float_grid(4, 3, ties="away")
    grid = float_grid(3, 1, subnormals=False, specials="none", ties="away")
    x = np.float32([1.25, 1.75, -1.25, 1.2, 0.09375])
    round_all(x, x, grid, "nearest-even", first=0, seed=0)
    np.testing.assert_array_equal(x, [1.5, 2, -1.5, 1, 0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exponent_bits": 0}, "exponent_bits: expected an integer from 1 to 8, got 0"),
        ({"mantissa_bits": 22}, "mantissa_bits: expected an integer from 0 to 21, got 22"),
        ({"specials": "inf"}, "specials: expected ieee, nan, none, got 'inf'"),
        ({"mantissa_bits": 0}, "specials: 'ieee' needs a mantissa bit and two exponent bits"),
        ({"bias": "layer"}, "bias: expected an integer, 'tensor' or None, got 'layer'"),
        ({"bias": 2.5}, "bias: expected an integer, 'tensor' or None, got 2.5"),
        ({"bias": 200}, "bias: expected an integer from -106 to 123, for float32 to hold the grid, got 200"),
        ({"exponent_bits": 8, "specials": "none"}, "bias: float32 holds no such grid of 8 exponent bits"),
        ({"rounding": "up"}, "rounding: expected nearest-even or toward-zero or stochastic, got 'up'"),
        ({"scale": 2.0}, "scale: expected none without bias='tensor', got 2.0"),
        ({"bias": "tensor", "scale": 3.0}, "scale: expected a power of two from 2"),
    ],
)
def test_what_float32_does_not_hold_is_refused(fields, message):
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(")):
        Minifloat(**fields)
