"""Any unrolling, width and number of threads gives the product, and rows are divided without loss."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.implementation.loops.loop_tiling import error_bound
from kernels.implementation.loops.vectorise_and_thread import VectoriseAndThread, split_rows

sizes = st.integers(0, 40)


@settings(max_examples=60, deadline=None)
@given(
    sizes, sizes, sizes, st.sampled_from([1, 4, 8]), st.sampled_from([0, 1, 8]), st.integers(1, 3), st.integers(0, 99)
)
def test_every_shape(m, n, k, unroll, lanes, threads, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((k, m)).astype(np.float32).T, rng.standard_normal((k, n)).astype(np.float32)
    operator = VectoriseAndThread(unroll, lanes, threads)
    found = operator.matmul(a, operator.prepare(b))
    assert found.shape == (m, n) and (np.abs(found - a.astype(np.float64) @ b) <= error_bound(a, b)).all()


def test_threads_change_no_bit():
    a, b = np.random.default_rng(0).standard_normal((2, 77, 77), np.float32)
    one, three = (VectoriseAndThread(threads=t).matmul(a, b) for t in (1, 3))
    assert np.array_equal(one, three)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100), st.integers(1, 9), st.integers(1, 8))
def test_rows_are_divided_whole_and_evenly(rows, threads, step):
    runs = split_rows(rows, threads, step)
    assert [r for run in runs for r in range(*run)] == list(range(rows))
    sizes = [-(-(b - a) // step) for a, b in runs]
    assert max(sizes) - min(sizes) <= 1


def test_bad_parameters_are_named():
    for options, message in (
        ({"unroll": 3}, "unroll: expected 1, 2, 4 or 8, got 3"),
        ({"lanes": 2}, "lanes: expected 0, 1, 4, 8 or 16, got 2"),
        ({"threads": 0}, "threads: expected a positive integer, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            VectoriseAndThread(**options)
