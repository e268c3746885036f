"""Split inference: the first layers run on a device, the rest on a server, and one activation crosses the link."""

from __future__ import annotations

import contextlib
import copy
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from statistics import median
from time import perf_counter, sleep
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from kernels.chain import links
from kernels.counting import macs
from kernels.implementation.compilation.platform_choice import PLATFORMS, Platform
from kernels.implementation.distributed.workers import _context
from kernels.model.architecture_search.random_search import History, best, evaluated

__all__ = ["Halves", "Link", "Parts", "SplitInference", "SplitProblem", "layer_seconds", "seconds_of_cuts"]

NUMBER = 4
"""Bytes of a number that is sent: FP32."""


def seconds_of_cuts(
    device: Sequence[float], server: Sequence[float], sent: Sequence[float], bandwidth: float
) -> np.ndarray:
    """How long an item takes if the first c layers run on the device and the others on the server, for every c.

    Parameters
    ----------
    device, server : sequences of float
        Seconds of each of n layers, on either side.
    sent : sequence of float
        Bytes that cross the link if the network is cut before layer 0, 1, ... n, the answer on its way back included.
    bandwidth : float
        Bytes a second.

    Returns
    -------
    ndarray of float64, shape (n + 1,)

    Examples
    --------
    >>> seconds_of_cuts(device=[2.0, 5.0], server=[1.0, 1.0], sent=[10.0, 2.0, 0.0], bandwidth=2.0)
    array([7., 4., 7.])
    """
    near = np.concatenate([[0.0], np.cumsum(device)])
    far = np.concatenate([np.cumsum(server[::-1])[::-1], [0.0]])
    return near + np.asarray(sent, np.float64) / bandwidth + far


def layer_seconds(network: nn.Module, shape: Sequence[int], rounds: int = 9) -> list[float]:
    """Measured here and now: how long each layer of a chain takes for one item, the median of some rounds.

    Parameters
    ----------
    network : nn.Sequential
        Left as it is; timed in evaluation mode.
    shape : sequence of int
        Of one item.
    rounds : int

    Raises
    ------
    TypeError
        If the network is no chain.
    ValueError
        If there is no round.

    Examples
    --------
    With a device of a tenth of this machine's speed, and a link of one megabyte a second:

    >>> chain = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    >>> here = layer_seconds(chain, (1, 28, 28))
    >>> cuts = seconds_of_cuts([10 * t for t in here], here, Parts.of(chain, (1, 28, 28)).sent, bandwidth=1e6)
    >>> cuts.shape, int(cuts.argmin()) in range(5)
    ((5,), True)
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds!r}")
    chain = [copy.deepcopy(layer).eval() for layer in links(network)]
    times: list[list[float]] = [[] for _ in chain]
    with torch.no_grad():
        for _ in range(rounds + 1):
            x = torch.zeros(1, *shape)
            for layer, taken in zip(chain, times, strict=True):
                start = perf_counter()
                x = layer(x)
                taken.append(perf_counter() - start)
    return [median(taken[1:]) for taken in times]  # the first round warms up


DEVICE = Platform("an assumed device", "CPU", "fp32", 10e9, 5e9, 2.0, 1e9)
"""Nobody's in particular: ten billion operations and five billion bytes a second."""


@dataclass(frozen=True)
class Link:
    """Two machines and what lies between them.

    Parameters
    ----------
    bandwidth : float
        Bytes a second.
    device, server : Platform
        Rooflines: a layer takes the longer of its arithmetic and its traffic with memory.
    """

    bandwidth: float = 1e6
    device: Platform = DEVICE
    server: Platform = PLATFORMS["gpu"]


@dataclass(frozen=True)
class Parts:
    """What each layer of a chain does for one item.

    Parameters
    ----------
    macs, moved : tuple of int
        Multiply-accumulates of each layer, and bytes of its weights, input and output.
    sent : tuple of int
        Bytes that cross a cut before layer 0, 1, ... and after the last: the activation, and the answer going back.

    Examples
    --------
    >>> Parts.of(nn.Sequential(nn.Linear(8, 2), nn.ReLU()), (8,))
    Parts(macs=(16, 0), moved=(112, 16), sent=(40, 16, 0))
    """

    macs: tuple[int, ...]
    moved: tuple[int, ...]
    sent: tuple[int, ...]

    @classmethod
    def of(cls, network: nn.Module, shape: tuple[int, ...]) -> Parts:
        """Those of a chain, for items of a shape."""
        x, work, moved, sizes = torch.zeros(1, *shape), [], [], []
        with torch.no_grad():
            for layer in links(network):
                layer.eval()
                y = layer(x)
                work.append(macs(layer, x))
                moved.append(NUMBER * (x.numel() + y.numel() + sum(p.numel() for p in layer.parameters())))
                sizes.append(x.numel())
                x = y
        return cls(tuple(work), tuple(moved), (*(NUMBER * (size + x.numel()) for size in sizes), 0))

    def seconds(self, platform: Platform) -> list[float]:
        """Of each layer on a machine."""
        return [
            max(2 * work / platform.peak, moved / platform.bandwidth)
            for work, moved in zip(self.macs, self.moved, strict=True)
        ]


@dataclass(frozen=True)
class SplitProblem:
    """Where a network may be cut between two modelled machines, and how long an item takes: few enough to look at all.

    Parameters
    ----------
    parts : Parts
    link : Link

    Examples
    --------
    >>> chain = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Conv2d(8, 512, 28), nn.Flatten())
    >>> problem = SplitInference().problem({"network": chain, "items": (3, 112, 112), "mbit": 1000})
    >>> problem.best, problem.regret(problem.best)
    ({'cut': 1}, 0.0)
    """

    parts: Parts
    link: Link
    searches: int = 8
    missing: ClassVar[Mapping[str, str]] = {
        "energy": "the table that the house counts energy by says nothing of a radio, which is most of it here"
    }

    @property
    def space(self) -> dict[str, tuple[int, ...]]:
        """Cuts: how many layers run on the device."""
        return {"cut": tuple(range(len(self.parts.macs) + 1))}

    @cached_property
    def seconds(self) -> np.ndarray:
        """Of every cut."""
        device, server = (self.parts.seconds(machine) for machine in (self.link.device, self.link.server))
        return seconds_of_cuts(device, server, self.parts.sent, self.link.bandwidth)

    def predict(self) -> np.ndarray:
        """What a search knows beforehand: seconds of every cut, from those of the layers."""
        return self.seconds

    def task(self, seed: int) -> SplitProblem:
        """What a search may ask for; there is nothing random about it."""
        return self

    def cost(self, candidate: Mapping[str, Any]) -> int:
        """One evaluation."""
        return 1

    def evaluate(self, candidate: Mapping[str, Any]) -> float:
        """Minus the seconds of an item."""
        return -float(self.seconds[candidate["cut"]])

    @property
    def best(self) -> dict[str, int]:
        """The fastest cut."""
        return {"cut": int(np.argmin(self.seconds))}

    def regret(self, candidate: Mapping[str, Any], seed: int = 0) -> float:
        """By what share a cut is slower than the fastest."""
        return float(self.seconds[candidate["cut"]] / self.seconds.min() - 1)

    def figures(self, candidate: Mapping[str, Any], seed: int = 0) -> dict[str, float]:
        """Seconds and bytes of an item at a cut."""
        return {"latency": -self.evaluate(candidate), "bytes_sent": float(self.parts.sent[candidate["cut"]])}


@dataclass(frozen=True)
class SplitInference:
    r"""Cut a chain of layers where an item takes least time, on a device, over a link and on a server.

    .. math:: c^\ast = \arg\min_c \sum_{i < c} t_i^{\text{device}} + \frac{b_c}{B} + \sum_{i \ge c} t_i^{\text{server}}

    for the b_c bytes that cross a cut before layer c, over a link of B bytes a second. Layers are timed once on either
    side; from that follows every cut, and the one that is predicted fastest is tried first.

    Source: Kang et al., "Neurosurgeon", ASPLOS 2017, algorithm 1; there layers' times are themselves predicted, by
    regression on their sizes.

    Examples
    --------
    >>> chain = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    >>> for mbit in (1, 100_000):
    ...     problem = SplitInference().problem({"network": chain, "items": (1, 28, 28), "mbit": mbit})
    ...     SplitInference().search(problem.space, problem, budget=1, seed=0)[0]
    {'cut': 4}
    {'cut': 0}
    """

    def problem(self, shape: Mapping[str, Any]) -> SplitProblem:
        """What is searched: where to cut ``network``, a chain for ``items`` of that shape, over ``mbit`` a second."""
        parts = Parts.of(shape["network"], tuple(shape["items"]))
        return SplitProblem(parts, replace(Link(), bandwidth=shape["mbit"] * 1e6 / 8))

    def search(
        self, space: Mapping[str, tuple[Any, ...]], task: Any, budget: float, seed: int
    ) -> tuple[dict[str, Any], History]:
        """Try cuts in the order of their predicted times, until the budget, or the space, is spent.

        Parameters
        ----------
        space : mapping of str to tuple
            The one choice ``cut``.
        task : object
            ``task.predict()`` gives seconds of every cut, ``task.evaluate(candidate)`` minus the seconds of one,
            ``task.cost(candidate)`` what that costs.
        budget : float
            Evaluations.
        seed : int
            Nothing is drawn.

        Returns
        -------
        best : dict
        history : list of (dict, float, float)

        Raises
        ------
        ValueError
            If the budget does not pay for one evaluation.
        """
        history: History = []
        for at in np.argsort(task.predict(), kind="stable"):
            if not evaluated(task, {"cut": space["cut"][at]}, budget, history):
                break
        return best(history, budget), history


class Halves:
    """A chain in two processes: its first layers here, the others behind a socket on this machine.

    Parameters
    ----------
    network : nn.Sequential
    cut : int
        How many layers run here; with all of them nothing is sent.
    shape : tuple of int
        Of one item.
    bandwidth : float, optional
        Bytes a second: the sender waits as long as a link of that bandwidth would take.

    Raises
    ------
    ValueError
        If there is no such cut.

    Notes
    -----
    The other process is started as those of `workers.Workers` are: a script guards its own start with
    ``if __name__ == "__main__"``.

    Attributes
    ----------
    sent : int
        Bytes of payload that have crossed the link, both ways; the number of items that goes ahead is a header.

    Examples
    --------
    >>> chain, x = nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 3)), torch.ones(5, 8)
    >>> with Halves(chain, cut=2, shape=(8,)) as halves:
    ...     bool((halves(x) == chain(x)).all()), halves.sent
    (True, 100)
    """

    def __init__(self, network: nn.Module, cut: int, shape: tuple[int, ...], bandwidth: float | None = None) -> None:
        chain = links(network)
        if not 0 <= cut <= len(chain):
            raise ValueError(f"cut: expected 0 to {len(chain)}, got {cut!r}")
        self.head, tail = nn.Sequential(*chain[:cut]).eval(), nn.Sequential(*chain[cut:]).eval()
        self.bandwidth, self.sent, self.link = bandwidth, 0, None
        with torch.no_grad():
            crossing = self.head(torch.zeros(1, *shape))
            self.answer = tuple(tail(crossing).shape[1:])
        if not len(tail):
            return
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(60)
            self.process = _context().Process(
                target=_serve, args=(listener.getsockname()[1], tail, tuple(crossing.shape[1:])), daemon=True
            )
            self.process.start()
            self.link, _ = listener.accept()
            self.link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Halves:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the other process."""
        if self.link is not None:
            self.link.close()
            self.process.join(10)
            self.link = None

    def __call__(self, x: Tensor) -> Tensor:
        """The network's answer to a batch."""
        with torch.no_grad():
            y = self.head(x)
        if self.link is None:
            return y
        data = y.contiguous().numpy().tobytes()
        self._wait(len(data))
        self.link.sendall(len(x).to_bytes(8, "little") + data)
        answer = _read(self.link, NUMBER * len(x) * prod(self.answer))
        self._wait(len(answer))
        self.sent += len(data) + len(answer)
        return (torch.frombuffer(answer, dtype=torch.float32) if answer else y.new_empty(0)).reshape(-1, *self.answer)

    def _wait(self, count: int) -> None:
        if self.bandwidth:
            sleep(count / self.bandwidth)

    def seconds(self, x: Tensor, rounds: int = 3) -> float:
        """Of one call, the fastest of some."""
        times = []
        for _ in range(rounds):
            start = perf_counter()
            self(x)
            times.append(perf_counter() - start)
        return min(times)


def _serve(port: int, tail: nn.Module, shape: tuple[int, ...]) -> None:
    """Answer what comes over the link until it is closed."""
    torch.set_num_threads(1)
    with socket.create_connection(("127.0.0.1", port)) as link, contextlib.suppress(ConnectionError), torch.no_grad():
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            count = int.from_bytes(_read(link, 8), "little")
            data = _read(link, NUMBER * count * prod(shape))
            x = torch.frombuffer(data, dtype=torch.float32) if count else torch.empty(0)
            link.sendall(tail(x.reshape(count, *shape)).contiguous().numpy().tobytes())


def _read(link: socket.socket, count: int) -> bytearray:
    data, got = bytearray(count), 0
    while got < count:
        more = link.recv_into(memoryview(data)[got:])
        if not more:
            raise ConnectionError(f"the link was closed after {got} of {count} bytes")
        got += more
    return data
