"""Mutual distillation: networks without a better one teach one another, at once or generation by generation."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.distillation.teaching import Guided, SoftLabels, answering

__all__ = ["Longer", "MutualDistillation", "mutual_loss", "redrawn"]

WAYS = ("mutual", "born-again")


def mutual_loss(own: Tensor, other: Tensor, y: Tensor) -> Tensor:
    r"""What one of two networks minimises: :math:`H(y, p_1) + \mathrm{KL}(p_2 \,\|\, p_1)`, the other's answer given.

    Parameters
    ----------
    own, other : Tensor of shape (items, classes)
        Logits.
    y : Tensor of shape (items,), int64

    Returns
    -------
    Tensor
        A scalar, the mean over the items; no gradient flows to `other`.
    """
    p1, p2 = functional.log_softmax(own, 1), functional.log_softmax(other.detach(), 1)
    return functional.cross_entropy(own, y) + functional.kl_div(p1, p2, reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class MutualDistillation:
    r"""Two students that learn at once, each from the labels and the other; or one that is taught by its former self.

    .. math:: L_1 = H(y, p_1) + \mathrm{KL}(p_2 \,\|\, p_1), \qquad L_2 = H(y, p_2) + \mathrm{KL}(p_1 \,\|\, p_2)

    Mutual: both networks see the same batches, and both are updated at each step, from answers given before it. Born
    again: the network is trained on labels; then a network of the same kind, drawn anew, learns from its soft labels,
    and so on. Neither needs a teacher, and both train as many networks as there are learners or generations.

    Parameters
    ----------
    way : {"mutual", "born-again"}
    generations : int
        Networks trained one after another by ``way="born-again"``, at least 2.

    Source
    ------
    Zhang, Xiang, Hospedales and Lu, "Deep Mutual Learning", CVPR 2018, where the two are updated in
    turn; Furlanello, Lipton, Tschannen, Itti and Anandkumar, "Born-Again Neural Networks", ICML 2018.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network, trace = MutualDistillation().train(digits.student(), digits.data(), datasets.Recipe(epochs=1))
    >>> len(trace)
    19
    """

    way: str = "mutual"
    generations: int = 2

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise ValueError(f"way: expected one of {', '.join(WAYS)}, got {self.way!r}")
        if self.generations < 2:
            raise ValueError(f"generations: expected at least 2, got {self.generations}")

    def longer(self) -> Longer:
        """The plain recipe with as many epochs as all networks together have: what the budget is worth alone."""
        return Longer(2 if self.way == "mutual" else self.generations)

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: nn.Module | None = None, *, seed: int | None = None
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train a copy of `network` by `recipe`, and others of its kind with it.

        Parameters
        ----------
        network : nn.Module
            Left as it is. The others are drawn anew by its layers' own ``reset_parameters``.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : optional
            Not needed.
        seed : int, optional
            Instead of the recipe's own.

        Returns
        -------
        network, trace
            The first learner, or the last generation, with all updates of all generations.
        """
        first, start = copy.deepcopy(network), recipe.seed if seed is None else seed
        if self.way == "mutual":
            both = Guided(first, redrawn(network, start + 1))
            trace = replace(recipe, loss=_both).train(both, data, seed=seed)
            return first.eval(), trace
        trace = recipe.train(first, data, seed=seed)
        for generation in range(1, self.generations):
            guide, first = answering(first), redrawn(network, start + generation)
            updates = replace(recipe, loss=SoftLabels(guide)).train(first, data, seed=seed)
            trace = trace + [{**update, "step": update["step"] + len(trace)} for update in updates]
        return first, trace


@dataclass(frozen=True)
class Longer:
    """The plain recipe with so many times its epochs."""

    times: int = 2

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: nn.Module | None = None, *, seed: int | None = None
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """As `MutualDistillation.train`."""
        network = copy.deepcopy(network)
        return network, replace(recipe, epochs=self.times * recipe.epochs).train(network, data, seed=seed)


def redrawn(network: nn.Module, seed: int) -> nn.Module:
    """A copy whose parameters are drawn anew, each layer's as the layer itself draws them.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> torch.equal(redrawn(layer, 0).weight, layer.weight)
    False
    """
    network = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
    return network


def _both(network: Any, x: Tensor, y: Tensor) -> Tensor:
    # each term has a gradient for one network alone, so one update of the sum is one of each
    one, other = network.student(x), network.helpers(x)
    return mutual_loss(one, other, y) + mutual_loss(other, one, y)
