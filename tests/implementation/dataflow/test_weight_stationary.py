"""Weight-stationary: bytes by hand at the edge of each buffer."""

from __future__ import annotations

from kernels.implementation.dataflow.layer import Layer
from kernels.implementation.dataflow.weight_stationary import WeightStationary

LAYER = Layer(64, 64, 56, 56, kernel=3, padding=1)  # m 3136, n 64, k 576; 196 KiB of inputs, 36 KiB of weights
M, N, K = LAYER.gemm_shape()


def test_weights_come_once_and_inputs_once_per_column_tile_unless_they_stay():
    for kib in (1, 1024):
        assert WeightStationary(filter_kib=kib).cost(LAYER).dram.filter == K * N
    # 32 rows take pixels of at most five channels of nine; 16 of the 17 cuts between folds go through a channel
    for kib, fetched in ((392, 1), (391, 2), (31, 2), (30, 2 * 80 / 64), (2, 2 * 80 / 64)):
        assert WeightStationary(ifmap_kib=kib).cost(LAYER).dram.ifmap == 64 * 56 * 56 * fetched
    assert WeightStationary(ifmap_kib=1).cost(LAYER).dram.ifmap == M * K * 2  # five times three rows of 56 do not fit


def test_partial_sums_that_do_not_fit_go_out_and_come_back():
    assert WeightStationary().cost(LAYER).dram.ofmap == M * N
    spilled = WeightStationary(ofmap_kib=32).cost(LAYER).dram.ofmap
    assert spilled == M * N + 2 * (K // 32 - 1) * M * N * 4
    assert WeightStationary(ofmap_kib=1).cost_gemm(1000, 32, 32).dram.ofmap == 32000  # one row tile: finished at once
