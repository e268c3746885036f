"""Looked-up sums are the products of the integers, for every width and shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kernels.implementation.low_precision_kernels.shuffle_lookup import ShuffleLookup, plain_lookup

sizes = st.integers(0, 70)


def integers(rng, shape, bits):
    return rng.choice([-1, 1], shape) if bits == 1 else rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9), sizes, sizes, st.integers(1, 4), st.integers(0, 99))
def test_every_width_and_shape_is_exact(m, n, k, bits, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-31, 32, (m, k)), integers(rng, (n, k), bits).T
    assert np.array_equal(ShuffleLookup(bits).multiply(a, b), a @ b)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_long_sums_of_the_largest_numbers(bits):
    a = np.full((5, 3000), -31)
    b = np.full((3000, 40), -(2 ** (bits - 1)) if bits > 1 else -1)
    assert np.array_equal(ShuffleLookup(bits).multiply(a, b), a @ b)


def test_the_plain_statement():
    rng = np.random.default_rng(0)
    a, b = rng.integers(-9, 9, (5, 16)), rng.integers(0, 8, (16, 6))
    assert np.array_equal(plain_lookup(a, b, 3), a @ b)


def test_real_products_and_convolutions_are_those_of_the_rounded_numbers():
    rng = np.random.default_rng(1)
    x, w = rng.integers(-31, 32, (4, 40)).astype(np.float32), rng.integers(-7, 8, (40, 9)).astype(np.float32)
    x[:, 0], w[0] = 31, 7  # the codes then hold them exactly
    assert np.allclose(ShuffleLookup(4).matmul(x, w), x @ w, rtol=1e-5)
    image, filters = rng.integers(-31, 32, (1, 2, 6, 6)), rng.integers(-7, 8, (3, 2, 3, 3))
    image[0, 0, 0, 0], filters[:, 0, 0, 0] = 31, 7
    image, filters = image.astype(np.float32), filters.astype(np.float32)
    expected = F.conv2d(torch.tensor(image), torch.tensor(filters), padding=1, stride=2).numpy()
    assert np.allclose(ShuffleLookup(4).conv2d(image, filters, padding=1, stride=2), expected, rtol=1e-5, atol=1e-3)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="weight_bits: expected an integer from 1 to 4, got 8"):
        ShuffleLookup(8)
    with pytest.raises(ValueError, match="a: expected integers from -31 to 31, got 32 to 32"):
        ShuffleLookup().multiply([[32]], [[1]])
    with pytest.raises(TypeError, match="b: expected integers"):
        ShuffleLookup().multiply([[1]], [[1.5]])
    with pytest.raises(ValueError, match="b: of one bit, expected -1 and 1 alone"):
        ShuffleLookup(1).multiply([[1]], [[0]])
    with pytest.raises(ValueError, match="b: expected 1 rows"):
        ShuffleLookup().multiply([[1]], [[1], [1]])
