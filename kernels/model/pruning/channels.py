r"""Channels: which of them can only go together, and the smaller dense network that is left without them.

A channel is a place on the axis that layers mix: an output of a convolution (a filter), of a linear layer (a neuron),
or one hidden state of a recurrent layer. To remove it is to take it away from all who make it and all who read it,

.. math:: y_j = \sum_i W_{ji} * x_i \;\to\; \sum_{i \text{ kept}} W_{ji} * x_i ,

so that the smaller network computes what the whole one computes with those x_i never read. Where tensors are added, the
same place of both goes, or neither; a norm and a depthwise convolution lose the place with their input; in a grouped
convolution the same place of every group goes; concatenation and flattening only move places. Following every place
through the network says which belong together: a *unit* is removed whole.

Zeroing a filter is not removing it: the norm behind it still adds its shift, and what reads the channel sees that
constant. `Channels.without` therefore takes the channel from its readers too, and `Channels.silence` does the same by
zeros, for comparison.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from kernels import counting

__all__ = ["Channels", "Group", "weakest", "widths"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
RECTIFIERS = (nn.ReLU, nn.ReLU6)
ALIKE = (
    *RECTIFIERS, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh, nn.Softplus, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity,
)  # fmt: skip
"""Modules that treat every number alike, and by itself."""
POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
"""Modules that treat every channel alike, and by itself."""
ALIKE_NAMES = {
    "relu", "relu_", "relu6", "gelu", "silu", "sigmoid", "tanh", "leaky_relu", "elu", "hardswish", "hardsigmoid",
    "hardtanh", "softplus", "dropout", "dropout2d", "contiguous", "clone", "detach", "float", "abs", "neg", "square",
    "sqrt",
}  # fmt: skip
POOL_NAMES = {
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "interpolate",
}  # fmt: skip
ELEMENTWISE = {"add", "sub", "mul", "truediv", "div", "iadd", "isub", "imul", "add_", "sub_", "mul_"}
CONCATENATIONS = {"cat", "concat", "concatenate"}


@dataclass(frozen=True)
class Group:
    """The channels of one width of the network: those of one layer, or of all layers whose outputs are added.

    Parameters
    ----------
    units : tuple of int
        What may be removed, each whole, in the order of the first maker's outputs.
    makers, readers : tuple of str
        Paths of the layers that give the channels and that mix them.
    """

    units: tuple[int, ...]
    makers: tuple[str, ...]
    readers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.units)


@dataclass(frozen=True)
class _Places:
    """The units that stand on an axis of a tensor."""

    axis: int
    units: list[int]


class Channels:
    """Every channel of a network, and which can only go together.

    Parameters
    ----------
    network : nn.Module
        Left as it is. torch.fx must be able to trace it: no branches that depend on data.
    x : Tensor
        A batch that it takes.

    Attributes
    ----------
    groups : tuple of Group
        In order of execution. Channels of the input and the output are in none of them: they stay.
    out, into, norms : dict of str to list of int
        By layer, the unit of each output, of each input, and of each place of a norm.
    rectified : dict of str to (int, list of int)
        By rectifier, the axis of the channels in what it gives, and their units.

    Raises
    ------
    TypeError, ValueError
        If the network is none, cannot be traced, or holds a layer through which channels cannot be followed; the
        message names it.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
    >>> channels = Channels(network, torch.zeros(1, 3, 4, 4))
    >>> [(group.makers, group.readers, len(group)) for group in channels.groups]
    [(('0',), ('4',), 4)]
    >>> channels.without(network, channels.groups[0].units[:3])[4]
    Linear(in_features=4, out_features=5, bias=True)
    """

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
        for name, layer in network.named_modules():
            masked = isinstance(layer, (*CONVOLUTIONS, nn.Linear)) and "weight" not in layer._parameters
            if masked or parametrize.is_parametrized(layer):
                raise ValueError(f"network: layer {name!r} is constrained; bake the network before removing channels")
        self._traced = _traced(network)
        self._parents: list[int] = []
        self._fixed: set[int] = set()
        self.out: dict[str, list[int]] = {}
        self.into: dict[str, list[int]] = {}
        self.norms: dict[str, list[int]] = {}
        follower = _Follower(self._traced, self)
        with torch.no_grad():
            follower.run(torch.cat([x[:1], x[:1]]))  # two items, so that the axis of items is none of size one
        self.rectified = {
            name: (places.axis, [self._root(unit) for unit in places.units])
            for name, places in follower.rectified.items()
        }
        for table in (self.out, self.into, self.norms):
            for name in table:
                table[name] = [self._root(unit) for unit in table[name]]
        fixed = {self._root(unit) for unit in self._fixed}
        self.groups = tuple(self._grouped(fixed))
        by_layer = counting.macs_by_layer(network, x[:1])
        self._layers = {name: network.get_submodule(name) for name in self.out}
        self._macs = {name: by_layer.get(name, 0) for name in self.out}
        self._sizes = {name: _size(self._layers[name], *self._places(name)) for name in self.out}

    # --- what is left without some units -------------------------------------------------------------------------

    def macs(self, removed: Collection[int] = ()) -> int:
        """Multiply-accumulates of one item in the network without the `removed` units."""
        total = 0
        for name, macs in self._macs.items():
            total += macs * _size(self._layers[name], *self._kept(name, removed)) // self._sizes[name]
        return total

    def without(self, network: nn.Module, removed: Collection[int]) -> nn.Module:
        """A copy of `network`, of plain layers, that does not have the `removed` units.

        Parameters
        ----------
        network : nn.Module
            The one that was followed, or one of the same layers; left as it is.
        removed : collection of int
            Units of the groups.

        Raises
        ------
        ValueError
            If one is no unit, or nothing would remain of a group.
        """
        removed = self._removable(removed)
        network = copy.deepcopy(network)
        with torch.no_grad():
            for name in self.out:
                _shrink(network.get_submodule(name), *self._kept(name, removed))
            for name, units in self.norms.items():
                _shrink_norm(network.get_submodule(name), _indices(units, removed))
        return network

    def silence(self, network: nn.Module, removed: Collection[int]) -> nn.Module:
        """A copy of `network`, of its full size, in which nobody reads the `removed` units: what `without` computes."""
        removed = self._removable(removed)
        network = copy.deepcopy(network)
        with torch.no_grad():
            for name, units in self.into.items():
                layer: Any = network.get_submodule(name)
                gone = [i for i, unit in enumerate(units) if unit in removed]
                if isinstance(layer, RECURRENT):
                    hidden = [i for i, unit in enumerate(self.out[name]) if unit in removed]
                    layer.get_parameter("weight_ih_l0")[:, gone] = 0
                    layer.get_parameter("weight_hh_l0")[:, hidden] = 0
                elif not _depthwise(layer):
                    layer.weight[:, [i for i in gone if i < layer.weight.shape[1]]] = 0
        return network

    # --- where units are seen --------------------------------------------------------------------------------------

    def total(self, group: Group, parts: Iterable[tuple[Sequence[int], Tensor]]) -> Tensor:
        """For each unit of a group the sum over its places in the parts.

        Parameters
        ----------
        group : Group
        parts : iterable of (sequence of int, Tensor of shape (..., places))
            The unit of each place, and its numbers.

        Returns
        -------
        Tensor of shape (..., units)
            Float64.
        """
        place = {unit: i for i, unit in enumerate(group.units)}
        total: Tensor | None = None
        for units, values in parts:
            mine = [i for i, unit in enumerate(units) if unit in place]
            where = torch.tensor([place[units[i]] for i in mine], dtype=torch.int64)
            if total is None:
                total = torch.zeros(*values.shape[:-1], len(group), dtype=torch.float64)
            total.index_add_(-1, where, values.detach().double()[..., mine])
        return torch.zeros(len(group), dtype=torch.float64) if total is None else total

    def watch_rectifiers(self, x: Tensor, look: Callable[[str, Tensor], None]) -> None:
        """Run the network that was followed on a batch, and show what each rectifier gives, by its name."""
        with torch.no_grad():
            _Watcher(self._traced, look, self.rectified).run(x)

    # --- units that belong together --------------------------------------------------------------------------------

    def new(self, count: int, fixed: bool = False) -> list[int]:
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        units = list(range(first, first + count))
        if fixed:
            self._fixed.update(units)
        return units

    def fix(self, units: Collection[int]) -> None:
        self._fixed.update(units)

    def tie(self, first: Sequence[int], second: Sequence[int]) -> None:
        for a, b in zip(first, second, strict=True):
            a, b = sorted((self._root(a), self._root(b)))
            self._parents[b] = a

    def _root(self, unit: int) -> int:
        while self._parents[unit] != unit:
            self._parents[unit] = self._parents[self._parents[unit]]
            unit = self._parents[unit]
        return unit

    def _grouped(self, fixed: set[int]) -> Iterator[Group]:
        """Layers that share an output unit have one width."""
        members: list[tuple[list[str], dict[int, None]]] = []
        for name, units in self.out.items():
            mine = ([name], dict.fromkeys(units))
            for other in [other for other in members if other[1].keys() & mine[1].keys()]:
                members.remove(other)
                mine = (other[0] + mine[0], other[1] | mine[1])
            members.append(mine)
        order = list(self.out)
        for makers, found in sorted(members, key=lambda member: order.index(member[0][0])):
            readers = tuple(name for name, read in self.into.items() if found.keys() & set(read))
            if len(found) > 1 and not found.keys() & fixed:
                yield Group(tuple(found), tuple(makers), readers)

    def _removable(self, removed: Collection[int]) -> frozenset[int]:
        removed = frozenset(removed)
        if strange := removed - {unit for group in self.groups for unit in group.units}:
            raise ValueError(f"removed: expected units of the groups, got {sorted(strange)}")
        for group in self.groups:
            if removed >= set(group.units):
                raise ValueError(f"removed: expected at least one unit to remain of layer {group.makers[0]!r}")
        return removed

    def _places(self, name: str) -> tuple[list[int], list[int]]:
        return list(range(len(self.out[name]))), list(range(len(self.into[name])))

    def _kept(self, name: str, removed: Collection[int]) -> tuple[list[int], list[int]]:
        return _indices(self.out[name], removed), _indices(self.into[name], removed)


def _indices(units: Sequence[int], removed: Collection[int]) -> list[int]:
    return [i for i, unit in enumerate(units) if unit not in removed]


def _depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, CONVOLUTIONS) and layer.groups > 1 and layer.groups == layer.in_channels


def _gates(layer: Any) -> int:
    return len(layer.weight_ih_l0) // layer.hidden_size


def _size(layer: Any, out: Sequence[int], into: Sequence[int]) -> int:
    """Weights of a layer that keeps so many outputs and inputs; its multiply-accumulates are proportional to them."""
    if isinstance(layer, RECURRENT):
        return _gates(layer) * len(out) * (len(out) + len(into))
    if isinstance(layer, CONVOLUTIONS):
        groups = len(into) if _depthwise(layer) else layer.groups
        return len(out) * (len(into) // groups) * math.prod(layer.kernel_size)
    return len(out) * len(into)


def _parameter(old: nn.Parameter, new: Tensor) -> nn.Parameter:
    return nn.Parameter(new.clone(memory_format=torch.contiguous_format), old.requires_grad)


def _shrink(layer: Any, out: list[int], into: list[int]) -> None:
    """Keep those outputs and inputs, in place."""
    if isinstance(layer, RECURRENT):
        rows = [gate * layer.hidden_size + i for gate in range(_gates(layer)) for i in out]
        for name in layer._flat_weights_names:
            old = getattr(layer, name)
            columns = into if name.startswith("weight_ih") else out
            setattr(layer, name, _parameter(old, old[rows] if name.startswith("bias") else old[rows][:, columns]))
        layer.hidden_size, layer.input_size = len(out), len(into)
        layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]
        return
    if _depthwise(layer):
        layer.weight = _parameter(layer.weight, layer.weight[out])
        layer.groups = len(into)
    else:
        first = [i for i in into if i < layer.weight.shape[1]]  # of a grouped convolution those of the first group
        layer.weight = _parameter(layer.weight, layer.weight[out][:, first])
    if layer.bias is not None:
        layer.bias = _parameter(layer.bias, layer.bias[out])
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = len(out), len(into)
    else:
        layer.out_channels, layer.in_channels = len(out), len(into)


def _shrink_norm(norm: Any, kept: list[int]) -> None:
    norm.num_features = len(kept)
    for name in ("weight", "bias"):
        if getattr(norm, name) is not None:
            setattr(norm, name, _parameter(getattr(norm, name), getattr(norm, name)[kept]))
    for name in ("running_mean", "running_var"):
        if getattr(norm, name) is not None:
            setattr(norm, name, getattr(norm, name)[kept].clone())


# --- following channels through the network -------------------------------------------------------------------------


def _traced(network: nn.Module) -> fx.GraphModule:
    try:
        return fx.symbolic_trace(copy.deepcopy(network).eval())
    except Exception as error:
        raise ValueError(
            f"network: expected one whose operations do not depend on its data; {type(network).__name__} cannot be"
            f" traced: {error}"
        ) from error


class _Follower(fx.Interpreter):
    """Runs the network, and says of every tensor which units stand on which axis; None: its channels must stay."""

    def __init__(self, traced: fx.GraphModule, channels: Channels) -> None:
        super().__init__(traced)
        self.channels = channels
        self.places: dict[fx.Node, Any] = {}
        self.rectified: dict[str, _Places] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        operands = [self.places.get(arg) for arg in n.all_input_nodes]
        followed = any(place is not None for place in operands)
        if n.op == "output":
            for place in _leaves(operands):
                self.channels.fix(place.units)
        elif n.op == "call_module":
            self.places[n] = self._behind_module(n, operands[0], value)
        elif n.op in ("call_function", "call_method") and followed and _has_tensor(value):
            self.places[n] = self._behind_function(n, operands, value)
        return value

    def _refuse(self, node: fx.Node, why: str = "") -> Any:
        if node.op == "call_module":
            what, kind = str(node.target), type(self.module.get_submodule(str(node.target))).__name__
        else:
            what, kind = node.name, _name(node)
        raise ValueError(
            f"network: expected layers through which channels can be followed; {what!r} ({kind}) is none{why}"
        )

    def _behind_module(self, node: fx.Node, place: Any, value: Any) -> Any:
        name = str(node.target)
        layer: Any = self.module.get_submodule(name)
        if isinstance(layer, (*CONVOLUTIONS, nn.Linear, *RECURRENT)):
            return self._behind_layer(node, name, layer, place, value)
        if isinstance(place, tuple):
            return self._refuse(node)
        if isinstance(layer, NORMS):
            if place is not None:
                self._on_axis(node, place, 1)
                self._known(self.channels.norms, name, place.units)
            return place
        if isinstance(layer, nn.Flatten):
            return place and self._flattened(node, place, layer.start_dim, layer.end_dim)
        if isinstance(layer, POOLS) and place is not None:
            return self._on_axis(node, place, 1)
        if isinstance(layer, ALIKE) or place is None:
            if isinstance(layer, RECTIFIERS) and place is not None:
                self.rectified[node.name] = place
            return place
        return self._refuse(node)

    def _behind_layer(self, node: fx.Node, name: str, layer: Any, place: Any, value: Any) -> Any:
        if isinstance(place, tuple):
            self._refuse(node)
        made = value[0] if isinstance(value, tuple) else value
        axis = 1 if isinstance(layer, CONVOLUTIONS) else made.ndim - 1
        if isinstance(layer, RECURRENT):
            if layer.num_layers > 1 or layer.bidirectional or layer.proj_size:
                self._refuse(node, "; a recurrent one needs a single layer and direction, and no projection")
            if any(arg in self.places for arg in node.all_input_nodes[1:]):
                self._refuse(node, " with a first state that other layers give")
            into, count = layer.input_size, layer.hidden_size
        elif isinstance(layer, nn.Linear):
            into, count = layer.in_features, layer.out_features
        else:
            into, count = layer.in_channels, layer.out_channels
        units = self.channels.new(into, fixed=True) if place is None else self._on_axis(node, place, axis).units
        self._known(self.channels.into, name, units)
        out = self.channels.out.get(name) or self.channels.new(count)
        self.channels.out[name] = out
        if isinstance(layer, CONVOLUTIONS) and layer.groups > 1:
            self._tie_groups(layer, units, out)
        found = _Places(axis, out)
        if isinstance(layer, RECURRENT):
            state = _Places(value[1][0].ndim - 1 if isinstance(layer, nn.LSTM) else value[1].ndim - 1, out)
            return (found, (state, state) if isinstance(layer, nn.LSTM) else state)
        return found

    def _tie_groups(self, layer: Any, into: list[int], out: list[int]) -> None:
        """A depthwise layer loses an output with its input; any other keeps equally many places of every group."""
        if _depthwise(layer):
            times = len(out) // len(into)
            for i, unit in enumerate(into):
                self.channels.tie([unit] * times, out[i * times : (i + 1) * times])
            return
        for units in (into, out):
            size = len(units) // layer.groups
            for group in range(1, layer.groups):
                self.channels.tie(units[:size], units[group * size : (group + 1) * size])

    def _known(self, table: dict[str, list[int]], name: str, units: list[int]) -> None:
        """A layer that is called again has the same channels as before."""
        if name in table:
            self.channels.tie(table[name], units)
        table[name] = units

    def _behind_function(self, node: fx.Node, operands: list[Any], value: Any) -> Any:
        name = _name(node)
        if name == "getitem":
            return self._item(node, operands[0])
        if any(isinstance(place, tuple) for place in operands):
            return self._refuse(node)
        if name in ELEMENTWISE:
            return self._met(node, operands)
        if name in CONCATENATIONS:
            return self._concatenated(node)
        place = operands[0]
        if place is None or any(other is not None for other in operands[1:]):
            return self._refuse(node)
        if name in POOL_NAMES:
            return self._on_axis(node, place, 1)
        if name in ALIKE_NAMES:
            if name.startswith("relu"):
                self.rectified[node.name] = place
            return place
        shape = self.env[node.all_input_nodes[0]].shape
        if name == "flatten":
            start, end = (_argument(node, i, key, default) for i, key, default in FLATTEN)
            return self._flattened(node, place, start, end)
        if name in ("view", "reshape"):
            return self._reshaped(node, place, shape, value.shape)
        if name in ("mean", "sum", "amax"):
            return self._reduced(node, place, len(shape))
        if name in ("permute", "transpose"):
            order = list(range(len(shape)))
            given: Any = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
            if name == "permute":
                order = [axis % len(shape) for axis in given]
            else:
                a, b = (axis % len(shape) for axis in given)
                order[a], order[b] = order[b], order[a]
            return _Places(order.index(place.axis), place.units)
        return self._refuse(node)

    def _on_axis(self, node: fx.Node, place: _Places, axis: int) -> _Places:
        return place if place.axis == axis else self._refuse(node, f" where they stand on axis {place.axis}")

    def _item(self, node: fx.Node, place: Any) -> Any:
        index = node.args[1]
        if isinstance(place, tuple):
            return place[index] if isinstance(index, int) else self._refuse(node)
        every = index if isinstance(index, tuple) else (index,)
        before = every[: place.axis]
        whole = len(every) <= place.axis or every[place.axis] == slice(None)
        if not whole or not all(isinstance(one, (int, slice)) for one in every):
            return self._refuse(node)
        return _Places(place.axis - sum(isinstance(one, int) for one in before), place.units)

    def _met(self, node: fx.Node, operands: list[Any]) -> _Places:
        """Elementwise: the same places of both go together; broadcast from the right."""
        dims = [self.env[arg].ndim if isinstance(self.env[arg], Tensor) else 0 for arg in node.all_input_nodes]
        wide = [(place, dim - place.axis) for place, dim in zip(operands, dims, strict=True) if place is not None]
        if len({back for _, back in wide}) > 1:
            return self._refuse(node, " where they stand on different axes")
        units = max((place.units for place, _ in wide), key=len)
        back = wide[0][1]
        for place, arg, dim in zip(operands, node.all_input_nodes, dims, strict=True):
            if place is None and dim >= back and self.env[arg].shape[dim - back] > 1:
                self.channels.fix(units)
            elif place is not None and len(place.units) == len(units):
                self.channels.tie(units, place.units)
            elif place is not None:
                self.channels.fix(place.units)
        return _Places(max(dims) - back, units)

    def _concatenated(self, node: fx.Node) -> _Places:
        given: Any = node.args[0]  # not all_input_nodes: a tensor may stand there twice
        operands = [self.places.get(arg) for arg in given]
        values = [self.env[arg] for arg in given]
        axis = next(place.axis for place in operands if place is not None)
        if any(place is not None and place.axis != axis for place in operands):
            self._refuse(node, " where they stand on different axes")
        parts = [
            place.units if place is not None else self.channels.new(value.shape[axis], fixed=True)
            for place, value in zip(operands, values, strict=True)
        ]
        if _argument(node, 1, "dim", 0) % values[0].ndim == axis:
            return _Places(axis, [unit for part in parts for unit in part])
        for part in parts[1:]:
            self.channels.tie(parts[0], part)
        return _Places(axis, parts[0])

    def _flattened(self, node: fx.Node, place: _Places, start: int, end: int) -> _Places:
        shape = self.env[node.all_input_nodes[0]].shape
        start, end = start % len(shape), end % len(shape)
        if place.axis < start:
            return place
        if place.axis > end:
            return _Places(place.axis - (end - start), place.units)
        if start == 0 and place.axis > 0:
            return self._refuse(node, " where the items of a batch are mixed with them")
        before, after = math.prod(shape[start : place.axis]), math.prod(shape[place.axis + 1 : end + 1])
        return _Places(start, [unit for unit in place.units for _ in range(after)] * before)

    def _reshaped(self, node: fx.Node, place: _Places, old: torch.Size, new: torch.Size) -> _Places:
        sizes = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
        if tuple(new) == (old[0], math.prod(old[1:])) and sizes[-1] == -1:  # type: ignore[index]
            return self._flattened(node, place, 1, -1)
        return self._refuse(node, "; of reshapes only view(n, -1) is, flattening an item")

    def _reduced(self, node: fx.Node, place: _Places, ndim: int) -> _Places:
        given = _argument(node, 1, "dim", None)
        axes = given if isinstance(given, (tuple, list)) else [] if given is None else [given]
        axes = [axis % ndim for axis in axes]
        if not axes or place.axis in axes:
            return self._refuse(node, " where it reduces them")
        keep = _argument(node, 2, "keepdim", False)
        return _Places(place.axis - (0 if keep else sum(axis < place.axis for axis in axes)), place.units)


FLATTEN = ((1, "start_dim", 0), (2, "end_dim", -1))


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _has_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(map(_has_tensor, value)))


def _leaves(tree: Any) -> Iterator[_Places]:
    if isinstance(tree, _Places):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from _leaves(part)


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


class _Watcher(fx.Interpreter):
    """Runs the network, and hands what each rectifier gives to a function of its name and the tensor."""

    def __init__(self, traced: fx.GraphModule, look: Callable[[str, Tensor], None], names: Collection[str]) -> None:
        super().__init__(traced)
        self.look, self.names = look, names

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names:
            self.look(n.name, value)
        return value


# --- how many go, and which ----------------------------------------------------------------------------------------


def widths(channels: Channels, groups: Sequence[Group], macs: float) -> list[int]:
    """The widest networks that keep one share of every group fit into a share `macs` of the multiply-accumulates.

    Raises
    ------
    ValueError
        If one channel of each group is too much.

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 4))
    >>> channels = Channels(network, torch.zeros(1, 8))
    >>> widths(channels, channels.groups, macs=0.5)
    [6, 13]
    """
    budget = macs * channels.macs()
    steps = sorted({(kept + 0.5) / len(group) for group in groups for kept in range(len(group))} | {1.0}, reverse=True)
    for share in steps:
        kept = [max(1, min(len(group), math.ceil(share * len(group) - 0.5 - 1e-9))) for group in groups]
        removed = {unit for group, count in zip(groups, kept, strict=True) for unit in group.units[count:]}
        if channels.macs(removed) <= budget:
            return kept
    raise ValueError(f"macs: expected a share that a network of one channel a layer has, got {macs}")


def weakest(
    channels: Channels, groups: Sequence[Group], scores: Sequence[Tensor], macs: float, scope: str = "layer"
) -> frozenset[int]:
    """The units to be removed: those of the lowest scores, until a share `macs` of the multiply-accumulates is left.

    Parameters
    ----------
    scores : sequence of Tensor
        One for each group, a number for each unit; among equals the later unit goes first.
    scope : {"layer", "global"}
        Whether every group keeps one share of its units (`widths`), or all units compete, the last of a group apart.
    """
    order = [sorted(range(len(g)), key=lambda i: (float(s[i]), -i)) for g, s in zip(groups, scores, strict=True)]
    if scope == "layer":
        kept = widths(channels, groups, macs)
        return frozenset(
            group.units[i]
            for group, count, places in zip(groups, kept, order, strict=True)
            for i in places[: len(group) - count]
        )
    budget = macs * channels.macs()
    candidates = [(float(scores[g][i]), -g, -i) for g, places in enumerate(order) for i in places[:-1]]
    removed: set[int] = set()
    for _, g, i in sorted(candidates):
        if channels.macs(removed) <= budget:
            break
        removed.add(groups[-g].units[-i])
    if channels.macs(removed) > budget:
        raise ValueError(f"macs: expected a share that a network of one channel a layer has, got {macs}")
    return frozenset(removed)
