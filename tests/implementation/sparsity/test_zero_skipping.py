"""Products that are skipped, counted pair by pair; what holds for every sparse operator is in test_sparse_left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.implementation.sparsity.zero_skipping import ZeroSkipping, column_sums


def integers(rng, *shape, density):
    return rng.integers(-9, 10, shape) * (rng.random(shape) < density)


@given(
    seed=st.integers(0, 2**32 - 1), m=st.integers(0, 130), k=st.integers(0, 30), n=st.integers(0, 7),
    density=st.sampled_from([0.0, 0.3, 1.0]), input_density=st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip
def test_result_is_exact_and_every_product_is_counted(seed, m, k, n, density, input_density):
    rng = np.random.default_rng(seed)
    w, x = integers(rng, m, k, density=density), integers(rng, k, n, density=input_density)
    pairs = [(w[i, c] != 0, x[c, j] != 0) for i in range(min(m, 5)) for c in range(k) for j in range(n)]
    few = w[:5]
    assert ZeroSkipping().effective_macs(few, x) == sum(right for _, right in pairs)
    assert ZeroSkipping("both").effective_macs(few, x) == sum(left and right for left, right in pairs)
    for operator in (ZeroSkipping(), ZeroSkipping("both")):
        assert np.array_equal(operator.matmul(w, x), w @ x)
    assert np.array_equal(column_sums(w, x), w @ x)


def test_a_rectified_layer_costs_what_its_inputs_ask_for():
    torch.manual_seed(0)
    x = torch.relu(torch.randn(200, 40))
    w = torch.randn(30, 200)
    share = ZeroSkipping().effective_macs(w, x) / (30 * 200 * 40)
    assert abs(share - 0.5) < 0.02
    torch.testing.assert_close(ZeroSkipping().matmul(w, x), w @ x, rtol=1e-4, atol=1e-4)


def test_skipped_inputs_meet_no_infinity():
    w = np.array([[np.inf, 1, np.nan]], np.float32)
    for sides in ("inputs", "both"):
        assert ZeroSkipping(sides).matmul(w, np.array([0.0, 2.0, -0.0])) == 2
        assert np.isnan(ZeroSkipping(sides).matmul(w, np.array([np.nan, 2.0, 0.0])))
    assert ZeroSkipping("both").matmul(np.array([[0.0, 1.0]]), np.array([np.inf, 1.0])) == 1
    with np.errstate(invalid="ignore"):
        assert np.isnan(ZeroSkipping().matmul(np.array([[0.0, 1.0]]), np.array([np.inf, 1.0])))


def test_wrong_operands_are_named():
    with pytest.raises(ValueError, match="sides: expected inputs or both, got 'weights'"):
        ZeroSkipping("weights")
    with pytest.raises(ValueError, match=r"b: expected 3 rows.*shape \(4, 2\)"):
        ZeroSkipping().effective_macs(np.eye(3), np.zeros((4, 2)))
