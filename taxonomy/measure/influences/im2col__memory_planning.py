"""How much more memory does a network need whose convolutions copy their patches, both planned?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernels.implementation.memory.memory_planning import MemoryPlanning, patches
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values


class Experiment(Protocol):
    kind = "im2col--memory-planning"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        # the counts are the same each time: there is nothing random
        return [Trial({"method": "exact"}, seed) for seed in range(REPETITIONS)]

    def quality(self, case: Case) -> Values:
        plan = MemoryPlanning(case.setting["method"])
        network, shape = case.workload.trained(), case.workload.input_shape
        counts = {who: plan.cost_network(network, shape, w) for who, w in (("self", patches), ("baseline", None))}
        return {who: {"memory_footprint": c.arena + c.parameter_bytes} for who, c in counts.items()}


protocol = Experiment()
