"""What a task is: operands drawn from a seed, one of them constant, and all that an operator is measured against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from taxonomy.measure.protocol import Missing

__all__ = ["Peer", "Shape", "Task", "onednn"]

Shape = Mapping[str, Any]
Peer = Callable[[np.ndarray, np.ndarray, Shape], Callable[[], Any]]
"""Takes the constant operand, which it may bring into a form of its own outside the time, the operand that changes from
call to call, and the shape; gives a call. Raises ImportError where its library, a package of the peer's name, is not
there, and ValueError, with the reason, where it cannot do this."""


def onednn(torch: Any) -> None:
    """Refuse a PyTorch that was built without oneDNN.

    Raises
    ------
    ValueError
    """
    if not torch.backends.mkldnn.is_available():
        raise ValueError("this PyTorch was built without oneDNN")


@dataclass(frozen=True)
class Task(ABC):
    """What one shape asks of an operator, with operands drawn from a seed.

    One operand is constant, as a layer's weights are; it is prepared outside the time. A setting belongs to the task
    with the most `keys` that are all in it; what else the setting says are conditions, which the task may read.

    Attributes
    ----------
    name : str
    keys : frozenset of str
        The keys of the settings that the task answers to.
    peers, baselines : dict of str to Peer
        Contestants by name; a baseline of kinds.yml that is not among `baselines` is looked for among `peers`.
    times_unprepared : bool
        Whether an operator's first variant is timed on two unprepared operands too.
    shape : dict
    constant, varying : ndarray
    """

    name: ClassVar[str]
    keys: ClassVar[frozenset[str]]
    peers: ClassVar[Mapping[str, Peer]]
    baselines: ClassVar[Mapping[str, Peer]] = {}
    times_unprepared: ClassVar[bool] = False

    shape: Shape
    constant: np.ndarray
    varying: np.ndarray

    @classmethod
    @abstractmethod
    def of(cls, shape: Shape, seed: int) -> Self:
        """The task of this shape, its operands drawn from the seed."""

    @abstractmethod
    def call(self, operator: Any, constant: Any) -> Callable[[], Any]:
        """The operator's verb on both operands, the constant one as `prepared` gives it or as it is."""

    @abstractmethod
    def exact(self) -> np.ndarray:
        """The result in float64."""

    @abstractmethod
    def macs(self) -> tuple[int, int]:
        """Multiply-adds of the task, and those whose constant operand is not zero."""

    @property
    @abstractmethod
    def result_shape(self) -> tuple[int, ...]:
        """The shape of the result."""

    def prepared(self, operator: Any) -> Any:
        """The constant operand in the operator's own form."""
        return operator.prepare(self.constant)

    def figures(self, operator: Any, result: Any) -> dict[str, float | Missing]:
        """Figures of this task alone, of an operator or (None) another contestant; they stand over the protocol's."""
        return {}

    def baseline(self, name: str) -> Peer:
        """The contestant that a technique's `baseline` names.

        Raises
        ------
        LookupError
            If this task has none of that name.
        """
        found = self.baselines.get(name) or self.peers.get(name)
        if found is None:
            raise LookupError(
                f"{name}: no baseline of a {self.name}; it has {', '.join([*self.baselines, *self.peers])}"
            )
        return found
