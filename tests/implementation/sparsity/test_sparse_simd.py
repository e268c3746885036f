"""Rows in groups, whatever their lengths; what holds for every sparse operator is in test_sparse_left."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from kernels.implementation.sparsity.sparse_simd import SparseSimd, stepped_sums


@given(lengths=st.lists(st.integers(0, 20), max_size=40), rows=st.sampled_from([1, 2, 4, 8]), n=st.sampled_from([1, 7]))
def test_rows_of_any_lengths_give_scipys_product(lengths, rows, n):
    rng = np.random.default_rng(len(lengths))
    a = np.zeros((len(lengths), 20))
    for row, length in enumerate(lengths):
        a[row, rng.permutation(20)[:length]] = rng.integers(1, 9, length)
    b = rng.integers(-9, 9, (20, n))
    form = SparseSimd(rows).prepare(a)
    exact = scipy.sparse.csr_array(a) @ b
    assert np.array_equal(SparseSimd(rows).matmul(form, b), exact)
    assert np.array_equal(stepped_sums(form, b), exact)


@given(lengths=st.lists(st.integers(0, 20), max_size=40), rows=st.sampled_from([1, 2, 4, 8]))
def test_rows_are_sorted_and_groups_are_whole(lengths, rows):
    a = np.arange(20) < np.array(lengths).reshape(-1, 1)
    form = SparseSimd(rows).prepare(a)
    stored = np.diff(form.starts)
    assert len(form.order) % rows == 0 and len(form.order) - len(lengths) < rows
    assert sorted(form.order.tolist()) == list(range(len(form.order)))
    assert np.all(np.diff(stored) <= 0)
    assert stored[: len(lengths)].tolist() == sorted(lengths, reverse=True) and not stored[len(lengths) :].any()


def test_other_numbers_of_rows_are_refused():
    with pytest.raises(ValueError, match="rows: expected 1, 2, 4 or 8, got 3"):
        SparseSimd(3)
