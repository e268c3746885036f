"""Chunked accumulation against numpy's and ml_dtypes' own 16-bit arithmetic, and against exact rationals."""

from fractions import Fraction
from math import floor, log2

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.arithmetic.mixed_precision.chunked_accumulation import (
    ChunkedAccumulation,
    plain_matmul,
    significant_bits,
)
from kernels.arithmetic.mixed_precision.error_compensation import ErrorCompensation
from kernels.arithmetic.mixed_precision.rounded_operands import FORMATS

DTYPES = {
    "fp16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "fp8-e4m3": ml_dtypes.float8_e4m3fn,
    "fp8-e5m2": ml_dtypes.float8_e5m2,
    "fp32": np.float32,
}


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def by_dtype(name):
    """Rounding by another library: from float64 to the nearest, ties to even."""

    def rounded(x):
        with np.errstate(over="ignore"):
            if name == "bfloat16":  # ml_dtypes goes through float32, which rounds twice: to odd first
                near = x.astype(np.float32)
                off = (np.abs(near.astype(np.float64)) > np.abs(x)) & np.isfinite(near)
                pattern = near.view(np.int32) - off
                return (pattern | (near != x)).view(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
            return x.astype(DTYPES[name]).astype(np.float64)

    return rounded


@pytest.mark.parametrize("chunk", [1, 5, 64, 1000])
@pytest.mark.parametrize("accumulator", ["fp16", "bfloat16"])
@pytest.mark.parametrize("product", ["fp32", "same"])
@pytest.mark.parametrize("operands", ["fp32", "fp16", "fp8-e4m3", "fp8-e5m2"])
def test_every_step_is_that_of_other_libraries(operands, product, accumulator, chunk):
    product = accumulator if product == "same" else product
    a, b = normal(5, 130), normal(130, 3, seed=1)
    operator = ChunkedAccumulation(operands, product, accumulator, chunk)
    left, right = (by_dtype(operands)(x.astype(np.float64)) for x in (a, b))
    expected = plain_matmul(left, right, chunk, by_dtype(product), by_dtype(accumulator))
    np.testing.assert_array_equal(operator.matmul(a, b), expected)
    np.testing.assert_array_equal(operator.matmul(a, operator.prepare(b)), expected)


def test_a_sum_in_float16_is_numpys_own_sum():
    x = normal(300, scale=10).astype(np.float16)
    total = np.float16(0)
    for number in x:
        total = np.float16(total + number)  # float16 plus float16 is rounded to float16
    operator = ChunkedAccumulation("fp16", "fp32", "fp16", chunk=1)
    assert operator.dot(x, np.ones(300)) == total


def nearest(x, exponent_bits, mantissa_bits):
    """A rational to the nearest of the format's numbers, ties to even; neither overflow nor specials."""
    if x == 0:
        return x
    exponent = max(floor(log2(abs(x))), 2 - 2 ** (exponent_bits - 1))
    exponent += (Fraction(2) ** (exponent + 1) <= abs(x)) - (Fraction(2) ** exponent > abs(x) and exponent > -29)
    step = Fraction(2) ** (exponent - mantissa_bits)
    return round(x / step) * step  # Python rounds a half to even


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-4, 4, width=16).filter(lambda x: x == 0 or abs(x) > 0.01)] * 2), max_size=30),
    st.sampled_from([1, 4, 7]),
)
def test_the_papers_format_in_exact_rationals(pairs, chunk):
    pairs = [(float(np.float32(a).astype(ml_dtypes.float8_e5m2)), float(np.float32(b))) for a, b in pairs]
    pairs = [(a, float(np.float32(b).astype(ml_dtypes.float8_e5m2))) for a, b in pairs]
    total = Fraction(0)
    for start in range(0, len(pairs), chunk):
        partial = Fraction(0)
        for a, b in pairs[start : start + chunk]:
            partial = nearest(partial + Fraction(a) * Fraction(b), 6, 9)
        total = nearest(total + partial, 6, 9)
    a, b = np.array(pairs).reshape(-1, 2).T
    assert ChunkedAccumulation(chunk=chunk).dot(a, b) == float(total)


def test_swamping_stops_a_sum_of_ones_where_it_must():
    ones = np.ones(2**13)
    for accumulator in ("fp16", "fp16-e6m9", "bfloat16"):
        stops = 2.0 ** significant_bits(accumulator)  # there the next number is two away, and half of it goes to even
        operator = ChunkedAccumulation("fp32", "fp32", accumulator, chunk=1)
        assert operator.dot(ones, ones) == stops
        assert ChunkedAccumulation("fp32", "fp32", accumulator, chunk=128).dot(ones, ones) == 2**13
    assert ChunkedAccumulation(accumulator="fp32", chunk=1).dot(ones, ones) == 2**13


def test_the_error_is_least_for_chunks_of_about_the_root():
    a, b = normal(16, 4096) + 1, normal(4096, 16, seed=1) + 1
    exact = ChunkedAccumulation(accumulator="fp32").matmul(a, b).astype(float)
    errors = {
        chunk: np.abs(ChunkedAccumulation(chunk=chunk).matmul(a, b) - exact).max() for chunk in (1, 8, 64, 512, 4096)
    }
    assert errors[64] < errors[8] < errors[1] and errors[64] < errors[512] < errors[4096]
    assert errors[1] == errors[4096]


def test_stochastic_rounding_does_not_stop_and_repeats():
    ones = np.ones(2**14)
    sums = [ChunkedAccumulation(chunk=1, rounding="stochastic", seed=seed).dot(ones, ones) for seed in range(8)]
    assert len(set(sums)) > 1
    assert np.mean(sums) == pytest.approx(2**14, rel=0.1)
    a, b = normal(5, 200), normal(200, 3, seed=1)
    operator = ChunkedAccumulation(rounding="stochastic", seed=3)
    np.testing.assert_array_equal(operator.matmul(a, b), operator.matmul(a, b))
    assert (operator.matmul(a, b) != ChunkedAccumulation(rounding="stochastic").matmul(a, b)).any()


def test_which_side_is_longer_changes_nothing():
    a, b = normal(200, 90), normal(90, 130, seed=1)
    for operator in (ChunkedAccumulation(), ChunkedAccumulation(rounding="stochastic")):
        expected = operator.matmul(a, b)
        np.testing.assert_array_equal(operator.matmul(a[:3], b), expected[:3])
        if operator.rounding != "stochastic":  # there the draw depends on the place
            np.testing.assert_array_equal(operator.matmul(b.T, a.T), expected.T)
            np.testing.assert_array_equal(operator.matmul(a, b[:, :1]), expected[:, :1])


@pytest.mark.parametrize("operator", [ChunkedAccumulation(), ChunkedAccumulation("fp32", "fp16", "fp16")], ids=str)
def test_layouts_types_and_special_numbers(operator):
    a, b = normal(6, 40), normal(40, 8, seed=1)
    expected = operator.matmul(a, b)
    fixed = a.copy()
    fixed.flags.writeable = False
    for other in (a.astype(np.float64), np.asfortranarray(a), fixed, np.repeat(a, 2, 1)[:, ::2]):
        np.testing.assert_array_equal(operator.matmul(other, b), expected)
    tensor = operator.matmul(torch.tensor(a), torch.tensor(b))
    assert isinstance(tensor, torch.Tensor) and np.array_equal(tensor.numpy(), expected)
    integers = np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(operator.matmul(integers, np.eye(4, dtype=int)), integers)
    special = np.array([[np.nan, 1], [np.inf, 1], [-np.inf, 1], [-0.0, 0.0], [2.0**-15, 0]], np.float32)
    result = ChunkedAccumulation("fp32").matmul(special, np.eye(2))
    assert np.isnan(result[:3]).sum() == 4 and result[3].tolist() == [0, 0] and result[4, 0] == 2.0**-15
    assert operator.matmul(np.ones((0, 3)), np.ones((3, 2))).shape == (0, 2)
    np.testing.assert_array_equal(operator.matmul(np.ones((2, 0)), np.ones((0, 3))), np.zeros((2, 3)))


def test_overflow_is_infinity_in_float16_and_the_largest_number_in_fp8():
    x = np.full(3, 300.0)
    assert ChunkedAccumulation("fp32", "fp32", "fp16").dot(x, x) == np.inf
    assert ChunkedAccumulation("fp32", "fp32", "fp8-e4m3").dot(x, x) == 448


@pytest.mark.parametrize("name", FORMATS)
def test_operands_of_64_bits_are_rounded_once(name):
    """Just above halfway between two numbers; through float32 it would be halfway, and go down to the even one."""
    x = np.array([[1 + 2.0 ** -significant_bits(name) + 2.0**-40]])
    expected = 1 + 2.0 ** (1 - significant_bits(name))
    compensated = [ErrorCompensation("plain", name)] if name in ("fp16", "bfloat16") else []
    for operator in (ChunkedAccumulation(name, accumulator="fp32"), *compensated):
        assert operator.matmul(x, np.ones((1, 1))) == operator.dot(x[0], [1]) == operator.prepare(x).values == expected
    for operator in compensated:
        assert (
            operator.sum(x[0]) == operator.update(x, [[0]], [[0]])[0] == operator.update([[0]], [[0]], x)[0] == expected
        )


def test_operands_are_stored_in_their_bits():
    w = normal(10, 7)
    assert [ChunkedAccumulation(name).prepare(w).nbytes for name in ("fp32", "bfloat16", "fp8-e4m3")] == [280, 140, 70]
    assert set(FORMATS) | {"fp32"} == {*DTYPES, "fp16-e6m9"}
    assert ChunkedAccumulation("fp16", accumulator="fp32").operand_format == "fp16"
    assert ChunkedAccumulation().operand_format == "fp8-e5m2 into fp16-e6m9"
    assert not ChunkedAccumulation().supports(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ChunkedAccumulation(operands="int8"), "operands: expected fp32, fp16, .* got 'int8'"),
        (lambda: ChunkedAccumulation(accumulator="posit"), "accumulator: expected"),
        (lambda: ChunkedAccumulation(chunk=0), "chunk: expected a positive integer, got 0"),
        (lambda: ChunkedAccumulation(rounding="up"), "rounding: expected nearest-even or stochastic, got 'up'"),
        (lambda: ChunkedAccumulation(accumulator="fp32", rounding="stochastic"), "narrower than fp32"),
        (lambda: ChunkedAccumulation().matmul(np.ones((2, 3)), np.ones((4, 2))), r"x: expected 4 columns.*\(2, 3\)"),
        (lambda: ChunkedAccumulation().matmul(np.ones(3), np.ones((3, 2))), "x: expected an array of 2 dimensions"),
        (lambda: ChunkedAccumulation().dot(np.ones((1, 3)), np.ones(3)), "a: expected an array of 1 dimensions"),
        (
            lambda: ChunkedAccumulation(chunk=2).matmul(
                np.ones((2, 3)), ChunkedAccumulation().prepare(np.ones((3, 2)))
            ),
            "w: it was prepared by ChunkedAccumulation",
        ),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_number_is_refused():
    with pytest.raises(TypeError, match="w: expected real numbers"):
        ChunkedAccumulation().prepare(np.ones((2, 2), complex))
