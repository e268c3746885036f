"""What does a circuit gain whose products are XNORs, under one table of energies?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernels.energy import ADD_ENERGY, DRAM_ENERGY, mac_energy
from kernels.implementation.compilation.platform_choice import compulsory
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values
from taxonomy.measure.protocols.cost_model import layers_of_workload

COUNTS = {"free": 0.0, "as an 8-bit addition": ADD_ENERGY["int8"]}
"""Joules of a product of signs with its part in the count, which the table does not hold: between its ends."""


class Experiment(Protocol):
    kind = "binarized-network--platform-choice"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"count": count, "counted": counted}, seed)
            for seed in range(REPETITIONS)
            for count in COUNTS
            for counted in ("operations", "bytes too")
        ]

    def quality(self, case: Case) -> Values:
        layers = layers_of_workload(case.workload)
        signs, integers = 0.0, 0.0
        for place, layer in enumerate(layers):
            # the network's own input has eight bits: a sign adds it or subtracts it
            signs += layer.macs * (COUNTS[case.setting["count"]] if place else ADD_ENERGY["int32"])
            integers += layer.macs * mac_energy("int8")
            if case.setting["counted"] == "bytes too":
                bytes_moved = compulsory(layer, 1)  # of eight bits: inputs and results, and weights
                last = place == len(layers) - 1
                signs += DRAM_ENERGY * (
                    bytes_moved.filter / 8
                    + bytes_moved.ifmap / (8 if place else 1)
                    + bytes_moved.ofmap / (1 if last else 8)
                )
                integers += DRAM_ENERGY * bytes_moved.total
        return {"self": {"energy": signs}, "baseline": {"energy": integers}}


protocol = Experiment()
