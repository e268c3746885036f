"""The protocol on a trained network: what it promises, and that a store which protects nothing gains nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import datasets
from kernels.implementation.memory.low_voltage_sram import LowVoltageSram
from kernels.implementation.memory.reduced_voltage_dram import ReducedVoltageDram
from kernels.implementation.memory.refresh_relaxation import RefreshRelaxation
from kernels.implementation.memory.zero_space_ecc import ZeroSpaceEcc
from taxonomy.measure.influences.magnitude_pruning__reduced_voltage_dram import WithoutZeros
from taxonomy.measure.protocol import Case, Missing
from taxonomy.measure.protocols.fault import DRAWS, RATES, corrupt, protocol, stores_of, under_faults

NODE = SimpleNamespace(id="zero-space-ecc")
WORKLOAD = datasets.workload("digits-mlp")


def take(subject, rate, seed=0):
    return protocol.quality(Case(NODE, {}, subject, WORKLOAD, {"rate": rate}, seed))


def test_five_rates_and_five_seeds_and_once_no_fault():
    trials = protocol.trials(NODE, {}, WORKLOAD)
    drawn = {(rate, seed) for rate in RATES for seed in range(5)}
    assert {(t.setting["rate"], t.seed) for t in trials} == {(0.0, 0), *drawn}
    assert not any(trial.timing for trial in trials)


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8"])
def test_without_faults_nothing_reads_wrong(format):
    clean = datasets.accuracy(WORKLOAD.trained(), WORKLOAD.data().test)
    values = take(ZeroSpaceEcc(format), 0.0)
    assert values.keys() == {"self", "baseline", "secded"}
    for who in values:
        assert values[who].keys() == set(protocol.metrics)
        assert values[who]["weight_error_rate"] == 0
        assert abs(values[who]["accuracy"] - clean) < 0.02
        assert isinstance(values[who]["energy"], Missing)
        assert values[who]["memory_footprint"] == values[who]["stored_bits"] / 8
    parameters = sum(p.numel() for p in WORKLOAD.trained().parameters())
    assert 1.12 < values["secded"]["stored_bits"] / values["self"]["stored_bits"] < 1.13
    width = {"float32": 32, "bfloat16": 16, "int8": 8}[format]
    assert values["baseline"]["stored_bits"] == width * parameters + (32 * 6 if format == "int8" else 0)


def test_protection_is_what_makes_the_difference():
    protected, nothing = take(ZeroSpaceEcc("bfloat16"), 1e-3), take(ZeroSpaceEcc("bfloat16", "none"), 1e-3)
    assert protected["self"]["weight_error_rate"] < protected["baseline"]["weight_error_rate"] / 3
    assert protected["self"]["accuracy"] > protected["baseline"]["accuracy"] + 0.2
    assert nothing["self"] == nothing["baseline"] == protected["baseline"]
    assert take(ZeroSpaceEcc("bfloat16"), 1e-3) == protected  # bit for bit for a seed
    assert take(ZeroSpaceEcc("bfloat16"), 1e-3, seed=1) != protected


def test_a_repetition_is_the_mean_of_its_draws_and_shares_none_with_another():
    """Taken one by one; what nothing was flipped in is evaluated once and counted each time."""
    store = ZeroSpaceEcc("bfloat16", "none")
    for rate, seed in ((1e-5, 0), (1e-3, 3)):
        right, wrong = [], []
        for draw in range(seed * DRAWS, seed * DRAWS + DRAWS):
            network = WORKLOAD.trained()
            wrong.append(corrupt(network, store, rate, draw) / sum(p.numel() for p in network.parameters()))
            right.append(datasets.accuracy(network, WORKLOAD.data().test))
        found = under_faults(WORKLOAD, store, rate, seed)
        assert found == pytest.approx({"accuracy": sum(right) / DRAWS, "weight_error_rate": sum(wrong) / DRAWS})


def test_repetitions_see_the_rare_fault_that_ruins():
    """At one flip in 10^5, some weight's top exponent bit flips in four draws of a hundred: 2.4 points in the mean."""
    found = [under_faults(WORKLOAD, ZeroSpaceEcc("bfloat16", "none"), 1e-5, seed)["accuracy"] for seed in range(10)]
    clean = datasets.accuracy(WORKLOAD.trained(), WORKLOAD.data().test)
    assert clean - sum(found) / len(found) > 0.005


def test_a_technique_sets_its_rates_and_draws():
    node = SimpleNamespace(id="low-voltage-sram", settings={"rates": [0.01], "draws": 2})
    assert {(t.setting["rate"], t.seed) for t in protocol.trials(node, {}, WORKLOAD)} == {
        (0.0, 0),
        *((0.01, seed) for seed in range(5)),
    }
    sram = LowVoltageSram()
    values = protocol.quality(Case(node, {}, sram, WORKLOAD, {"rate": 0.01}, 1))
    assert values.keys() == {"self", "baseline", "word-mask"}
    found = under_faults(WORKLOAD, sram, 0.01, 1, draws=2)
    assert found == {name: values["self"][name] for name in found}
    assert values["self"]["energy"] == sram.energy(values["self"]["stored_bits"], 0.01)
    assert isinstance(protocol.quality(Case(node, {}, sram, WORKLOAD, {"rate": 0.1}, 1))["self"]["energy"], Missing)


def test_tensors_are_mapped_on_validation_data_alone():
    class Guarded:
        """A workload whose test data nobody may see."""

        def trained(self):
            return WORKLOAD.trained()

        def data(self):
            return SimpleNamespace(validation=WORKLOAD.data().validation)

    dram = ReducedVoltageDram("float32")
    stores = stores_of(Guarded(), dram, 0.03)
    assert [store.reduced for store in stores] == [store.reduced for store in stores_of(WORKLOAD, dram, 0.03)]
    assert any(store.reduced for store in stores) and not all(store.reduced for store in stores)
    node = SimpleNamespace(id="reduced-voltage-dram", settings={"draws": 2})
    values = protocol.quality(Case(node, {}, dram, WORKLOAD, {"rate": 0.03}, 0))
    assert (
        values["self"]["relaxed_share"] < values["bounded"]["relaxed_share"] < values["baseline"]["relaxed_share"] == 1
    )
    assert values["self"]["accuracy"] > values["bounded"]["accuracy"] > values["baseline"]["accuracy"]


def test_refreshes_are_those_of_the_parameters():
    node = SimpleNamespace(id="refresh-relaxation", settings={"draws": 1})
    values = protocol.quality(Case(node, {}, RefreshRelaxation(interval=8), WORKLOAD, {"rate": 0.0}, 0))
    assert values["baseline"]["refresh_rate"] == pytest.approx(1 / 8)
    share = values["self"]["relaxed_share"]
    assert values["self"]["refresh_rate"] == pytest.approx(1 - share + share / 8)


def test_where_zeros_are_not_stored_they_stay_zeros():
    pruned = torch.tensor([[0.0, 0.5, 0.0], [-0.25, 0.0, 0.75]])
    store = WithoutZeros(ReducedVoltageDram(mapping=False))
    stored = store.protect(pruned)
    assert stored[1].words.shape == (3, 1)
    assert np.array_equal(store.recover(stored), pruned)
    assert np.array_equal(store.recover(store.corrupt(stored, 0.3, (0,)))[pruned == 0], np.zeros(3))
    assert not np.array_equal(store.recover(store.corrupt(stored, 0.3, (0,))), pruned)
