"""What a protocol is: which trials a technique owes, and how one of them is taken.

One protocol a kind. A *quality* trial is deterministic for its seed and may run beside others; a *timing* trial hands
its contestants to the runner, which warms them up and interleaves them. `version` is raised by hand when the meaning
of a figure changes; it is part of every record's fingerprint.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Case", "Contest", "Missing", "Protocol", "Trial", "Values"]

REPETITIONS = 5
"""Seeds of a quality figure that chance touches, and fresh processes of a timing."""


@dataclass(frozen=True)
class Missing:
    """A figure that cannot be had, and why; stored as null beside its reason."""

    reason: str


Values = dict[str, dict[str, float | Missing]]
"""Who (self, baseline, random, a peer's name) to metric to value."""


@dataclass(frozen=True)
class Trial:
    """One record to be made of a technique, a variant and a workload."""

    setting: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    seed: int = 0
    timing: bool = False


@dataclass(frozen=True)
class Case:
    """Everything one trial needs: the node, its implementation at one variant, the workload, the conditions."""

    technique: Any
    variant: Mapping[str, Any]
    subject: Any
    workload: Any
    setting: Mapping[str, Any]
    seed: int


@dataclass(frozen=True)
class Contest:
    """Callables to be timed against each other, round by round.

    `work` is what one call of each does, in `unit`s; throughput is `work` over seconds. `values` are figures that the
    same set-up yields on the way (error, bytes moved). `missing` names contestants that are not here, with the reason.
    `works` says each contestant's own work where they differ: rates are then compared, not times.
    """

    contestants: Mapping[str, Callable[[], Any]]
    work: float
    unit: str
    values: Values = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    works: Mapping[str, float] = field(default_factory=dict)


class Protocol(ABC):
    """How all techniques of one kind are measured."""

    kind: str
    version: int = 1
    metrics: tuple[str, ...] = ()

    @abstractmethod
    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        """The records that this variant owes on this workload."""

    def quality(self, case: Case) -> Values:
        """Take one deterministic trial."""
        raise LookupError(f"the protocol of {self.kind} has no quality trials")

    def contest(self, case: Case) -> Contest:
        """Set up one timing trial."""
        raise LookupError(f"the protocol of {self.kind} has no timing trials")
