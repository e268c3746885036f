"""Networks of every depth, width and resolution up to a limit of work, trained three times each: the optimum is known.

All are one network scaled: a first convolution, as many residual ones as the depth says, all of one width at one
resolution, to which the image is averaged down at the entrance; so the work grows with depth, and with the square of
width and of resolution. Values are a sixth of an octave apart for width and resolution and a third for depth: each step
is 2^(1/3) times the work, as nearly as whole numbers allow.

MNIST in full is nearly solved by the smallest of them, and nothing would be seen. Here they learn from 1000 of its
items, in five epochs by one recipe. A search sees the validation accuracy of one training, and is judged by the mean of
the other two; trainings take turns. Made by ``python -m datasets.make scaling``.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from datasets.card import ROOT, read_card, verified_bytes
from datasets.data import Data, load
from datasets.workloads.digits_search import Architecture, Entry, Residual, SearchWorkload
from datasets.workloads.recipe import Recipe, accuracy

__all__ = ["ScalingSearch", "ScalingTask", "macs", "network", "workload"]

SPACE: dict[str, tuple[int, ...]] = {
    "depth": (3, 4, 5, 6, 8, 10, 12, 15, 19, 24),
    "width": (8, 9, 10, 11, 13, 14, 16, 18, 20, 23),
    "resolution": (7, 8, 9, 10, 11, 12, 14, 16, 18, 20),
}
"""The first of each is the network that is scaled."""

LIMIT = 800_000
"""Multiply-accumulates of the largest networks of the table, for one image: nine times those of the smallest."""

ITEMS = 1000
"""Of the training set, the first."""

SEEDS = (0, 1, 2)
RECIPE = Recipe(epochs=5, batch=32, learning_rate=0.01)


def network(architecture: Architecture) -> nn.Module:
    """An untrained network for images of any size."""
    depth, width, resolution = (architecture[choice] for choice in SPACE)

    def layer(inputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())

    return nn.Sequential(
        nn.AdaptiveAvgPool2d(resolution), layer(1), *(Residual(layer(width)) for _ in range(depth)),
        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * width, 10),
    )  # fmt: skip


def macs(architecture: Architecture) -> int:
    """Multiply-accumulates for one image, without building the network.

    Examples
    --------
    >>> macs({"depth": 3, "width": 8, "resolution": 7})
    88920
    """
    depth, width, resolution = (architecture[choice] for choice in SPACE)
    return 9 * resolution**2 * width * (1 + depth * width) + 90 * width


def trained(architecture: Architecture, seed: int) -> nn.Module:
    """The network as the table's recipe leaves it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = network(architecture)
    RECIPE.train(built, data(), seed=seed)
    return built


def data() -> Data:
    """What the networks see."""
    whole = load("mnist")
    return replace(whole, train=whole.train[:ITEMS])


@dataclass(frozen=True)
class ScalingTask:
    """What a search may ask for: the validation accuracy of one training, what that costs, and work as counted."""

    workload: ScalingSearch
    seed: int

    def evaluate(self, architecture: Architecture) -> float:
        """Validation accuracy after training with the task's seed."""
        return self.workload.entry(architecture).validation[self.seed]

    def cost(self, architecture: Architecture) -> float:
        """Epochs of the smallest network that do as much work as training this one.

        To search among small networks is cheaper than among large ones, and that is what scaling lives on; in epochs of
        each network's own, the two would cost the same.
        """
        return self.workload.entry(architecture).epochs * macs(architecture) / macs(self.workload.smallest)


class ScalingSearch(SearchWorkload):
    """The space and its table. Networks above the limit are in neither; there is an entry for all others.

    Examples
    --------
    >>> scaling = workload()
    >>> task = scaling.task(seed=0)
    >>> task.cost(scaling.smallest), task.evaluate(scaling.smallest) < task.evaluate(scaling.best)
    (5.0, True)
    """

    budgets = (75, 150)
    searches = 40

    @property
    def smallest(self) -> dict[str, int]:
        """The network that is scaled."""
        return {choice: values[0] for choice, values in self.space.items()}

    def macs(self, architecture: Architecture) -> int:
        """As `macs`."""
        return macs(architecture)

    def shown(self, seed: int) -> int:
        """Which training ``task(seed)`` shows: one for all searches of a record, so that records differ by that too."""
        return seed // self.searches % len(self.entry(self.smallest).validation)

    def task(self, seed: int) -> Any:
        """The task as one training shows it."""
        return ScalingTask(self, self.shown(seed))

    def unseen(self, accuracies: tuple[float, ...], seed: int | None = None) -> float:
        """As of any search table, without the training that ``task(seed)`` shows."""
        return super().unseen(accuracies, None if seed is None else self.shown(seed))


def workload() -> ScalingSearch:
    """The space with its committed table."""
    card = read_card("workloads")["mnist-scaling"]
    content = verified_bytes(ROOT / "workloads" / card["file"], card["sha256"], rebuild="scaling")
    entries = {}
    for row in csv.DictReader(io.StringIO(content.decode())):
        entries[tuple(int(row[choice]) for choice in SPACE)] = Entry(
            validation=tuple(float(row[f"validation_{seed}"]) for seed in SEEDS),
            test=tuple(float(row[f"test_{seed}"]) for seed in SEEDS),
            parameters=int(row["parameters"]),
            macs=int(row["macs"]),
            epochs=RECIPE.epochs,
        )
    return ScalingSearch("mnist-scaling", SPACE, entries)


def architectures() -> Iterator[dict[str, int]]:
    """Every network up to the limit."""
    for values in itertools.product(*SPACE.values()):
        architecture = dict(zip(SPACE, values, strict=True))
        if macs(architecture) <= LIMIT:
            yield architecture


def table() -> Iterator[dict[str, Any]]:
    """Train every network with every seed: one row each, a quarter of an hour on one core."""
    for architecture in architectures():
        row: dict[str, Any] = dict(architecture)
        for seed in SEEDS:
            subject = trained(architecture, seed)
            row[f"validation_{seed}"] = round(accuracy(subject, data().validation), 6)
            row[f"test_{seed}"] = round(accuracy(subject, data().test), 6)
        row["parameters"] = sum(parameter.numel() for parameter in subject.parameters())
        row["macs"] = macs(architecture)
        yield row
