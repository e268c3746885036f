"""The protocol on the workloads' own layers: totals known from elsewhere, and every figure it promises."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import yaml

import datasets
from kernels.arithmetic.approximate_arithmetic.essential_bits import EssentialBits
from kernels.counting import macs, parameters
from kernels.implementation.dataflow.weight_stationary import WeightStationary
from kernels.implementation.memory.memory_planning import MemoryPlanning
from kernels.implementation.memory.processing_in_memory import ProcessingInMemory
from taxonomy.load import ROOT
from taxonomy.measure.protocol import Case, Missing
from taxonomy.measure.protocols.cost_model import layers_of_workload, protocol, valued_layers_of

RESNET = yaml.safe_load((ROOT / "workloads.yml").read_text())["resnet18-layers"]
WORKLOADS = {
    "mnist-cnn": datasets.workload("mnist-cnn"),
    "resnet18-layers": SimpleNamespace(id="resnet18-layers", settings=RESNET["settings"]),
}
NODE = SimpleNamespace(id="weight-stationary", peers=("scale-sim",), settings={})


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS.keys())
def test_every_metric_of_every_trial(workload):
    cycles = []
    for trial in protocol.trials(NODE, {}, workload):
        values = protocol.quality(Case(NODE, {}, WeightStationary(), workload, trial.setting, trial.seed))
        own, ideal = values["self"], values["baseline"]
        assert own.keys() == ideal.keys() == set(protocol.metrics)
        assert own["macs"] == ideal["macs"]
        for metric in ("cycles", "memory_access", "sram_access", "energy"):
            assert own[metric] >= ideal[metric] > 0
        assert 0 < own["core_utilization"] <= ideal["core_utilization"] <= 1
        assert isinstance(values["scale-sim"]["cycles"], Missing)
        cycles.append(own["cycles"])
    assert cycles == sorted(cycles, reverse=True) and len(cycles) == 4


@dataclass(frozen=True)
class Starved(WeightStationary):
    """Waits for its memory: a field, a figure and a size that no other model has."""

    bytes_a_cycle: int = 16
    missing: ClassVar[dict[str, str]] = {"energy": "memory that waits is not in the table"}

    def cost_of(self, layer):
        counts = super().cost_of(layer)
        cycles = max(counts.cycles, -(-counts.dram.total // self.bytes_a_cycle))
        return replace(counts, cycles=cycles, slots=cycles * self.rows * self.columns, energy=None)


def test_a_model_brings_its_own_sizes_and_reasons():
    workload = WORKLOADS["resnet18-layers"]
    node = SimpleNamespace(id="starved", peers=(), settings={"sizes": [{"bytes_a_cycle": 1}, {"bytes_a_cycle": 10**9}]})
    slow, fast = (
        protocol.quality(Case(node, {}, Starved(), workload, trial.setting, trial.seed))
        for trial in protocol.trials(node, {}, workload)
    )
    assert slow["self"]["cycles"] >= slow["self"]["memory_access"] > fast["self"]["cycles"] > fast["baseline"]["cycles"]
    assert fast["self"]["cycles"] == WeightStationary().cost(layers_of_workload(workload)).cycles
    assert isinstance(slow["self"]["energy"], Missing) and "waits" in slow["self"]["energy"].reason


def test_layers_are_those_that_others_count():
    resnet = layers_of_workload(WORKLOADS["resnet18-layers"])
    assert len(resnet) == 21
    assert sum(layer.macs for layer in resnet) == 1_814_073_344  # exact count of convolutions and the linear layer
    workload = WORKLOADS["mnist-cnn"]
    own = sum(layer.macs for layer in layers_of_workload(workload))
    assert own == macs(workload.network(), torch.zeros(1, *workload.input_shape))


def test_a_model_that_needs_numbers_is_given_the_networks_own():
    workload = WORKLOADS["mnist-cnn"]
    layers = valued_layers_of(workload)
    assert [layer.gemm_shape() for layer in layers] == [layer.gemm_shape() for layer in layers_of_workload(workload)]
    head = [m for m in workload.trained().modules() if isinstance(m, torch.nn.Linear)][-1]
    assert torch.equal(torch.from_numpy(layers[-1].weights[0]), head.weight.detach())
    node = SimpleNamespace(id="essential-bits", peers=(), settings={})
    for trial in protocol.trials(node, {}, workload):
        values = protocol.quality(Case(node, {}, EssentialBits(), workload, trial.setting, trial.seed))
        own, parallel = values["self"], values["baseline"]
        assert own.keys() == parallel.keys() == {*protocol.metrics, "essential_bits"}
        assert own["essential_bits"] == parallel["essential_bits"] < 16
        assert 0 < parallel["core_utilization"] < own["core_utilization"] < 1
        assert isinstance(own["energy"], Missing) and "no cited energy" in own["energy"].reason
    assert not hasattr(valued_layers_of(WORKLOADS["resnet18-layers"])[0], "weights")


def test_a_model_that_multiplies_answers_and_chance_is_repeated():
    workload = datasets.workload("digits-mlp")
    node = SimpleNamespace(
        id="crossbars", peers=(), settings={"sizes": [{"rows": 64}], "items": 40, "seeds": 2},
        reference=lambda **variant: ProcessingInMemory(**variant),
    )  # fmt: skip
    (trial,) = protocol.trials(node, {}, workload)
    values = protocol.quality(Case(node, {}, ProcessingInMemory(), workload, trial.setting, trial.seed))
    assert values["self"]["accuracy"] == values["baseline"]["accuracy"] > 0.9 and values["self"]["sqnr"] > 20
    assert isinstance(values["self"]["energy"], Missing)
    noisy = {"variation": 0.3}
    first, second = (
        protocol.quality(Case(node, noisy, ProcessingInMemory(**noisy), workload, trial.setting, trial.seed))["self"]
        for trial in protocol.trials(node, noisy, workload)
    )
    assert first["sqnr"] != second["sqnr"] and max(first["sqnr"], second["sqnr"]) < values["self"]["sqnr"]
    (trial,) = protocol.trials(node, noisy, WORKLOADS["resnet18-layers"])  # no answers, and nothing random
    assert trial.setting == {"rows": 64}


def test_a_model_of_connections_is_given_the_network():
    node = SimpleNamespace(id="plans", peers=(), settings={"sizes": [{"align": 1}]})
    workload = WORKLOADS["mnist-cnn"]
    (trial,) = protocol.trials(node, {}, workload)
    values = protocol.quality(Case(node, {}, MemoryPlanning(), workload, trial.setting, trial.seed))
    network = workload.trained()
    plan = MemoryPlanning(align=1).cost_network(network, workload.input_shape)
    assert values["self"]["peak_activation_bytes"] == values["baseline"]["peak_activation_bytes"] == plan.arena
    assert values["self"]["memory_footprint"] == plan.arena + 4 * parameters(network)
    assert isinstance(values["self"]["cycles"], Missing)
