"""Two products in one multiplication are both exact: for every triple of bytes, and for sums of up to seven."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kernels.implementation.dataflow.layer import Layer
from kernels.implementation.low_precision_kernels.dsp_packing import DSPPacking, packed_products, packed_sums

BYTES = np.arange(-128, 128)


def test_every_triple_of_bytes():
    """All 2^24 of them, the shared operand in turn."""
    a, b = (x.ravel() for x in np.meshgrid(BYTES, BYTES, indexing="ij"))
    for c in BYTES:
        high, low = packed_products(a, b, np.full_like(a, c))
        assert np.array_equal(high, a * c) and np.array_equal(low, b * c)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 7).flatmap(lambda terms: arrays(np.int64, (3, terms, 5), elements=st.integers(-128, 127))))
def test_sums_of_up_to_seven(operands):
    a, b, c = operands
    high, low = packed_sums(a, b, c)
    assert np.array_equal(high, (a * c).sum(0)) and np.array_equal(low, (b * c).sum(0))


def test_eight_of_the_largest_would_not_fit():
    assert 8 * 128 * 128 >= 2**17 > 7 * 128 * 128
    with pytest.raises(ValueError, match="a: expected at most 7 terms"):
        packed_sums(*np.ones((3, 8), int))


def test_cycles_by_hand_and_where_nothing_is_shared():
    layer = Layer(4, 6, 5, 5, kernel=3)  # 9 pixels, 6 filters, 36 weights each
    assert DSPPacking(10, packed=False).cost(layer).cycles == -(-9 * 6 * 36 // 10)
    assert DSPPacking(10).cost(layer).cycles == -(-9 * 3 * 36 // 10)
    depthwise = Layer(8, 8, 5, 5, kernel=3, groups=8)
    assert DSPPacking(10).cost(depthwise).cycles == DSPPacking(10, packed=False).cost(depthwise).cycles
    for model in (DSPPacking(10), DSPPacking(10, packed=False)):
        for shape in (layer, depthwise):
            assert model.cost(shape).utilization <= 1
            assert model.cost(shape).cycles >= model.ideal().cost(shape).cycles


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="c: expected signed bytes"):
        packed_products([1], [1], [128])
    with pytest.raises(ValueError, match="slices: expected an integer of at least 1, got 0"):
        DSPPacking(0)
