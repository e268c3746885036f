"""Nobody has more than a share and a row; what holds for every sparse operator is in test_sparse_left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from kernels.implementation.sparsity.nonzero_balancing import NonzeroBalancing, dealt


@given(lengths=st.lists(st.integers(0, 60), max_size=60), workers=st.integers(1, 9))
def test_every_row_is_dealt_once_and_no_share_exceeds_the_mean_by_more_than_a_row(lengths, workers):
    lengths = np.array(lengths, np.int64)
    bounds = dealt(lengths, workers)
    assert len(bounds) == workers + 1 and bounds[0] == 0 and bounds[-1] == len(lengths)
    assert np.all(np.diff(bounds) >= 0)
    loads = [lengths[first:last].sum() for first, last in pairwise(bounds)]
    assert sum(loads) == lengths.sum()
    assert max(loads) <= lengths.sum() / workers + lengths.max(initial=0)


@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30))
def test_two_workers_are_as_even_as_any_cut_allows(lengths):
    lengths = np.array(lengths)
    bounds = dealt(lengths, 2)
    best = min(max(lengths[:cut].sum(), lengths[cut:].sum()) for cut in range(len(lengths) + 1))
    assert max(lengths[: bounds[1]].sum(), lengths[bounds[1] :].sum()) == best


def test_skewed_rows_are_balanced_where_equal_numbers_of_rows_are_not():
    a = (np.arange(512) < (512 / np.arange(1, 513))[:, None]).astype(np.float32)
    for workers in (2, 4, 8):
        uneven, even = (NonzeroBalancing(workers, split).prepare(a) for split in ("rows", "nonzeros"))
        mean = a.sum() / workers
        assert even.balance <= 1 + 512 / mean and even.balance < uneven.balance
        assert even.loads.sum() == uneven.loads.sum() == a.sum()
    assert NonzeroBalancing(2, "rows").prepare(a).balance > 1.5 and NonzeroBalancing(2).prepare(a).balance < 1.1
    assert NonzeroBalancing().prepare(np.zeros((3, 3))).balance == 1


@pytest.mark.parametrize("workers", [2, 5])
def test_the_result_does_not_depend_on_who_computes_it(workers):
    rng = np.random.default_rng(0)
    a = (rng.standard_normal((103, 77)) * (rng.random((103, 77)) < 0.2)).astype(np.float32)
    b = rng.standard_normal((77, 130)).astype(np.float32)
    alone = NonzeroBalancing(1).matmul(a, b)
    np.testing.assert_allclose(alone, scipy.sparse.csr_array(a.astype(float)) @ b, atol=1e-4)
    for split in ("rows", "nonzeros"):
        operator = NonzeroBalancing(workers, split)
        form = operator.prepare(a)
        assert np.array_equal(operator.matmul(form, b), alone)
        with ThreadPoolExecutor(4) as callers:
            for y in callers.map(operator.matmul, [form] * 8, [b] * 8):
                assert np.array_equal(y, alone)


def test_other_parameters_are_refused():
    with pytest.raises(ValueError, match="workers: expected an integer from 1 to 64, got 0"):
        NonzeroBalancing(0)
    with pytest.raises(ValueError, match="split: expected nonzeros or rows, got 'columns'"):
        NonzeroBalancing(split="columns")
