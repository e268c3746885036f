"""Layer skipping: a gate before a layer decides for each item whether the layer runs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.chain import links
from kernels.counting import macs
from kernels.model.dynamic_inference.learning import learn

__all__ = ["Gate", "GatedChain", "LayerSkipping", "Switch", "passed", "skippable"]


GRID = 4
"""A gate sees maps averaged over so many fields a side."""
QUIET = 0.8
"""The share of the updates after which decisions are drawn without noise, as they will be made."""


class Gate(nn.Module):
    """From a map, averaged over a grid, to the odds that the layer behind it is needed.

    Parameters
    ----------
    channels : int
    hidden : int
    """

    def __init__(self, channels: int, hidden: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(channels * GRID**2, hidden), nn.Linear(hidden, 1)
        with torch.no_grad():
            self.second.bias.fill_(1.0)  # at first the layer runs, more often than not

    def forward(self, x: Tensor) -> Tensor:
        """Log odds, (batch,)."""
        seen = functional.adaptive_avg_pool2d(x, GRID).flatten(1)
        return self.second(self.first(seen).relu()).squeeze(1)


class Switch(nn.Module):
    """A gate that sees nothing: the same odds for all items."""

    def __init__(self) -> None:
        super().__init__()
        self.odds = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Log odds, (batch,)."""
        return self.odds.expand(len(x))


def passed(x: Tensor, channels: int) -> Tensor:
    """What goes past a layer: what it was given, with empty channels added up to the number that it gives.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 3.3, option A.
    """
    return functional.pad(x, [0, 0, 0, 0, 0, channels - x.shape[1]])


class GatedChain(nn.Module):
    """A chain in stages, some behind a gate: items that the gate lets pass by keep what they have.

    Parameters
    ----------
    stages : sequence of nn.Module
    gates : sequence of Gate, Switch or None
        One for each stage; None where the stage always runs.
    costs : sequence of (float, float)
        Multiply-accumulates of each stage, and of its gate.
    channels : sequence of int
        Of what each stage gives.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        gates: Sequence[nn.Module | None],
        costs: Sequence[tuple[float, float]],
        channels: Sequence[int],
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.gates = nn.ModuleList([nn.Identity() if gate is None else gate for gate in gates])
        self.stage_costs, self.channels = tuple(costs), tuple(channels)
        self.gated = [gate is not None for gate in gates]
        own = [stage for (stage, _), gated in zip(costs, self.gated, strict=True) if gated]
        always = sum(stage + asked for stage, asked in costs) - sum(own)
        self.ways = list(product((False, True), repeat=len(own)))
        self.costs = [always + sum(cost for cost, runs in zip(own, way, strict=True) if runs) for way in self.ways]
        self.parts = torch.tensor(own) / sum(own)
        if len(set(self.costs)) == len(self.costs):  # else a cost does not tell the way
            self.exits = self._exits

    def _exits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of every way through, (ways, batch, classes), and no certainties."""
        found = []
        for way in self.ways:
            y, run = x, iter(way)
            for stage, gated, channels in zip(self.stages, self.gated, self.channels, strict=True):
                y = passed(y, channels) if gated and not next(run) else stage(y)
            found.append(y)
        return torch.stack(found), torch.zeros(len(found), len(x))

    def learned(self, x: Tensor, noise: float = 1.0) -> tuple[Tensor, Tensor]:
        """Logits, and the share of items that ran each gated stage, (gates,), with everything computed.

        The decision is drawn by adding logistic noise, the difference of two Gumbel ones, to the odds; forward it is
        hard, backward it is the sigmoid's.
        """
        shares = []
        for stage, gate, gated, channels in zip(self.stages, self.gates, self.gated, self.channels, strict=True):
            y = stage(x)
            if gated:
                drawn = torch.rand(len(x)).clamp(1e-6, 1 - 1e-6)
                soft = torch.sigmoid(gate(x) + noise * (drawn.log() - (1 - drawn).log()))
                hard = (soft > 0.5).float() + soft - soft.detach()
                shares.append(hard.mean())
                hard = hard.reshape(-1, *[1] * (x.ndim - 1))
                y = hard * y + (1 - hard) * passed(x, channels)
            x = y
        return x, torch.stack(shares)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, (batch, classes), and each item's cost in multiply-accumulates, (batch,)."""
        cost = torch.zeros(len(x))
        parts = zip(self.stages, self.gates, self.gated, self.channels, self.stage_costs, strict=True)
        for stage, gate, gated, channels, (each, asked) in parts:
            cost += asked
            if gated:
                run = gate(x) > 0
                cost[run] += each
                if run.all():
                    x = stage(x)
                else:
                    y = passed(x, channels)
                    if run.any():
                        y = y.index_put((run,), stage(x[run]))
                    x = y
            else:
                x, cost = stage(x), cost + each
        return x, cost


@dataclass(frozen=True)
class LayerSkipping:
    r"""Teach a gate for each layer that can be left out, and the network to live with what the gates decide.

    .. math:: x_{l+1} = g_l(x_l) \, F_l(x_l) + (1 - g_l(x_l)) \, s(x_l), \qquad
        L = H(y, q) + \lambda \, \Big( \frac{\sum_l c_l \bar g_l}{\sum_l c_l} - t \Big)^2

    with g 0 or 1 for each item, s what goes past (x with empty channels added, where the layer gives more), c a
    layer's products, and the share of them that the mean item runs held near the target t. A layer can be left out if
    it gives maps of the size that it takes, and no fewer channels; the first stays, since all others see the image
    through it. The decision has no gradient; it is drawn with noise on the gate's log odds, hard forward, as a sigmoid
    backward. The noise falls to nought while gates learn: left on, a gate that says one half to all meets the target,
    and decides alike for all when the noise is gone. A layer that nobody needs is not called.

    Parameters
    ----------
    target : float
        t, the share of what can be left out that should run, 0 to 1.
    weight : float
        λ.
    steps : int
        Updates that teach gates and network.
    blind : bool
        Gates see nothing, so that layers are chosen for all items alike.
    seed : int
        Of the gates' first values, of the order of items, and of the noise.

    Source
    ------
    Veit and Belongie, "Convolutional Networks with Adaptive Inference Graphs", ECCV 2018, there with a target for each
    layer; a loss in terms of cost: Wang, Yu, Dou, Darrell and Gonzalez, "SkipNet: Learning Dynamic Routing in
    Convolutional Networks", ECCV 2018.

    Examples
    --------
    >>> import datasets
    >>> noisy = datasets.workload("noisy-digits-cnn")
    >>> network = LayerSkipping(steps=5).apply(noisy.trained(), noisy.data())
    >>> logits, cost = network(torch.tensor(noisy.data().validation.x[:3]))
    >>> len(network.costs), set(cost.tolist()) <= set(network.costs)
    (4, True)
    """

    target: float = 0.5
    weight: float = 4.0
    steps: int = 400
    blind: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.target <= 1:
            raise ValueError(f"target: expected a share from 0 to 1, got {self.target}")
        if not self.weight >= 0 or self.steps < 0:
            raise ValueError(f"weight, steps: expected at least 0, got {self.weight} and {self.steps}")

    def fixed(self) -> LayerSkipping:
        """The same with gates that see nothing: a choice of layers, made once for all items."""
        return replace(self, blind=True)

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
            If no layer with weights but the first gives maps of the size that it takes, and no fewer channels.
        """
        chain, x = links(copy.deepcopy(network).eval()), torch.tensor(data.train.x[:1])
        stages, gates, costs, channels = [], [], [], []
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for stage, may_go in skippable(chain, x):
                gate = None if not may_go else Switch() if self.blind else Gate(x.shape[1])
                costs.append((float(macs(stage, x)), float(macs(gate, x)) if isinstance(gate, Gate) else 0.0))
                stages.append(stage)
                gates.append(gate)
                x = stage(x)
                channels.append(x.shape[1])
        if not any(gate is not None for gate in gates):
            raise ValueError("network: expected two layers with weights that give maps of the size they take")
        gated, noise = GatedChain(stages, gates, costs, channels), _falling(self.steps)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            logits, shares = gated.learned(x, next(noise))
            work = (gated.parts * shares).sum()
            return functional.cross_entropy(logits, y) + self.weight * (work - self.target).square()

        learn(gated, data, loss, self.steps, self.seed)
        return gated


def _falling(steps: int) -> Iterator[float]:
    """Noise from one to nought, which it reaches before the last updates."""
    return (max(0.0, 1 - step / (QUIET * steps)) for step in range(steps))


def skippable(chain: Sequence[nn.Module], x: Tensor) -> list[tuple[nn.Module, bool]]:
    """A chain in stages, each with whether it can be left out: a layer with weights, with its norm and rectifier.

    Parameters
    ----------
    chain : sequence of nn.Module
    x : Tensor
        One item.

    Examples
    --------
    >>> chain = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten()]
    >>> [may_go for _, may_go in skippable(chain, torch.zeros(1, 1, 5, 5))]
    [False, True, False]
    """
    stages: list[list[nn.Module]] = []
    for link in chain:
        follows = isinstance(link, nn.BatchNorm1d | nn.BatchNorm2d | nn.ReLU)
        if follows and stages and _heavy(stages[-1][0]):
            stages[-1].append(link)
        else:
            stages.append([link])
    found: list[tuple[nn.Module, bool]] = []
    first = True
    for links_of in stages:
        stage = nn.Sequential(*links_of)
        before, x = x.shape, stage(x)
        heavy = _heavy(stage)
        keeps = x.ndim == len(before) == 4 and x.shape[2:] == before[2:] and x.shape[1] >= before[1]
        found.append((stage, heavy and keeps and not first))
        first = first and not heavy
    return found


def _heavy(module: nn.Module) -> bool:
    return any(p.ndim > 1 for p in module.parameters())
