"""What layers are given while a trained network answers a few items: all that methods after training go by.

Such methods see a layer as a matrix that is multiplied with rows. Of a linear layer these are its inputs, of a
convolution the patches under its kernel, of a recurrent layer the inputs of its steps and the states before them. How
far an error of the weights, D, carries to the outputs is then a square, the same for every method:

    mean over the rows x of |D x|^2 = tr(D H D^T),   H = mean of x x^T

`H` is half the Hessian of the layer's squared error, and the same for all of its outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from kernels.model.transform import layer_weights

__all__ = [
    "Rows",
    "as_matrix",
    "calibration_rows",
    "channel_inputs",
    "items_of",
    "output_error",
    "places",
    "raw_inputs",
]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LIMIT = 16384
"""Rows kept of a layer at most, spread evenly over those there are."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What a weight, taken as a matrix, is multiplied with.

    Parameters
    ----------
    x : Tensor of shape (groups, n, k), float32
        n rows for each group of a convolution (one, if it has no groups).
    """

    x: Tensor

    @cached_property
    def moment(self) -> Tensor:
        """H, the mean of x x^T: (groups, k, k), float64."""
        x = self.x.double()
        return x.mT @ x / x.shape[1]

    @cached_property
    def mean(self) -> Tensor:
        """The mean row: (groups, k), float64."""
        return self.x.double().mean(1)

    @cached_property
    def magnitude(self) -> Tensor:
        """The mean of |x|: (groups, k), float64."""
        return self.x.double().abs().mean(1)


def items_of(data: Any, count: int) -> Tensor:
    """The first training items, to calibrate on; labels are not looked at.

    Raises
    ------
    TypeError
        If `data` has no training items.
    """
    if not hasattr(getattr(data, "train", None), "x"):
        raise TypeError(f"data: expected training items to calibrate on, got {type(data).__name__}")
    return torch.tensor(data.train.x[:count])


def places(network: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """Every weight of convolution, linear and recurrent layers: the layer's path, the layer, the weight's name.

    Raises
    ------
    TypeError, ValueError
        If `network` is no module, has no such layer, or one that these methods do not handle; the message has its path.

    Examples
    --------
    >>> [(path, name) for path, _, name in places(nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)))]
    [('0', 'weight'), ('2', 'weight')]
    >>> places(nn.Sequential(nn.ConvTranspose2d(1, 2, 3)))
    Traceback (most recent call last):
    ...
    ValueError: layer '0': expected a convolution, linear or one-way recurrent layer, got ConvTranspose2d
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    paths = {id(layer): path for path, layer in network.named_modules()}
    found = [(paths[id(layer)], layer, name) for layer, name in layer_weights(network)]
    if not found:
        raise ValueError(
            f"network: expected convolution, linear or recurrent layers; {type(network).__name__} has none"
        )
    for path, layer, _ in found:
        simple = isinstance(layer, (*CONVOLUTIONS, nn.Linear))
        one_way = isinstance(layer, nn.RNNBase) and not (layer.bidirectional or layer.proj_size)
        if not (simple or one_way):
            kind = type(layer).__name__
            kind += " of two directions or with a projection" if isinstance(layer, nn.RNNBase) else ""
            raise ValueError(f"layer '{path}': expected a convolution, linear or one-way recurrent layer, got {kind}")
    return found


def as_matrix(layer: nn.Module, weight: Tensor) -> Tensor:
    """A view of a weight of shape (groups, outputs of a group, k).

    Examples
    --------
    >>> layer = nn.Conv2d(4, 6, 3, groups=2)
    >>> as_matrix(layer, layer.weight).shape
    torch.Size([2, 3, 18])
    """
    groups = getattr(layer, "groups", 1)
    return weight.reshape(groups, len(weight) // groups, -1)


def output_error(difference: Tensor, moment: Tensor) -> Tensor:
    """tr(D H D^T), the mean squared error of the outputs, summed over these: one number a group.

    Parameters
    ----------
    difference : Tensor of shape (groups, outputs, k)
        D, of the weights.
    moment : Tensor of shape (groups, k, k)
        H.

    Examples
    --------
    >>> rows = Rows(torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]))
    >>> output_error(torch.tensor([[[1.0, 1.0]]]), rows.moment)          # the mean of 3^2 and 3^2
    tensor([9.], dtype=torch.float64)
    """
    difference = difference.to(moment.dtype)
    return ((difference @ moment) * difference).sum((1, 2))


def raw_inputs(network: nn.Module, items: Tensor) -> dict[str, Tensor]:
    """What each layer with weights is given, all its calls one behind the other, flat; by the layer's path."""
    found = {path: torch.cat([args[0].flatten() for args in calls]) for path, calls in _calls(network, items).items()}
    return found


def channel_inputs(network: nn.Module, items: Tensor) -> dict[str, Tensor]:
    """What each layer with weights is given, by the layer's path: (channels, numbers).

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(8, 2))
    >>> {path: tuple(x.shape) for path, x in channel_inputs(network, torch.zeros(5, 3, 3, 3)).items()}
    {'0': (3, 45), '2': (8, 5)}
    """
    found = {}
    for path, calls in _calls(network, items).items():
        axis = 1 if isinstance(network.get_submodule(path), CONVOLUTIONS) else -1
        found[path] = torch.cat([args[0].movedim(axis, 0).flatten(1) for args in calls], 1)
    return found


def calibration_rows(network: nn.Module, items: Tensor, only: str | None = None) -> dict[tuple[str, str], Rows]:
    """The rows that each weight is multiplied with while `network` answers `items`.

    Parameters
    ----------
    network : nn.Module
        In evaluation mode.
    items : Tensor
    only : str, optional
        The path of the one layer that is asked about.

    Returns
    -------
    dict of (path, name of the weight) to Rows

    Raises
    ------
    ValueError
        If a layer is not handled, or none of the items pass through it; the message has its path.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 2))
    >>> rows = calibration_rows(network, torch.zeros(5, 1, 3, 3))
    >>> {place: tuple(r.x.shape) for place, r in rows.items()}
    {('0', 'weight'): (1, 20, 4), ('2', 'weight'): (1, 5, 8)}
    """
    found = {}
    for path, calls in _calls(network, items, only).items():
        layer = network.get_submodule(path)
        parts: dict[str, list[Tensor]] = {}
        for args in calls:
            for name, x in _rows(path, layer, args):
                parts.setdefault(name, []).append(x)
        for name, xs in parts.items():
            x = torch.cat(xs, 1)
            found[path, name] = Rows(x[:, :: -(-x.shape[1] // LIMIT)])
    return found


def _calls(network: nn.Module, items: Tensor, only: str | None = None) -> dict[str, list[tuple[Any, ...]]]:
    calls: dict[str, list[tuple[Any, ...]]] = {path: [] for path, _, _ in places(network) if only in (None, path)}

    def watch(path: str) -> Any:
        def keep(layer: nn.Module, args: tuple[Any, ...]) -> None:
            if isinstance(args[0], PackedSequence):
                raise ValueError(f"layer '{path}': expected sequences in a tensor, got a PackedSequence")
            calls[path].append(args)

        return keep

    handles = [network.get_submodule(path).register_forward_pre_hook(watch(path)) for path in calls]
    try:
        with torch.no_grad():
            network(items)
    finally:
        for handle in handles:
            handle.remove()
    for path, seen in calls.items():
        if not seen:
            raise ValueError(
                f"layer '{path}': expected a layer that the calibration items pass through, it was not called"
            )
    return calls


def _rows(path: str, layer: Any, args: tuple[Any, ...]) -> Iterator[tuple[str, Tensor]]:
    x = args[0].detach()
    if isinstance(layer, nn.Linear):
        yield "weight", x.reshape(1, -1, x.shape[-1])
    elif isinstance(layer, nn.RNNBase):
        yield from _steps(layer, x, args[1] if len(args) > 1 else None)
    else:
        yield "weight", _patches(path, layer, x)


def _patches(path: str, layer: Any, x: Tensor) -> Tensor:
    """(groups, images times places, k): the entries of a patch in the order of the weight's."""
    dimensions = len(layer.kernel_size)
    if x.ndim != dimensions + 2:
        raise ValueError(f"layer '{path}': expected a batch of inputs, got shape {tuple(x.shape)}")
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = functional.pad(x, layer._reversed_padding_repeated_twice, mode)
    for axis, (size, step, apart) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
    ):
        x = x.unfold(axis, apart * (size - 1) + 1, step)[..., ::apart]
    # (images, channels, places ..., kernel ...)
    channels = layer.in_channels // layer.groups
    x = x.unflatten(1, (layer.groups, channels)).movedim(1, 0)  # (groups, images, channels, places ..., kernel ...)
    x = x.movedim(2, 2 + dimensions)  # (groups, images, places ..., channels, kernel ...)
    many = x.shape[1 : 2 + dimensions].numel()
    keep = torch.arange(0, many, -(-many // LIMIT))
    at: Any = (slice(None), *torch.unravel_index(keep, x.shape[1 : 2 + dimensions]))
    return x[at].flatten(2)


def _steps(layer: Any, x: Tensor, state: Any) -> Iterator[tuple[str, Tensor]]:
    """Inputs and states before each step, level by level of a recurrent layer."""
    if x.ndim == 2:
        x = x[None] if layer.batch_first else x[:, None]
    for level in range(layer.num_layers):
        single = type(layer)(x.shape[-1], layer.hidden_size, bias=layer.bias, batch_first=layer.batch_first,
                             **({"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}))  # fmt: skip
        for name in [*single._flat_weights_names]:
            getattr(single, name).data.copy_(getattr(layer, name.replace("_l0", f"_l{level}")))
        first = None
        if state is not None:
            first = tuple(s[level : level + 1] for s in state) if isinstance(state, tuple) else state[level : level + 1]
        with torch.no_grad():
            out = single(x, first)[0]
        time = 1 if layer.batch_first else 0
        start = torch.zeros_like(out.narrow(time, 0, 1))
        if first is not None:
            hidden = first[0] if isinstance(first, tuple) else first
            start = hidden.transpose(0, 1) if layer.batch_first else hidden
        before = torch.cat([start, out.narrow(time, 0, out.shape[time] - 1)], time)
        yield f"weight_ih_l{level}", x.reshape(1, -1, x.shape[-1])
        yield f"weight_hh_l{level}", before.reshape(1, -1, layer.hidden_size)
        x = out
