"""A space of 384 small networks on noisy 8 x 8 digits, every one trained three times: the optimum is known.

A search over it costs lookups, so it can be repeated with many seeds; what it would have cost is counted in epochs of
training. It sees what a real search sees, the validation accuracy of one training; how well it chose is judged by the
mean of the other two, which owe nothing to the luck that made it choose. Made by ``python -m datasets.make search``.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any

import torch
from torch import nn

from datasets.card import ROOT, read_card, verified_bytes
from datasets.data import Data, load
from datasets.workloads.digits_latency import Latencies, latencies
from datasets.workloads.recipe import Recipe, accuracy

__all__ = ["Architecture", "Entry", "SearchWorkload", "Task", "workload"]

Architecture = Mapping[str, Any]
"""One value for each choice of the space."""

OPERATIONS = ("identity", "convolution", "separable", "residual")
SPACE: dict[str, tuple[Any, ...]] = {
    "first": OPERATIONS,
    "second": OPERATIONS,
    "third": OPERATIONS,
    "width": (4, 8, 16),
    "norm": (False, True),
}
SEEDS = (0, 1, 2)
RECIPE = Recipe(epochs=12, batch=32, learning_rate=0.005)
"""By which every network of the table was trained."""


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


def operation(name: str, width: int, norm: bool) -> Iterator[nn.Module]:
    """The modules of one place in the network."""
    if name == "identity":
        return
    convolution = [nn.Conv2d(width, width, 3, padding=1)]
    if name == "separable":
        convolution = [nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, width, 1)]
    modules = [*convolution, *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]
    yield from [Residual(nn.Sequential(*modules))] if name == "residual" else modules


def network(architecture: Architecture) -> nn.Module:
    """An untrained network: a first convolution, three places at three resolutions, a linear classifier."""
    width, norm = architecture["width"], architecture["norm"]
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), *operation(architecture["first"], width, norm),
        nn.MaxPool2d(2), *operation(architecture["second"], width, norm),
        nn.MaxPool2d(2), *operation(architecture["third"], width, norm),
        nn.Flatten(), nn.Linear(4 * width, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One architecture after training: accuracies by seed, size, work for one image, epochs that one training took."""

    validation: tuple[float, ...]
    test: tuple[float, ...]
    parameters: int
    macs: int
    epochs: int


@dataclass(frozen=True)
class Task:
    """What a search may ask for: the validation accuracy of one training, and what that training costs."""

    workload: SearchWorkload
    seed: int

    def evaluate(self, architecture: Architecture) -> float:
        """Validation accuracy after training with the task's seed."""
        return self.workload.entry(architecture).validation[self.seed]

    def cost(self, architecture: Architecture) -> int:
        """Epochs of training that an evaluation takes."""
        return self.workload.entry(architecture).epochs

    @property
    def data(self) -> Data:
        """What networks are trained on; a search that trains or looks at items itself sees train and validation."""
        return load("noisy-digits")

    @property
    def recipe(self) -> Recipe:
        """By which a network is trained in full."""
        return RECIPE

    def network(self, architecture: Architecture, seed: int) -> nn.Module:
        """An untrained network of the space, drawn with a seed."""
        self.workload.entry(architecture)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return network(architecture)

    def latency(self, architecture: Architecture) -> float:
        """Seconds for one image as the look-up table of operations predicts them; nothing is run."""
        return self.workload.latencies.predicted(architecture)


class SearchWorkload:
    """A space of architectures and the table of what became of each; the house's own is `workload`.

    Parameters
    ----------
    id : str
    space : mapping of str to tuple
        The values of each choice.
    entries : mapping of tuple to Entry
        One for each combination of values, in the order of the choices.

    Examples
    --------
    >>> search = workload()
    >>> small = {"first": "identity", "second": "identity", "third": "identity", "width": 4, "norm": False}
    >>> task = search.task(seed=0)
    >>> task.evaluate(small) < task.evaluate(search.best), task.cost(small)
    (True, 12)
    """

    def __init__(self, id: str, space: Mapping[str, tuple[Any, ...]], entries: Mapping[tuple[Any, ...], Entry]) -> None:
        self.id, self.space, self.entries = id, dict(space), entries

    def __repr__(self) -> str:
        return f"SearchWorkload({self.id!r})"

    def entry(self, architecture: Architecture) -> Entry:
        """What the table holds of an architecture.

        Raises
        ------
        ValueError
            If it is not of the space.
        """
        found = self.entries.get(tuple(architecture.get(choice) for choice in self.space))
        if found is None or len(architecture) != len(self.space):
            raise ValueError(f"architecture: expected one value for each choice of {self.space}, got {architecture}")
        return found

    @cached_property
    def latencies(self) -> Latencies:
        """Measured seconds of the space's operations, and of its networks; not of a reader's own space."""
        return latencies()

    def latency(self, architecture: Architecture) -> float:
        """Measured seconds of the whole network for one image, on the machine of the card."""
        self.entry(architecture)
        return self.latencies.measured({choice: architecture[choice] for choice in self.space})

    def task(self, seed: int) -> Task:
        """The task as one training seed shows it; any integer, taken modulo the seeds that there are."""
        return Task(self, seed % len(self.entry(self.best).validation))

    @cached_property
    def best(self) -> dict[str, Any]:
        """The architecture of the highest validation accuracy in the mean over the seeds."""
        values = max(self.entries, key=lambda key: mean(self.entries[key].validation))
        return dict(zip(self.space, values, strict=True))

    def unseen(self, accuracies: tuple[float, ...], seed: int | None = None) -> float:
        """The mean of an entry's accuracies but for the one that ``task(seed)`` shows; without a seed, of all.

        Raises
        ------
        ValueError
            If there is no other.
        """
        kept = [one for i, one in enumerate(accuracies) if seed is None or i != seed % len(accuracies)]
        if not kept:
            raise ValueError(f"accuracies: expected one that task({seed}) does not show, got {accuracies}")
        return mean(kept)

    def regret(self, architecture: Architecture, seed: int | None = None) -> float:
        """By how much the best architecture's mean validation accuracy exceeds this one's.

        Parameters
        ----------
        architecture : mapping
        seed : int, optional
            Of the task that found it: the mean leaves out what that task showed, for both architectures.
        """
        accuracy = self.unseen(self.entry(architecture).validation, seed)
        return max(self.unseen(entry.validation, seed) for entry in self.entries.values()) - accuracy


def workload() -> SearchWorkload:
    """The space with its committed table."""
    card = read_card("workloads")["digits-search"]
    content = verified_bytes(ROOT / "workloads" / card["file"], card["sha256"], rebuild="search")
    entries = {}
    for row in csv.DictReader(io.StringIO(content.decode())):
        key = tuple(next(v for v in values if str(v) == row[choice]) for choice, values in SPACE.items())
        entries[key] = Entry(
            validation=tuple(float(row[f"validation_{seed}"]) for seed in SEEDS),
            test=tuple(float(row[f"test_{seed}"]) for seed in SEEDS),
            parameters=int(row["parameters"]),
            macs=int(row["macs"]),
            epochs=int(row["epochs"]),
        )
    return SearchWorkload("digits-search", SPACE, entries)


def table() -> Iterator[dict[str, Any]]:
    """Train every architecture with every seed: one row each, some minutes on one core."""
    from torch.utils.flop_counter import FlopCounterMode

    data, recipe = load("noisy-digits"), RECIPE
    for values in itertools.product(*SPACE.values()):
        row = dict(zip(SPACE, values, strict=True))
        for seed in SEEDS:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                trained = network(row)
            recipe.train(trained, data, seed=seed)
            row[f"validation_{seed}"] = round(accuracy(trained, data.validation), 6)
            row[f"test_{seed}"] = round(accuracy(trained, data.test), 6)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            trained(torch.zeros(1, 1, 8, 8))
        row["parameters"] = sum(parameter.numel() for parameter in trained.parameters())
        row["macs"] = counter.get_total_flops() // 2
        row["epochs"] = recipe.epochs
        yield row
