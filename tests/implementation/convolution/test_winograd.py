"""Winograd's transforms are exact rationals, and their errors those that are stated."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torch.nn import functional as F

from kernels.implementation.convolution.winograd import Winograd, plain_winograd, transforms


def test_lavin_and_grays_own_matrices():
    """Equation 7 and section 4.1 of the paper, up to the signs of rows, which cancel."""
    bt, g, at = transforms(2)
    assert np.array_equal(np.abs(bt), [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]])
    assert np.array_equal(np.abs(g), [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 1]])
    assert np.array_equal(np.abs(at), [[1, 1, 1, 0], [0, 1, 1, 1]])
    bt, g, at = transforms(4)
    assert np.array_equal(np.abs(bt[0]), [4, 0, 5, 0, 1, 0]) and np.array_equal(np.abs(bt[3]), [0, 2, 1, 2, 1, 0])
    assert np.allclose(np.abs(g[3]), [1 / 24, 1 / 12, 1 / 6])
    assert np.array_equal(at[3], [0, 1, -1, 8, -8, 1])


@pytest.mark.parametrize("tile", [2, 4, 6])
def test_the_transforms_are_exact_in_rationals(tile):
    rng = np.random.default_rng(tile)
    bt, g, at = ([[Fraction(x).limit_denominator(10**4) for x in row] for row in m] for m in transforms(tile))
    d, w = (
        [Fraction(int(x)) for x in rng.integers(-9, 10, tile + 2)],
        [Fraction(int(x)) for x in rng.integers(-9, 10, 3)],
    )

    def times(matrix, vector):
        return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]

    products = [a * b for a, b in zip(times(g, w), times(bt, d), strict=True)]
    assert times(at, products) == [sum(w[j] * d[i + j] for j in range(3)) for i in range(tile)]


@pytest.mark.parametrize("tile", [2, 4, 6])
def test_the_plain_statement_is_scipys_correlation(tile):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((tile + 2, tile + 2)), rng.standard_normal((3, 3))
    assert np.allclose(plain_winograd(x, w, tile), correlate2d(x, w, "valid"))


@pytest.mark.parametrize(("tile", "bound"), [(2, 2**-20), (4, 2**-16), (6, 2**-14)])
def test_errors_are_those_stated(tile, bound):
    rng = np.random.default_rng(1)
    x, w = (
        rng.standard_normal((1, 64, 28, 28)).astype(np.float32),
        rng.standard_normal((64, 64, 3, 3)).astype(np.float32),
    )
    exact = F.conv2d(torch.tensor(x).double(), torch.tensor(w).double(), padding=1).numpy()
    error = np.abs(Winograd(tile).conv2d(x, w, padding=1) - exact).max() / np.abs(exact).max()
    assert bound / 64 < error < bound


def test_multiplications():
    assert Winograd(4).effective_macs(64, 64, (3, 3), (56, 56)) * 4 == 9 * 64 * 64 * 56 * 56
    assert Winograd(2).effective_macs(1, 1, (3, 3), (3, 3)) == 16 * 4  # tiles that reach over the edge count whole
