"""Does an item that leaves at an exit on the device save what would have crossed the link?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels.chain import links
from kernels.implementation.distributed.split_inference import Parts
from kernels.model.dynamic_inference.early_exit import EarlyExit
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

THRESHOLDS = (0.01, 0.03, 0.1, 0.3, 1.0)


class Experiment(Protocol):
    kind = "early-exit--split-inference"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"threshold": t}, seed) for seed in range(REPETITIONS) for t in THRESHOLDS]

    def quality(self, case: Case) -> Values:
        """Bytes of a test item on average: the network is cut behind its first exit, which stands on the device, and
        items that it is sure of are answered there; without it, all cross."""
        sent, uncertain = _first_exit(case.workload, case.seed)
        stay = float((uncertain >= case.setting["threshold"]).double().mean())
        return {"self": {"bytes_sent": sent * stay}, "baseline": {"bytes_sent": sent}}


@lru_cache(maxsize=4)
def _first_exit(workload: Any, seed: int) -> tuple[float, Tensor]:
    """Bytes that cross the cut, and the entropy of each test item's answer at the exit before it."""
    network, data = workload.network(seed), workload.data()
    workload.recipe.train(network, data, seed=seed)
    exits = EarlyExit(exits=1).apply(network, data)
    parts = Parts.of(network, workload.input_shape)
    with torch.no_grad():
        _, uncertain = exits.exits(torch.tensor(data.test.x))
    return float(parts.sent[len(links(exits.stages[0]))]), uncertain[0]


protocol = Experiment()
