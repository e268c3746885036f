"""Cycles of the sparse engine beside a count of every pair, window by window and filter by filter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.implementation.dataflow.layer import Layer, ValuedLayer
from kernels.implementation.sparsity.two_sided_sparsity import TwoSidedSparsity, matches


def layer_of(m, n, k, density, groups=1, items=2, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((groups, n, k)) * (rng.random((groups, n, k)) < density)
    inputs = rng.standard_normal((items, groups, m, k)) * (rng.random((items, groups, m, k)) < density)
    return ValuedLayer(k * groups, n * groups, m, 1, groups=groups, weights=weights, inputs=inputs)


def walked(model, layer):
    """Every element of every tile looks at every place."""
    total = pairs = 0
    items, groups, m, k = layer.inputs.shape
    n = layer.weights.shape[1]
    for item in range(items):
        for g in range(groups):
            for r0 in range(0, m, model.rows):
                for c0 in range(0, n, model.columns):
                    slowest = 1
                    for r in range(r0, min(r0 + model.rows, m)):
                        for c in range(c0, min(c0 + model.columns, n)):
                            there = 0
                            for t in range(k):
                                x = layer.inputs[item, g, r, t] != 0 or model.sides == "weights"
                                w = layer.weights[g, c, t] != 0 or model.sides == "inputs"
                                there += x and w
                            pairs += there
                            slowest = max(slowest, -(-there // model.lanes))
                    total += slowest
    return total / items, pairs / items


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.floats(0, 1), st.integers(1, 2),
    st.sampled_from(["both", "weights", "inputs"]), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4),
)  # fmt: skip
def test_every_pair_counted(m, n, k, density, groups, sides, rows, columns, lanes):
    layer, model = layer_of(m, n, k, density, groups), TwoSidedSparsity(rows, columns, lanes, sides)
    counts = model.cost(layer)
    cycles, pairs = walked(model, layer)
    assert counts.cycles == pytest.approx(cycles) and counts.used == pytest.approx(pairs)
    assert counts.utilization <= 1 + 1e-12


def test_without_zeros_it_is_the_dense_array_and_both_sides_beat_one():
    layer = layer_of(64, 64, 64, 1.0)
    model = TwoSidedSparsity()
    assert model.cost(layer).cycles == model.ideal().cost(layer).cycles == model.cost(Layer.gemm(64, 64, 64)).cycles
    sparse = layer_of(64, 64, 256, 0.3)
    cycles = {sides: TwoSidedSparsity(sides=sides).cost(sparse).cycles for sides in ("both", "weights", "inputs")}
    assert cycles["both"] < min(cycles["weights"], cycles["inputs"]) < model.cost(layer_of(64, 64, 256, 1.0)).cycles


def test_filters_of_like_numbers_wait_less_for_each_other():
    rng = np.random.default_rng(0)
    layer = layer_of(32, 64, 256, 1.0)
    density = rng.permutation(np.linspace(0.05, 0.95, 64))
    weights = layer.weights * (rng.random(layer.weights.shape) < density[None, :, None])
    skewed = ValuedLayer(256, 64, 32, 1, weights=weights, inputs=layer.inputs)
    plain, balanced = (TwoSidedSparsity(balanced=b).cost(skewed) for b in (False, True))
    assert balanced.cycles < 0.8 * plain.cycles and balanced.used == plain.used


def test_zeros_of_both_signs_and_nan():
    assert matches(np.array([[0.0, -0.0, np.nan]]), np.ones((1, 3))).tolist() == [[1]]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="sides: expected both, weights or inputs, got 'none'"):
        TwoSidedSparsity(sides="none")
    with pytest.raises(ValueError, match="lanes: expected an integer of at least 1, got 0"):
        TwoSidedSparsity(lanes=0)
