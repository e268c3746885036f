"""Stalls of an array beside an event-by-event run of its double buffer, and at both ends of the bandwidth."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.implementation.dataflow.layer import Layer
from kernels.implementation.dataflow.systolic_array import DATAFLOWS, StallingArray

shapes = st.tuples(*[st.integers(1, 300)] * 3)


def run(folds, computing, fetching):
    """One fetch at a time, one fold at a time; a half buffer is free once the fold before has left it."""
    fetched_at = computed_at = 0.0
    starts = []
    for fold in range(folds):
        free = starts[fold - 1] if fold else 0.0  # the half that the fold before the last used
        fetched_at = max(fetched_at, free) + fetching
        starts.append(max(fetched_at, computed_at))
        computed_at = starts[-1] + computing
    return computed_at


@settings(max_examples=80, deadline=None)
@given(shapes, st.sampled_from(sorted(DATAFLOWS)), st.sampled_from([1, 4, 32]), st.floats(0.1, 500))
def test_the_closed_form_is_the_double_buffer_run_event_by_event(shape, flow, size, bandwidth):
    model = StallingArray(flow, size, size, bandwidth)
    counts = model.cost_gemm(*shape)
    plain = DATAFLOWS[flow](rows=size, columns=size)
    never = plain.cost_gemm(*shape)
    row_folds, column_folds, _ = plain._folds(*shape)
    folds = row_folds * column_folds
    expected = run(folds, never.cycles / folds, never.dram.total / (folds * bandwidth))
    assert counts.cycles == pytest.approx(expected)
    assert counts.stalls == pytest.approx(expected - never.cycles) and counts.dram == never.dram
    assert counts.cycles >= max(never.cycles, never.dram.total / bandwidth) * (1 - 1e-12)


def test_a_fast_memory_is_never_waited_for_and_a_slow_one_sets_the_time():
    layer = Layer(64, 64, 28, 28, kernel=3, padding=1)
    fast, slow = StallingArray(bandwidth=1e12).cost(layer), StallingArray(bandwidth=1e-3).cost(layer)
    assert fast.stalls == pytest.approx(0, abs=1e-3)
    assert slow.cycles == pytest.approx(slow.dram.total / 1e-3, rel=0.01)
    assert slow.figures()["stall_cycles"] == slow.stalls


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="dataflow: expected weight, output, input, got 'row'"):
        StallingArray("row")
    with pytest.raises(ValueError, match="bandwidth: expected bytes a cycle, above 0, got 0"):
        StallingArray(bandwidth=0)
    with pytest.raises(ValueError, match="rows"):
        StallingArray(rows=0)
