"""Early exit: easy items leave the network at a side classifier, and the layers behind it do not run for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from kernels.chain import links
from kernels.counting import macs

__all__ = ["EarlyExit", "MultiExit", "SideClassifier", "entropy"]


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax over the last dimension, in nats: 0 when sure, ln(classes) when clueless.

    Examples
    --------
    >>> entropy(torch.zeros(1, 10)).exp()
    tensor([10.0000])
    """
    return torch.special.entr(logits.softmax(-1)).sum(-1)


class SideClassifier(nn.Module):
    """Average pooling to a grid of at most `grid` x `grid`, then a linear layer; features without a map go straight in.

    Parameters
    ----------
    features : torch.Tensor, shape (batch, channels, ...)
        Of the kind that it will classify.
    classes, grid : int
    """

    def __init__(self, features: Tensor, classes: int, grid: int) -> None:
        super().__init__()
        self.grid: Any = tuple(min(grid, side) for side in features.shape[2:])
        self.linear = skip_init(nn.Linear, self.pool(features).shape[1], classes)  # `fit` starts at zero

    def pool(self, features: Tensor) -> Tensor:
        return (functional.adaptive_avg_pool2d(features, self.grid) if self.grid else features).flatten(1)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.pool(features))

    def fit(self, features: Tensor, y: Tensor, penalty: float = 1e-4) -> None:
        """Logistic regression on fixed features, by L-BFGS on the whole set: convex, so nothing is drawn."""
        x = self.pool(features)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        optimizer = torch.optim.LBFGS(self.linear.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = functional.cross_entropy(self.linear(x), y) + penalty * self.linear.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        self.linear.zero_grad(set_to_none=True)


class MultiExit(nn.Module):
    """A chain in stages, with a classifier after each: an item leaves after the first that is sure of it.

    Parameters
    ----------
    stages : sequence of nn.Module
    heads : sequence of nn.Module
        One for each stage but the last, whose result are logits.
    costs : sequence of float
        Multiply-accumulates of one item that leaves at each exit.
    threshold : float
        Entropy in nats below which an exit counts as sure.
    """

    def __init__(
        self, stages: Sequence[nn.Module], heads: Sequence[nn.Module], costs: Sequence[float], threshold: float
    ) -> None:
        super().__init__()
        self.stages, self.heads = nn.ModuleList(stages), nn.ModuleList(heads)
        self.costs, self.threshold = costs, threshold

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of each item's own exit, (batch, classes), and its cost in multiply-accumulates, (batch,)."""
        left = torch.arange(len(x), device=x.device)
        found: list[tuple[Tensor, Tensor, float]] = []
        for stage, head, cost in zip(self.stages, self.heads, self.costs, strict=False):
            x = stage(x)
            logits = head(x)
            sure = entropy(logits) < self.threshold
            leaving = int(sure.sum())
            if leaving == len(left):
                found.append((left, logits, cost))
                break
            if leaving:
                found.append((left[sure], logits[sure], cost))
                left, x = left[~sure], x[~sure]
        else:
            found.append((left, self.stages[-1](x), self.costs[-1]))
        costs = torch.cat([torch.full((len(items),), cost) for items, _, cost in found])
        if len(found) == 1:
            return found[0][1], costs
        order = torch.cat([items for items, _, _ in found]).argsort()
        return torch.cat([logits for _, logits, _ in found])[order], costs[order]

    def exits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of every exit, (exits, batch, classes), and their entropies: what any threshold chooses from."""
        logits = []
        for stage, head in zip(self.stages, [*self.heads, nn.Identity()], strict=True):
            x = stage(x)
            logits.append(head(x))
        every = torch.stack(logits)
        return every, entropy(every)


@dataclass(frozen=True)
class EarlyExit:
    r"""Leave at the first exit whose softmax p has little entropy:

        leave at exit n  when  -\sum_c p_c \log p_c < T

    A batch shrinks as its items leave, so what is not needed is not computed. The exits stand before layers with
    weights, spread evenly over them; what the backbone computes for those who stay is what it always computed. In the
    paper all exits are trained together with the backbone; here the trained network stays as it is, and each side
    classifier is fitted to its features.

    Parameters
    ----------
    threshold : float
        T, in nats; 0 lets nobody leave, more than ln(classes) everybody at the first exit.
    exits : int
        The number of side exits; fewer where the network has fewer places.
    grid : int
        Side classifiers see maps averaged over a grid of this many fields a side.

    Source: Teerapittayanon et al., "BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks",
    arXiv 1709.01686, algorithm 1.

    Examples
    --------
    >>> import datasets
    >>> workload = datasets.workload("noisy-digits-cnn")
    >>> network = EarlyExit(threshold=0.1).apply(workload.trained(), workload.data())
    >>> logits, cost = network(torch.tensor(workload.data().validation.x[:64]))
    >>> logits.shape, bool(cost.min() < cost.max())
    (torch.Size([64, 10]), True)
    """

    threshold: float = 0.1
    exits: int = 2
    grid: int = 4

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold: expected an entropy of at least 0 nats, got {self.threshold}")
        if self.exits < 1 or self.grid < 1:
            raise ValueError(f"exits, grid: expected at least 1, got exits={self.exits}, grid={self.grid}")

    def apply(self, network: nn.Module, data: Any) -> MultiExit:
        """A copy of the network with side classifiers, fitted to ``data.train``.

        Parameters
        ----------
        network : nn.Sequential
            Trained; its result are logits. Left as it is.
        data : datasets.Data

        Raises
        ------
        TypeError
            If the network is not a chain.
        ValueError
            If it has fewer than three layers with weights: there is no place for an exit.
        """
        chain = links(copy.deepcopy(network).eval())
        heavy = [i for i, link in enumerate(chain) if any(p.ndim > 1 for p in link.parameters())]
        places = heavy[1:-1]  # before a layer with weights, but not the last: that one is an exit already
        if not places:
            raise ValueError(f"network: expected at least three layers with weights, got {len(heavy)}")
        count = min(self.exits, len(places))
        cuts = [places[(i + 1) * len(places) // (count + 1)] for i in range(count)]
        bounds = [0, *cuts, len(chain)]
        stages = [nn.Sequential(*chain[a:b]) for a, b in pairwise(bounds)]

        x, y = torch.tensor(data.train.x), torch.tensor(data.train.y)
        *earlier, last = stages
        heads: list[nn.Module] = []
        costs: list[float] = []
        spent = 0.0
        for stage in earlier:
            spent += macs(stage, x[:1])
            with torch.no_grad():
                x = torch.cat([stage(part) for part in x.split(256)])
            head = SideClassifier(x[:1], data.classes, self.grid)
            head.fit(x, y)
            spent += macs(head, x[:1])
            heads.append(head)
            costs.append(spent)
        costs.append(spent + macs(last, x[:1]))
        return MultiExit(stages, heads, costs, self.threshold).eval()
