"""Up to which expansion does a network of inverted residuals need less memory than the standard one, both planned?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernels.implementation.memory.memory_planning import MemoryPlanning
from kernels.model.block import substitute
from kernels.model.compact_convolution.batch_norm_folding import BatchNormFolding
from kernels.model.compact_convolution.inverted_residual import InvertedResidual
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

EXPANSIONS = (1, 2, 3, 4, 6, 8)


class Experiment(Protocol):
    kind = "inverted-residual--memory-planning"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        # the counts are the same each time: there is nothing random
        return [
            Trial({"method": "exact", "expansion": expansion}, seed)
            for seed in range(REPETITIONS)
            for expansion in EXPANSIONS
        ]

    def quality(self, case: Case) -> Values:
        plan, shape = MemoryPlanning(case.setting["method"]), case.workload.input_shape
        standard = case.workload.network()
        block = InvertedResidual(case.setting["expansion"])
        networks = {"self": substitute(standard, block, shape), "baseline": standard}
        values: Values = {}
        for who, network in networks.items():
            counts = plan.cost_network(BatchNormFolding().apply(network), shape)
            values[who] = {"memory_footprint": counts.arena + counts.parameter_bytes}
        return values


protocol = Experiment()
