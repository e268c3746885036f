"""Six orders, one product."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.implementation.loops.loop_reordering import ORDERS, LoopReordering, innermost_strides, plain_product
from kernels.implementation.loops.loop_tiling import error_bound

sizes = st.integers(0, 20)


@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=25, deadline=None)
@given(sizes, sizes, sizes, st.integers(0, 99))
def test_every_order_is_numpys_product_within_the_bound_of_any_sum(order, m, n, k, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((m, k)).astype(np.float32)[::-1], rng.standard_normal((n, k)).astype(np.float32).T
    found = LoopReordering(order).matmul(a, b)
    assert found.dtype == np.float32 and found.shape == (m, n)
    assert (np.abs(found - a.astype(np.float64) @ b) <= error_bound(a, b)).all()


def test_the_plain_statement_in_every_order():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 4)), rng.standard_normal((4, 2))
    assert all(np.allclose(plain_product(a, b, order), a @ b) for order in ORDERS)


def test_steps_are_those_of_the_addresses():
    a, b, c = np.zeros((5, 7)), np.zeros((7, 9)), np.zeros((5, 9))
    for order in ORDERS:
        for name, array, dims in (("a", a, "ik"), ("b", b, "kj"), ("c", c, "ij")):
            strides = dict(zip(dims, array.strides, strict=True))
            step = strides.get(order[-1], 0) // array.itemsize
            assert innermost_strides(order)[name] == {0: 0, 1: 1}.get(step, "row")


def test_bad_order_is_named():
    with pytest.raises(ValueError, match="order: expected one of ikj, ijk"):
        LoopReordering("abc")
