"""Masks: which weights of a network remain, chosen by a score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kernels.model.transform import constrain, layer_weights

__all__ = ["Mask", "largest", "prune"]


class Mask(nn.Module):
    """A parametrization: the weight where `mask` is true, zero elsewhere; no gradient reaches what is masked."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, weight, 0.0)


def largest(scores: Tensor, kept: int) -> Tensor:
    """True at exactly `kept` places, those of the largest scores; among equals the earlier place wins, NaN beats all.

    Examples
    --------
    >>> largest(torch.tensor([1.0, 3.0, 1.0, 1.0]), kept=2)
    tensor([ True,  True, False, False])
    """
    order = scores.flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[:kept]] = True
    return mask.view(scores.shape)


def prune(network: nn.Module, score: Callable[[Tensor], Tensor], density: float, scope: str) -> None:
    """Mask the weights of `network`, in place, but for the share of the highest scores.

    Parameters
    ----------
    network : nn.Module
        What is masked in it already stays a candidate with the weight that it shows, zero.
    score : callable
        Gives a tensor of scores for a weight tensor.
    density : float
        The share kept: ``round(density * weights)`` of them.
    scope : {"global", "layer"}
        Whether all layers compete for the places, or each keeps its own share.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    places = list(layer_weights(network))
    if not places:
        raise ValueError(
            f"network: expected convolution, linear or recurrent layers to prune; {type(network).__name__} has none"
        )
    with torch.no_grad():
        scores = [score(getattr(layer, name)) for layer, name in places]
        if scope == "global":
            together = torch.cat([s.flatten() for s in scores])
            chosen = largest(together, round(density * len(together))).split([s.numel() for s in scores])
            masks = [mask.view(s.shape) for mask, s in zip(chosen, scores, strict=True)]
        else:
            masks = [largest(s, round(density * s.numel())) for s in scores]
    for (layer, name), mask in zip(places, masks, strict=True):
        _mask(layer, name, mask)


def _mask(layer: Any, name: str, mask: Tensor) -> None:
    if parametrize.is_parametrized(layer, name):
        last = layer.parametrizations[name][-1]
        if isinstance(last, Mask):
            last.mask.copy_(mask)
            return
    constrain(layer, name, Mask(mask))
