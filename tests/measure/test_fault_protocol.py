"""The protocol on a trained network: what it promises, and that a store which protects nothing gains nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import datasets
from kernels.implementation.memory.zero_space_ecc import ZeroSpaceEcc
from taxonomy.measure.protocol import Case, Missing
from taxonomy.measure.protocols.fault import DRAWS, RATES, corrupt, protocol, under_faults

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
