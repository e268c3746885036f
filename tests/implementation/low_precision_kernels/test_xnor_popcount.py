"""Products of signs, counted, are the products of the numbers, in matrices and in convolutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kernels.implementation.low_precision_kernels.xnor_popcount import XnorPopcount, plain_xnor, ternary_rows

sizes = st.integers(0, 150)
VALUES = {"binary": (-1, 1), "ternary": (-1, 0, 1)}


@settings(max_examples=60, deadline=None)
@given(
    sizes, st.integers(0, 40), sizes, st.sampled_from(sorted(VALUES)), st.sampled_from([0, 2, 4, 8]), st.integers(0, 99)
)
def test_every_shape_is_exact(m, n, k, weights, lanes, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.choice([-1, 1], (m, k))[:, ::-1], rng.choice(VALUES[weights], (n, k)).T
    assert np.array_equal(XnorPopcount(weights, lanes).multiply(a, b), a @ b)
    if weights == "binary":
        assert np.array_equal(plain_xnor(a, b), a @ b)


@pytest.mark.parametrize("options", [
    {}, {"padding": 1}, {"stride": 2, "padding": 2}, {"dilation": 2, "padding": (2, 1)}, {"groups": 2, "padding": 1},
])  # fmt: skip
@pytest.mark.parametrize("weights", sorted(VALUES))
def test_convolution_of_signs_is_pytorchs_padding_of_zeros_included(options, weights):
    rng = np.random.default_rng(3)
    groups = options.get("groups", 1)
    x = rng.choice([-1.0, 1.0], (2, 4, 7, 9)).astype(np.float32)
    w = rng.choice(VALUES[weights], (6, 4 // groups, 3, 3)).astype(np.float32)
    if weights == "ternary":
        w[rng.random(w.shape) < 0.4] = 0  # enough zeros that the threshold keeps the others
        w[:, 0, 0, 0] = 1
    expected = F.conv2d(torch.tensor(x), torch.tensor(w), **options)
    found = XnorPopcount(weights).conv2d(torch.tensor(x), torch.tensor(w), **options)
    assert torch.allclose(found, expected, atol=1e-4)


def test_real_matrices_keep_signs_and_mean_magnitudes():
    rng = np.random.default_rng(4)
    x, w = rng.standard_normal((9, 200)).astype(np.float32), rng.standard_normal((200, 7)).astype(np.float32)
    signs = np.where(x < 0, -1, 1) @ np.where(w < 0, -1, 1)
    expected = signs * np.abs(x).mean(1, keepdims=True) * np.abs(w).mean(0)
    assert np.allclose(XnorPopcount().matmul(x, w), expected, rtol=1e-5)


def test_the_ternary_rule_by_hand():
    rows = ternary_rows(np.float32([[1.0, -0.2, -3.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), "w")
    assert rows.integers().tolist() == [[1, 0, -1, 0], [0, 0, 0, 0]]
    assert rows.scales.tolist() == [2.0, 0.0]  # above 0.7 * 1.05 lie 1 and 3


def test_stored_are_one_or_two_bits_a_weight():
    w = np.random.default_rng(0).standard_normal((256, 128)).astype(np.float32)
    binary, ternary = (XnorPopcount(weights).prepare(w).nbytes for weights in ("binary", "ternary"))
    scales = 128 * 4
    assert binary - scales == 256 * 128 / 8 and ternary - scales == 256 * 128 / 4


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="weights: expected binary or ternary, got 'int8'"):
        XnorPopcount("int8")
    with pytest.raises(ValueError, match="lanes: expected 0, 2, 4 or 8, got 3"):
        XnorPopcount(lanes=3)
    with pytest.raises(ValueError, match="a: expected -1, 1 alone"):
        XnorPopcount().multiply([[0, 1]], [[1], [1]])
    with pytest.raises(ValueError, match="b: expected 2 rows"):
        XnorPopcount().multiply([[-1, 1]], [[1], [1], [1]])
    with pytest.raises(ValueError, match="finite numbers"):
        XnorPopcount("ternary").prepare(np.full((2, 2), np.inf, np.float32))
