"""Dynamic channels: for each item, only the channels of a layer that its input calls for are computed."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from kernels.chain import links
from kernels.model.dynamic_inference.learning import learn

__all__ = ["BoostedConv", "BoostedNetwork", "Constant", "DynamicChannels"]

PREDICTORS = ("magnitudes", "standardized", "fixed")


class Constant(nn.Module):
    """Saliencies that are the same for all items."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, ...) to (batch, channels)."""
        return self.bias.expand(len(x), -1)


class BoostedConv(nn.Module):
    """A convolution, its norm and rectifier, whose output channels are predicted, boosted, or not computed at all.

    Parameters
    ----------
    conv : nn.Conv2d
    norm : nn.BatchNorm2d
    density : float
        The share of the channels that is computed for an item.
    predictor : {"magnitudes", "standardized", "fixed"}
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, density: float, predictor: str) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm
        self.kept = max(1, math.ceil(density * conv.out_channels))
        self.usual = nn.BatchNorm1d(conv.in_channels, affine=False) if predictor == "standardized" else nn.Identity()
        self.saliency: Any = Constant(conv.out_channels)
        if predictor != "fixed":
            self.saliency = skip_init(nn.Linear, conv.in_channels, conv.out_channels)
            nn.init.kaiming_normal_(self.saliency.weight)
            nn.init.ones_(self.saliency.bias)
        with torch.no_grad():
            self.scale = nn.Parameter(norm.weight.detach().clone())
            self.shift = nn.Parameter(norm.bias.detach().clone())
        norm.weight, norm.bias = None, None  # type: ignore[assignment]
        norm.affine = False

    def called(self, x: Tensor) -> Tensor:
        """The saliencies g, (batch, out_channels), all but the largest zero: winners take all."""
        g = self.saliency(self.usual(x.abs().mean((2, 3)))).relu()
        largest = g.topk(self.kept, dim=1)
        return torch.zeros_like(g).scatter(1, largest.indices, largest.values)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As in training: everything is computed, then channels are multiplied by their saliencies."""
        g = self.called(x)
        y = self.scale[:, None, None] * self.norm(self.conv(x)) + self.shift[:, None, None]
        return (g[:, :, None, None] * y).relu(), g

    def sparse(self, x: Tensor, alive: Tensor) -> tuple[Tensor, Tensor, int]:
        """One item, (1, channels, rows, columns): only winners are computed, and only from channels that are alive.

        Returns
        -------
        y, alive, macs
        """
        g = self.called(x)[0]
        winners = g.nonzero()[:, 0]
        weight = self.conv.weight[winners][:, alive]
        y = torch.zeros(1, len(g), *_places(self.conv, x))
        spent = sum(p.numel() for p in self.saliency.parameters() if p.ndim > 1)
        if len(winners) and len(alive):
            bias = None if self.conv.bias is None else self.conv.bias[winners]
            part = self.conv._conv_forward(x[:, alive], weight, bias)
            spread = (self.norm.running_var[winners] + self.norm.eps).sqrt()  # type: ignore[index]
            factor = g[winners] * self.scale[winners] / spread
            shift = g[winners] * self.shift[winners] - factor * self.norm.running_mean[winners]  # type: ignore[index]
            y[:, winners] = (factor[:, None, None] * part + shift[:, None, None]).relu()
            spent += weight.numel() * math.prod(part.shape[2:])
        return y, winners, spent


def _places(conv: nn.Conv2d, x: Tensor) -> tuple[int, ...]:
    """Rows and columns of what a convolution gives, from a pass of one channel through one filter."""
    one = conv._conv_forward(x[:, :1], conv.weight[:1, :1], None)
    return tuple(one.shape[2:])


class BoostedNetwork(nn.Module):
    """A chain of boosted convolutions and whatever else it held; at inference item by item.

    Parameters
    ----------
    stages : list of nn.Module
        In order.
    """

    def __init__(self, stages: list[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def learned(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the mean of all saliencies, a scalar, with every channel computed."""
        total: list[Tensor] = []
        for stage in self.stages:
            if isinstance(stage, BoostedConv):
                x, g = stage(x)
                total.append(g.abs().mean())
            else:
                x = stage(x)
        return x, torch.stack(total).mean()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, (batch, classes), and each item's cost in multiply-accumulates, (batch,)."""
        found = [self._one(x[i : i + 1]) for i in range(len(x))]
        if not found:
            return self.learned(x)[0], torch.zeros(0)
        return torch.cat([logits for logits, _ in found]), torch.tensor([float(cost) for _, cost in found])

    def _one(self, x: Tensor) -> tuple[Tensor, int]:
        alive, spent = torch.arange(x.shape[1]), 0
        for stage in self.stages:
            if isinstance(stage, BoostedConv):
                x, alive, cost = stage.sparse(x, alive)
                spent += cost
            else:
                x = stage(x)
                if isinstance(stage, nn.Linear):
                    spent += stage.weight.numel()
                elif isinstance(stage, nn.Conv2d):
                    spent += stage.weight.numel() * math.prod(x.shape[2:])
                    alive = torch.arange(x.shape[1])
        return x, spent


@dataclass(frozen=True)
class DynamicChannels:
    r"""Feature boosting and suppression: predict from a layer's input which of its channels will matter, and skip the
    rest.

    .. math:: y = \big( \pi(x) \cdot (\gamma \, \mathrm{norm}(W * x) + \beta) \big)_+, \qquad
        \pi(x) = \mathrm{wta}_{\lceil dC \rceil}\big( (\, s(x) \, \Phi + \rho)_+ \big)

    with s(x) the mean magnitude of each input channel, Φ and ρ a small linear layer, and wta all but the largest ⌈dC⌉
    set to zero. A channel whose factor is zero need not be computed, nor read by the next layer: products fall by
    about d².

    Parameters
    ----------
    density : float
        d, 0 < d <= 1.
    steps : int
        Updates that teach the predictors, and the network to do with the channels called.
    penalty : float
        Of the mean saliency, which keeps those that are not needed at zero.
    predictor : {"magnitudes", "standardized", "fixed"}
        What saliencies are predicted from: s(x); s(x) less its mean over the items, over its spread, so that items
        differ by as much as they can; nothing, so that Φ falls away, and all items call for the same channels.
    seed : int
        Of Φ, and of the order of items.

    Source
    ------
    Gao, Zhao, Dudziak, Mullins and Xu, "Dynamic Channel Pruning: Feature Boosting and Suppression", ICLR 2019.
    Standardized summaries are ours.

    Examples
    --------
    >>> import datasets
    >>> noisy = datasets.workload("noisy-digits-cnn")
    >>> network = DynamicChannels(density=0.5, steps=5).apply(noisy.trained(), noisy.data())
    >>> logits, cost = network(torch.tensor(noisy.data().validation.x[:3]))
    >>> logits.shape, cost.shape
    (torch.Size([3, 10]), torch.Size([3]))
    """

    density: float = 0.5
    steps: int = 400
    penalty: float = 0.01
    predictor: str = "magnitudes"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density: expected 0 < density <= 1, got {self.density}")
        if self.steps < 0 or not self.penalty >= 0:
            raise ValueError(f"steps, penalty: expected at least 0, got {self.steps} and {self.penalty}")
        if self.predictor not in PREDICTORS:
            raise ValueError(f"predictor: expected one of {', '.join(PREDICTORS)}, got {self.predictor!r}")

    def fixed(self) -> DynamicChannels:
        """The same with saliencies that see nothing: channels are chosen once for all items, and the others removed."""
        return replace(self, predictor="fixed")

    def apply(self, network: nn.Module, data: Any) -> BoostedNetwork:
        """A copy of the network with predicted channels, taught on ``data.train``.

        Parameters
        ----------
        network : nn.Sequential
            Trained, with convolutions that are followed by a batch norm and a rectifier; left as it is.
        data : datasets.Data

        Raises
        ------
        TypeError
            If the network is no chain.
        ValueError
            If it has no convolution with norm and rectifier, or one of those is in groups, by its name.
        """
        chain = links(copy.deepcopy(network))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            boosted = BoostedNetwork(self._stages(chain))

        def loss(x: Tensor, y: Tensor) -> Tensor:
            logits, saliency = boosted.learned(x)
            return functional.cross_entropy(logits, y) + self.penalty * saliency

        learn(boosted, data, loss, self.steps, self.seed)
        return boosted.eval()

    def _stages(self, chain: list[nn.Module]) -> list[nn.Module]:
        stages: list[nn.Module] = []
        place = 0
        while place < len(chain):
            conv, *behind = chain[place : place + 3]
            if isinstance(conv, nn.Conv2d) and [type(m) for m in behind] == [nn.BatchNorm2d, nn.ReLU]:
                if conv.groups > 1:
                    raise ValueError(f"{place}: expected a convolution in one group, got {conv}")
                stages.append(BoostedConv(conv, behind[0], self.density, self.predictor))  # type: ignore[arg-type]
                place += 3
            else:
                stages.append(conv)
                place += 1
        if not any(isinstance(stage, BoostedConv) for stage in stages):
            raise ValueError("network: expected a convolution followed by batch norm and ReLU; there is none")
        return stages
