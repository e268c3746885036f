"""Taylor pruning: remove the channels whose removal should change the loss least, to first order."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.pruning.channels import RECURRENT, Channels, Group, weakest
from kernels.model.pruning.reconstruction import some_items
from kernels.model.pruning.removal import ChannelRemoval, channels_of, removable

__all__ = ["TaylorPruning", "activation_saliency", "weight_saliency"]

KINDS = ("activation", "weight")
ITEMS, BATCH = 1000, 100


def activation_saliency(
    network: nn.Module, channels: Channels, groups: Sequence[Group], x: Tensor, y: Tensor
) -> list[Tensor]:
    r"""By how much the loss of an item changes, to first order and in magnitude, when a channel is no longer read.

    .. math:: \Theta_i = \frac1n \sum_s \Big| \sum_m \frac{\partial L_s}{\partial z_{sim}} z_{sim} \Big|

    with z_si what layers read of channel i of item s, and m its places: the derivative of the loss by a gate on the
    channel, at one. Behind a rectifier or a pooling by maximum the sum is the same as before it.

    Parameters
    ----------
    network : nn.Module
        In evaluation mode while it is looked at, so that items do not depend on one another; left as it is.
    channels : Channels
    groups : sequence of Group
    x, y : Tensor
        Items and labels.

    Returns
    -------
    list of Tensor
        One for each group, a number for each unit.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    products: dict[str, Tensor] = {}

    def gate(name: str, layer: nn.Module) -> Any:
        def pre(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            read = inputs[0] if inputs[0].requires_grad else inputs[0].detach().requires_grad_()
            read = read.view_as(read)  # of its own: its gradient is what this layer asks for, not what others do

            def keep(gradient: Tensor) -> None:
                each = (gradient * read.detach()).double()
                if isinstance(layer, (nn.Linear, *RECURRENT)):
                    each = each.flatten(1, -2).sum(1) if each.ndim > 2 else each
                else:
                    each = each.flatten(2).sum(2)
                products[name] = products.get(name, 0) + each  # type: ignore[operator]

            read.register_hook(keep)
            return (read, *inputs[1:])

        return layer.register_forward_pre_hook(pre)

    for name in dict.fromkeys(name for group in groups for name in group.readers):
        gate(name, network.get_submodule(name))
    totals = [torch.zeros(len(group), dtype=torch.float64) for group in groups]
    with torch.enable_grad():
        for items, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            products.clear()
            functional.cross_entropy(network(items), labels, reduction="sum").backward()
            for total, group in zip(totals, groups, strict=True):
                parts = ((channels.into[name], products[name]) for name in group.readers)
                total += channels.total(group, parts).abs().sum(0)
    return [total / len(y) for total in totals]


def weight_saliency(
    network: nn.Module, channels: Channels, groups: Sequence[Group], x: Tensor, y: Tensor
) -> list[Tensor]:
    r"""The same expansion about the weights of a filter, each by itself.

    .. math:: \Theta_i = \sum_{w \in \text{filter } i} \Big| \frac{\partial L}{\partial w} w \Big|

    with L the mean loss of the items. Parameters as for `activation_saliency`.
    """
    network = copy.deepcopy(network).eval()
    with torch.enable_grad():
        for items, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            (functional.cross_entropy(network(items), labels, reduction="sum") / len(y)).backward()
    scores = []
    for group in groups:
        parts = []
        for name in group.makers:
            weight = network.get_submodule(name).get_parameter("weight")
            assert weight.grad is not None
            parts.append((channels.out[name], (weight.grad * weight).double().abs().flatten(1).sum(1)))
        scores.append(channels.total(group, parts))
    return scores


@dataclass(frozen=True)
class TaylorPruning(ChannelRemoval):
    r"""Remove the channels of smallest first-order saliency, a few at a time.

    .. math:: \Theta_i = \frac1n \sum_s \Big| \sum_m \frac{\partial L_s}{\partial z_{sim}} z_{sim} \Big|, \qquad
       \hat\Theta_i = \frac{\Theta_i}{\sqrt{\sum_{j \in \text{layer}} \Theta_j^2}}

    The saliencies of each layer are divided by their norm, so that layers can compete; after each round they are
    taken anew, since a channel matters more once its like is gone.

    Parameters
    ----------
    macs, scope, layers
        As for `ChannelRemoval`; by default the channels of all layers compete.
    of : {"activation", "weight"}
        What the loss is expanded in: the channel, or the weights that make it.
    rounds : int
        In how many rounds the channels go; the share of multiply-accumulates falls evenly.
    seed : int
        Of the training items drawn.

    Notes
    -----
    The paper trains a little between rounds. `apply` does not, so that all criteria have the same training; `gradual`
    does.

    Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017,
    section 2.2, equations of the Taylor criterion and of layer-wise l2-normalization.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> small = TaylorPruning(macs=0.3).apply(digits.trained(), digits.data())
    >>> [layer.out_features for layer in small if isinstance(layer, nn.Linear)]
    [23, 14, 10]
    """

    scope: str = "global"
    of: str = "activation"
    rounds: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of not in KINDS:
            raise ValueError(f"of: expected {' or '.join(KINDS)}, got {self.of!r}")
        if self.rounds < 1:
            raise ValueError(f"rounds: expected at least 1, got {self.rounds}")

    def scores(self, network: nn.Module, channels: Channels, groups: Sequence[Group], data: Any) -> list[Tensor]:
        for group in groups:
            for name in group.makers:
                if isinstance(network.get_submodule(name), RECURRENT):
                    raise ValueError(
                        f"network: expected channels that layers read, but {name!r} (recurrent) reads its own state"
                    )
        x, y = some_items(data, ITEMS, self.seed)
        saliency = activation_saliency if self.of == "activation" else weight_saliency
        found = saliency(network, channels, groups, x, y)
        return [theta / theta.norm().clamp(min=torch.finfo(theta.dtype).tiny) for theta in found]

    def apply(self, network: nn.Module, data: Any) -> nn.Module:
        total = channels_of(network, data).macs()
        for done in range(1, self.rounds + 1):
            network = self._round(network, data, total, done)
        return network

    def gradual(
        self, network: nn.Module, data: Any, recipe: Any, seed: int | None = None
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Prune a copy of `network` as the paper does, with an epoch of training after each round.

        Parameters
        ----------
        network : nn.Module
        data : datasets.Data
        recipe : datasets.Recipe
            An epoch of its fine-tuning follows each round, the whole of it the last.
        seed : int, optional

        Returns
        -------
        network, trace
        """
        total, trace = channels_of(network, data).macs(), []
        for done in range(1, self.rounds + 1):
            network = self._round(network, data, total, done)
            last = done == self.rounds
            trace += (recipe.fine_tuning if last else replace(recipe.fine_tuning, epochs=1)).train(
                network, data, seed=seed
            )
        return network, trace

    def _round(self, network: nn.Module, data: Any, total: int, done: int) -> nn.Module:
        """A copy with the share of `total` multiply-accumulates that is left after so many rounds."""
        channels = channels_of(network, data)
        groups = removable(network, channels, self.layers)
        share = (1 - (1 - self.macs) * done / self.rounds) * total / channels.macs()
        if share >= 1:
            return channels.without(network, [])
        removed = weakest(channels, groups, self.scores(network, channels, groups, data), share, self.scope)
        return channels.without(network, removed)
