"""The thinner networks inside a network: those of the first channels of each layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kernels.chain import links

__all__ = ["Slice", "slices", "thinned"]

ALIKE = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Dropout,
    nn.Identity,
)


@dataclass(frozen=True)
class Slice:
    """What of a layer belongs to a thinner network: its first outputs, of its first inputs.

    Parameters
    ----------
    layer : nn.Module
    out, into : int
    """

    layer: Any
    out: int
    into: int


def slices(network: nn.Module, width: float) -> Iterator[Slice]:
    """The layers of a chain, and how much of each belongs to the network of a share `width` of the channels.

    Items keep their channels, and the last layer keeps its outputs.

    Parameters
    ----------
    network : nn.Sequential
        Of convolutions in one group, batch norms, linear layers, rectifiers, pooling and flattening.
    width : float
        0 < width <= 1; at least one channel remains.

    Raises
    ------
    TypeError
        If `network` is no chain.
    ValueError
        If it holds another layer; the message names it.
    """
    chain = links(network)
    mixing = [layer for layer in chain if isinstance(layer, nn.Conv2d | nn.Linear)]
    now, whole = 0, 0  # channels of what runs between the layers: thin, and in the whole network
    for place, layer in enumerate(chain):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                raise ValueError(f"{place}: expected a convolution in one group, got {layer}")
            inputs, outputs = layer.weight.shape[1], layer.weight.shape[0]
            into = inputs if not whole else now * inputs // whole  # flattened maps have many inputs a channel
            out = outputs if layer is mixing[-1] else max(1, round(width * outputs))
            yield Slice(layer, out, into)
            now, whole = out, outputs
        elif isinstance(layer, ALIKE):
            yield Slice(layer, now, now)
        else:
            raise ValueError(f"{place}: expected a layer whose first channels can be taken, got {layer}")


def thinned(network: nn.Module, width: float) -> nn.Sequential:
    """A network of plain layers with a copy of the first share `width` of all channels.

    Parameters and raises as for `slices`.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 10))
    >>> thinned(network, 0.25)
    Sequential(
      (0): Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))
      (1): ReLU()
      (2): Flatten(start_dim=1, end_dim=-1)
      (3): Linear(in_features=8, out_features=10, bias=True)
    )
    """
    return nn.Sequential(*map(_copied, slices(network, width)))


def _copied(part: Slice) -> nn.Module:
    layer = copy.deepcopy(part.layer)
    with torch.no_grad():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight = nn.Parameter(layer.weight[: part.out, : part.into].clone())
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias[: part.out].clone())
            if isinstance(layer, nn.Conv2d):
                layer.in_channels, layer.out_channels = part.into, part.out
            else:
                layer.in_features, layer.out_features = part.into, part.out
        elif isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            layer.num_features = part.out
            for name in ("weight", "bias"):
                if getattr(layer, name) is not None:
                    setattr(layer, name, nn.Parameter(getattr(layer, name)[: part.out].clone()))
            for name in ("running_mean", "running_var"):
                if getattr(layer, name) is not None:
                    setattr(layer, name, getattr(layer, name)[: part.out].clone())
    return layer
