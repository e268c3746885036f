r"""What a layer loses when it no longer reads some channels, and how its remaining weights take over.

A convolution sums over what it reads, so its output splits into what each channel contributes, plus the bias:

.. math:: y_{sj} = b_j + \sum_i z_{sji}, \qquad z_{sji} = \sum_k W_{jik} x_{sik}

with s a position of an image, j an output, k a place of the kernel. Which channels matter to the layer, and how the
weights on the kept ones should change, are questions of least squares on a sample of such positions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.pruning.channels import Channels, Group

__all__ = ["contributions", "patches", "places_of", "positions", "refit", "rescale", "some_items"]


def positions(network: nn.Module, name: str, x: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """What the layer called `name` reads and gives at `count` positions (each once, or drawn), in evaluation mode.

    Returns
    -------
    read : Tensor of shape (positions, inputs, places of the kernel)
    given : Tensor of shape (positions, outputs)
    """
    seen: list[tuple[Tensor, Tensor]] = []
    layer = network.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    mode = network.training
    try:
        with torch.no_grad():
            network.eval()(x)
    finally:
        handle.remove()
        network.train(mode)
    read = torch.cat([patches(name, layer, inputs) for inputs, _ in seen])
    given = torch.cat([output.flatten(2).mT.flatten(0, 1) if output.ndim > 2 else output for _, output in seen])
    random = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(read), generator=random)[:count]
    return read[chosen], given[chosen]


def patches(name: str, layer: Any, x: Tensor) -> Tensor:
    """What a layer multiplies with its weights: (positions, inputs, places of the kernel), images' rows in order.

    Raises
    ------
    ValueError
        If the layer is neither linear nor a plain two-dimensional convolution.
    """
    if isinstance(layer, nn.Linear) and x.ndim == 2:
        return x[:, :, None]
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1 or layer.padding_mode != "zeros":
        raise ValueError(
            "network: expected layers that read channels to be linear, of items, or two-dimensional convolutions of one"
            f" group and padded with zeros, so that they can be reconstructed; {name!r} ({type(layer).__name__}) is not"
        )
    padded = functional.pad(x, layer._reversed_padding_repeated_twice)
    columns = functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
    return columns.mT.reshape(-1, x.shape[1], columns.shape[1] // x.shape[1])


def contributions(channels: Channels, group: Group, name: str, read: Tensor, weight: Tensor) -> Tensor:
    """What each unit of a group contributes to every output of the layer called `name` at every position.

    Parameters
    ----------
    channels : Channels
    group : Group
    name : str
    read : Tensor of shape (positions, inputs, kernel)
    weight : Tensor of shape (outputs, inputs, ...)

    Returns
    -------
    Tensor of shape (positions, outputs, units)
        Float64.
    """
    by_place = weight.detach().double().reshape(len(weight), read.shape[1], -1)
    each = torch.einsum("sik,oik->soi", read.double(), by_place)
    return channels.total(group, [(channels.into[name], each)])


def some_items(data: Any, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Training items drawn without repetition, at most `count`, and their labels."""
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:count].numpy()
    return torch.tensor(data.train.x[chosen]), torch.tensor(data.train.y[chosen])


def places_of(channels: Channels, name: str, units: Collection[int]) -> list[int]:
    """The inputs of the layer called `name` on which those units stand."""
    return [i for i, unit in enumerate(channels.into[name]) if unit in units]


def rescale(weight: Tensor, kept: Tensor, z: Tensor, columns: dict[int, list[int]]) -> Tensor:
    r"""The weight with one factor for each kept unit, by which the sample is met best in squares.

    .. math:: \hat w = \arg\min_w \sum_s \Big(\sum_i z_{si} - \sum_{i \text{ kept}} w_i z_{si}\Big)^2

    Parameters
    ----------
    weight : Tensor of shape (outputs, inputs, ...)
    kept : Tensor of int
        Places of the kept units among those of `z`.
    z : Tensor of shape (samples, units)
    columns : dict of int to list of int
        The inputs of each of those units.
    """
    factors = torch.linalg.lstsq(z[:, kept], z.sum(1, keepdim=True), driver="gelsd").solution[:, 0]
    weight = weight.detach().clone()
    for unit, factor in zip(kept.tolist(), factors, strict=True):
        weight[:, columns[unit]] *= factor.to(weight.dtype)
    return weight


def refit(read: Tensor, target: Tensor, weight: Tensor, kept: Sequence[int]) -> Tensor:
    r"""The weight on the inputs `kept` that meets the targets best in squares, zero on the others.

    .. math:: W' = \arg\min_{W'} \sum_s \Big\| t_s - \sum_{i \text{ kept}} W'_i x_{si} \Big\|^2

    Parameters
    ----------
    read : Tensor of shape (positions, inputs, kernel)
        What the layer reads in the pruned network.
    target : Tensor of shape (positions, outputs)
        What it gave in the whole one, without its bias.
    weight : Tensor of shape (outputs, inputs, ...)
        Of which shape and type the result is. Where the sample leaves a direction open, the solution is the smallest.
    """
    x = read[:, list(kept)].double().flatten(1)
    solution = torch.linalg.lstsq(x, target.double(), driver="gelsd").solution.T
    new = torch.zeros_like(weight).reshape(len(weight), weight.shape[1], -1)
    new[:, list(kept)] = solution.reshape(len(weight), len(kept), -1).to(weight.dtype)
    return new.reshape(weight.shape)
