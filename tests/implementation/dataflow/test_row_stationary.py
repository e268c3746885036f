"""Row-stationary counts beside a walk over every primitive, and limits that hold for any array."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.implementation.dataflow.layer import Layer
from kernels.implementation.dataflow.row_stationary import RowStationary

layers = st.builds(
    lambda c, n, h, w, k, s, p: Layer(c, n, h + k, w + k, kernel=k, stride=s, padding=p),
    st.integers(1, 9), st.integers(1, 20), st.integers(0, 9), st.integers(0, 9), st.integers(1, 5), st.integers(1, 2),
    st.integers(0, 2),
)  # fmt: skip


def walked(model, layer):
    """Every primitive done by hand: cycles, multiplications, and reads of weights and inputs from the buffer."""
    (height, width), tall = layer.output_size(), layer.kernel
    strips = [range(first, min(first + model.columns, height)) for first in range(0, height, model.columns)]
    bands = [range(first, min(first + model.rows, tall)) for first in range(0, tall, model.rows)]
    laid = model.mapping(layer)
    beside = model.columns // min(height, model.columns)
    assert laid.sets == model.rows // min(tall, model.rows) * beside
    planes = list(product(range(layer.out_channels), range(layer.in_channels)))
    cycles = macs = weights = 0
    for strip, band in product(strips, bands):
        for first in range(0, len(planes), laid.sets):
            at_work = planes[first : first + laid.sets]
            cycles += layer.kernel * width  # all elements slide their rows in step
            macs += len(at_work) * len(strip) * len(band) * layer.kernel * width
            weights += len(at_work) * len(band) * layer.kernel  # read once, handed to all columns of the set
    return cycles, macs, weights


@settings(max_examples=80, deadline=None)
@given(layers, st.integers(1, 12), st.integers(1, 14))
def test_cycles_and_weights_of_every_primitive(layer, rows, columns):
    model = RowStationary(rows=rows, columns=columns)
    counts = model.cost(layer)
    cycles, macs, weights = walked(model, layer)
    assert counts.cycles == cycles and counts.macs == macs and counts.sram.filter == weights
    assert counts.utilization <= 1 + 1e-12
    ideal = model.ideal().cost(layer)
    assert counts.cycles >= ideal.cycles and counts.dram.total >= ideal.dram.total


def test_registers_decide_how_often_inputs_come_and_sums_leave():
    layer = Layer(16, 32, 14, 14, kernel=3, padding=1)
    inputs, results = layer.ifmap_elements, 32 * 14 * 14
    few = RowStationary(rows=12, columns=14, psum_words=4, ifmap_words=3).cost(layer)
    many = RowStationary(rows=12, columns=14, psum_words=32, ifmap_words=48, filter_words=4096).cost(layer)
    assert few.sram.ifmap == 8 * inputs and many.sram.ifmap == inputs
    assert few.sram.ofmap == (2 * 16 - 1) * results * 4 and many.sram.ofmap == results * 4


def test_a_filter_taller_than_the_array_is_cut_into_bands_and_groups_add():
    tall = Layer(2, 2, 12, 12, kernel=5)
    assert RowStationary(rows=2, columns=8).mapping(tall).bands == 3
    grouped, single = Layer(6, 6, 8, 8, kernel=3, groups=3), Layer(2, 2, 8, 8, kernel=3)
    model = RowStationary(rows=6, columns=6)
    assert model.cost(grouped).cycles == 3 * model.cost(single).cycles


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="psum_words: expected an integer of at least 1, got 0"):
        RowStationary(psum_words=0)
    with pytest.raises(ValueError, match="convention: SCALE-Sim keeps no rows"):
        RowStationary(convention="scale-sim")
