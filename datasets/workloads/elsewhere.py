"""Networks that were trained elsewhere: their answers on real inputs, without labels and without a recipe."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property

import numpy as np
from torch import Tensor, nn

__all__ = ["TrainedElsewhere"]


class TrainedElsewhere:
    """A trained network with inputs of its kind: how faithful a changed copy is can be asked, how right it is cannot.

    Parameters
    ----------
    id : str
    network : callable
        Takes no argument and gives the network with its trained weights. It raises
        `datasets.card.NotInstalled` where these come from a package that is not here.
    inputs : callable
        Gives two float32 arrays: items to choose scales on, and items to see the answers to.
    few : int
        Of so many of the latter, the numbers inside the network are looked at.
    decide : callable
        From outputs to decisions, which agree or do not.

    Examples
    --------
    >>> import datasets
    >>> speech = datasets.workload("silero-vad")
    >>> speech.items.shape, speech.items.dtype
    ((6, 24576), dtype('float32'))
    """

    def __init__(
        self,
        id: str,
        network: Callable[[], nn.Module],
        inputs: Callable[[], tuple[np.ndarray, np.ndarray]],
        few: int,
        decide: Callable[[Tensor], Tensor],
    ) -> None:
        self.id, self.few, self.decide = id, few, decide
        self._network, self._inputs = network, inputs

    def __repr__(self) -> str:
        return f"TrainedElsewhere({self.id!r})"

    def trained(self) -> nn.Module:
        """The network in evaluation mode; a fresh copy each time."""
        return copy.deepcopy(self._trained)

    @property
    def calibration(self) -> np.ndarray:
        """Items to choose scales on; read-only."""
        return self._both[0]

    @property
    def items(self) -> np.ndarray:
        """Items to see the answers to; read-only."""
        return self._both[1]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one item."""
        return self.items.shape[1:]

    @cached_property
    def _trained(self) -> nn.Module:
        return self._network().eval()

    @cached_property
    def _both(self) -> tuple[np.ndarray, np.ndarray]:
        both = self._inputs()
        for part in both:
            part.flags.writeable = False
        return both
