"""Winograd's matrices are exact in rationals, and its results torch's in float64 within the bound that it states."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.signal import correlate2d

from kernels.implementation.convolution import winograd
from kernels.implementation.convolution.winograd import POINTS, Winograd, cook_toom, plain_winograd, transforms

TILES = [2, 4, 6]
EXTRA = 2.0**-23  # the bias is added once, and what is compared is float32


def torch_float64(x, w, bias=None, padding=0, groups=1):
    if not x.shape[1] or not x.size or not w.size:  # torch refuses what is empty
        sizes = (s + 2 * p - 2 for s, p in zip(x.shape[2:], padding, strict=True))
        zeros = np.zeros((len(x), len(w), *sizes))
        return zeros if bias is None else zeros + bias[:, None, None]
    tensors = (None if t is None else torch.from_numpy(np.array(t, np.float64)) for t in (x, w, bias))
    return torch.nn.functional.conv2d(*tensors, padding=padding, groups=groups).numpy()


def operands(seed, images, groups, channels, outputs, size):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((images, groups * channels, *size), np.float32)
    w = rng.standard_normal((groups * outputs, channels, 3, 3), np.float32)
    return x, w, rng.standard_normal(groups * outputs, np.float32)


def assert_within_bound(operator, y, x, w, bias=None, padding=(0, 0), groups=1):
    exact = torch_float64(x, w, bias, padding, groups)
    assert y.shape == exact.shape and y.dtype == np.float32
    for part in range(groups):
        inputs, outputs = (slice(part * n // groups, (part + 1) * n // groups) for n in (x.shape[1], len(w)))
        if y[:, outputs].size:
            bound = operator.error_bound(x[:, inputs], w[outputs], padding)
            bound = bound + (0 if bias is None else EXTRA * (np.abs(exact[:, outputs]) + bound))
            assert np.all(np.abs(y[:, outputs] - exact[:, outputs]) <= bound)


# --- the matrices --------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(m=st.integers(1, 8), data=st.data())
def test_any_points_give_the_correlation_exactly(m, data):
    """Both sides are bilinear: equal on every pair of unit vectors, they are equal."""
    rationals = st.fractions(-4, 4, max_denominator=8)
    points = data.draw(st.lists(rationals, min_size=m + 1, max_size=m + 1, unique=True))
    bt, g, at = cook_toom(points, m)
    for i, j, k in product(range(m), range(m + 2), range(3)):
        assert sum(at[i][q] * g[q][k] * bt[q][j] for q in range(m + 2)) == (j == i + k)


@pytest.mark.parametrize("tile", TILES)
def test_image_and_results_are_transformed_by_exact_numbers(tile):
    exact = cook_toom(POINTS[tile], tile)
    for rational, rounded in zip(exact, transforms(tile), strict=True):
        assert np.array_equal(rounded, np.array(rational, np.float64))
    for index in (0, 2):
        assert all(Fraction(float(np.float32(x))) == x for row in exact[index] for x in row)


def test_lavin_and_grays_own_matrices():
    """F(2, 3) of their equation 7, F(4, 3) of their section 4.3: up to signs and factors of rows, which cancel."""

    def proportional(own, theirs):
        return all(np.linalg.matrix_rank(np.array([a, b], np.float64)) == 1 for a, b in zip(own, theirs, strict=True))

    bt, g, at = cook_toom((0, 1, -1), 2)
    assert proportional(bt, [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    assert proportional(g, [[1, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 1]])
    assert np.array_equal(np.abs(np.array(at, float)), [[1, 1, 1, 0], [0, 1, 1, 1]])
    bt, g, at = cook_toom((0, 1, -1, 2, -2), 4)
    assert proportional(bt, [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0],
                             [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]])  # fmt: skip
    assert proportional(g, [[6, 0, 0], [1, 1, 1], [1, -1, 1], [1, 2, 4], [1, -2, 4], [0, 0, 1]])
    assert np.array_equal(np.array(at, float)[3], [0, 1, -1, 8, -8, 1])


@pytest.mark.parametrize("tile", TILES)
def test_the_plain_statement_is_scipys_correlation(tile):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 9, 11)), rng.standard_normal((3, 2, 3, 3))
    expected = [sum(correlate2d(x[c], w[o, c], "valid") for c in range(2)) for o in range(3)]
    np.testing.assert_allclose(plain_winograd(x, w, tile), expected, atol=1e-12)


# --- the operator --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", TILES)
@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), images=st.integers(0, 2), groups=st.integers(1, 3), channels=st.integers(0, 19),
    outputs=st.integers(0, 35), size=st.tuples(st.integers(1, 37), st.integers(1, 37)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)), bias=st.booleans(), prepared=st.booleans(),
)  # fmt: skip
# Whole vectors and one more; one result; an image narrower than a vector, and one of a single column.
@example(0, 1, 1, 16, 32, (16, 16), (1, 1), False, True)
@example(0, 2, 1, 17, 33, (17, 33), (1, 1), True, True)
@example(0, 1, 1, 1, 1, (3, 3), (0, 0), False, False)
@example(0, 2, 1, 40, 16, (7, 7), (1, 1), True, True)
@example(0, 1, 2, 3, 2, (37, 1), (0, 1), True, True)
def test_any_size_padding_batch_and_group_is_within_the_bound(
    tile, seed, images, groups, channels, outputs, size, padding, bias, prepared
):
    padding = tuple(max(p, (4 - s) // 2) for p, s in zip(padding, size, strict=True))
    x, w, b = operands(seed, images, groups, channels, outputs, size)
    operator, b = Winograd(tile), b if bias else None
    y = operator.conv2d(x, operator.prepare(w, groups) if prepared else w, b, padding=padding, groups=groups)
    assert_within_bound(operator, y, x, w, b, padding, groups)


@pytest.mark.parametrize(("tile", "digits"), [(2, 20.5), (4, 17.5), (6, 15.5)])
def test_a_layer_of_real_size(tile, digits):
    """The bound holds for the worst of operands; on random ones, the error over the largest result, in bits."""
    x, w, _ = operands(1, 1, 1, 128, 64, (28, 28))
    operator = Winograd(tile)
    y, exact = operator.conv2d(x, operator.prepare(w), padding=1), torch_float64(x, w, None, 1)
    assert_within_bound(operator, y, x, w, None, (1, 1))
    error = np.abs(y - exact).max() / np.abs(exact).max()
    assert 2.0**-3 < error * 2.0**digits < 1
    np.testing.assert_allclose(y[0], plain_winograd(np.pad(x[0], [(0, 0), (1, 1), (1, 1)]), w, tile), atol=2e-3)


@pytest.mark.parametrize("tile", TILES)
def test_the_amplification_is_the_bound_in_one_number(tile):
    x, w, _ = operands(2, 1, 1, 5, 3, (20, 20))
    operator, terms = Winograd(tile), (5 + 4 * (tile + 2) + 1) * 2.0**-24
    worst = operator.amplification * 5 * np.abs(x).max() * np.abs(w).max() * terms / (1 - terms)
    assert operator.error_bound(x, w, 1).max() <= worst
    assert operator.amplification > 9


def test_the_points_of_four_amplify_less_than_the_customary_ones():
    bt, g, at = (np.abs(np.array(matrix, np.float64)) for matrix in cook_toom((0, 1, -1, 2, -2), 4))
    assert Winograd(2).amplification < Winograd(4).amplification < (at @ (g.sum(1) * bt.sum(1))).max() ** 2 / 4
    assert Winograd(4).amplification < Winograd(6).amplification


@pytest.mark.parametrize("tile", TILES)
def test_blocks_change_no_bit(tile, monkeypatch):
    x, w, _ = operands(3, 1, 1, 35, 40, (29, 22))
    whole = Winograd(tile).conv2d(x, w, padding=1)
    rows = []
    for size in (1, 1 << 18, 1 << 19):
        monkeypatch.setattr(winograd, "BLOCK_BYTES", size)
        winograd._blocking.cache_clear()
        rows.append(winograd._blocking(tile, 35, (29, 22))[0])
        assert np.array_equal(Winograd(tile).conv2d(x, w, padding=1), whole)
    winograd._blocking.cache_clear()
    assert rows[0] == 1 < rows[-1]


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_the_tiles_that_see_it_and_no_other(tile, bad):
    x, w, _ = operands(4, 1, 1, 18, 3, (25, 25))
    clean = Winograd(tile).conv2d(x, w, padding=1)
    x[0, 17, 12, 7] = bad
    y, exact = Winograd(tile).conv2d(x, w, padding=1), torch_float64(x, w, None, 1)
    spoilt = ~np.isfinite(y)
    assert spoilt[~np.isfinite(exact)].all() and np.array_equal(y[~spoilt], clean[~spoilt])
    seen = {(r // tile, c // tile) for r, c in product(range(11, 14), range(6, 9))}
    assert {(r // tile, c // tile) for _, r, c in np.argwhere(spoilt[0])} <= seen


def test_tensors_and_strided_images_are_taken():
    x, w, b = operands(5, 2, 1, 3, 5, (9, 11))
    y = Winograd().conv2d(torch.from_numpy(x).contiguous(memory_format=torch.channels_last), torch.from_numpy(w))
    assert isinstance(y, torch.Tensor)
    assert_within_bound(Winograd(), y.numpy(), x, w)
    mirrored = x[:, :, ::-1, ::-2]
    assert_within_bound(Winograd(), Winograd().conv2d(mirrored, w[::-1], b), mirrored.copy(), w[::-1].copy(), b)
    assert_within_bound(Winograd(), Winograd().conv2d(x.astype(np.float64), w.tolist(), b), x, w, b)


def test_filters_are_packed_once_and_immutable():
    operator = Winograd(2)
    filters = operator.prepare(np.ones((40, 3, 3, 3)))
    whole = -(-40 // winograd.WIDE) * winograd.WIDE  # outputs in blocks of two vectors
    assert filters.nbytes == 4 * 16 * 3 * whole
    with pytest.raises(ValueError, match="read-only"):
        filters.forms[0].packed[0] = 1
    with pytest.raises(ValueError, match="it was prepared by Winograd"):
        Winograd(4).conv2d(np.ones((1, 3, 5, 5)), filters)


def test_multiplications():
    assert Winograd(4).effective_macs(64, 64, (3, 3), (56, 56)) * 4 == 9 * 64 * 64 * 56 * 56
    assert Winograd(2).effective_macs(1, 1, (3, 3), (3, 3)) == 16 * 4  # tiles that reach over the edge count whole


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda op, x, w: Winograd(3), "tile: expected 2, 4 or 6, got 3"),
        (lambda op, x, w: op.conv2d(x, w, stride=2), r"stride, dilation: expected 1, got \(2, 2\), \(1, 1\): a tile's"),
        (lambda op, x, w: op.conv2d(x, w, dilation=(1, 2)), r"stride, dilation: expected 1, got \(1, 1\), \(1, 2\)"),
        (lambda op, x, w: op.prepare(w[..., :2]), "w: expected 3 x 3 filters, for which the transforms are, got 3 x 2"),
        (lambda op, x, w: op.conv2d(x, w, padding=-1), "padding: expected one or two integers of at least 0, got -1"),
        (lambda op, x, w: op.conv2d(x[:, :1], w), r"x: expected 2 channels"),
        (lambda op, x, w: op.conv2d(x[:, :, :2], w), "x: expected images that the kernel"),
        (lambda op, x, w: op.conv2d(x, w, np.ones(3)), "bias: expected 4 numbers"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_said_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call(Winograd(), np.ones((1, 2, 9, 9), np.float32), np.ones((4, 2, 3, 3), np.float32))


def test_supports_layers_of_stride_one():
    conv = torch.nn.Conv2d
    assert Winograd().supports(conv(2, 4, 3, padding=1, groups=2)) and Winograd().supports(conv(2, 2, 3), "fp32")
    assert not Winograd().supports(conv(2, 4, 3, stride=2)) and not Winograd().supports(conv(2, 4, 5))
    assert not Winograd().supports(conv(2, 4, 3, dilation=2)) and not Winograd().supports(conv(2, 4, 3), "fp16")
