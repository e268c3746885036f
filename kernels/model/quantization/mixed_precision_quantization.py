r"""Mixed precision: how many bits each layer's weights get, when all of them together get so many.

Near the end of training the loss is a bowl, and rounding moves the weights of layer i by some D_i in it. What that
costs is estimated by the bowl's mean curvature in the layer, the trace of its Hessian over its n_i weights:

    Omega(bits) = sum over i of  tr(H_i) / n_i  |Q_bits_i(w_i) - w_i|^2

The trace is that of no matrix that is ever built: for random signs v, the mean of v^T H v is tr(H), and H v is a second
derivative, two passes backward. The assignments that fit are then ranked by Omega, and what is left of the budget is
spent on the first of the ranking: evaluated, the best is kept.

Source: Z. Dong et al., "HAWQ: Hessian AWare Quantization of Neural Networks with Mixed-Precision", 2019; the mean trace
and the sum over the layers: Z. Dong et al., "HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks",
2020. A search that only sees accuracies, and lowers what does not fit: K. Wang et al., "HAQ: Hardware-Aware Automated
Quantization with Mixed Precision", 2019.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.architecture_search.evolutionary_search import EvolutionarySearch
from kernels.model.architecture_search.random_search import History, best, evaluated
from kernels.model.quantization.uniform_grid import fit_grid

__all__ = ["MixedPrecisionQuantization", "mean_traces"]

GUIDES = ("trace", "distance", "accuracy")
MOST = 100_000
"""Assignments that are ranked at most."""
PASSES = 5
"""What a probe costs for an item, in passes forward: one forward, and two backward of two each."""


@dataclass(frozen=True)
class MixedPrecisionQuantization:
    r"""Bits for each layer of a trained network, by the curvature of its loss, its rounding errors, or by trying.

    .. math:: \Omega(b) = \sum_i \frac{\mathrm{tr}(H_i)}{n_i} \left\| Q_{b_i}(w_i) - w_i \right\|^2

    Parameters
    ----------
    guide : {"trace", "distance", "accuracy"}
        What ranks the assignments: Omega; the same with all traces equal, so that only the distance counts; or nothing
        but accuracies seen, by evolution.
    probes : int
        Random vectors for the traces.
    items : int
        Training items whose mean loss is looked at.

    Notes
    -----
    A probe is charged to the budget: five passes of its items, in evaluations. Adapted: "accuracy" evolves assignments
    where HAQ trains an agent; both see accuracies alone.

    Source: Dong et al. 2019 and 2020; Wang et al. 2019.

    Examples
    --------
    >>> import datasets
    >>> bits = datasets.workload("digits-bits")
    >>> found, history = MixedPrecisionQuantization().search(bits.space, bits.task(0), budget=12, seed=0)
    >>> bits.fits(found), history[-1][2] <= 12
    (True, True)
    """

    guide: str = "trace"
    probes: int = 4
    items: int = 64

    def __post_init__(self) -> None:
        if self.guide not in GUIDES:
            raise ValueError(f"guide: expected one of {', '.join(GUIDES)}, got {self.guide!r}")
        for name in ("probes", "items"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)!r}")

    def search(
        self, space: Mapping[str, tuple[Any, ...]], task: Any, budget: float, seed: int
    ) -> tuple[dict[str, Any], History]:
        """Search until the next evaluation would exceed the budget.

        Parameters
        ----------
        space : mapping of str to tuple
            The bits that each layer may have, by its path.
        task : object
            Beside ``evaluate`` and ``cost`` it offers the `workload` with its trained `network` and what `fits`,
            ``sample(count)`` of labelled training items, and how many `items` an evaluation passes.
        budget : float
            In evaluations.
        seed : int

        Returns
        -------
        best : dict
            The evaluated assignment of the highest score, the first in the ranking of equals.
        history : list of (dict, float, float)

        Raises
        ------
        ValueError
            If the budget does not pay for the probes and one evaluation, or there are too many assignments to rank.
        """
        if self.guide == "accuracy":
            return EvolutionarySearch(population=6, sample=3).search(space, task, budget, seed)
        if (many := prod(len(bits) for bits in space.values())) > MOST:
            raise ValueError(f"space: expected at most {MOST} assignments to rank, got {many}")
        network, spent = task.workload.network, 0.0
        weights: dict[str, Any] = {path: network.get_submodule(path).weight for path in space}
        traces = dict.fromkeys(space, 1.0)
        if self.guide == "trace":
            x, y = task.sample(self.items)
            traces = mean_traces(network, weights, x, y, self.probes, seed)
            spent = PASSES * self.probes * len(x) / task.items
        costs = {path: _costs(weights[path].detach(), bits, traces[path]) for path, bits in space.items()}
        every = (dict(zip(space, bits, strict=True)) for bits in itertools.product(*space.values()))
        ranked = sorted(
            (one for one in every if task.workload.fits(one)), key=lambda one: sum(costs[p][b] for p, b in one.items())
        )
        if spent + 1 > budget:
            raise ValueError(f"budget: {budget} evaluations do not pay for the probes, {spent:.1f}, and one evaluation")
        history: History = []
        for assignment in ranked:
            if not evaluated(task, assignment, budget - spent, history):
                break
        return best(history, budget), [(one, score, spent + cost) for one, score, cost in history]


def mean_traces(
    network: nn.Module, weights: Mapping[str, Tensor], x: Tensor, y: Tensor, probes: int, seed: int
) -> dict[str, float]:
    """The trace of the loss's Hessian in each weight tensor over its entries, estimated with random signs.

    Parameters
    ----------
    network : nn.Module
        In evaluation mode.
    weights : mapping of str to Tensor
        Parameters of it.
    x, y : Tensor
        Items and labels whose mean cross-entropy is the loss.
    probes : int
        Random vectors; the estimate is their mean, and may be negative where the trace is small.
    seed : int

    Examples
    --------
    >>> layer = nn.Linear(2, 3, bias=False)
    >>> _ = nn.init.zeros_(layer.weight)
    >>> x = torch.eye(2)                      # each p is 1/3: tr(H) = 3 (1/3) (2/3)
    >>> f"{mean_traces(layer, {'': layer.weight}, x, torch.tensor([0, 1]), 400, seed=0)[''] * 6:.1f}"
    '0.7'
    """
    chance = torch.Generator().manual_seed(seed)
    tensors = list(weights.values())
    with torch.enable_grad():
        loss = functional.cross_entropy(network(x), y)
        gradients = torch.autograd.grad(loss, tensors, create_graph=True)
        sums = [0.0] * len(tensors)
        for _ in range(probes):
            for i, (gradient, weight) in enumerate(zip(gradients, tensors, strict=True)):
                signs = torch.randint(0, 2, weight.shape, generator=chance).to(weight.dtype) * 2 - 1
                (curved,) = torch.autograd.grad(gradient, weight, signs, retain_graph=True)
                sums[i] += float((signs * curved).sum())
    return {path: total / probes / w.numel() for (path, w), total in zip(weights.items(), sums, strict=True)}


def _costs(weight: Tensor, choices: tuple[int, ...], trace: float) -> dict[int, float]:
    """What each width costs: the trace, if it is positive, times the squared distance."""
    matrix = weight.flatten(1)
    distances = {
        bits: float(((fit_grid(matrix, bits, symmetric=True).round(matrix) - matrix) ** 2).sum()) for bits in choices
    }
    return {bits: max(trace, 0.0) * distance for bits, distance in distances.items()}
