"""A network as a graph of few operations on one item, and what a compiler does to it before there is any code.

`trace` takes a network apart with torch.fx; `simplify` evaluates what is constant, folds batch norm into the layer
before it and drops what nothing reads; `fuse` lets a convolution add, rectify and pool its own sums.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

__all__ = ["Node", "fuse", "order", "simplify", "trace"]


@dataclass(eq=False)
class Node:
    """One operation.

    Attributes
    ----------
    op : {"input", "conv", "depthwise", "linear", "affine", "relu", "add", "maxpool", "mean", "flatten"}
        "affine" scales and shifts each channel, "mean" averages each channel over its plane.
    inputs : list of Node
    shape : tuple of int
        Of the result for one item: (channels, height, width) or (features,).
    weight, bias : ndarray of float32
        "conv" (outputs, channels of a group, height, width), "depthwise" and "affine" (channels, height, width),
        "linear" (outputs, features).
    stride, padding, dilation, window : (int, int)
    groups : int
    relu, pool, residual : what `fuse` let the operation do to its own result: rectify; take the largest of windows of
        `pool` x `pool`; add another node, the last of its inputs, first of all.
    """

    op: str
    inputs: list[Node]
    shape: tuple[int, ...]
    name: str = ""
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    window: tuple[int, int] = (1, 1)
    groups: int = 1
    relu: bool = False
    pool: int = 1
    residual: bool = False

    def macs(self) -> int:
        """Multiply-accumulates for one item."""
        if self.op not in ("conv", "depthwise", "linear"):
            return 0
        assert self.weight is not None
        return prod(self.swept) * self.weight.size

    @property
    def swept(self) -> tuple[int, ...]:
        """Rows and columns of what a convolution computes, before it pools."""
        if self.op == "linear":
            return ()
        assert self.weight is not None
        sizes = zip(
            self.inputs[0].shape[1:], self.weight.shape[-2:], self.stride, self.padding, self.dilation, strict=True
        )
        return tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes)


def order(result: Node) -> list[Node]:
    """All that a result needs, each node after its inputs.

    Examples
    --------
    >>> x = Node("input", [], (3,))
    >>> y = Node("relu", [x], (3,))
    >>> [node.op for node in order(Node("add", [y, x], (3,)))]
    ['input', 'relu', 'add']
    """
    done: dict[Node, None] = {}
    stack: list[tuple[Node, bool]] = [(result, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            done[node] = None
        elif node not in done:
            stack += [(node, True), *((i, False) for i in reversed(node.inputs))]
    return [*done]


def readers(result: Node) -> dict[Node, list[Node]]:
    """Who reads each node."""
    found: dict[Node, list[Node]] = {node: [] for node in order(result)}
    for node in found:
        for source in node.inputs:
            found[source].append(node)
    return found


# --- from torch ----------------------------------------------------------------------------------------------------


class Refused(ValueError):
    """A network that holds what the compiler has no code for."""


def trace(network: nn.Module, shape: Iterable[int]) -> Node:
    """The graph of a network in evaluation mode.

    Parameters
    ----------
    network : nn.Module
        Left as it is.
    shape : iterable of int
        Of one item.

    Raises
    ------
    ValueError
        If torch.fx cannot trace it, or an operation, which is named, has no code here.

    Examples
    --------
    >>> graph = trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)), (1, 8, 8))
    >>> [node.op for node in order(graph)]
    ['input', 'conv', 'relu', 'flatten', 'linear']
    """
    network = copy.deepcopy(network).eval()
    try:
        module = fx.symbolic_trace(network)
    except Exception as error:  # whatever a network's own forward raises
        raise Refused(f"network: torch.fx cannot trace {type(network).__name__}: {error}") from error
    with torch.no_grad():
        ShapeProp(module).propagate(torch.zeros(1, *shape))
        return _Lowering(module).result()


@dataclass
class _Lowering:
    module: fx.GraphModule
    values: dict[fx.Node, Node | Tensor] = field(default_factory=dict)

    def result(self) -> Node:
        modules = dict(self.module.named_modules())
        for node in self.module.graph.nodes:
            if node.op == "output":
                out = self.values[node.args[0]] if isinstance(node.args[0], fx.Node) else None
                if not isinstance(out, Node):
                    raise Refused("network: expected one tensor as its result, which depends on its input")
                return out
            self.values[node] = self._lowered(node, modules)
        raise Refused("network: it has no result")

    def _lowered(self, node: fx.Node, modules: dict[str, nn.Module]) -> Node | Tensor:
        if node.op == "placeholder":
            if any(isinstance(v, Node) for v in self.values.values()):
                raise Refused("network: expected one input")
            return Node("input", [], _shape(node), node.name)
        if node.op == "get_attr":
            return _attribute(self.module, str(node.target))
        target = modules[str(node.target)] if node.op == "call_module" else node.target
        inputs = [self.values.get(a) if isinstance(a, fx.Node) else a for a in node.args]
        if not any(isinstance(a, Node) for a in inputs):  # a constant: evaluated here, once
            return target(*inputs, **node.kwargs) if callable(target) else getattr(inputs[0], str(target))(*inputs[1:])
        made = self._made(target, inputs, dict(node.kwargs), _shape(node))
        if made is None:
            what = type(target).__name__ if isinstance(target, nn.Module) else getattr(target, "__name__", target)
            raise Refused(f"network: no code for {node.name} ({what} with {_described(node)})")
        made.name = made.name or node.name
        return made

    def _made(self, target: Any, inputs: list[Any], options: dict[str, Any], shape: tuple[int, ...]) -> Node | None:
        x = next(a for a in inputs if isinstance(a, Node))
        if isinstance(target, nn.Module):
            lower = next((rule for kind, rule in MODULES.items() if isinstance(target, kind)), None)
            return lower(target, x, shape) if lower else None
        if target in (operator.add, torch.add, "add", operator.mul, torch.mul, "mul") and not options:
            return _elementwise(target, inputs, shape)
        if target in (F.relu, torch.relu, "relu"):
            return Node("relu", [x], shape)
        if target in (torch.flatten, "flatten", "view", "reshape") and len(shape) == 1:
            return Node("flatten", [x], shape)
        if target in (F.max_pool2d, torch.max_pool2d):
            return _maxpool(nn.MaxPool2d(*inputs[1:], **options), x, shape)
        if target is F.adaptive_avg_pool2d:
            return _mean(nn.AdaptiveAvgPool2d(*inputs[1:], **options), x, shape)
        return None


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta")
    if meta is None or not hasattr(meta, "shape") or not len(meta.shape) or meta.shape[0] != 1:
        raise Refused(f"network: expected {node.name} to be one tensor with the items first")
    return tuple(meta.shape[1:])


def _described(node: fx.Node) -> str:
    return ", ".join(str(_shape(a)) for a in node.args if isinstance(a, fx.Node)) or "no tensor"


def _attribute(module: nn.Module, path: str) -> Tensor:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value.detach()


def _array(tensor: Tensor | None, size: int = 0) -> np.ndarray:
    return np.zeros(size, np.float32) if tensor is None else tensor.detach().float().numpy().copy()


def _conv(layer: Any, x: Node, shape: tuple[int, ...]) -> Node | None:
    if layer.padding_mode != "zeros":
        return None
    padding = layer.padding
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if padding == "same" and any(r % 2 for r in reach):
            return None
        padding = tuple(r // 2 if padding == "same" else 0 for r in reach)
    weight = _array(layer.weight)
    each = 1 < layer.in_channels == layer.groups == layer.out_channels
    return Node(
        "depthwise" if each else "conv", [x], shape, "", weight[:, 0] if each else weight,
        _array(layer.bias, layer.out_channels), layer.stride, padding, layer.dilation, groups=layer.groups,
    )  # fmt: skip


def _norm(layer: Any, x: Node, shape: tuple[int, ...]) -> Node | None:
    if layer.running_mean is None:
        return None
    scale = 1 / torch.sqrt(layer.running_var.double() + layer.eps)
    if layer.affine:
        scale = scale * layer.weight.double()
    shift = -layer.running_mean.double() * scale + (layer.bias.double() if layer.affine else 0)
    return Node("affine", [x], shape, "", _array(scale), _array(shift))


def _maxpool(layer: Any, x: Node, shape: tuple[int, ...]) -> Node | None:
    window, stride, padding = (_pair(v) for v in (layer.kernel_size, layer.stride, layer.padding))
    if _pair(layer.dilation) != (1, 1) or layer.ceil_mode or layer.return_indices:
        return None
    return Node("maxpool", [x], shape, stride=stride, padding=padding, window=window)


def _mean(layer: Any, x: Node, shape: tuple[int, ...]) -> Node | None:
    return Node("mean", [x], shape) if _pair(layer.output_size) == (1, 1) and len(x.shape) == 3 else None


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _elementwise(target: Any, inputs: list[Any], shape: tuple[int, ...]) -> Node | None:
    """A sum of two nodes; or a node plus, or times, numbers that are the same over each channel's plane."""
    adds = target in (operator.add, torch.add, "add")
    nodes = [a for a in inputs if isinstance(a, Node)]
    if len(nodes) == 2:
        return Node("add", nodes, shape) if adds and nodes[0].shape == nodes[1].shape else None
    value = torch.as_tensor(next(a for a in inputs if not isinstance(a, Node)), dtype=torch.float32)
    value = value.reshape(value.shape[value.ndim - len(shape) :] if value.ndim > len(shape) else value.shape)
    if nodes[0].shape != shape or any(s != 1 for s in value.shape[max(0, value.ndim - len(shape) + 1) :]):
        return None
    each = _array(value.reshape(-1).expand(shape[0]) if value.numel() == 1 else value.reshape(-1))
    ones, zeros = np.ones(shape[0], np.float32), np.zeros(shape[0], np.float32)
    return Node("affine", nodes, shape, "", ones if adds else each, each if adds else zeros)


MODULES: dict[Any, Callable[[Any, Node, tuple[int, ...]], Node | None]] = {
    nn.Conv2d: _conv,
    nn.Linear: lambda m, x, shape: (
        Node("linear", [x], shape, "", _array(m.weight), _array(m.bias, m.out_features)) if len(x.shape) == 1 else None
    ),
    nn.BatchNorm2d: _norm,
    nn.BatchNorm1d: _norm,
    nn.ReLU: lambda m, x, shape: Node("relu", [x], shape),
    nn.MaxPool2d: _maxpool,
    nn.AdaptiveAvgPool2d: _mean,
    nn.Flatten: lambda m, x, shape: Node("flatten", [x], shape) if len(shape) == 1 else None,
    nn.Dropout: lambda m, x, shape: x,
    nn.Identity: lambda m, x, shape: x,
}


# --- passes --------------------------------------------------------------------------------------------------------


def simplify(result: Node) -> Node:
    """The same graph with every affine node folded into the layer before it, where nothing else reads that layer.

    Examples
    --------
    >>> graph = trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), (1, 8, 8))
    >>> [node.op for node in order(simplify(graph))]
    ['input', 'conv', 'relu']
    """
    for node in order(result):
        source = node.inputs[0] if node.inputs else None
        if node.op != "affine" or source is None or source.op not in ("conv", "depthwise", "linear"):
            continue
        if len(readers(result)[source]) > 1:
            continue
        assert source.weight is not None and node.weight is not None and source.bias is not None
        scale = node.weight.reshape(-1, *[1] * (source.weight.ndim - 1))
        source.weight, source.bias = source.weight * scale, source.bias * node.weight + node.bias
        result = _replaced(result, node, source)
    return result


def fuse(result: Node) -> Node:
    """The same graph in which convolutions and linear layers add, rectify and pool their own sums.

    Examples
    --------
    >>> graph = trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2)), (1, 8, 8))
    >>> [(node.op, node.relu, node.pool) for node in order(fuse(graph))]
    [('input', False, 1), ('conv', True, 2)]
    """
    for node in order(result):
        for source in node.inputs:
            if source.op in ("conv", "depthwise", "linear") and readers(result)[source] == [node]:
                if _absorbed(source, node):
                    result = _replaced(result, node, source)
                break
    return result


def _absorbed(layer: Node, node: Node) -> bool:
    """Let a layer do what the node does to its result, if its epilogue (add, rectify, pool, in this order) can."""
    if layer.pool > 1:
        return False
    if node.op == "add" and layer.op == "conv" and not (layer.relu or layer.residual) and len(set(node.inputs)) == 2:
        other = next(i for i in node.inputs if i is not layer)
        if layer in order(other):
            return False
        layer.inputs, layer.residual = [*layer.inputs, other], True
    elif node.op == "relu":
        layer.relu = True
    elif node.op == "maxpool" and layer.op == "conv" and _tiles(node):
        layer.pool, layer.shape = node.window[0], node.shape
    else:
        return False
    return True


def _tiles(node: Node) -> bool:
    """Whether the windows of a pooling are squares that neither overlap nor leave gaps."""
    return node.window == node.stride and node.window[0] == node.window[1] and node.padding == (0, 0)


def _replaced(result: Node, old: Node, new: Node) -> Node:
    for node in order(result):
        if node is not new:
            node.inputs = [new if source is old else source for source in node.inputs]
    return new if result is old else result
