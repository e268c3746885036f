"""Block rows are scipy's, and so is the product; what holds for every sparse operator is in test_sparse_left."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from kernels.implementation.sparsity.block_sparse import BlockSparse, block_sums


def in_blocks(rng, m, k, rows, columns, density):
    mask = rng.random((m // rows, k // columns)) < density
    return (rng.standard_normal((m, k)) * mask.repeat(rows, 0).repeat(columns, 1)).astype(np.float32)


@given(
    seed=st.integers(0, 2**32 - 1), rows=st.sampled_from([1, 2, 4, 8, 16]), columns=st.integers(1, 16),
    height=st.integers(0, 5), width=st.integers(0, 5), density=st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip
def test_blocks_are_scipys(seed, rows, columns, height, width, density):
    a = in_blocks(np.random.default_rng(seed), height * rows, width * columns, rows, columns, density)
    ours = BlockSparse(rows, columns).prepare(a)
    assert np.array_equal(ours.to_dense(), a)
    if not (height and width):
        return
    theirs = scipy.sparse.bsr_array(a, blocksize=(rows, columns))
    theirs.eliminate_zeros()
    theirs.sort_indices()
    assert np.array_equal(ours.values.transpose(0, 2, 1), theirs.data)
    assert np.array_equal(ours.indices, theirs.indices) and np.array_equal(ours.indptr, theirs.indptr)
    assert ours.stored_bits() == 32 * (theirs.data.size + theirs.indices.size + theirs.indptr.size)


@pytest.mark.parametrize(("rows", "columns"), [(2, 1), (8, 1), (8, 2), (16, 16)])
@pytest.mark.parametrize("n", [1, 2, 40])
def test_product_of_small_integers_is_exact(rows, columns, n):
    rng = np.random.default_rng(rows)
    a = np.rint(4 * in_blocks(rng, 3 * rows, 5 * columns, rows, columns, 0.5))[: 3 * rows - 1, : 5 * columns - 1]
    b = rng.integers(-9, 9, (5 * columns - 1, n))
    operator = BlockSparse(rows, columns)
    exact = a.astype(np.int64) @ b
    assert np.array_equal(operator.matmul(a, b), exact)
    assert np.array_equal(block_sums(operator.prepare(a), b), exact)


def test_zeros_inside_a_block_are_stored_and_meet_infinity_as_in_the_dense_product():
    a = np.zeros((8, 3), np.float32)
    a[1, 1] = 2
    form = BlockSparse(4).prepare(a)
    assert form.values.size == 4 and form.density == 4 / 24
    y = BlockSparse(4).matmul(form, np.array([[np.inf], [np.inf], [np.nan]], np.float32))
    assert np.array_equal(y[:, 0], [np.nan, np.inf, np.nan, np.nan, 0, 0, 0, 0], equal_nan=True)


@pytest.mark.parametrize(("sides", "message"), [((3, 1), "rows: expected 1, 2, 4, 8 or 16, got 3"),
                                                ((4, 0), "columns: expected an integer from 1 to 16, got 0"),
                                                ((4, 17), "columns")])  # fmt: skip
def test_other_blocks_are_refused(sides, message):
    with pytest.raises(ValueError, match=message):
        BlockSparse(*sides)
