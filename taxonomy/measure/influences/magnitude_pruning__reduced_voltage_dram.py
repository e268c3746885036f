"""A pruned and a dense network in DRAM that flips bits, the zeros in that memory too or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from kernels.implementation.memory.reduced_voltage_dram import Bounded, ReducedVoltageDram
from kernels.model.pruning.magnitude_pruning import MagnitudePruning
from kernels.model.transform import bake
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values
from taxonomy.measure.protocols.fault import Given, under_faults

DENSITY = 0.2
DRAWS = 3


@dataclass(frozen=True)
class WithoutZeros:
    """The non-zero weights alone lie in the memory; where they belong is kept elsewhere and never corrupted."""

    store: ReducedVoltageDram

    def protect(self, weights: Any) -> tuple[np.ndarray, Bounded]:
        weights = weights.detach().numpy()
        return weights != 0, self.store.protect(weights[weights != 0])

    def corrupt(
        self, protected: tuple[np.ndarray, Bounded], rate: float, seed: Sequence[int]
    ) -> tuple[np.ndarray, Bounded]:
        return protected[0], self.store.corrupt(protected[1], rate, seed)

    def recover(self, protected: tuple[np.ndarray, Bounded]) -> np.ndarray:
        where, values = protected
        read = np.zeros(where.shape, np.float32)
        read[where] = self.store.recover(values)
        return read


class Tolerance(Protocol):
    """What faults cost the pruned network (`source`, then `both`) and the dense one (`neither`, then `target`)."""

    kind = "magnitude-pruning--reduced-voltage-dram"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"format": format, "zeros": zeros, "rate": rate}, seed)
            for seed in range(2 * REPETITIONS)
            for rate in (1e-3, 1e-2, 3e-2)
            for format in ("float32", "int8")
            for zeros in (True, False)
        ]

    def quality(self, case: Case) -> Values:
        format, zeros, rate = (case.setting[name] for name in ("format", "zeros", "rate"))
        arms = {"neither": (1.0, 0.0), "source": (DENSITY, 0.0), "target": (1.0, rate), "both": (DENSITY, rate)}
        return {
            who: {"accuracy": _accuracy(case.workload, density, case.seed, format, zeros, flipped)}
            for who, (density, flipped) in arms.items()
        }


@lru_cache(maxsize=64)
def _accuracy(workload: Any, density: float, seed: int, format: str, zeros: bool, rate: float) -> float:
    store = ReducedVoltageDram(format, mapping=False)
    own = store if zeros else WithoutZeros(store)
    return under_faults(_network(workload, density, seed), own, rate, seed, DRAWS)["accuracy"]


@lru_cache(maxsize=16)
def _network(workload: Any, density: float, seed: int) -> Given:
    """The trained network, pruned to this density and fine-tuned."""
    network = MagnitudePruning(density=density).apply(workload.trained())
    workload.recipe.finetune(network, workload.data(), seed=seed)
    return Given(bake(network), workload)


protocol = Tolerance()
