"""A chain of layers built anew, each for what the one before it gives."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace

import torch
from torch import nn

from kernels.model.block import ConvSpec

__all__ = ["fitted"]

AS_THEY_ARE = (
    nn.ReLU, nn.ReLU6, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout,
)  # fmt: skip


def fitted(
    layers: Iterable[nn.Module], shape: Sequence[int], outputs: Mapping[int, int] | None = None
) -> nn.Sequential:
    """An untrained chain like `layers`, whose channels and features fit each other.

    Parameters
    ----------
    layers : iterable of nn.Module
        Patterns, left as they are: what they read is as many as there are.
    shape : sequence of int
        Of one item.
    outputs : mapping of int to int, optional
        Channels or features that the layer at a place shall give instead of its own.

    Raises
    ------
    TypeError
        If it is not known how a layer is built anew; the message says which.

    Examples
    --------
    >>> chain = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)]
    >>> fitted(chain, (1, 6, 6), {0: 3})[4]
    Linear(in_features=48, out_features=10, bias=True)
    """
    built, x, outputs = [], torch.zeros(2, *shape), outputs or {}
    with torch.no_grad():
        for place, layer in enumerate(layers):
            built.append(_like(layer, place, x.shape[1], outputs.get(place)))
            x = built[-1](x)
    for layer in built:
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
    return nn.Sequential(*built)


def _like(layer: nn.Module, place: int, inputs: int, outputs: int | None) -> nn.Module:
    if type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros":
        own = ConvSpec.of(layer)
        return nn.Conv2d(**asdict(replace(own, in_channels=inputs, out_channels=outputs or own.out_channels)))
    if type(layer) is nn.BatchNorm2d:
        return nn.BatchNorm2d(inputs, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    if type(layer) is nn.Linear:
        return nn.Linear(inputs, outputs or layer.out_features, layer.bias is not None)
    if isinstance(layer, AS_THEY_ARE):
        return copy.deepcopy(layer)
    raise TypeError(
        f"network: layer {place} is a {type(layer).__name__}; expected convolutions of one group, batch norms, linear"
        " layers, pooling and activations"
    )
