"""Neuron pruning: remove the units that are zero most often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.pruning.channels import Channels, Group
from kernels.model.pruning.removal import ChannelRemoval

__all__ = ["NeuronPruning", "share_of_zeros"]

BATCH = 250


def share_of_zeros(channels: Channels, group: Group, x: Tensor) -> Tensor:
    r"""How often a unit is zero behind its rectifier: the average percentage of zeros, as a share.

    .. math:: \mathrm{APoZ}_c = \frac{1}{N M} \sum_{k=1}^{N} \sum_{j=1}^{M} [\,O_{cj}(k) = 0\,]

    over N items and the M places of a channel, one of a neuron; where a unit passes several rectifiers, over all.

    Parameters
    ----------
    channels : Channels
        Of the network to be looked at.
    group : Group
    x : Tensor
        Items.

    Raises
    ------
    ValueError
        If a unit passes no rectifier.
    """
    zeros: list[tuple[Sequence[int], Tensor]] = []
    looks: list[tuple[Sequence[int], Tensor]] = []

    def look(name: str, value: Tensor) -> None:
        axis, units = channels.rectified[name]
        flat = value.movedim(axis, 0).flatten(1)
        zeros.append((units, (flat == 0).sum(1)))
        looks.append((units, torch.full((len(units),), flat.shape[1])))

    for items in x.split(BATCH):
        channels.watch_rectifiers(items, look)
    seen = channels.total(group, looks)
    if not looks or (seen == 0).any():
        raise ValueError(
            f"network: expected a rectifier behind every layer, to see how often its units are zero, but what"
            f" {group.makers[0]!r} gives passes none"
        )
    return channels.total(group, zeros) / seen


@dataclass(frozen=True)
class NeuronPruning(ChannelRemoval):
    r"""Remove the neurons, and the filters, that are zero most often on the validation items.

    .. math:: \mathrm{APoZ}_c = \frac{1}{N M} \sum_{k=1}^{N} \sum_{j=1}^{M} [\,O_{cj}(k) = 0\,]

    Parameters
    ----------
    macs, scope, layers
        As for `ChannelRemoval`.

    Notes
    -----
    The paper removes what lies a standard deviation above its layer's mean, trains, and begins again; here the
    strength is given, and all layers lose one share, at once.

    Source: Hu et al., "Network Trimming", 2016, section 3.1, equation 1.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> small = NeuronPruning(macs=0.3).apply(digits.trained(), digits.data())
    >>> [layer.out_features for layer in small if isinstance(layer, nn.Linear)]
    [23, 12, 10]
    """

    def scores(self, network: nn.Module, channels: Channels, groups: Sequence[Group], data: Any) -> list[Tensor]:
        x = torch.tensor(data.validation.x)
        return [1 - share_of_zeros(channels, group, x) for group in groups]
