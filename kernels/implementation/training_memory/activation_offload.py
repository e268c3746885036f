"""Activation offload: what the backward pass reads waits in a larger, slower memory."""

from __future__ import annotations

import copy
import os
import tempfile
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.implementation.training_memory.saved_tensors import Keeping

__all__ = ["ActivationOffload", "Offloaded", "Slot", "Swap"]


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a tensor lies in a swap file."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype


class Swap:
    """A temporary file that tensors are written to and read from; it goes with the object.

    Attributes
    ----------
    sent, fetched : int
        Bytes written and read so far.

    Examples
    --------
    >>> swap = Swap()
    >>> slot = swap.write(torch.arange(6.0).view(2, 3).T)
    >>> swap.read(slot), swap.sent
    (tensor([[0., 3.],
            [1., 4.],
            [2., 5.]]), 24)
    """

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        weakref.finalize(self, self.file.close)
        self.sent = self.fetched = self.end = self.live = 0

    def write(self, x: Tensor) -> Slot:
        """Put a tensor into the file."""
        x = x.contiguous()
        slot = Slot(self.end, x.shape, x.dtype)
        _whole(os.pwritev, self.file.fileno(), x, slot.offset)
        self.sent, self.end, self.live = self.sent + x.nbytes, self.end + x.nbytes, self.live + 1
        weakref.finalize(slot, self._release).atexit = False
        return slot

    def read(self, slot: Slot) -> Tensor:
        """The tensor of a slot."""
        x = torch.empty(slot.shape, dtype=slot.dtype)
        _whole(os.preadv, self.file.fileno(), x, slot.offset)
        self.fetched += x.nbytes
        return x

    def _release(self) -> None:
        """Begin at the start again once no slot is left, as after every step."""
        self.live -= 1
        self.end = self.end if self.live else 0


def _whole(move: Any, file: int, x: Tensor, offset: int) -> None:
    """Read or write all of a tensor's bytes; the system may move fewer in one call."""
    memory = memoryview(x.view(-1).view(torch.uint8).numpy().data)
    done = 0
    while done < len(memory):
        moved = move(file, [memory[done:]], offset + done)
        if not moved:
            raise OSError(f"swap file: {len(memory) - done} bytes at {offset + done} are missing")
        done += moved


class Offloaded(Keeping):
    """A network whose saved activations wait in a swap file."""

    def __init__(self, network: nn.Module, swap: Swap, smallest: int) -> None:
        super().__init__(network, swap.write, swap.read, max(1, smallest))  # nothing is written of an empty tensor
        self.swap = swap


@dataclass(frozen=True)
class ActivationOffload:
    r"""Train with saved activations written to a file in the forward pass, read again in the backward pass.

    Of the n activations only those that are being used are in memory. The price is two transfers of each, which take

    .. math:: t = \frac{2 \sum_i |x_i|}{B}

    on a link of bandwidth B, hidden as far as the computation of the layers around takes as long. The numbers that come
    back are those that were sent: gradients and weights are those of plain training, to the last bit.

    The papers move activations of a GPU to the memory of its host; here memory plays the device, and a file the host.

    Parameters
    ----------
    smallest : int
        Bytes; a smaller activation stays, since starting a transfer costs more than it frees.

    Source: Rhu et al., "vDNN: Virtualized Deep Neural Networks for Scalable, Memory-Efficient Neural Network Design",
    MICRO 2016, section III.

    Examples
    --------
    >>> chain = nn.Sequential(nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 10))
    >>> away = ActivationOffload().wrap(chain)
    >>> away(torch.ones(32, 64)).sum().backward()
    >>> away.swap.sent, away.swap.fetched  # the sigmoid's output, which two layers read
    (8192, 16384)
    """

    smallest: int = 4096

    def __post_init__(self) -> None:
        if not (isinstance(self.smallest, int) and self.smallest >= 0):
            raise ValueError(f"smallest: expected a number of bytes, 0 or more, got {self.smallest!r}")

    def wrap(self, network: nn.Module) -> Offloaded:
        """The network with its own parameters; what it saves goes to the file `swap` of the result."""
        return Offloaded(network, Swap(), self.smallest)

    def run(self, recipe: Any, network: nn.Module, data: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train a copy of the network by the recipe.

        Parameters
        ----------
        recipe : datasets.Recipe
            Anything whose ``train(network, data)`` trains in place and gives a trace.
        network : nn.Module
            Left as it is.
        data : datasets.Data

        Returns
        -------
        network : nn.Module
            The trained copy, plain again.
        trace : list of dict
            What the recipe reports.
        """
        network = copy.deepcopy(network)
        trace = recipe.train(self.wrap(network), data)
        network.train(False)
        return network, trace
