"""How many bits for each layer of a trained network, at 2.5 a weight on average: every answer can be computed.

The network is that of noisy-digits-cnn. Its weights are rounded to uniform grids, symmetric, a scale for each output,
batch norm and biases as they are. A search sees the validation accuracy of one half of the items, drawn by its seed;
how well it chose is judged by the other half. An assignment that takes more bits than there are is lowered, layer after
layer, until it fits.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from datasets.data import Data
from datasets.workloads import noisy_digits_cnn
from datasets.workloads.base import Workload
from datasets.workloads.recipe import one_thread

__all__ = ["BitsTask", "BitsWorkload", "rounded", "workload"]

Assignment = Mapping[str, int]
"""Bits of each layer's weights, by the layer's path."""

CHOICES = (2, 3, 4, 6, 8)
AVERAGE = 2.5


def rounded(weight: Tensor, bits: int) -> Tensor:
    """The nearest numbers of a symmetric grid, a scale for each output.

    Examples
    --------
    >>> rounded(torch.tensor([[0.3, -1.0, 0.6]]), bits=2)
    tensor([[ 0., -1.,  1.]])
    """
    scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
    scale = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return torch.round(weight / scale) * scale


class BitsWorkload:
    """The assignments of bits to a network's layers, and what each is worth.

    Parameters
    ----------
    id : str
    network : Workload
        Gives the trained network and the data.
    choices : tuple of int
        Bits that a layer may have.
    average : float
        Bits a weight that all layers together may take.

    Examples
    --------
    >>> bits = workload()
    >>> bits.fits(dict.fromkeys(bits.space, 2)), bits.fits(dict.fromkeys(bits.space, 3))
    (True, False)
    """

    budgets = (6, 12, 24)
    searches = 8
    missing: ClassVar = {"macs": "the same for all assignments: only the bits of weights differ"}

    def __init__(self, id: str, network: Workload, choices: tuple[int, ...], average: float) -> None:
        self.id, self.workload, self.choices, self.average = id, network, choices, average
        layers = self.network.named_modules()
        self.sizes = {path: m.weight.numel() for path, m in layers if isinstance(m, nn.Conv2d | nn.Linear)}
        self.space = {path: choices for path in self.sizes}
        self._right: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}

    def __repr__(self) -> str:
        return f"BitsWorkload({self.id!r})"

    @cached_property
    def network(self) -> nn.Module:
        """The trained network, to be read and not to be changed."""
        return self.workload.trained()

    def task(self, seed: int) -> BitsTask:
        """The task as one half of the validation items shows it."""
        return BitsTask(self, seed)

    def bits(self, assignment: Assignment) -> int:
        """Bits of all codes."""
        return sum(size * assignment[path] for path, size in self.sizes.items())

    def fits(self, assignment: Assignment) -> bool:
        """Whether the codes take no more bits than there are."""
        return self.bits(assignment) <= self.average * sum(self.sizes.values())

    def lowered(self, assignment: Assignment) -> dict[str, int]:
        """The assignment, its layers lowered one after the other by one choice, again and again, until it fits.

        Raises
        ------
        ValueError
            If it has not one of the choices for each layer.
        """
        if assignment.keys() != self.space.keys() or any(b not in self.choices for b in assignment.values()):
            raise ValueError(
                f"assignment: expected one of {self.choices} for each of {[*self.space]}, got {assignment}"
            )
        found = dict(assignment)
        for path in itertools.cycle(self.space):
            if self.fits(found):
                return found
            found[path] = self.choices[max(0, self.choices.index(found[path]) - 1)]
        raise AssertionError("a cycle does not end")

    def right(self, assignment: Assignment) -> tuple[np.ndarray, np.ndarray]:
        """Which validation and which test items are answered rightly; remembered."""
        key = tuple(assignment[path] for path in self.space)
        if key not in self._right:
            network = self.workload.trained()
            with one_thread(), torch.no_grad():
                for path, bits in assignment.items():
                    weight: Any = network.get_submodule(path).weight
                    weight.copy_(rounded(weight, bits))
                splits = (self.data.validation, self.data.test)
                self._right[key] = tuple(  # type: ignore[assignment]
                    (network(torch.tensor(s.x)).argmax(1).numpy() == s.y) for s in splits
                )
        return self._right[key]

    @property
    def data(self) -> Data:
        return self.workload.data()

    def half(self, seed: int) -> np.ndarray:
        """True at the validation items that ``task(seed)`` shows."""
        count = len(self.data.validation)
        return np.random.default_rng(seed).permutation(count) < count // 2

    @cached_property
    def every(self) -> list[dict[str, int]]:
        """All assignments that fit."""
        found = (dict(zip(self.space, bits, strict=True)) for bits in itertools.product(*self.space.values()))
        return [assignment for assignment in found if self.fits(assignment)]

    def regret(self, assignment: Assignment, seed: int) -> float:
        """By how much the best assignment that fits is more accurate on the half that the task did not show."""
        unseen = ~self.half(seed)
        best = max(float(self.right(other)[0][unseen].mean()) for other in self.every)
        return best - float(self.right(self.lowered(assignment))[0][unseen].mean())

    def figures(self, assignment: Assignment, seed: int) -> dict[str, float]:
        """Accuracy on the test items, and the bits of codes and of what stays in FP32, scales included."""
        final = self.lowered(assignment)
        total = sum(p.numel() for p in self.network.parameters())
        outputs = sum(len(self.network.get_submodule(path).weight) for path in self.sizes)  # type: ignore[arg-type]
        others = total - sum(self.sizes.values()) + outputs
        return {
            "accuracy": float(self.right(final)[1].mean()),
            "parameters": total,
            "stored_bits": self.bits(final) + 32 * others,
        }


@dataclass(frozen=True)
class BitsTask:
    """What a search may ask for: accuracies on half of the validation items, and the network with training items."""

    workload: BitsWorkload
    seed: int

    def evaluate(self, assignment: Assignment) -> float:
        """Accuracy of the assignment, lowered until it fits."""
        seen = self.workload.half(self.seed)
        return float(self.workload.right(self.workload.lowered(assignment))[0][seen].mean())

    def cost(self, assignment: Assignment) -> float:
        """In evaluations."""
        return 1.0

    @property
    def items(self) -> int:
        """How many items an evaluation passes through the network."""
        return int(self.workload.half(self.seed).sum())

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Training items and their labels, drawn by the seed."""
        train = self.workload.data.train
        chosen = np.random.default_rng(self.seed).permutation(len(train))[:count]
        return torch.tensor(train.x[chosen]), torch.tensor(train.y[chosen])


def workload() -> BitsWorkload:
    return BitsWorkload("digits-bits", noisy_digits_cnn.workload(), CHOICES, AVERAGE)
