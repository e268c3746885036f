"""Weights in DRAM that flips bits, as INT8 and as floats, read as they are or bounded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from kernels.implementation.memory.reduced_voltage_dram import ReducedVoltageDram
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values
from taxonomy.measure.protocols.fault import under_faults

DRAWS = 3


class Beside(Protocol):
    """Every tensor in the reduced partition: at which rates does an integer (`self`) outlive a float (`baseline`)?"""

    kind = "int8--reduced-voltage-dram"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [
            Trial({"beside": format, "bounded": bound, "rate": rate}, seed)
            for seed in range(REPETITIONS)
            for rate in (1e-4, 1e-3, 1e-2)
            for bound in (False, True)
            for format in ("float32", "bfloat16")
        ]

    def quality(self, case: Case) -> Values:
        bound, rate = case.setting["bounded"], case.setting["rate"]
        arms = {"self": "int8", "baseline": case.setting["beside"]}
        return {
            who: {"accuracy": _accuracy(case.workload, format, bound, rate, case.seed)} for who, format in arms.items()
        }


@lru_cache(maxsize=64)
def _accuracy(workload: Any, format: str, bound: bool, rate: float, seed: int) -> float:
    store = ReducedVoltageDram(format, bound=bound, mapping=False)
    return under_faults(workload, store, rate, seed, DRAWS)["accuracy"]


protocol = Beside()
