"""What the experiments of protected weights share: accuracy under faults, with check bits in a format and without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values
from taxonomy.measure.protocols.fault import under_faults

__all__ = ["Faults"]


@dataclass(frozen=True)
class Faults(Protocol):
    """Up to which bit-error rate do check bits in spare bits of weights keep the network alive?

    Parameters
    ----------
    kind : str
        The edge's id.
    protected
        The store, which says its unprotected one.
    rates : tuple of float
        Bit-error rates.
    """

    kind: str
    protected: Any
    rates: tuple[float, ...]

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"rate": rate}, seed) for rate in self.rates for seed in range(2 * REPETITIONS)]

    def quality(self, case: Case) -> Values:
        values: Values = {}
        for who, store in (("self", self.protected), ("baseline", self.protected.unprotected())):
            found = under_faults(case.workload, store, case.setting["rate"], case.seed)
            values[who] = {"accuracy": found["accuracy"]}
        return values
