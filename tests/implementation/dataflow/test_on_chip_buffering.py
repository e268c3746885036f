"""Bytes of tiled products beside a walk over the loops, and bounds that no buffer goes below."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.implementation.dataflow.layer import Layer
from kernels.implementation.dataflow.on_chip_buffering import HOLDS, OnChipBuffering
from kernels.implementation.dataflow.tiled_product import (
    OPERANDS,
    ORDERS,
    Tiling,
    best_tiling,
    bytes_of,
    every_tiling,
    least_words,
)

extents = st.integers(1, 9)


def walked(tiling, m, n, k):
    """Run the loops over tiles; one tile of each operand is on chip, and what is not there is fetched."""
    extent = dict(zip("mnk", (m, n, k), strict=True))
    starts = {d: range(0, extent[d], getattr(tiling, d)) for d in "mnk"}
    size = {d: (lambda s, d=d: min(getattr(tiling, d), extent[d] - s)) for d in "mnk"}
    here, words, touched = dict.fromkeys(OPERANDS), dict.fromkeys(OPERANDS, 0), set()
    for place in product(*(starts[d] for d in tiling.order)):
        at = dict(zip(tiling.order, place, strict=True))
        for operand, (a, b) in OPERANDS.items():
            tile = (at[a], at[b])
            if here[operand] != tile:
                count = size[a](at[a]) * size[b](at[b])
                if operand == "ofmap":
                    words[operand] += count * (2 if tile in touched else 1)  # comes back, and leaves again
                    touched.add(tile)
                else:
                    words[operand] += count
                here[operand] = tile
    return words


@settings(max_examples=150, deadline=None)
@given(extents, extents, extents, extents, extents, extents, st.sampled_from(ORDERS))
def test_words_are_those_of_the_loops_walked(m, n, k, tm, tn, tk, order):
    tiling = Tiling(order, min(m, tm), min(n, tn), min(k, tk))
    assert tiling.words(m, n, k) == walked(tiling, m, n, k)


@settings(max_examples=40, deadline=None)
@given(extents, extents, extents, st.sampled_from(ORDERS), st.sampled_from([1, 2, 4]))
def test_many_tiles_at_once_are_each_alone(m, n, k, order, word):
    tiles = every_tiling(m, n, k)
    for tile, found in zip(tiles, bytes_of(order, tiles, m, n, k, word, 4), strict=True):
        words = Tiling(order, *map(int, tile)).words(m, n, k)
        outputs = m * n * word + (words["ofmap"] - m * n) * 4
        assert found == word * (words["ifmap"] + words["filter"]) + outputs


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 200), st.integers(6, 4000))
def test_no_tiling_goes_below_the_bounds_and_every_one_fits(m, n, k, room):
    tiling = best_tiling(m, n, k, room, ORDERS, 1, 1)
    assert tiling.room(1, 1) <= room
    assert sum(tiling.words(m, n, k).values()) >= least_words(m, n, k, room) - 1e-6


def test_a_larger_buffer_never_moves_more_and_the_largest_only_what_must():
    layer = Layer(32, 64, 14, 14, kernel=3, padding=1)
    for hold in HOLDS:
        moved = [OnChipBuffering(hold, kib).cost(layer).dram.total for kib in (1, 2, 4, 8, 32, 128, 1024)]
        assert moved == sorted(moved, reverse=True)
        assert moved[-1] == OnChipBuffering(hold, 1024).ideal().cost(layer).dram.total
    assert OnChipBuffering("any", 2).cost(layer).dram.total == min(
        OnChipBuffering(hold, 2).cost(layer).dram.total for hold in HOLDS
    )


@pytest.mark.parametrize("hold", [hold for hold in HOLDS if hold != "any"])
def test_the_operand_that_is_held_crosses_once(hold):
    layer = Layer.gemm(96, 80, 72)
    words = OnChipBuffering(hold, 1).tiling(layer).words(*layer.gemm_shape())
    operand = {"output": "ofmap", "weight": "filter", "input": "ifmap"}[hold]
    once = {"ofmap": 96 * 80, "filter": 80 * 72, "ifmap": 96 * 72}[operand]
    assert words[operand] == once


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="hold: expected one of output, weight, input, any, got 'row'"):
        OnChipBuffering("row")
    with pytest.raises(ValueError, match="room: 3 bytes do not hold a tile"):
        best_tiling(4, 4, 4, 3, ORDERS, 1, 4)
    assert np.array_equal(every_tiling(1, 1, 1), [[1, 1, 1]])
