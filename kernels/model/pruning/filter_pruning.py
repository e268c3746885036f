"""Filter pruning: remove whole filters of convolutions, so that what remains is a narrower dense network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.pruning.channels import Channels, Group, widths
from kernels.model.pruning.reconstruction import contributions, places_of, positions, rescale, some_items
from kernels.model.pruning.removal import ChannelRemoval, channels_of, removable

__all__ = ["FilterPruning", "RandomFilters", "filter_norms", "least_missed"]

CRITERIA = ("l1", "reconstruction")
ITEMS, POSITIONS = 256, 1000


def filter_norms(channels: Channels, network: nn.Module, group: Group) -> Tensor:
    r"""The l1 norm of the filters of each unit of a group.

    .. math:: s_j = \sum_i \sum_k |W_{jik}|

    summed over the layers whose outputs are added: they lose the filter together.
    """
    norms = []
    for name in group.makers:
        weight = network.get_submodule(name).get_parameter("weight")
        norms.append((channels.out[name], weight.detach().double().abs().flatten(1).sum(1)))
    return channels.total(group, norms)


def least_missed(z: Tensor, count: int) -> list[int]:
    r"""Which `count` channels to remove so that the next layer misses least, one after the other.

    .. math:: T \leftarrow T \cup \Big\{\arg\min_{i \notin T} \sum_s \Big(\sum_{j \in T \cup \{i\}} z_{sj}\Big)^2\Big\}

    With G = Zᵀ Z the sum of squares is that of the entries of G on T, so each step costs only additions.

    Parameters
    ----------
    z : Tensor of shape (samples, channels)
        What each channel contributes to a sampled output.
    count : int
        How many to remove.

    Examples
    --------
    >>> least_missed(torch.tensor([[1.0, 5.0, -5.0, 2.0]]), count=3)    # the two large ones cancel: 1 - 5 + 5
    [0, 3, 2]
    """
    gram = z.double().T @ z.double()
    removed: list[int] = []
    added = gram.diagonal().clone()
    for _ in range(count):
        costs = added.clone()
        costs[removed] = torch.inf
        best = int(costs.argmin())
        removed.append(best)
        added += 2 * gram[best]
    return removed


@dataclass(frozen=True)
class FilterPruning(ChannelRemoval):
    r"""Remove the filters of smallest l1 norm, or those that the next layer misses least.

    .. math:: s_j = \sum_i \sum_k |W_{jik}|

    Parameters
    ----------
    macs, scope, layers
        As for `ChannelRemoval`; here filters of convolutions alone may go.
    criterion : {"l1", "reconstruction"}
        The norm of a filter, or a greedy choice (`least_missed`) on sampled outputs of the layers that read it; with
        the latter, layer after layer, the kept channels are rescaled by least squares. It needs scope "layer".
    seed : int
        Of the sampled training items and positions.

    Notes
    -----
    ThiNet trains an epoch or two after each layer; here the network is trained once, at the end. Where several layers
    read a channel, the samples of all of them decide, and each rescales by itself.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1; of the reconstruction Luo, Wu
    and Lin, "ThiNet", ICCV 2017, sections 3.2 and 3.3.

    Examples
    --------
    >>> import datasets
    >>> mnist = datasets.workload("mnist-cnn")
    >>> small = FilterPruning().apply(mnist.trained(), mnist.data())
    >>> [layer.out_channels for layer in small if isinstance(layer, nn.Conv2d)]
    [7, 15, 15]
    """

    layers: str = "convolutions"
    criterion: str = "l1"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.criterion not in CRITERIA:
            raise ValueError(f"criterion: expected {' or '.join(CRITERIA)}, got {self.criterion!r}")
        if self.criterion == "reconstruction" and self.scope != "layer":
            raise ValueError(f"scope: expected 'layer' with reconstruction, got {self.scope!r}")

    def scores(self, network: nn.Module, channels: Channels, groups: Sequence[Group], data: Any) -> list[Tensor]:
        return [filter_norms(channels, network, group) for group in groups]

    def apply(self, network: nn.Module, data: Any) -> nn.Module:
        if self.criterion == "l1":
            return super().apply(network, data)
        channels = channels_of(network, data)
        groups = removable(network, channels, self.layers)
        removed: list[int] = []
        pruned = channels.silence(network, removed)
        x, _ = some_items(data, ITEMS, self.seed)
        for group, width in zip(groups, widths(channels, groups, self.macs), strict=True):
            samples = {name: self._sampled(pruned, channels, name, group, x) for name in group.readers}
            gone = self._chosen(torch.cat(list(samples.values())), group, len(group) - width)
            kept = torch.tensor([i for i in range(len(group)) if i not in gone])
            removed += [group.units[i] for i in gone]
            for name, z in samples.items():
                columns = {i: places_of(channels, name, [unit]) for i, unit in enumerate(group.units)}
                layer: Any = pruned.get_submodule(name)
                layer.weight.data = rescale(layer.weight, kept, z, columns)
            pruned = channels.silence(pruned, removed)
        return channels.without(pruned, removed)

    def _sampled(self, network: nn.Module, channels: Channels, name: str, group: Group, x: Tensor) -> Tensor:
        """Contributions of a group's units to one output, drawn, at each sampled position: (positions, units)."""
        layer: Any = network.get_submodule(name)
        read, _ = positions(network, name, x, POSITIONS, self.seed)
        z = contributions(channels, group, name, read, layer.weight)
        random = torch.Generator().manual_seed(self.seed)
        return z[torch.arange(len(z)), torch.randint(z.shape[1], (len(z),), generator=random)]

    def _chosen(self, z: Tensor, group: Group, count: int) -> list[int]:
        return least_missed(z, count)

    def at_random(self, seed: int) -> Any:
        """Removal of as much that chooses blindly; after reconstruction it rescales too."""
        if self.criterion == "l1":
            return super().at_random(seed)
        return RandomFilters(self.macs, self.scope, self.layers, self.criterion, seed)


@dataclass(frozen=True)
class RandomFilters(FilterPruning):
    """As `FilterPruning` with reconstruction, but the filters are drawn.

    Examples
    --------
    >>> FilterPruning(criterion="reconstruction").at_random(seed=3).seed
    3
    """

    criterion: str = "reconstruction"

    def _chosen(self, z: Tensor, group: Group, count: int) -> list[int]:
        # a stream for each group: one for all would repeat the same choice in layers of one width
        random = torch.Generator().manual_seed(self.seed * 1009 + group.units[0])
        return torch.randperm(len(group), generator=random)[:count].tolist()
