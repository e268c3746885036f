"""Input-stationary: bytes counted by walking the folds, and by hand at the edge of each buffer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kernels.implementation.dataflow.input_stationary import InputStationary
from kernels.implementation.dataflow.layer import Layer

small, side = st.integers(1, 9), st.integers(1, 4)
LAYER = Layer(64, 64, 56, 56, kernel=3, padding=1)  # m 3136, n 64, k 576; 196 KiB of inputs, 36 KiB of weights
M, N, K = LAYER.gemm_shape()


def tiles(extent: int, step: int) -> list[int]:
    """Sizes of the pieces that an extent is cut into."""
    return [min(step, extent - start) for start in range(0, extent, step)]


@given(m=small, n=small, k=small, rows=side, columns=side)
def test_on_chip_accesses_counted_fold_by_fold(m, n, k, rows, columns):
    ifmap = filters = ofmap = 0
    for c in tiles(m, columns):
        for i, r in enumerate(tiles(k, rows)):
            ifmap += r * c  # loaded
            filters += r * n  # streamed past
            ofmap += c * n * (2 if i else 1)  # written, and read before from the second tile on
    sram = InputStationary(rows, columns).cost_gemm(m, n, k).sram
    assert (sram.ifmap, sram.filter, sram.ofmap) == (ifmap, filters, 4 * ofmap)


def test_windows_come_once_and_share_inputs_where_a_band_stays():
    assert InputStationary(ifmap_kib=21).cost(LAYER).dram.ifmap == 64 * 56 * 56
    assert InputStationary(ifmap_kib=20).cost(LAYER).dram.ifmap == M * K


def test_filters_come_again_for_every_column_tile_unless_all_stay():
    assert InputStationary(filter_kib=72).cost(LAYER).dram.filter == K * N
    assert InputStationary(filter_kib=71).cost(LAYER).dram.filter == K * N * 98


def test_partial_sums_that_do_not_fit_go_out_and_come_back():
    assert InputStationary(ofmap_kib=16).cost(LAYER).dram.ofmap == M * N  # 64 filters x 32 windows x 4 bytes
    assert InputStationary(ofmap_kib=15).cost(LAYER).dram.ofmap == M * N + 2 * (K // 32 - 1) * M * N * 4
