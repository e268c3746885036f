"""Input-stationary: bytes by hand at the edge of each buffer."""

from __future__ import annotations

from kernels.implementation.dataflow.input_stationary import InputStationary
from kernels.implementation.dataflow.layer import Layer

LAYER = Layer(64, 64, 56, 56, kernel=3, padding=1)  # m 3136, n 64, k 576; 196 KiB of inputs, 36 KiB of weights
M, N, K = LAYER.gemm_shape()


def test_windows_come_once_and_share_inputs_where_a_band_stays():
    assert InputStationary(ifmap_kib=21).cost(LAYER).dram.ifmap == 64 * 56 * 56
    assert InputStationary(ifmap_kib=20).cost(LAYER).dram.ifmap == M * K


def test_filters_come_again_for_every_column_tile_unless_all_stay():
    assert InputStationary(filter_kib=72).cost(LAYER).dram.filter == K * N
    assert InputStationary(filter_kib=71).cost(LAYER).dram.filter == K * N * 98


def test_partial_sums_that_do_not_fit_go_out_and_come_back():
    assert InputStationary(ofmap_kib=16).cost(LAYER).dram.ofmap == M * N  # 64 filters x 32 windows x 4 bytes
    assert InputStationary(ofmap_kib=15).cost(LAYER).dram.ofmap == M * N + 2 * (K // 32 - 1) * M * N * 4
