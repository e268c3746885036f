"""Up to which bit-error rate do check bits in the spare bits of bfloat16 weights keep the network alive?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernels.implementation.memory.zero_space_ecc import ZeroSpaceEcc
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values
from taxonomy.measure.protocols.fault import under_faults

RATES = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1)


class Experiment(Protocol):
    kind = "bfloat16--zero-space-ecc"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"rate": rate}, seed) for rate in RATES for seed in range(2 * REPETITIONS)]

    def quality(self, case: Case) -> Values:
        protected = ZeroSpaceEcc(format="bfloat16")
        values: Values = {}
        for who, store in (("self", protected), ("baseline", protected.unprotected())):
            found = under_faults(case.workload, store, case.setting["rate"], case.seed)
            values[who] = {"accuracy": found["accuracy"]}
        return values


protocol = Experiment()
