"""Sums of inputs, each multiplied once for a distinct weight, are the product; and they are counted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.arithmetic.approximate_arithmetic.codes import code_rows
from kernels.implementation.convolution.computation_reuse import ComputationReuse, plain_reuse

sizes = st.integers(0, 30)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, st.integers(1, 6), st.integers(0, 99))
def test_few_distinct_weights_are_exact(m, n, k, distinct, seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate([[0.0], rng.standard_normal(distinct)]).astype(np.float32)
    x, w = rng.standard_normal((m, k)).astype(np.float32), rng.choice(values, (n, k)).T
    operator = ComputationReuse(bits=None)
    prepared = operator.prepare(w)
    assert np.allclose(operator.matmul(x, prepared), x.astype(np.float64) @ w, atol=1e-4)
    counted = sum(len(set(column) - {0.0}) for column in w.T)
    assert operator.multiplications(prepared) == counted <= n * distinct
    if m:
        y, multiplications = plain_reuse(x[0].astype(np.float64), w)
        assert np.allclose(y, x[0].astype(np.float64) @ w) and multiplications == counted


def test_rounded_weights_are_those_of_the_shared_codes():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((9, 50)).astype(np.float32), rng.standard_normal((50, 7)).astype(np.float32)
    coded = code_rows(np.ascontiguousarray(w.T), 3, "w", signed=True)
    rounded = (coded.integers() * coded.scales[:, None]).T
    assert np.allclose(ComputationReuse(bits=3).matmul(x, w), x @ rounded, atol=1e-4)
    assert ComputationReuse(bits=3).multiplications(ComputationReuse(bits=3).prepare(w)) <= 7 * 6


def test_bad_bits_are_named():
    for bad in (1, 9, "4"):
        with pytest.raises(ValueError, match="bits: expected None or an integer from 2 to 8"):
            ComputationReuse(bits=bad)
