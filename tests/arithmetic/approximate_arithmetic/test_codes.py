"""Codes of rows: the definition in numpy, and every shape and value that could trip the fast version."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.arithmetic.approximate_arithmetic.codes import code_rows, plain_code_rows

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 64), (4, 130)])
def test_codes_are_those_of_the_definition(bits, shape):
    x = RNG.standard_normal(shape, np.float32)
    coded, (integers, scales) = code_rows(x, bits, "x", signed=True), plain_code_rows(x, bits)
    assert np.array_equal(coded.integers(), integers)
    assert np.array_equal(coded.sums, coded.codes.sum(1))
    np.testing.assert_allclose(coded.scales, scales, rtol=1e-6)
    assert not coded.codes[:, shape[1] :].any() and coded.codes.shape[1] % 64 == 0


@pytest.mark.parametrize("bits", range(2, 9))
def test_numbers_that_are_not_negative_need_no_sign(bits):
    x = np.abs(RNG.standard_normal((6, 40), np.float32))
    coded, (integers, _) = code_rows(x, bits, "x"), plain_code_rows(x, bits, signed=False)
    assert coded.zero == 0 and coded.integers().max() == 2**bits - 1
    assert np.array_equal(coded.integers(), integers)
    assert code_rows(np.float32([[-0.0, 1.0]]), bits, "x").zero == 0


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=70), st.integers(2, 8))
def test_a_number_is_off_by_half_a_step_at_most(row, bits):
    x = np.float32([row])
    coded = code_rows(x, bits, "x")
    step = float(coded.scales[0])
    assert np.abs(coded.integers() * step - x).max() <= step * (0.5 + 2**-10) + 2.0**-100


def test_zeros_subnormals_empty_and_strided():
    x = np.float32([[0.0, -0.0, 1e-40], [1.0, -2.0, 2.0]])
    assert np.array_equal(code_rows(x, 8, "x").integers(), [[0, 0, 0], [64, -127, 127]])
    assert code_rows(np.empty((0, 3), np.float32), 8, "x").codes.shape == (0, 64)
    assert code_rows(np.empty((2, 0), np.float32), 1, "x").codes.shape == (2, 0)
    wide = RNG.standard_normal((8, 12), np.float32)
    wide.setflags(write=False)
    for view in (wide[::2, 1::3], wide.T):
        assert np.array_equal(code_rows(view, 4, "x").codes, code_rows(view.copy(), 4, "x").codes)


def test_sums_of_long_rows():
    k = 2**31 // 255 + 2  # more than 32 bits hold
    assert code_rows(np.ones((1, k), np.float32), 8, "x").sums[0] == 255 * k


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("bits", [1, 8])
def test_what_is_not_finite_has_no_code(bad, bits):
    with pytest.raises(ValueError, match=r"x: expected finite numbers.*infinity or NaN"):
        code_rows(np.float32([[1.0, bad]]), bits, "x")
