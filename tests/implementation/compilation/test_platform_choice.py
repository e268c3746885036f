"""Rooflines worked by hand, and limits that no machine exceeds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.implementation.compilation.platform_choice import PLATFORMS, Platform, PlatformChoice, choose
from kernels.implementation.dataflow.layer import Layer

TOY = Platform("toy", "toy", "int8", peak=100.0, bandwidth=10.0, power=2.0, clock=1.0)


def test_a_product_by_hand():
    # 2 x 3 x 5: 60 operations, 2 * 5 + 5 * 3 + 2 * 3 bytes: memory takes longer
    cost = PlatformChoice(TOY).cost_gemm(2, 3, 5)
    assert cost.macs == 30 and cost.dram.total == 31
    assert cost.cycles == pytest.approx(3.1) and cost.energy == pytest.approx(6.2)
    assert cost.utilization == pytest.approx(30 / (3.1 * 50))
    # eight such batches share the weights: 480 operations, 8 * 16 + 15 bytes
    shared = PlatformChoice(TOY, batch=8).cost(Layer(5, 3, 2, 1))
    assert shared.dram.total == 8 * 16 + 15 and shared.cycles == pytest.approx(14.3)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(PLATFORMS)), st.integers(1, 300), st.integers(1, 400), st.integers(1, 400))
def test_neither_roof_is_exceeded_and_one_is_touched(name, batch, n, k):
    choice, machine = PlatformChoice(name, batch), PLATFORMS[name]
    layer = Layer.gemm(1, n, k)
    seconds, cost = choice.seconds(layer), choice.cost(layer)
    rate, traffic = 2 * cost.macs / seconds / machine.peak, cost.dram.total / seconds / machine.bandwidth
    assert max(rate, traffic) == pytest.approx(1)
    assert cost.utilization == pytest.approx(rate)
    intensity = 2 * cost.macs / cost.dram.total
    assert (rate > 1 - 1e-9) == (intensity > machine.ridge * (1 - 1e-9))
    assert choice.ideal().cost(layer).utilization == pytest.approx(1)
    assert cost.figures()["sram_access"] is None


def test_layers_add_and_groups_count():
    layers = [Layer(8, 16, 9, 9, kernel=3, padding=1), Layer(16, 16, 9, 9, kernel=3, padding=1, groups=16)]
    choice = PlatformChoice("gpu")
    assert choice.seconds(layers) == pytest.approx(sum(choice.seconds(layer) for layer in layers))
    assert choice.cost(layers[1]).dram.filter == 16 * 9 * 4


def test_the_choice_turns_with_the_batch():
    layer = [Layer.gemm(1, 4096, 4096)]
    assert choose(layer, "time", 1, {n: PLATFORMS[n] for n in ("gpu", "asic")}) == "gpu"
    assert choose(layer, "time", 512, {n: PLATFORMS[n] for n in ("gpu", "asic")}) == "asic"


def test_bad_input_is_named():
    with pytest.raises(
        ValueError, match="platform: expected a Platform or one of cpu, cpu-int8, gpu, asic, got 'fpga'"
    ):
        PlatformChoice("fpga")
    with pytest.raises(ValueError, match="batch: expected an integer of at least 1, got 0"):
        PlatformChoice(batch=0)
    with pytest.raises(ValueError, match="by: expected energy or time, got 'cost'"):
        choose([], by="cost")
