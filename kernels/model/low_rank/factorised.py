"""What all factorisations share: a layer gives way to a chain of smaller ones, whose product is near its weight."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kernels.model.transform import LAYERS

__all__ = ["Factorisation", "RandomFactors", "balanced", "chain", "check_share", "pointwise", "rank_within", "spatial"]

SMALLEST = 0.01
"""A layer with a smaller share of the network's weights stays as it is: factors would save nothing, only cost."""


@dataclass(frozen=True)
class Factorisation(ABC):
    """Replace layers by chains of smaller layers; a subclass says which, and by what."""

    @abstractmethod
    def factorised(self, layer: nn.Module, weight: Tensor) -> nn.Module | None:
        """What computes nearly the same as `layer` with this weight, with fewer parameters; None where it stays."""

    def apply(self, network: nn.Module, data: Any = None) -> nn.Module:
        """A copy of `network` with factors in the place of its larger layers; fine-tune it to regain accuracy.

        Parameters
        ----------
        network : nn.Module
            Trained. Layers in groups stay as they are, and so do those with less than a hundredth of the weights.
        data : optional
            Not needed: the weights alone decide.

        Raises
        ------
        TypeError
            If `network` is no module.
        ValueError
            If a layer is of a kind that has no factors here (recurrent, transposed), or under a constraint, by its
            name; or if no layer would become smaller.
        """
        return _replaced(network, lambda layer: self.factorised(layer, layer.weight.detach()), self)

    def at_random(self, seed: int) -> RandomFactors:
        """The same chains with factors of random matrices: what the decomposition of the weights has to beat."""
        return RandomFactors(self, seed)


@dataclass(frozen=True)
class RandomFactors:
    """The layers of a factorisation, made from random weights as large as the trained ones."""

    of: Factorisation
    seed: int = 0

    def apply(self, network: nn.Module, data: Any = None) -> nn.Module:
        """As `Factorisation.apply`."""
        random = torch.Generator().manual_seed(self.seed)

        def factorised(layer: Any) -> nn.Module | None:
            weight = layer.weight.detach()
            drawn = torch.randn(weight.shape, generator=random)
            return self.of.factorised(layer, drawn * weight.norm() / drawn.norm())

        return _replaced(network, factorised, self.of)


def _replaced(network: nn.Module, factorised: Any, method: Factorisation) -> nn.Module:
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    network = copy.deepcopy(network)
    layers: list[tuple[str, Any]] = [(name, m) for name, m in network.named_modules() if isinstance(m, LAYERS)]
    for name, layer in layers:
        where = f"{name}: " if name else "network: "
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            raise ValueError(f"{where}expected convolutions in two dimensions and linear layers, got {layer}")
        if parametrize.is_parametrized(layer):
            raise ValueError(f"{where}its weight is under a constraint; bake the network before it is factorised")
    total = sum(layer.weight.numel() for _, layer in layers)
    found = 0
    for name, layer in layers:
        if layer.weight.numel() < SMALLEST * total or getattr(layer, "groups", 1) > 1:
            continue
        smaller = factorised(layer)
        if smaller is None:
            continue
        found += 1
        if not name:
            return smaller
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, smaller)
    if not found:
        raise ValueError(f"network: {method} makes no layer of {type(network).__name__} smaller")
    return network


def check_share(name: str, share: float) -> None:
    """Raise a ValueError unless 0 < share <= 1."""
    if not 0 < share <= 1:
        raise ValueError(f"{name}: expected 0 < {name} <= 1, got {share}")


def rank_within(share: float, size: int, each: int) -> int | None:
    """The largest rank, at least one, at which factors with `each` parameters a rank keep within a share of `size`.

    None if the factors would be no smaller than what they replace.

    Examples
    --------
    >>> rank_within(0.5, 32 * 32, 32 + 32), rank_within(0.01, 32 * 32, 64), rank_within(0.5, 4, 4)
    (8, 1, None)
    """
    rank = max(1, int(share * size / each))
    return rank if rank * each < size else None


def balanced(u: Tensor, s: Tensor, v: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The two factors of a singular value decomposition cut at a rank, each with the roots of the singular values.

    Of all factors with the same product these have the least sum of squares, which is kind to gradient descent.
    """
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def chain(layers: list[nn.Module], weights: list[Tensor], bias: Tensor | None) -> nn.Sequential:
    """Layers in a row with these weights; the last has the bias.

    Parameters
    ----------
    layers : list of nn.Module
        All but the last without bias.
    weights : list of Tensor
        Of as many entries each as the layer's weight, in its order.
    bias : Tensor or None
    """
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.copy_(weight.reshape(layer.weight.shape))  # type: ignore[operator, union-attr, arg-type]
        if bias is not None:
            layers[-1].bias.copy_(bias)  # type: ignore[operator, union-attr, arg-type]
    return nn.Sequential(*layers)


def pointwise(channels: int, out: int, bias: bool = False) -> nn.Conv2d:
    """A 1 x 1 convolution."""
    return nn.Conv2d(channels, out, 1, bias=bias)


def spatial(
    layer: nn.Conv2d, channels: int, out: int, axes: tuple[int, ...] = (0, 1), groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """A convolution that does `layer`'s part along some axes (0: rows, 1: columns) and is 1 wide along others."""

    def along(values: Any, still: int) -> Any:
        return values if isinstance(values, str) else tuple(values[a] if a in axes else still for a in (0, 1))

    return nn.Conv2d(
        channels, out, along(layer.kernel_size, 1), along(layer.stride, 1), along(layer.padding, 0),
        along(layer.dilation, 1), groups, bias, layer.padding_mode,
    )  # fmt: skip
