"""Every pattern of a group against the dense product; what holds for every sparse operator is in test_sparse_left."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.implementation.sparsity.two_four_sparse import TwoFourSparse, selected_sums

PATTERNS = [pattern for kept in range(3) for pattern in combinations(range(4), kept)]


def test_every_pair_of_patterns():
    pairs = list(product(PATTERNS, PATTERNS))
    a = np.zeros((len(pairs), 8))
    for row, both in enumerate(pairs):
        for group, pattern in enumerate(both):
            a[row, [4 * group + place for place in pattern]] = np.arange(1, len(pattern) + 1) + row
    b = np.arange(1, 25).reshape(8, 3) ** 2
    form = TwoFourSparse().prepare(a)
    assert np.array_equal(form.to_dense(), a)
    for n in (1, 2, 3):
        assert np.array_equal(TwoFourSparse().matmul(form, b[:, :n]), a @ b[:, :n])
        assert np.array_equal(selected_sums(form, b[:, :n]), a @ b[:, :n])


@given(seed=st.integers(0, 2**32 - 1), m=st.integers(1, 12), chunks=st.integers(1, 4))
def test_bytes_are_half_the_values_and_two_bits_each(seed, m, chunks):
    k = 16 * chunks
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((m, k // 4, 4)) * (rng.random((m, k // 4, 4)).argsort(-1) < 2)
    form = TwoFourSparse().prepare(a.reshape(m, k))
    assert form.stored_bits() == (m + m % 2) * k // 2 * (32 + 2)
    assert np.all(np.diff(form.positions(), axis=-1) > 0)


def test_a_crowded_group_is_named():
    a = np.zeros((3, 12))
    a[1, 5:8] = 1
    with pytest.raises(ValueError, match=r"at most two non-zeros.*\[0. 1. 1. 1.\] in row 1 from column 4 on"):
        TwoFourSparse().prepare(a)
    layer = torch.nn.Linear(8, 8)
    assert not TwoFourSparse().supports(layer)
    with torch.no_grad():
        layer.weight[:, ::2] = 0
    assert TwoFourSparse().supports(layer) and not TwoFourSparse().supports(layer, "bfloat16")


def test_what_is_not_kept_meets_no_infinity():
    a = np.array([[0, 1, 2, 0], [0, 3, 0, 0]])
    b = np.array([np.inf, 1, 1, np.nan])
    y = TwoFourSparse().matmul(a, b)
    assert y[0] == 3 and np.isnan(y[1])  # the second row's group is filled up with its first zero
