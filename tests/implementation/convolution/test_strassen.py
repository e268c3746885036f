"""Strassen's seven products are the product: exactly for integers, within its error for the rest."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.implementation.convolution.strassen import LEFT, RESULT, RIGHT, Strassen, plain_strassen

sizes = st.integers(0, 40)


def test_the_coefficients_are_the_tensor_of_the_product():
    """Sum over products of coefficients = 1 exactly where block (i, p) meets (p, j) for block (i, j), else 0."""
    tensor = np.einsum("tr,ta,tb->rab", np.array(RESULT).T, np.array(LEFT), np.array(RIGHT))
    expected = np.zeros((4, 4, 4), int)
    for i in range(2):
        for j in range(2):
            for p in range(2):
                expected[2 * i + j, 2 * i + p, 2 * p + j] = 1
    assert np.array_equal(tensor, expected)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, st.integers(0, 3), st.integers(0, 99))
def test_integers_of_every_shape_are_exact(m, n, k, levels, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-9, 10, (m, k)), rng.integers(-9, 10, (n, k)).T
    operator = Strassen(levels)
    assert np.array_equal(operator.matmul(a, operator.prepare(b)), a @ b)


def test_the_plain_statement_and_the_error():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 256, 256))
    assert np.allclose(plain_strassen(a, b), a @ b)
    size = np.abs(a).max() * np.abs(b).max()
    errors = [np.abs(Strassen(levels).matmul(a, b) - a @ b).max() / size for levels in range(4)]
    assert errors[0] < errors[3] < 256 * 2.0**-24 * 12**3  # Higham's growth of 12 a level, by the largest entries


def test_multiplications_and_bad_levels():
    assert Strassen(1).multiplications(4, 4, 4) == 7 * 8 and Strassen(1).multiplications(3, 3, 3) == 7 * 8
    for bad in (-1, 7, 1.0):
        with pytest.raises(ValueError, match="levels: expected an integer from 0 to 6"):
            Strassen(bad)
