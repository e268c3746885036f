"""Graph compilation: a network becomes one table of steps, taken by one compiled loop on one arena."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kernels.implementation.compilation.graph import Node, fuse, order, readers, simplify, trace
from kernels.implementation.compilation.plan import Life, place
from kernels.implementation.compilation.program import COLUMNS, FIELDS, Field, Op, panels, run
from kernels.simd import LANES

__all__ = ["Compiled", "GraphCompilation"]

OPS = {
    "input": Op.INPUT, "conv": Op.CONV, "depthwise": Op.DEPTHWISE, "affine": Op.DEPTHWISE, "linear": Op.LINEAR,
    "relu": Op.RELU, "add": Op.ADD, "maxpool": Op.MAXPOOL, "mean": Op.MEAN, "flatten": Op.FLATTEN,
}  # fmt: skip


@dataclass(frozen=True)
class GraphCompilation:
    r"""Compile a network for inference on items of one shape.

    The passes, each a function from graph to graph:

    1. *trace* by torch.fx; what depends on no input is evaluated once;
    2. *fold* batch norm into the layer before it, :math:`w' = \gamma w / \sigma`,
       :math:`b' = \gamma (b - \mu) / \sigma + \beta`;
    3. *fuse*: a convolution adds a residual, rectifies and pools its sums before they leave the first-level cache;
    4. *lay out*: channels last within, so that vectors of output channels and pixels of a filter's row lie side by
    side;
       a linear layer behind a flattened image has its weights reordered instead of the image;
    5. *plan*: buffers whose lives do not overlap share a place in one arena.

    Every pass changes the order of sums at most. Results differ from those of the network by rounding.

    Parameters
    ----------
    fuse : bool
        Pass 3.
    reuse : bool
        Pass 5; if not, every result has a place of its own.

    Source: Chen et al., "TVM: An Automated End-to-End Optimizing Compiler for Deep Learning", OSDI 2018, section 3.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    >>> compiled = GraphCompilation().compile(network.eval(), (1, 8, 8))
    >>> x = torch.randn(3, 1, 8, 8)
    >>> torch.allclose(compiled(x), network(x), atol=1e-5)
    True
    >>> compiled.describe()
    ['input (1, 8, 8)', 'conv (4, 6, 6), relu', 'linear (2,)']
    """

    fuse: bool = True
    reuse: bool = True

    def apply(self, network: nn.Module, data: Any) -> Compiled:
        """The network compiled for the items of a data set.

        Parameters
        ----------
        network : nn.Module
            Left as it is.
        data : datasets.Data
            Gives the shape of an item.
        """
        return self.compile(network, data.train.x.shape[1:])

    def compile(self, network: nn.Module, shape: Iterable[int]) -> Compiled:
        """The network compiled for items of a shape.

        Parameters
        ----------
        network : nn.Module
            Left as it is; convolutions (every stride, padding, dilation, groups), linear layers, batch norm, ReLU, max
            pooling, global average pooling, additions, flattening.
        shape : iterable of int
            (channels, height, width) or (features,), without the batch.

        Raises
        ------
        TypeError, ValueError
            If `network` is no module, or holds an operation without code here, which is named.
        """
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
        graph = simplify(trace(network, tuple(int(s) for s in shape)))
        return Compiled(fuse(graph) if self.fuse else graph, self.reuse)


@dataclass
class _Layout:
    """Margins, aliases and lives of the buffers of a graph's nodes."""

    nodes: list[Node]
    reads: dict[Node, list[Node]]
    margins: dict[Node, tuple[int, int]] = field(default_factory=dict)
    same: dict[Node, Node] = field(default_factory=dict)
    """A flattened image that is the image itself."""

    def __post_init__(self) -> None:
        for node in self.nodes:
            padded = [r for r in self.reads[node] if r.op in ("conv", "depthwise") and r.inputs[0] is node]
            self.margins[node] = tuple(max((r.padding[a] for r in padded), default=0) for a in (0, 1))  # type: ignore
        for node in self.nodes:
            if node.op == "flatten" and self.margins[node.inputs[0]] == (0, 0):
                spread = prod(node.inputs[0].shape[1:]) > 1
                if not spread or (self.reads[node] and all(r.op == "linear" for r in self.reads[node])):
                    self.same[node] = node.inputs[0]

    def buffer(self, node: Node) -> Node:
        """The node whose buffer holds a node's result."""
        while node in self.same:
            node = self.same[node]
        return node


def _image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels; a vector is one pixel."""
    return (shape[1], shape[2], shape[0]) if len(shape) == 3 else (1, 1, shape[0])


class Compiled(nn.Module):
    """A network for inference alone: steps, parameters, and an arena. Calls from several threads take turns.

    Attributes
    ----------
    steps : ndarray of int64, shape (steps, fields)
    params : ndarray of float32
    arena_bytes : int
        Of all results and of the sums of the widest row.
    """

    def __init__(self, graph: Node, reuse: bool = True) -> None:
        super().__init__()
        self.nodes = order(graph)
        layout = _Layout(self.nodes, readers(graph))
        self.nodes = [node for node in self.nodes if node not in layout.same]
        self.shape, self.result_shape = self.nodes[0].shape, graph.shape
        steps = {node: k for k, node in enumerate(self.nodes)}
        offsets, size = self._planned(layout, steps, reuse)
        pieces: list[np.ndarray] = []
        table = [self._step(node, layout, offsets, pieces) for node in self.nodes]
        out = np.zeros(FIELDS, np.int64)
        _fill(out, Field.IN_AT, offsets[layout.buffer(graph)], graph.shape, layout.margins[layout.buffer(graph)])
        _fill(out, Field.OUT_AT, 0, graph.shape, (0, 0))
        if len(graph.shape) == 1 and layout.buffer(graph).op != "input" and len(layout.buffer(graph).shape) == 3:
            _fill(out, Field.OUT_AT, 0, layout.buffer(graph).shape, (0, 0))
        out[Field.OP] = Op.OUTPUT
        self.steps = np.array([*table, out])
        self.params = np.concatenate([*pieces, np.zeros(2 * COLUMNS, np.float32)])
        self._arena = np.zeros(size + 2 * COLUMNS, np.float32)
        self._scratch = np.zeros(max(map(_sums, self.nodes), default=0) + 2 * COLUMNS, np.float32)
        self.arena_bytes = self._arena.nbytes + self._scratch.nbytes
        self._one_at_a_time = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        """Results for items of the shape that it was compiled for, float32, without gradients.

        Raises
        ------
        ValueError
            If the items have another shape or dtype.
        """
        if tuple(x.shape[1:]) != self.shape or x.ndim != len(self.shape) + 1 or x.dtype is not torch.float32:
            raise ValueError(
                f"x: expected float32 of shape (items, {', '.join(map(str, self.shape))}), "
                f"got {x.dtype} of shape {tuple(x.shape)}"
            )
        items = x.detach().contiguous().numpy().reshape(len(x), prod(self.shape))
        y = np.empty((len(x), prod(self.result_shape)), np.float32)
        with self._one_at_a_time:
            run(self.steps, self.params, self._arena, self._scratch, items, y)
        return torch.from_numpy(y).view(len(x), *self.result_shape)

    def describe(self) -> list[str]:
        """What each step does, in order."""
        return [
            f"{node.op} {node.shape}"
            + ", add" * node.residual + ", relu" * node.relu + f", pool {node.pool}" * (node.pool > 1)
            for node in self.nodes
        ]  # fmt: skip

    def figures(self) -> dict[str, int]:
        """What one item costs: torch's counters see nothing of a compiled network, so it says so itself.

        Returns
        -------
        dict
            macs, effective_macs (of weights that are not zero), parameters, nonzero_parameters, stored_bits,
            peak_activation_bytes (the arena), memory_access (bytes that steps read and write, weights included; what
            stays within a step is not counted), memory_footprint.
        """
        weights = [w for node in self.nodes for w in (node.weight, node.bias) if w is not None]
        parameters, nonzero = sum(w.size for w in weights), sum(int(np.count_nonzero(w)) for w in weights)
        results = sum(prod(node.shape) + sum(prod(i.shape) for i in node.inputs) for node in self.nodes)
        return {
            "macs": sum(node.macs() for node in self.nodes),
            "effective_macs": sum(_effective(node) for node in self.nodes),
            "parameters": parameters,
            "nonzero_parameters": nonzero,
            "stored_bits": 32 * parameters,
            "peak_activation_bytes": self.arena_bytes,
            "memory_access": 4 * (parameters + results),
            "memory_footprint": 4 * parameters + self.arena_bytes,
        }

    def _planned(self, layout: _Layout, steps: dict[Node, int], reuse: bool) -> tuple[dict[Node, int], int]:
        """The offset of each node's buffer, and the arena's size."""
        last = {node: steps[node] for node in self.nodes}
        for node in layout.nodes:
            for source in node.inputs:
                buffer = layout.buffer(source)
                at = steps.get(node, steps[layout.buffer(node)] if node in layout.same else 0)
                last[buffer] = max(last[buffer], at)
        last[layout.buffer(layout.nodes[-1])] = len(steps)
        lives = {}
        for node in self.nodes:
            (h, w, c), (mh, mw) = _image(node.shape), layout.margins[node]
            lives[steps[node]] = Life((h + 2 * mh) * (w + 2 * mw) * c, steps[node], last[node])
        offsets, size = place(lives, reuse=reuse)
        return {node: offsets[k] for node, k in steps.items()}, size

    def _step(self, node: Node, layout: _Layout, offsets: dict[Node, int], pieces: list[np.ndarray]) -> np.ndarray:
        """The node's line of the table; its parameters join the pieces."""
        s = np.zeros(FIELDS, np.int64)
        s[Field.OP], s[Field.OTHER_AT], s[Field.POOL], s[Field.GROUPS] = OPS[node.op], -1, node.pool, node.groups
        s[Field.RELU], s[[Field.K_H, Field.K_W]] = node.relu, node.window
        _fill(s, Field.OUT_AT, offsets[node], node.shape, layout.margins[node])
        for where, source in zip((Field.IN_AT, Field.OTHER_AT), node.inputs, strict=False):
            buffer = layout.buffer(source)
            if where == Field.IN_AT:
                _fill(s, where, offsets[buffer], source.shape, layout.margins[buffer])
            else:
                s[where], s[[Field.OTHER_MH, Field.OTHER_MW]] = offsets[buffer], layout.margins[buffer]
        s[[Field.S_H, Field.S_W]], s[[Field.P_H, Field.P_W]] = node.stride, node.padding
        s[[Field.D_H, Field.D_W]] = node.dilation
        if node.op == "flatten":
            _fill(s, Field.OUT_AT, offsets[node], node.inputs[0].shape, (0, 0))
        if node.weight is not None and node.bias is not None:
            weight, bias = self._laid(node, layout)
            if node.op in ("conv", "depthwise"):
                s[[Field.K_H, Field.K_W]] = node.weight.shape[-2:]
            else:
                s[[Field.K_H, Field.K_W]] = 1
            at = sum(piece.size for piece in pieces)
            s[Field.WEIGHT], s[Field.BIAS] = at, at + weight.size
            pieces += [weight, bias]
        return s

    @staticmethod
    def _laid(node: Node, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
        """A node's weights and biases as its step reads them, flat."""
        assert node.weight is not None and node.bias is not None
        weight, bias = node.weight, node.bias
        if node.op in ("depthwise", "affine"):
            last = weight.transpose(1, 2, 0) if weight.ndim == 3 else weight
            return np.ascontiguousarray(last).reshape(-1), bias
        if node.op == "linear":
            source = node.inputs[0]
            if source in layout.same:  # the image lies with its channels last: the weights follow it
                image = layout.buffer(source).shape
                if len(image) == 3:
                    weight = weight.reshape(-1, *image).transpose(0, 2, 3, 1).reshape(len(weight), -1)
            weight = weight[:, :, None, None]
        each = len(weight) // node.groups
        packed = [panels(weight[g : g + each], bias[g : g + each]) for g in range(0, len(weight), each)]
        return np.concatenate([w.reshape(-1) for w, _ in packed]), np.concatenate([b for _, b in packed])


def _fill(s: np.ndarray, first: Field, at: int, shape: tuple[int, ...], margins: tuple[int, int]) -> None:
    """Offset, height, width, channels and margins of an image, from one column of the table on."""
    s[first : first + 6] = at, *_image(shape), *margins


def _sums(node: Node) -> int:
    """Numbers in the sums of the rows that a step works on at once."""
    if node.op not in ("conv", "linear"):
        return 0
    outputs = node.shape[0] // node.groups
    panel = LANES if outputs <= LANES else COLUMNS
    return _image(node.shape)[1] * node.pool**2 * -(-outputs // panel) * panel


def _effective(node: Node) -> int:
    return node.macs() * int(np.count_nonzero(node.weight)) // node.weight.size if node.macs() else 0  # type: ignore
