"""Do the uneven rows of a pruned network leave threads idle that have equal runs of rows?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from kernels.implementation.loops.vectorise_and_thread import split_rows
from kernels.model.pruning.magnitude_pruning import MagnitudePruning
from kernels.model.transform import bake
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

DENSITIES = (0.05, 0.2, 0.5)
THREADS = (2, 4, 8)


class Experiment(Protocol):
    kind = "magnitude-pruning--vectorise-and-thread"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"density": density, "threads": threads}, seed)
            for seed in range(REPETITIONS)
            for density in DENSITIES
            for threads in THREADS
        ]

    def quality(self, case: Case) -> Values:
        workload, seed = case.workload, case.seed
        network = workload.network(seed)
        workload.recipe.train(network, workload.data(), seed=seed)
        pruned = MagnitudePruning(density=case.setting["density"]).apply(network)
        workload.recipe.finetune(pruned, workload.data(), seed=seed)
        threads = case.setting["threads"]
        return {
            who: {"core_utilization": busy(arm, threads)}
            for who, arm in (("self", bake(pruned)), ("baseline", network))
        }


def busy(network: nn.Module, threads: int) -> float:
    """Work over threads times the longest thread's work, layer after layer."""
    work = waited = 0
    for layer in network.modules():
        if isinstance(layer, nn.Linear) and layer.out_features >= threads:
            rows = np.count_nonzero(layer.weight.detach().numpy(), axis=1)
            loads = [int(rows[a:b].sum()) for a, b in split_rows(len(rows), threads)]
            work, waited = work + sum(loads), waited + threads * max(loads)
    return work / waited


protocol = Experiment()
