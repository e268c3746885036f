"""Output-stationary: bytes by hand at the edge of each buffer."""

from __future__ import annotations

from kernels.implementation.dataflow.layer import Layer
from kernels.implementation.dataflow.output_stationary import OutputStationary

LAYER = Layer(64, 64, 56, 56, kernel=3, padding=1)  # m 3136, n 64, k 576; 196 KiB of inputs, 36 KiB of weights
M, N, K = LAYER.gemm_shape()


def test_partial_sums_never_leave_unfinished():
    for kib in (1, 1024):
        assert OutputStationary(ofmap_kib=kib).cost(LAYER).dram.ofmap == M * N


def test_filters_come_again_for_every_row_tile_unless_a_column_tile_stays():
    assert OutputStationary(filter_kib=36).cost(LAYER).dram.filter == K * N  # 18 KiB a column tile
    assert OutputStationary(filter_kib=35).cost(LAYER).dram.filter == K * N * 98


def test_inputs_stay_whole_or_by_the_band_or_not_at_all():
    unique = 64 * 56 * 56
    assert OutputStationary(ifmap_kib=392).cost(LAYER).dram.ifmap == unique
    assert OutputStationary(ifmap_kib=391).cost(LAYER).dram.ifmap == 2 * unique  # two column tiles
    assert OutputStationary(ifmap_kib=21).cost(LAYER).dram.ifmap == 2 * unique  # three rows of 3.5 KiB fit its half
    assert OutputStationary(ifmap_kib=20).cost(LAYER).dram.ifmap == 2 * M * K
