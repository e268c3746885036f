"""Shifts and casts against numpy's, in every width."""

import numpy as np
import pytest
from numba import njit

from kernels.arithmetic.bits import as_float, as_pattern, cast, multiply, shift_left, shift_right, width


@njit
def left(x, count, out):
    for i in range(x.size):
        out[i] = shift_left(x[i], count[i])


@njit
def right(x, count, out):
    for i in range(x.size):
        out[i] = shift_right(x[i], count[i])


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
def test_shifts(dtype):
    width = 8 * dtype().itemsize
    info = np.iinfo(dtype)
    x = np.random.default_rng(0).integers(info.min, info.max, 64 * width, dtype, endpoint=True)
    count = np.arange(x.size) % width
    out = np.empty_like(x)
    left(x, count, out)
    np.testing.assert_array_equal(out, np.left_shift(x, count.astype(dtype)))
    right(x, count, out)
    np.testing.assert_array_equal(out, np.right_shift(x, count.astype(dtype)))


@njit
def cast_all(x, like, out):
    for i in range(x.size):
        out[i] = cast(x[i], like)
    return width(like)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint32, np.int64])
def test_casts(dtype):
    x = np.array([0, 1, -1, 127, 2**31, -(2**31) - 1, 2**40 + 5])
    out = np.empty(x.size, np.int64)
    assert cast_all(x, dtype(0), out) == 8 * dtype().itemsize
    np.testing.assert_array_equal(out, x.astype(dtype))


def test_a_float_is_not_shifted():
    with pytest.raises(Exception, match="shift_left"):
        left(np.ones(1), np.ones(1, np.int64), np.ones(1))


def test_multiply_wraps_in_the_width_of_the_first():
    @njit
    def product(a, b):
        return multiply(a, b)

    with np.errstate(over="ignore"):
        for kind in (np.int32, np.uint32, np.int64):
            a = kind(np.iinfo(kind).max)
            assert kind(product(a, 3)) == a * kind(3)


def test_floats_and_their_patterns():
    @njit
    def there_and_back(x, patterns, back):
        for i in range(x.size):
            patterns[i] = as_pattern(x[i])
            back[i] = as_float(patterns[i])

    x = np.float32([0.0, -0.0, 1.5, -np.inf, np.nan, 1e-45])
    patterns, back = np.empty(x.size, np.int32), np.empty_like(x)
    there_and_back(x, patterns, back)
    np.testing.assert_array_equal(patterns, x.view(np.int32))
    np.testing.assert_array_equal(back.view(np.int32), x.view(np.int32))
