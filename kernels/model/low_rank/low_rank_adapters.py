"""Low-rank adapters: a trained network learns another task by a small product of matrices beside each weight."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.transform import constrain, layer_weights

__all__ = ["BiasesAlone", "LowRankAdapters", "LowRankDelta", "NothingLearned", "adapter_weights"]


class LowRankDelta(nn.Module):
    r"""What a weight becomes: itself, and a product of two thin matrices.

    .. math:: W' = W + \frac{\alpha}{r} B A

    A is drawn, B is zero at the start: nothing changes before something is learned.

    Parameters
    ----------
    rows, columns, rank : int
    alpha : float
    random : torch.Generator

    Source
    ------
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, equation 3.
    """

    def __init__(self, rows: int, columns: int, rank: int, alpha: float, random: torch.Generator) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, columns, generator=random) / sqrt(columns))
        self.b = nn.Parameter(torch.zeros(rows, rank))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a)


@dataclass(frozen=True)
class LowRankAdapters:
    r"""Freeze a trained network, and learn a change of low rank to some of its weights.

    .. math:: W' = W + \frac{\alpha}{r} B A, \qquad B \in \mathbb R^{m \times r},\; A \in \mathbb R^{r \times n}

    Of a weight of m n numbers r (m + n) are learned, with gradients and the optimizer's moments for these alone. When
    it is done the product is added to the weight (`kernels.model.transform.bake`), and the network costs what it did
    before.

    Parameters
    ----------
    rank : int
        r.
    alpha : float
        Scales the change, so that the rate of learning can stay when r changes.
    layers : str
        Names of the linear and recurrent layers that are adapted, the last part of their paths, separated by spaces:
        here all of attention and of the feedforward parts, and the gates of a recurrent layer; ``"q v"``, queries and
        values, is the paper's choice for large networks.

    Source
    ------
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, section 4.

    Examples
    --------
    >>> import datasets
    >>> network = datasets.workload("shakespeare-transformer").trained()
    >>> adapted = LowRankAdapters(rank=4).adapted(network)
    >>> sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    9216
    """

    rank: int = 4
    alpha: float = 16.0
    layers: str = "q k v o 0 2 gru classifier"

    def __post_init__(self) -> None:
        if not (isinstance(self.rank, int) and self.rank >= 1):
            raise ValueError(f"rank: expected a positive integer, got {self.rank!r}")
        if not self.alpha > 0:
            raise ValueError(f"alpha: expected a positive number, got {self.alpha}")
        if not self.layers.split():
            raise ValueError("layers: expected names of linear or recurrent layers, got none")

    def adapted(self, network: nn.Module, seed: int = 0) -> nn.Module:
        """A copy of `network` that is frozen but for new adapters, and computes what `network` does.

        Raises
        ------
        TypeError, ValueError
            If `network` is no module, no linear or recurrent layer has such a name, or one is too small for the rank;
            the message names it.
        """
        network, random = _frozen(network), torch.Generator().manual_seed(seed)
        names = self.layers.split()
        found = [(name, layer) for name, layer in network.named_modules() if name.rpartition(".")[2] in names]
        chosen = [(name, layer) for name, layer in found if isinstance(layer, nn.Linear | nn.RNNBase)]
        if not chosen:
            raise ValueError(
                f"layers: expected names of linear or recurrent layers of {type(network).__name__}, got {self.layers!r}"
            )
        for name, layer in chosen:
            for _, weight in list(layer_weights(layer)):
                rows, columns = getattr(layer, weight).shape
                if self.rank > min(rows, columns):
                    raise ValueError(f"{name}: expected a rank of at most {min(rows, columns)}, got {self.rank}")
                constrain(layer, weight, LowRankDelta(rows, columns, self.rank, self.alpha, random))
        return network

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: nn.Module | None = None, *, seed: int | None = None
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Adapt a copy of a trained `network` by `recipe`.

        Parameters
        ----------
        network : nn.Module
            Left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : optional
            Not needed.
        seed : int, optional
            Of the adapters, and instead of the recipe's own.

        Returns
        -------
        network, trace
            The network with its adapters; `kernels.model.transform.bake` merges them.
        """
        adapted = self.adapted(network, recipe.seed if seed is None else seed)
        return adapted, recipe.train(adapted, data, seed=seed)

    def biases(self) -> BiasesAlone:
        """What stands beside it: as much patience, but only biases and norms learn."""
        return BiasesAlone()

    def as_it_was(self) -> NothingLearned:
        """The network before anything is learned."""
        return NothingLearned()


@dataclass(frozen=True)
class BiasesAlone:
    """Freeze the matrices, and learn biases and norms: as cheap as adapters of a small rank, without any."""

    def adapted(self, network: nn.Module, seed: int = 0) -> nn.Module:
        """A copy of `network` whose matrices are frozen."""
        network = _frozen(network)
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.ndim == 1)
        return network

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: nn.Module | None = None, *, seed: int | None = None
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Arguments as for `LowRankAdapters.train`."""
        adapted = self.adapted(network)
        return adapted, recipe.train(adapted, data, seed=seed)


@dataclass(frozen=True)
class NothingLearned:
    """The network as it came."""

    def adapted(self, network: nn.Module, seed: int = 0) -> nn.Module:
        """A copy of `network` that is frozen."""
        return _frozen(network)

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: nn.Module | None = None, *, seed: int | None = None
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Arguments as for `LowRankAdapters.train`; the trace is empty."""
        return _frozen(network).eval(), []


def adapter_weights(network: nn.Module) -> dict[str, Tensor]:
    """What has to be stored for a task: the parameters that learned, by their names.

    Loaded into a network that was adapted in the same way (``load_state_dict(..., strict=False)``) they make it that
    task's.
    """
    return {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}


def _frozen(network: nn.Module) -> nn.Module:
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    return copy.deepcopy(network).requires_grad_(False)
