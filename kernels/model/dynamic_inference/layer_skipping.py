"""Layer skipping: a gate before a layer decides for each item whether the layer runs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.chain import links
from kernels.counting import macs
from kernels.model.dynamic_inference.learning import learn

__all__ = ["Gate", "GatedChain", "LayerSkipping", "skippable"]


class Gate(nn.Module):
    """From a map's channel means to the odds that the layer behind it is needed.

    Parameters
    ----------
    channels : int
    hidden : int
    """

    def __init__(self, channels: int, hidden: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(channels, hidden), nn.Linear(hidden, 1)
        with torch.no_grad():
            self.second.weight.zero_()
            self.second.bias.fill_(1.0)  # at first the layer runs, more often than not

    def forward(self, x: Tensor) -> Tensor:
        """Log odds, (batch,)."""
        seen = x.mean((2, 3)) if x.ndim == 4 else x
        return self.second(self.first(seen).relu()).squeeze(1)


class GatedChain(nn.Module):
    """A chain in stages, some behind a gate: items that the gate lets pass by keep what they have.

    Parameters
    ----------
    stages : sequence of nn.Module
    gates : sequence of Gate or None
        One for each stage; None where the stage always runs.
    costs : sequence of (float, float)
        Multiply-accumulates of each stage, and of its gate.
    """

    def __init__(
        self, stages: Sequence[nn.Module], gates: Sequence[Gate | None], costs: Sequence[tuple[float, float]]
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.gates = nn.ModuleList([nn.Identity() if gate is None else gate for gate in gates])
        self.stage_costs = tuple(costs)
        every = sum(stage + asked for stage, asked in costs)
        gated = sum(stage for own, (stage, _) in zip(gates, costs, strict=True) if own is not None)
        self.costs = [every - gated, every]
        if sum(gate is not None for gate in gates) == 1:  # else there are more ways through than two
            self.exits = self._exits

    def _exits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the two ways through one gate, closed and open, (2, batch, classes), and no certainties."""
        closed = opened = x
        for stage, gate in zip(self.stages, self.gates, strict=True):
            closed, opened = closed if isinstance(gate, Gate) else stage(closed), stage(opened)
        return torch.stack([closed, opened]), torch.zeros(2, len(x))

    def learned(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the share of items that ran each gated stage, (gates,), with everything computed.

        The decision is drawn by adding Gumbel noise to the odds; forward it is hard, backward it is the sigmoid's.
        """
        shares = []
        for stage, gate in zip(self.stages, self.gates, strict=True):
            y = stage(x)
            if isinstance(gate, Gate):
                noise = torch.rand(len(x)).clamp(1e-6, 1 - 1e-6)
                soft = torch.sigmoid(gate(x) + noise.log() - (1 - noise).log())
                hard = (soft > 0.5).float() + soft - soft.detach()
                shares.append(hard.mean())
                hard = hard.reshape(-1, *[1] * (x.ndim - 1))
                y = hard * y + (1 - hard) * x
            x = y
        return x, torch.stack(shares)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, (batch, classes), and each item's cost in multiply-accumulates, (batch,)."""
        cost = torch.zeros(len(x))
        for stage, gate, (each, asked) in zip(self.stages, self.gates, self.stage_costs, strict=True):
            cost += asked
            if isinstance(gate, Gate):
                run = gate(x) > 0
                cost[run] += each
                if run.all():
                    x = stage(x)
                elif run.any():
                    x = x.clone()
                    x[run] = stage(x[run])
            else:
                x, cost = stage(x), cost + each
        return x, cost


@dataclass(frozen=True)
class LayerSkipping:
    r"""Teach a gate for each layer that can be left out, and the network to live with what the gates decide.

    .. math:: x_{l+1} = g_l(x_l) \, F_l(x_l) + (1 - g_l(x_l)) \, x_l, \qquad
        L = H(y, q) + \lambda \, \big( \bar g - t \big)^2

    with g 0 or 1 for each item, and its mean over items and gates held near the target t. A layer can be left out if
    it gives maps of the shape that it takes. The decision has no gradient; it is drawn with Gumbel noise on the
    gate's log odds, hard forward, as a sigmoid backward. At inference the noise is gone, and a layer that nobody
    needs is not called.

    Parameters
    ----------
    target : float
        t, the share of items that a gated layer should run for, 0 to 1.
    weight : float
        λ.
    steps : int
        Updates that teach gates and network.

    Source
    ------
    Veit and Belongie, "Convolutional Networks with Adaptive Inference Graphs", ECCV 2018; the idea of gates that skip:
    Wang, Yu, Dou, Darrell and Gonzalez, "SkipNet: Learning Dynamic Routing in Convolutional Networks", ECCV 2018.

    Examples
    --------
    >>> import datasets
    >>> noisy = datasets.workload("noisy-digits-cnn")
    >>> network = LayerSkipping(steps=5).apply(noisy.trained(), noisy.data())
    >>> logits, cost = network(torch.tensor(noisy.data().validation.x[:3]))
    >>> bool((cost >= network.costs[0]).all() and (cost <= network.costs[1]).all())
    True
    """

    target: float = 0.5
    weight: float = 4.0
    steps: int = 400

    def __post_init__(self) -> None:
        if not 0 <= self.target <= 1:
            raise ValueError(f"target: expected a share from 0 to 1, got {self.target}")
        if not self.weight >= 0 or self.steps < 0:
            raise ValueError(f"weight, steps: expected at least 0, got {self.weight} and {self.steps}")

    def apply(self, network: nn.Module, data: Any) -> GatedChain:
        """A copy of the network with gates, taught on ``data.train``.

        Parameters
        ----------
        network : nn.Sequential
            Trained; left as it is.
        data : datasets.Data

        Raises
        ------
        TypeError
            If the network is no chain.
        ValueError
            If no layer with weights gives maps of the shape that it takes.
        """
        chain, x = links(copy.deepcopy(network).eval()), torch.tensor(data.train.x[:1])
        stages, gates, costs = [], [], []
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for stage, may_go in skippable(chain, x):
                gate = Gate(x.shape[1]) if may_go else None
                spent = float(macs(stage, x))
                asked = 0.0 if gate is None else float(macs(gate, x))
                stages.append(stage)
                gates.append(gate)
                costs.append((spent, asked))
                x = stage(x)
        if not any(gate is not None for gate in gates):
            raise ValueError("network: expected a layer with weights that gives maps as it takes them; there is none")
        gated = GatedChain(stages, gates, costs)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            logits, shares = gated.learned(x)
            return functional.cross_entropy(logits, y) + self.weight * (shares.mean() - self.target).square()

        learn(gated, data, loss, self.steps)
        return gated


def skippable(chain: Sequence[nn.Module], x: Tensor) -> list[tuple[nn.Module, bool]]:
    """A chain in stages, each with whether it can be left out: a layer with weights, with its norm and rectifier.

    Parameters
    ----------
    chain : sequence of nn.Module
    x : Tensor
        One item.

    Examples
    --------
    >>> chain = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten()]
    >>> [may_go for _, may_go in skippable(chain, torch.zeros(1, 1, 5, 5))]
    [False, True, False]
    """
    stages: list[list[nn.Module]] = []
    for link in chain:
        follows = isinstance(link, nn.BatchNorm1d | nn.BatchNorm2d | nn.ReLU)
        if follows and stages and any(p.ndim > 1 for p in stages[-1][0].parameters()):
            stages[-1].append(link)
        else:
            stages.append([link])
    found: list[tuple[nn.Module, bool]] = []
    for links_of in stages:
        stage = nn.Sequential(*links_of)
        before, x = x.shape, stage(x)
        heavy = any(p.ndim > 1 for p in stage.parameters())
        found.append((stage, heavy and x.shape == before and x.ndim == 4))
    return found
