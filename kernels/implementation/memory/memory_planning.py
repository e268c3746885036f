"""Memory planning: where the results of a network's steps lie in one arena, decided before it runs."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from kernels.energy import OPERAND_BYTES
from kernels.implementation.compilation.plan import Life, place
from kernels.implementation.dataflow.cost_model import CostModel, Counts
from kernels.implementation.dataflow.layer import Layer, positive_integer

if TYPE_CHECKING:
    from torch import fx, nn

    Workspace = Callable[[nn.Conv2d, tuple[int, ...]], int]

__all__ = ["MemoryPlanning", "Plan", "chain", "lives_of", "most_alive", "patches", "place_exactly"]

METHODS = ("greedy", "exact", "separate", "bound")


@dataclass(frozen=True)
class Plan:
    """Offsets in an arena, and its size.

    Attributes
    ----------
    offsets : dict of int to int
    size : int
    proved : bool
        Whether no plan is smaller: it meets the bound, or the search has seen every order.
    """

    offsets: dict[int, int]
    size: int
    proved: bool


def most_alive(lives: Mapping[Any, Life]) -> int:
    """What is alive at the busiest step; no arena is smaller.

    Examples
    --------
    >>> most_alive({0: Life(100, 0, 1), 1: Life(50, 1, 2), 2: Life(80, 2, 3)})
    150
    """
    return max((sum(a.size for a in lives.values() if a.first <= b.first <= a.last) for b in lives.values()), default=0)


def place_exactly(lives: Mapping[int, Life], steps: int = 100_000) -> Plan:
    r"""The smallest arena, by branch and bound.

    Push the buffers of an optimal plan down, from the lowest on, until each lies on the floor or on one that lives at
    the same time: the arena does not grow. So the optimum is among the plans in which buffers are put down in some
    order, each on top of those put down before that it meets,

    .. math:: o_i = \max\left(0, \max_{j \prec i,\; j \cap i \ne \emptyset} (o_j + s_j)\right),

    and in an order of growing offsets. A partial plan is given up where, at some step, what is not yet put down and
    alive does not fit between what is and the best arena found. The search starts from the greedy plan and ends as soon
    as the arena is no larger than what is alive at the busiest step.

    Parameters
    ----------
    lives : dict of int to Life
    steps : int
        Buffers put down, after which the search ends with the best plan found, `proved` false.

    Source: none; a dynamic storage allocation (Garey and Johnson, 1979, problem SR2), which is NP-complete.

    Examples
    --------
    >>> lives = {0: Life(2, 0, 1), 1: Life(3, 1, 2), 2: Life(4, 2, 3), 3: Life(1, 0, 3)}
    >>> place(lives, align=1)[1], place_exactly(lives).size, most_alive(lives)
    (8, 8, 8)
    """
    keys = sorted((k for k in lives if lives[k].size), key=lambda k: (-lives[k].size, lives[k].first))
    offsets, size = place(lives, align=1)
    bound = most_alive(lives)
    best, left = Plan(offsets, size, size == bound), steps
    times = sorted({lives[k].first for k in keys})  # what is alive is most at the start of some life

    def meets(a: int, b: int) -> bool:
        return lives[a].first <= lives[b].last and lives[b].first <= lives[a].last

    def search(put: dict[int, int], floor: dict[int, int], last: int) -> None:
        nonlocal best, left
        if not floor:
            top = max(put[k] + lives[k].size for k in put)
            best = Plan({**dict.fromkeys(lives, 0), **put}, top, top == bound)
            return
        for t in times:
            alive = [k for k in floor if lives[k].first <= t <= lives[k].last]
            if alive and min(max(floor[k], last) for k in alive) + sum(lives[k].size for k in alive) >= best.size:
                return
        tried = set()
        for k in sorted(floor, key=lambda k: floor[k]):
            if floor[k] < last or lives[k] in tried or best.size == bound or left <= 0:
                continue
            tried.add(lives[k])  # equal buffers are alike
            left -= 1
            top = floor[k] + lives[k].size
            rest = {o: max(at, top) if meets(o, k) else at for o, at in floor.items() if o != k}
            search({**put, k: floor[k]}, rest, floor[k])

    if best.size > bound:
        search({}, dict.fromkeys(keys, 0), 0)
    return Plan(best.offsets, best.size, best.size == bound or left > 0)


def chain(layers: Iterable[Layer]) -> dict[int, Life]:
    """Lives of the numbers that layers, each of which reads the one before, read and write.

    Where a layer reads another count than the last one wrote, a step between them makes the one of the other.

    Examples
    --------
    >>> [life.size for life in chain([Layer(1, 4, 8, 8, kernel=3), Layer.gemm(1, 10, 144)]).values()]
    [64, 144, 10]
    """
    sizes: list[int] = []
    for layer in layers:
        read = layer.batch * layer.in_channels * layer.height * layer.width
        m, n, _ = layer.gemm_shape()
        sizes += [*([read] if sizes[-1:] != [read] else []), layer.groups * m * n]
    return {k: Life(size, k, k + 1) for k, size in enumerate(sizes)}


def patches(layer: nn.Conv2d, shape: tuple[int, ...]) -> int:
    """Numbers in the patches that im2col copies for one group of a convolution, whose result has this shape.

    Examples
    --------
    >>> from torch import nn
    >>> patches(nn.Conv2d(4, 8, 3, padding=1), (8, 6, 6))
    1296
    """
    return prod(layer.kernel_size) * (layer.in_channels // layer.groups) * prod(shape[1:])


def lives_of(
    network: nn.Module, shape: Iterable[int], in_place: bool = True, workspace: Workspace | None = None
) -> dict[int, Life]:
    """Lives of the results of a network's steps for one item, in numbers; steps are the nodes of its torch.fx graph.

    Views share the buffer of what they view. So do batch norm and padding, which a compiler hands to the convolution
    beside them, and dropout, which does nothing.

    Parameters
    ----------
    network : nn.Module
        Left as it is; looked at in evaluation mode.
    shape : iterable of int
        Of one item.
    in_place : bool
        A function of each element, or a sum of two results, is written over an operand that nothing reads later. A
        depthwise convolution that keeps the shape is too, by way of a buffer of one channel: only channel c of its
        input makes channel c of its result.
    workspace : callable, optional
        From a convolution, and the shape of its result, to the numbers that it needs only while it runs (`patches`).

    Raises
    ------
    TypeError
        If `network` is no module.
    ValueError
        If torch.fx cannot trace it, or a step gives something else than one tensor.

    Examples
    --------
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    >>> [life.size for life in lives_of(network, (1, 8, 8)).values()]
    [64, 144, 10]
    >>> [life.size for life in lives_of(network, (1, 8, 8), in_place=False).values()]
    [64, 144, 144, 10]
    """
    return _Lives(_traced(network, shape), in_place, workspace).lives


@dataclass(frozen=True)
class _Kinds:
    """Steps by what they do with memory."""

    free: tuple[Any, ...]
    elementwise: tuple[Any, ...]

    @classmethod
    def known(cls) -> _Kinds:
        import torch
        from torch import nn
        from torch.nn import functional as F

        return cls(
            (nn.Flatten, nn.Identity, nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm,
             nn.modules.padding._ConstantPadNd, torch.flatten, "flatten", "view", "reshape"),
            (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.SiLU, nn.Tanh, nn.GELU,
             nn.LeakyReLU, nn.ELU, F.relu, F.relu6, F.silu, F.gelu, F.hardswish, torch.relu, torch.sigmoid, torch.tanh,
             "relu", "sigmoid", "tanh", operator.add, torch.add, "add", operator.mul, torch.mul, "mul"),
        )  # fmt: skip


class _Lives:
    def __init__(self, module: fx.GraphModule, in_place: bool, workspace: Workspace | None) -> None:
        self.modules, self.kinds = dict(module.named_modules()), _Kinds.known()
        self.lives: dict[int, Life] = {}
        nodes = [node for node in module.graph.nodes if node.op != "get_attr"]
        step = {node: k for k, node in enumerate(nodes)}
        holds: dict[Any, int] = {}  # the buffer of a node's result
        last = {node: max((step[u] for u in node.users if u in step), default=step[node]) for node in nodes}
        for node in reversed(nodes):  # a view is read when what views it is
            if self._is(node, self.kinds.free):
                last[node.all_input_nodes[0]] = max(last[node.all_input_nodes[0]], last[node])
        for node in nodes[:-1]:
            now, size, over = step[node], _size(node), None
            sources = [source for source in node.all_input_nodes if source in holds]
            if self._is(node, self.kinds.free) and sources:
                holds[node] = holds[sources[0]]
            else:
                depthwise = in_place and self._keeps_channels_apart(node)
                if depthwise:
                    sources = [s for s in sources if self.lives[holds[s]].size == size]
                if depthwise or (in_place and self._is(node, self.kinds.elementwise)):
                    over = next((s for s in sources if self._done(holds[s], now, size)), None)
                shape, layer = tuple(node.meta["tensor_meta"].shape[1:]), self._convolution(node)
                spare = size // shape[0] if depthwise and over is not None else 0
                if layer is not None and (needed := spare + (workspace(layer, shape) if workspace else 0)):
                    self.lives[-now] = Life(needed, now, now)
                holds[node] = now if over is None else holds[over]
            old = self.lives.get(holds[node], Life(size, now, now))
            self.lives[holds[node]] = Life(old.size, old.first, max(old.last, last[node]))

    def _is(self, node: fx.Node, kinds: tuple[Any, ...]) -> bool:
        if node.op == "call_module":
            return isinstance(self.modules[str(node.target)], tuple(k for k in kinds if isinstance(k, type)))
        return node.op != "placeholder" and node.target in kinds

    def _done(self, buffer: int, now: int, size: int) -> bool:
        """Whether a buffer is of this size, and read now for the last time."""
        return self.lives[buffer].size == size and self.lives[buffer].last <= now

    def _convolution(self, node: fx.Node) -> nn.Conv2d | None:
        from torch import nn

        layer = self.modules.get(str(node.target)) if node.op == "call_module" else None
        return layer if isinstance(layer, nn.Conv2d) else None

    def _keeps_channels_apart(self, node: fx.Node) -> bool:
        layer = self._convolution(node)
        return layer is not None and layer.groups == layer.in_channels == layer.out_channels > 1


def _traced(network: nn.Module, shape: Iterable[int]) -> fx.GraphModule:
    import torch
    from torch import fx, nn
    from torch.fx.passes.shape_prop import ShapeProp

    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    try:
        module = fx.symbolic_trace(copy.deepcopy(network).eval())
    except Exception as error:  # whatever a network's own forward raises
        raise ValueError(f"network: torch.fx cannot trace {type(network).__name__}: {error}") from error
    with torch.no_grad():
        ShapeProp(module).propagate(torch.zeros(1, *shape))
    return module


def _size(node: fx.Node) -> int:
    meta = node.meta.get("tensor_meta")
    if not hasattr(meta, "shape"):
        raise ValueError(f"network: expected {node.name} to be one tensor")
    return prod(meta.shape)  # type: ignore[union-attr]


@dataclass(frozen=True)
class PlanCounts(Counts):
    """What a plan holds; it does not say when or how anything is computed."""

    arena: int = 0
    parameter_bytes: int = 0

    def figures(self) -> dict[str, float | None]:
        """Every figure by its name."""
        unknown = dict.fromkeys(("cycles", "core_utilization", "sram_access", "memory_access", "energy"))
        return {
            **unknown,
            "macs": self.macs,
            "peak_activation_bytes": self.arena,
            "memory_footprint": self.arena + self.parameter_bytes,
        }


@dataclass(frozen=True)
class MemoryPlanning(CostModel):
    r"""A network's results in one arena, in which places are used again.

    .. math:: \min_o\; \max_i (o_i + s_i) \quad \text{subject to} \quad
              [o_i, o_i + s_i) \cap [o_j, o_j + s_j) = \emptyset \text{ wherever lives } i \text{ and } j \text{ meet}

    A result lives from the step that makes it through the last that reads it. What is alive at the busiest step is a
    bound that no plan goes below.

    Parameters
    ----------
    method : {"greedy", "exact", "separate", "bound"}
        The largest first, each as low as it goes; the smallest arena; a place for each result; or the bound itself.
    in_place : bool
        Whether steps may write over what they read (`lives_of`).
    format : {"int8", "fp16", "fp32", "int32"}
        Of the numbers, parameters included.
    align : int
        Bytes; sizes are rounded up to multiples of it, so that all offsets are.

    Raises
    ------
    ValueError, KeyError
        If a parameter is none of these.

    Source: Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", arXiv 2001.03288, for the
    greedy plan by size; Lin et al., "MCUNet", arXiv 2007.10319, for the depthwise convolution in place.

    Examples
    --------
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    >>> {m: MemoryPlanning(m, align=1).cost_network(network, (1, 8, 8)).arena for m in METHODS}
    {'greedy': 832, 'exact': 832, 'separate': 872, 'bound': 832}
    """

    method: str = "greedy"
    in_place: bool = True
    format: str = "fp32"
    align: int = 16

    counts: ClassVar[type[Counts]] = PlanCounts
    missing: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("cycles", "core_utilization", "sram_access", "memory_access", "energy"),
        "a plan says where results lie, not when or by what they are computed",
    )

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        if self.format not in OPERAND_BYTES:
            raise ValueError(f"format: expected one of {', '.join(OPERAND_BYTES)}, got {self.format!r}")
        positive_integer(self.align, "align")

    def plan(self, lives: Mapping[int, Life]) -> Plan:
        """Offsets of buffers in bytes.

        Parameters
        ----------
        lives : dict of int to Life
            Sizes in bytes.

        Raises
        ------
        ValueError
            If a buffer is less than empty, or dies before it is made.
        """
        for key, life in lives.items():
            if life.size < 0 or life.last < life.first:
                raise ValueError(f"lives: expected a size of at least 0 and last >= first, got {life} for {key}")
        whole = {k: Life(-(-a.size // self.align) * self.align, a.first, a.last) for k, a in lives.items()}
        if self.method == "exact":
            return place_exactly(whole)
        bound = most_alive(whole)
        if self.method == "bound":
            return Plan({}, bound, False)
        offsets, size = place(whole, align=1, reuse=self.method == "greedy")
        return Plan(offsets, size, size == bound)

    def cost_network(self, network: nn.Module, shape: Iterable[int], workspace: Workspace | None = None) -> PlanCounts:
        """What a network holds for one item.

        Parameters
        ----------
        network : nn.Module
        shape : iterable of int
            Of one item.
        workspace : callable, optional
            As in `lives_of`.
        """
        import torch

        from kernels.counting import macs, parameters

        shape, word = tuple(shape), OPERAND_BYTES[self.format]
        found = lives_of(network, shape, self.in_place, workspace)
        lives = {k: Life(a.size * word, a.first, a.last) for k, a in found.items()}
        counted = macs(network, torch.zeros(1, *shape))
        return PlanCounts(macs=counted, arena=self.plan(lives).size, parameter_bytes=parameters(network) * word)

    def cost(self, layers: Layer | Iterable[Layer]) -> PlanCounts:
        """What layers hold each of which reads the one before (`chain`): nothing of theirs is computed in place."""
        layers = [layers] if isinstance(layers, Layer) else list(layers)
        macs = super().cost([]).macs
        for layer in layers:
            if not isinstance(layer, Layer):
                raise TypeError(f"layers: expected Layer objects, got {type(layer).__name__}")
            macs += layer.macs
        word = OPERAND_BYTES[self.format]
        lives = {k: Life(a.size * word, a.first, a.last) for k, a in chain(layers).items()}
        weights = sum(layer.groups * prod(layer.gemm_shape()[1:]) for layer in layers) * word
        return PlanCounts(macs=macs, arena=self.plan(lives).size, parameter_bytes=weights)

    def cost_of(self, layer: Layer) -> PlanCounts:
        """What one layer holds: its input and its result."""
        return self.cost(layer)

    def ideal(self) -> MemoryPlanning:
        """The bound: what is alive at the busiest step."""
        return MemoryPlanning("bound", self.in_place, self.format, self.align)
