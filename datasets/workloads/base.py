"""A workload: a network, the data it learns, the recipe it learns by, and the weights that came of it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from datasets.card import ROOT, read_card, verified_bytes
from datasets.data import Data
from datasets.workloads.recipe import Recipe

__all__ = ["Workload"]


class Workload:
    """A network with its data and recipe; the house's own come from `datasets.workload`, a reader's from here.

    Parameters
    ----------
    id : str
    network : callable
        Takes no argument and gives an untrained network: a class or a function.
    data : Data
    recipe : Recipe
    student : callable, optional
        Gives an untrained smaller network of the same task, for distillation.
    committed : bool
        Whether trained weights are committed beside the workload; without them `trained` trains once and remembers.

    Examples
    --------
    >>> from torch import nn
    >>> import datasets
    >>> digits = datasets.load("digits")
    >>> line = Workload("line", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits, Recipe(epochs=2))
    >>> line.input_shape, line.trained().training
    ((1, 8, 8), False)
    """

    def __init__(
        self,
        id: str,
        network: Callable[[], nn.Module],
        data: Data,
        recipe: Recipe,
        student: Callable[[], nn.Module] | None = None,
        committed: bool = False,
    ) -> None:
        self.id = id
        self.recipe = recipe
        self._network, self._student, self._data = network, student, data
        self._committed = committed
        self._trained: nn.Module | None = None

    def __repr__(self) -> str:
        return f"Workload({self.id!r})"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one item."""
        return self.data().train.x.shape[1:]

    def data(self) -> Data:
        """The three splits."""
        return self._data

    def network(self, seed: int | None = None) -> nn.Module:
        """An untrained network, drawn with `seed` (the recipe's by default)."""
        return self._draw(self._network, seed)

    def student(self, seed: int | None = None) -> nn.Module | None:
        """An untrained smaller network of the same task, or None where there is none."""
        return None if self._student is None else self._draw(self._student, seed)

    def trained(self) -> nn.Module:
        """The baseline: the network trained by the recipe, in evaluation mode; a fresh copy each time."""
        if self._trained is None:
            network = self.network()
            if self._committed:
                network.load_state_dict(self._weights())
                network.eval()
            else:
                self.recipe.train(network, self.data())
            self._trained = network
        return copy.deepcopy(self._trained)

    def _draw(self, build: Callable[[], nn.Module], seed: int | None) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed if seed is None else seed)
            return build()

    def _weights(self) -> dict[str, torch.Tensor]:
        from safetensors.torch import load as read

        card = read_card("workloads")[self.id]
        return read(verified_bytes(ROOT / "workloads" / card["file"], card["sha256"], rebuild=f"weights {self.id}"))
