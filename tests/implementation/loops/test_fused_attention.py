"""Attention in tiles is attention, by the definition and by PyTorch's; its memory is that of a tile."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from kernels.implementation.loops.fused_attention import FusedAttention, memory_access, plain_attention

shapes = st.tuples(st.integers(0, 40), st.integers(1, 90), st.integers(1, 20), st.integers(0, 40))


@settings(max_examples=80, deadline=None)
@given(shapes, st.integers(1, 100), st.booleans(), st.integers(0, 99), st.sampled_from([0.1, 1.0, 30.0]))
def test_every_shape_block_and_mask(shape, block, causal, seed, spread):
    n, m, d, e = shape
    rng = np.random.default_rng(seed)
    q, k, v = ((rng.standard_normal(s) * spread).astype(np.float32) for s in ((n, d), (m, d), (m, e)))
    found = FusedAttention(block, causal).attention(q, k, v)
    exact = plain_attention(q, k, v, causal)
    bound = 1e-5 * spread * max(1, spread**2)
    assert found.shape == (n, e) and np.abs(found - exact).max(initial=0) <= bound


@pytest.mark.parametrize("causal", [False, True])
def test_heads_and_batches_are_pytorchs(causal):
    q, k, v = torch.randn(3, 2, 3, 37, 16)
    expected = scaled_dot_product_attention(q, k, v, is_causal=causal)
    found = FusedAttention(16, causal).attention(q, k, v)
    assert isinstance(found, torch.Tensor) and torch.allclose(found, expected, atol=1e-5)
    turned = FusedAttention(16, causal).attention(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1))
    assert torch.equal(turned.transpose(0, 1), found)


def test_weights_sum_to_one_and_large_scores_do_not_overflow():
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((20, 8)).astype(np.float32) * 1000 for _ in range(2))
    assert np.allclose(FusedAttention(8).attention(q, k, np.ones((20, 3), np.float32)), 1, atol=1e-6)


def test_nan_reaches_every_result_that_depends_on_it():
    q, k, v = np.random.default_rng(0).standard_normal((3, 20, 8)).astype(np.float32)
    k[3, 2] = np.nan
    assert np.isnan(FusedAttention(8).attention(q, k, v)).all()
    causal = FusedAttention(8, causal=True).attention(q, k, v)
    assert np.isfinite(causal[:3]).all() and np.isnan(causal[3:]).all()


def test_memory_is_that_of_a_tile():
    q, k, v = np.random.default_rng(0).standard_normal((3, 2000, 16)).astype(np.float32)
    FusedAttention().attention(q, k, v)
    tracemalloc.start()
    FusedAttention().attention(q, k, v)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * 2000 * 4 / 5


def test_traffic_by_counting_passes():
    n, d, rows = 64, 8, 16
    fused = n * d  # queries
    for _ in range(0, n, rows):
        fused += 2 * n * d  # keys and values, for each block of queries
    assert memory_access(n, d, 4 * d * rows)["fused"] == fused + n * d  # and the results
    assert memory_access(n, d, 4 * d * rows)["unfused"] == 4 * n * d + 4 * n * n


def test_bad_operands_are_named():
    x = np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match="block: expected a positive number of keys, got 0"):
        FusedAttention(0)
    with pytest.raises(ValueError, match=r"q: expected \('n', 2\), as the keys have, got ndarray of shape \(4, 3\)"):
        FusedAttention().attention(x, x[:, :2], x)
    with pytest.raises(ValueError, match="k: expected at least one key"):
        FusedAttention().attention(x, x[:0], x[:0])
    with pytest.raises(ValueError, match=r"k, v: expected \(\.\.\., m, d\) and"):
        FusedAttention().attention(x, x, x[:2])
    with pytest.raises(ValueError, match="context: expected the pair"):
        FusedAttention().prepare(x)
    context = FusedAttention(64).prepare((np.ones((90, 3)), np.ones((90, 3))))
    with pytest.raises(ValueError, match="v: expected nothing beside a prepared context"):
        FusedAttention(64).attention(x, context, x)
    with pytest.raises(ValueError, match="k: expected a context prepared for blocks of 256 keys"):
        FusedAttention(256).attention(x, context)


def test_a_prepared_context_serves_many_queries_and_keeps_what_it_was_given():
    q, k, v = torch.randn(3, 2, 37, 16)
    operator = FusedAttention(16)
    context, expected = operator.prepare((k, v)), operator.attention(q, k, v)
    k.zero_()
    assert torch.equal(operator.attention(q, context), expected)
