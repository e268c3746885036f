"""Channel pruning: which channels the next layer needs, by lasso or by the scales of norms, and weights refitted."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.pruning.channels import Channels, Group, widths
from kernels.model.pruning.reconstruction import contributions, places_of, positions, refit, some_items
from kernels.model.pruning.removal import ChannelRemoval, channels_of, removable

__all__ = ["ChannelPruning", "RandomlyRead", "lasso", "lasso_keeps", "norm_scales", "slim"]

CRITERIA = ("lasso", "scales")
ITEMS, POSITIONS = 500, 5000
BATCH, RATE, MOMENTUM = 32, 0.01, 0.9


def lasso(gram: Tensor, moment: Tensor, penalty: float, start: Tensor | None = None) -> Tensor:
    r"""Least squares with an l1 penalty, by coordinate descent.

    .. math:: \hat\beta = \arg\min_\beta \tfrac12 \beta^T G \beta - c^T \beta + \lambda \|\beta\|_1,
       \qquad \beta_i \leftarrow \frac{S_\lambda\big(c_i - \sum_{j \ne i} G_{ij} \beta_j\big)}{G_{ii}}

    with S the soft threshold. For samples Z and y, G = ZᵀZ / N and c = Zᵀy / N.

    Parameters
    ----------
    gram : Tensor of shape (n, n), float64
    moment : Tensor of shape (n,), float64
    penalty : float
        λ.
    start : Tensor of shape (n,), optional
        Where to begin; zero by default.

    Examples
    --------
    >>> lasso(torch.eye(2, dtype=torch.float64), torch.tensor([3.0, 0.5], dtype=torch.float64), penalty=1.0)
    tensor([2., 0.], dtype=torch.float64)
    """
    rows, target = gram.numpy(), moment.numpy()
    beta = np.zeros(len(target)) if start is None else start.numpy().copy()
    small = 1e-9 * max(abs(target), default=0.0)
    for _ in range(1000):
        moved = 0.0
        for i, row in enumerate(rows):
            if row[i] <= 0:  # a channel that is always zero
                beta[i] = 0.0
                continue
            rest = target[i] - row @ beta + row[i] * beta[i]
            new = (max(rest - penalty, 0.0) + min(rest + penalty, 0.0)) / row[i]
            moved = max(moved, abs(new - beta[i]) * row[i])
            beta[i] = new
        if moved <= small:
            break
    return torch.tensor(beta)


def lasso_keeps(z: Tensor, y: Tensor, count: int) -> list[int]:
    """The `count` columns of z that the lasso keeps when its penalty has grown just so far.

    The penalty is found by bisection; where several columns leave at once, those of the largest coefficients before
    stay.

    Parameters
    ----------
    z : Tensor of shape (samples, channels)
    y : Tensor of shape (samples,)
    count : int

    Examples
    --------
    >>> z = torch.tensor([[1.0, 0.0, 0.1], [0.0, 1.0, 0.1], [1.0, 1.0, 0.3]])
    >>> lasso_keeps(z, z.sum(1), count=2)
    [0, 1]
    """
    gram, moment = z.double().T @ z.double() / len(z), z.double().T @ y.double() / len(z)
    low, high = 0.0, float(moment.abs().max())
    before = lasso(gram, moment, low)
    for _ in range(60):
        middle = (low * high) ** 0.5 if low else high / 4  # in ratios, for λ may be tiny where nearly all stay
        beta = lasso(gram, moment, middle, before)
        found = int(beta.count_nonzero())
        if found >= count:
            low, before = middle, beta
        else:
            high = middle
        if found == count:
            break
    return sorted(before.abs().argsort(descending=True, stable=True)[:count].tolist())


def norm_scales(channels: Channels, network: nn.Module, group: Group) -> Tensor:
    r"""The magnitudes of the scales that batch norms put on the units of a group, summed where several do.

    Raises
    ------
    ValueError
        If a unit passes no norm that scales.
    """
    seen, scales = set(), []
    for name, units in channels.norms.items():
        weight = getattr(network.get_submodule(name), "weight", None)
        if weight is not None and set(units) & set(group.units):
            seen |= set(units)
            scales.append((units, weight.abs()))
    if not seen >= set(group.units):
        raise ValueError(
            "network: expected a batch norm with scales behind every layer, but what"
            f" {group.makers[0]!r} gives passes none"
        )
    return channels.total(group, scales)


def slim(network: nn.Module, data: Any, penalty: float, updates: int, seed: int) -> nn.Module:
    r"""A copy of `network`, trained a little more with the l1 norm of all scales of batch norms in its loss.

    .. math:: L = \frac1n \sum_i \ell(f(x_i), y_i) + \lambda \sum_\gamma |\gamma|

    by stochastic (sub)gradient descent with Nesterov's momentum: the gradient of the second term is λ sign(γ).
    """
    network = copy.deepcopy(network)
    mode = network.training
    scales = [m.weight for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine]
    x, y = torch.tensor(data.train.x), torch.tensor(data.train.y)
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, nesterov=True)
    random = torch.Generator().manual_seed(seed)
    network.train()
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.cat([torch.randperm(len(y), generator=random) for _ in range(1 + updates * BATCH // len(y))])
        for items in order.split(BATCH)[:updates]:
            optimizer.zero_grad()
            functional.cross_entropy(network(x[items]), y[items]).backward()
            for scale in scales:
                assert scale.grad is not None
                scale.grad.add_(scale.detach().sign(), alpha=penalty)
            optimizer.step()
    return network.train(mode)


@dataclass(frozen=True)
class ChannelPruning(ChannelRemoval):
    r"""Remove the channels that the layers reading them can do without, chosen by lasso, and refit those layers.

    .. math:: \min_{\beta, W'} \frac{1}{2N} \Big\| Y - \sum_i \beta_i X_i W_i'^T \Big\|_F^2 + \lambda \|\beta\|_1,
       \qquad \|\beta\|_0 \le c'

    First β with the weights as they are, λ growing until no more than c' channels are left; then, with those, W' by
    least squares. Layer after layer, Y what the whole network gave, X what the pruned one gives: each layer makes good
    what the layers before it lost.

    Parameters
    ----------
    macs, scope, layers
        As for `ChannelRemoval`; here channels that convolutions make may go.
    criterion : {"lasso", "scales"}
        The above, which needs scope "layer"; or network slimming: train a little more with an l1 penalty on the scales
        of batch norms (`slim`), and remove the channels of the smallest.
    penalty : float
        λ of slimming.
    updates : int
        Of slimming, with 32 items each.
    seed : int
        Of the items and positions drawn, and of the order of training.

    Notes
    -----
    Slimming trains from scratch with its penalty; here it continues from the trained network, and a random choice is
    measured after as many updates without the penalty. What the shift of a removed norm gave is dropped.

    Source: He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3.1; of
    the scales Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, section 3.

    Examples
    --------
    >>> import datasets
    >>> noisy = datasets.workload("noisy-digits-cnn")
    >>> small = ChannelPruning(macs=0.5).apply(noisy.trained(), noisy.data())
    >>> [layer.out_channels for layer in small if isinstance(layer, nn.Conv2d)]
    [11, 22, 22]
    """

    layers: str = "convolutions"
    criterion: str = "lasso"
    penalty: float = 0.03
    updates: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.criterion not in CRITERIA:
            raise ValueError(f"criterion: expected {' or '.join(CRITERIA)}, got {self.criterion!r}")
        if self.criterion == "lasso" and self.scope != "layer":
            raise ValueError(f"scope: expected 'layer' with the lasso, got {self.scope!r}")
        if not 0 <= self.penalty < float("inf") or self.updates < 0:
            raise ValueError(f"penalty, updates: expected numbers of at least 0, got {self.penalty} and {self.updates}")

    def scores(self, network: nn.Module, channels: Channels, groups: Sequence[Group], data: Any) -> list[Tensor]:
        return [norm_scales(channels, network, group) for group in groups]

    def apply(self, network: nn.Module, data: Any) -> nn.Module:
        if self.criterion == "scales":
            channels_of(network, data)  # what cannot be pruned is refused before it is trained
            return super().apply(slim(network, data, self.penalty, self.updates, self.seed), data)
        channels = channels_of(network, data)
        groups = removable(network, channels, self.layers)
        x, _ = some_items(data, ITEMS, self.seed)
        removed: list[int] = []
        pruned = channels.silence(network, removed)
        for group, width in zip(groups, widths(channels, groups, self.macs), strict=True):
            samples = {name: self._sampled(network, pruned, name, x) for name in group.readers}
            kept = self._chosen(pruned, channels, group, samples, width)
            removed += [unit for i, unit in enumerate(group.units) if i not in kept]
            for name, (read, target) in samples.items():
                layer: Any = pruned.get_submodule(name)
                stays = set(channels.into[name]) - set(removed)
                layer.weight.data = refit(read, target, layer.weight.data, places_of(channels, name, stays))
            pruned = channels.silence(pruned, removed)
        return channels.without(pruned, removed)

    def _sampled(self, whole: nn.Module, pruned: nn.Module, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """What a layer reads in the pruned network, and what it gave in the whole one without its bias."""
        read, _ = positions(pruned, name, x, POSITIONS, self.seed)
        _, given = positions(whole, name, x, POSITIONS, self.seed)
        bias = whole.get_submodule(name).bias
        return read, given if bias is None else given - bias.detach()  # type: ignore[operator]

    def _chosen(
        self, network: nn.Module, channels: Channels, group: Group, samples: dict[str, Any], count: int
    ) -> list[int]:
        z, y = [], []
        for name, (read, target) in samples.items():
            weight = network.get_submodule(name).get_parameter("weight")
            z.append(contributions(channels, group, name, read, weight).flatten(0, 1))
            y.append(target.flatten())
        return lasso_keeps(torch.cat(z), torch.cat(y), count)

    def at_random(self, seed: int) -> RandomlyRead:
        """Removal of as many channels, drawn, with the same refitting, or the same training without the penalty."""
        return RandomlyRead(self.macs, self.scope, self.layers, self.criterion, 0.0, self.updates, seed)


@dataclass(frozen=True)
class RandomlyRead(ChannelPruning):
    """As `ChannelPruning`, but the channels are drawn, and training has no penalty.

    Examples
    --------
    >>> ChannelPruning(macs=0.5).at_random(seed=3).seed
    3
    """

    penalty: float = 0.0

    def scores(self, network: nn.Module, channels: Channels, groups: Sequence[Group], data: Any) -> list[Tensor]:
        random = torch.Generator().manual_seed(self.seed)
        return [torch.rand(len(group), generator=random, dtype=torch.float64) for group in groups]

    def _chosen(
        self, network: nn.Module, channels: Channels, group: Group, samples: dict[str, Any], count: int
    ) -> list[int]:
        random = torch.Generator().manual_seed(self.seed * 1009 + group.units[0])
        return torch.randperm(len(group), generator=random)[:count].tolist()
