"""What all transforms of a trained network share: constraints that outlive fine-tuning, and how they end.

A transform returns a copy of the network whose constrained weights carry a torch parametrization: whatever an optimiser
does to the free weights below, the forward pass sees them constrained. `bake` makes what it sees plain weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["bake", "constrain", "layer_weights"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, nn.Linear, nn.RNNBase, nn.RNNCellBase)


def layer_weights(network: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The weights of convolution, linear and recurrent layers, as (layer, name of the weight); no biases, no norms.

    Examples
    --------
    >>> [name for _, name in layer_weights(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GRU(2, 3)))]
    ['weight', 'weight_ih_l0', 'weight_hh_l0']
    """
    for layer in network.modules():
        if isinstance(layer, nn.RNNBase):
            names = [name for name in layer._flat_weights_names if name.startswith("weight")]
        elif isinstance(layer, nn.RNNCellBase):
            names = ["weight_ih", "weight_hh"]
        else:
            names = ["weight"] if isinstance(layer, LAYERS) else []
        for name in names:
            yield layer, name


def constrain(layer: nn.Module, name: str, constraint: nn.Module) -> None:
    """From now on `layer` computes with ``constraint(weight)`` instead of the weight called `name`."""
    parametrize.register_parametrization(layer, name, constraint)
    if isinstance(layer, nn.RNNBase):
        # A recurrent layer keeps a list of its weights of its own, which no parametrization reaches, and of which a
        # copy can only be made without the history of gradients.
        layer.register_forward_pre_hook(_refresh)
        layer.register_forward_hook(_detach)


def bake(network: nn.Module) -> nn.Module:
    """A copy of `network` in which what constraints compute has become plain weights.

    Parameters
    ----------
    network : nn.Module
        Left as it is; a network without constraints gives a plain copy.

    Returns
    -------
    nn.Module
        Of the layers' original classes, with the same outputs to the last bit.

    Examples
    --------
    >>> import torch
    >>> layer = nn.Linear(2, 2)
    >>> constrain(layer, "weight", nn.ReLU())
    >>> baked = bake(layer)
    >>> type(baked), bool((baked.weight >= 0).all())
    (<class 'torch.nn.modules.linear.Linear'>, True)
    """
    network = copy.deepcopy(network)
    constrained: list[Any] = [layer for layer in network.modules() if parametrize.is_parametrized(layer)]
    for layer in constrained:
        weights = {
            name: nn.Parameter(
                getattr(layer, name).detach().clone(), any(p.requires_grad for p in constraints.parameters())
            )
            for name, constraints in layer.parametrizations.items()
        }
        # Not remove_parametrizations: it empties the class that the copy shares with the original.
        layer.__class__ = parametrize.type_before_parametrizations(layer)
        del layer._modules["parametrizations"]
        layer._parameters = weights | layer._parameters
        if isinstance(layer, nn.RNNBase):
            _refresh(layer)
            for hooks, own in ((layer._forward_pre_hooks, _refresh), (layer._forward_hooks, _detach)):
                for key in [key for key, hook in hooks.items() if hook is own]:
                    del hooks[key]
    return network


def _refresh(layer: Any, _: object = None) -> None:
    layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]


def _detach(layer: Any, *_: object) -> None:
    layer._flat_weights = [weight.detach() for weight in layer._flat_weights]
