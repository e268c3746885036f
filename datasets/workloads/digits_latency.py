"""How long the networks of the search space take for one image, and how long each of their operations takes alone.

Two tables of measured seconds. One is looked up: an operation at a place, at a width, with or without norm, timed by
itself; the sum over a network's operations predicts its time without running it. The other holds the time of every
whole network, against which a prediction is judged. Made by ``python -m datasets.make latency`` on the machine that
the card names; another machine has other times.
"""

from __future__ import annotations

import csv
import gc
import io
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from datasets.card import ROOT, read_card, verified_bytes

__all__ = ["Latencies", "latencies", "lowest", "operation_calls", "parts"]

PLACES = {"first": 8, "second": 4, "third": 2}
"""The side of the image at each place."""

PROCESSES, ROUNDS, LEAST = 5, 15, 0.001
"""Processes, rounds in each, seconds that one sample lasts at least."""

Part = tuple[str, str, int, bool]
"""A place, what stands there, the width, whether it is normalized."""


def parts(architecture: Mapping[str, Any]) -> list[Part]:
    """The entries of the look-up table whose times a network's time is the sum of.

    Examples
    --------
    >>> parts({"first": "residual", "second": "identity", "third": "identity", "width": 8, "norm": True})
    [('first', 'residual', 8, True), ('ends', 'ends', 8, False)]
    """
    width, norm = architecture["width"], architecture["norm"]
    chosen = [(place, architecture[place], width, norm) for place in PLACES if architecture[place] != "identity"]
    return [*chosen, ("ends", "ends", width, False)]


@dataclass(frozen=True, eq=False)
class Latencies:
    """Seconds for one image, each measured in several processes.

    Parameters
    ----------
    operations : mapping of Part to tuple of float
        Of each part alone; ``("ends", "ends", width, False)`` is what every network has: the first convolution, the
        pooling, the classifier.
    networks : mapping of tuple to tuple of float
        Of each whole network, by its values in the order of the choices.

    Examples
    --------
    >>> table = latencies()
    >>> small = {"first": "identity", "second": "identity", "third": "identity", "width": 4, "norm": False}
    >>> large = {**small, "first": "residual", "second": "residual", "norm": True}
    >>> table.predicted(small) < table.predicted(large), table.measured(small) < table.measured(large)
    (True, True)
    """

    operations: Mapping[Part, tuple[float, ...]]
    networks: Mapping[tuple[Any, ...], tuple[float, ...]]

    def predicted(self, architecture: Mapping[str, Any]) -> float:
        """The sum of what is looked up: medians over the processes."""
        return sum(median(self.operations[part]) for part in parts(architecture))

    def measured(self, architecture: Mapping[str, Any]) -> float:
        """Of the whole network, the median over the processes."""
        return median(self.networks[tuple(architecture.values())])


def latencies() -> Latencies:
    """The committed tables."""
    card = read_card("workloads")["digits-latency"]
    content = verified_bytes(ROOT / "workloads" / card["file"], card["sha256"], rebuild="latency")
    operations: dict[Part, tuple[float, ...]] = {}
    networks: dict[tuple[Any, ...], tuple[float, ...]] = {}
    for row in csv.DictReader(io.StringIO(content.decode())):
        times = tuple(float(row[f"seconds_{i}"]) for i in range(PROCESSES))
        width, norm = int(row["width"]), row["norm"] == "True"
        if row["of"] == "network":
            networks[row["first"], row["second"], row["third"], width, norm] = times
        else:
            place = row["of"]
            operations[place, row[place] if place in PLACES else place, width, norm] = times
    return Latencies(operations, networks)


def operation_calls() -> dict[Part, Callable[[], Any]]:
    """What is timed for the look-up table: each part alone on one image of its size."""
    from datasets.workloads.digits_search import SPACE, network, operation

    calls: dict[Part, Callable[[], Any]] = {}
    for width in SPACE["width"]:
        bare = {"first": "identity", "second": "identity", "third": "identity", "width": width, "norm": False}
        calls["ends", "ends", width, False] = _call(network(bare), torch.zeros(1, 1, 8, 8))
        for (place, side), norm in itertools.product(PLACES.items(), SPACE["norm"]):
            for name in SPACE[place]:
                if name != "identity":
                    alone = nn.Sequential(*operation(name, width, norm))
                    calls[place, name, width, norm] = _call(alone, torch.zeros(1, width, side, side))
    return calls


def lowest(calls: Mapping[Any, Callable[[], Any]], rounds: int = ROUNDS) -> dict[Any, float]:
    """Seconds of a call of each, the lowest of some rounds in which all take turns: what nothing else disturbed."""
    counts = {}
    for key, call in calls.items():
        call()
        start = perf_counter()
        call()
        counts[key] = max(1, round(LEAST / max(perf_counter() - start, 1e-7)))
    found = dict.fromkeys(calls, float("inf"))
    gc.disable()
    try:
        for turn in range(rounds):
            for key in list(calls)[:: -1 if turn % 2 else 1]:
                call, count = calls[key], counts[key]
                start = perf_counter()
                for _ in range(count):
                    call()
                found[key] = min(found[key], (perf_counter() - start) / count)
    finally:
        gc.enable()
    return found


def once() -> Iterator[tuple[tuple[Any, ...], float]]:
    """Seconds of every part and of every network, in this process: what, the values of the choices, seconds."""
    from datasets.workloads.digits_search import SPACE, network

    torch.set_num_threads(1)
    for (place, name, width, norm), seconds in lowest(operation_calls()).items():
        chosen = [name if place == other else "" for other in PLACES]
        yield (place, *chosen, width, norm), seconds
    x = torch.zeros(1, 1, 8, 8)
    calls = {key: _call(network(dict(zip(SPACE, key, strict=True))), x) for key in itertools.product(*SPACE.values())}
    for key, seconds in lowest(calls).items():
        yield ("network", *key), seconds


def _call(module: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    module.eval()

    def call() -> Any:
        with torch.inference_mode():
            return module(x)

    return call


if __name__ == "__main__":
    for key, seconds in once():
        print(*key, f"{seconds:.4e}", sep=",")
