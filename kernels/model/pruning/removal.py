"""Removal of channels by a score: what all criteria share, and the blind choice that each has to beat."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.pruning.channels import CONVOLUTIONS, Channels, Group, weakest

__all__ = ["ChannelRemoval", "RandomChannels", "channels_of", "removable"]

SCOPES = ("layer", "global")
LAYERS = ("all", "convolutions")


def channels_of(network: nn.Module, data: Any) -> Channels:
    """The channels of a network, followed with two training items."""
    if not hasattr(data, "train"):
        raise TypeError(
            f"data: expected a datasets.Data, whose items show how wide tensors are, got {type(data).__name__}"
        )
    return Channels(network, torch.tensor(data.train.x[:2]))


def removable(network: nn.Module, channels: Channels, layers: str = "all") -> list[Group]:
    """The groups whose channels may go: all, or those that convolutions alone make (filters).

    Raises
    ------
    ValueError
        If there is none.
    """
    groups = [
        group
        for group in channels.groups
        if layers == "all" or all(isinstance(network.get_submodule(maker), CONVOLUTIONS) for maker in group.makers)
    ]
    if not groups:
        what = "hidden channels" if layers == "all" else "convolutions whose filters"
        raise ValueError(f"network: expected {what} to remove; {type(network).__name__} has none")
    return groups


@dataclass(frozen=True)
class ChannelRemoval(ABC):
    """Remove the channels of the lowest score; fields and `apply` of every technique that does.

    Parameters
    ----------
    macs : float
        Share of the network's multiply-accumulates that remains at most, 0 < macs <= 1.
    scope : {"layer", "global"}
        Whether every layer keeps one share of its channels, or the channels of all layers compete.
    layers : {"all", "convolutions"}
        Whose channels may go.
    """

    macs: float = 0.25
    scope: str = "layer"
    layers: str = "all"

    def __post_init__(self) -> None:
        if not 0 < self.macs <= 1:
            raise ValueError(f"macs: expected 0 < macs <= 1, got {self.macs}")
        for name, known in (("scope", SCOPES), ("layers", LAYERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected {' or '.join(known)}, got {getattr(self, name)!r}")

    @abstractmethod
    def scores(self, network: nn.Module, channels: Channels, groups: Sequence[Group], data: Any) -> list[Tensor]:
        """Of each group, a number for each unit: the lowest go first."""

    def apply(self, network: nn.Module, data: Any) -> nn.Module:
        """A copy of `network` without its weakest channels, smaller and dense.

        Parameters
        ----------
        network : nn.Module
            Left as it is.
        data : datasets.Data
            Its training items say how wide tensors are; a criterion may look at more of it, never at the test split.

        Returns
        -------
        nn.Module
            Of the same classes, its layers narrower; in the mode that the network was in.

        Raises
        ------
        TypeError, ValueError
            If the network holds a layer that channels cannot be followed through (named), or nothing to remove.
        """
        channels = channels_of(network, data)
        groups = removable(network, channels, self.layers)
        removed = weakest(channels, groups, self.scores(network, channels, groups, data), self.macs, self.scope)
        return channels.without(network, removed)

    def at_random(self, seed: int) -> Any:
        """Removal of the same strength that chooses blindly: what the criterion has to beat."""
        return RandomChannels(self.macs, self.scope, self.layers, seed)


@dataclass(frozen=True)
class RandomChannels(ChannelRemoval):
    """Remove channels drawn at random; parameters as for `ChannelRemoval`, and a seed.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> [layer.out_features for layer in RandomChannels().apply(digits.trained(), digits.data())[1::2]]
    [20, 10, 10]
    """

    seed: int = 0

    def scores(self, network: nn.Module, channels: Channels, groups: Sequence[Group], data: Any) -> list[Tensor]:
        random = torch.Generator().manual_seed(self.seed)
        return [torch.rand(len(group), generator=random, dtype=torch.float64) for group in groups]
