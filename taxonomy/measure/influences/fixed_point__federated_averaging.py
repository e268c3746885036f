"""Do clients that send updates in few bits of fixed point send fewer bytes until the network is good enough?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import datasets
from kernels.implementation.distributed.federated_averaging import FederatedAveraging
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

BITS = (2, 3, 4, 8, 16)

ENOUGH = {"digits-mlp": 0.8, "noisy-digits-cnn": 0.65}
"""Accuracy on validation that ends a training; in FP32 it takes about half of the rounds."""


class Experiment(Protocol):
    kind = "fixed-point--federated-averaging"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"bits": bits}, seed) for seed in range(REPETITIONS) for bits in BITS]

    def quality(self, case: Case) -> Values:
        arms = {"self": case.setting["bits"], "baseline": 32}
        return {who: {"bytes_sent": _bytes(case.workload, bits, case.seed)} for who, bits in arms.items()}


@cache
def _bytes(workload: Any, bits: int, seed: int) -> float:
    """What a client sends until the server's network is good enough, who holds what being drawn anew for each seed."""
    recipe = replace(workload.recipe, seed=seed)
    federated, sent = FederatedAveraging(bits=bits, seed=seed), 0.0
    for network, turn in federated.rounds(recipe, workload.network(seed), workload.data()):
        sent += turn["bytes_sent"]
        if datasets.accuracy(network, workload.data().validation) >= ENOUGH[workload.id]:
            return sent
    raise RuntimeError(f"{workload.id} in {bits} bits, seed {seed}: never good enough in {recipe.epochs} rounds")


protocol = Experiment()
