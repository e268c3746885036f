"""What a network costs, counted and not timed: multiply-accumulates, live bytes, parameters.

The counts are taken at the dispatcher, where functional calls, ``einsum`` and the steps of a recurrence have already
become matrix products, so nothing hides from them that is written in torch. One multiply-accumulate is

    c ← c + a · b,

and a network's are those of its convolutions and matrix products, as published counts have it: additions of a bias,
pooling, normalization, activation functions and other elementwise work count nothing; products with padding and
masked products count like any other.

Every function runs one forward pass in evaluation mode without gradients, and leaves the network as it was.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    "effective_macs",
    "macs",
    "macs_by_layer",
    "nonzero_parameters",
    "parameters",
    "peak_activation_bytes",
    "training_peak_bytes",
]

aten = torch.ops.aten


def _product(a: Tensor, b: Tensor) -> int:
    """(…, m, k) times (…, k, n): m k n for each product of the batch."""
    return a.numel() * (b.shape[-1] if b.ndim > 1 else 1)


def _convolution(x: Tensor, w: Tensor, out: Tensor, transposed: bool) -> int:
    """Each output element sums over one filter; each input element of a transposed convolution spreads over one."""
    return (x if transposed else out).numel() * w[0].numel()


def _attention(q: Tensor, k: Tensor, v: Tensor) -> int:
    """Q Kᵀ and its product with V: n m (d + dᵥ) for each head of Q."""
    return prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


MACS: dict[Any, Callable[[tuple, Any], int]] = {
    aten.convolution: lambda args, out: _convolution(args[0], args[1], out, args[6]),
    aten.mm: lambda args, out: _product(args[0], args[1]),
    aten.bmm: lambda args, out: _product(args[0], args[1]),
    aten.mv: lambda args, out: _product(args[0], args[1]),
    aten.dot: lambda args, out: _product(args[0], args[1]),
    aten._int_mm: lambda args, out: _product(args[0], args[1]),
    aten.addmm: lambda args, out: _product(args[1], args[2]),
    aten.addmv: lambda args, out: _product(args[1], args[2]),
    aten.addbmm: lambda args, out: _product(args[1], args[2]),
    aten.baddbmm: lambda args, out: _product(args[1], args[2]),
    aten.vdot: lambda args, out: _product(args[0], args[1]),
    aten._addmm_activation: lambda args, out: _product(args[1], args[2]),
    aten._sparse_addmm: lambda args, out: _product(args[1], args[2]),
    aten.conv_tbc: lambda args, out: out.numel() * args[1][..., 0].numel(),
    # (batch, i), (o, i, j), (batch, j): the first two make (batch, o, j), which meets the third
    aten._trilinear: lambda args, out: out.numel() * args[2].shape[-1] * (args[0].shape[-1] + 1),
    aten._scaled_dot_product_flash_attention_for_cpu: lambda args, out: _attention(*args[:3]),
    # one layer and direction of an LSTM in oneDNN: (steps, batch, inputs), then the weights of input and state
    aten.mkldnn_rnn_layer: lambda args, out: prod(args[0].shape[:2]) * (args[1].numel() + args[2].numel()),
}
"""Multiply-accumulates of one operation from its arguments and its result; in-place forms of it are the same."""
MACS |= {aten.addmm_: MACS[aten.addmm], aten.addmv_: MACS[aten.addmv]}
MACS |= {aten.addbmm_: MACS[aten.addbmm], aten.baddbmm_: MACS[aten.baddbmm]}


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


@contextmanager
def _inference(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, attention unfused so that its parts are seen; everything put back afterwards."""
    training = [(module, module.training) for module in network.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in training:
            module.training = mode


@contextmanager
def _hooks(handles: Iterable[Any]) -> Iterator[None]:
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _arguments(network: nn.Module, x: Any) -> tuple:
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
    items = x if type(x) is tuple else (x,)
    return tuple(item if isinstance(item, Tensor | PackedSequence) else torch.tensor(item) for item in items)


class _Watch(TorchDispatchMode, ABC):
    """Hands every elementary operation to `call`.

    Within ``torch.inference_mode`` a linear layer, attention or a whole recurrence arrives as one operation; it is
    taken apart, and its parts arrive in turn.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:
                return func.decompose(*args, **kwargs)
        return self.call(func, args, kwargs)

    @abstractmethod
    def call(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run the operation, and note what it did."""


class _Counter(_Watch):
    """Adds the multiply-accumulates of every operation to the module that called it.

    Those whose weight is not zero are the same, times the share of non-zeros of the operands that lie in `weights`.
    """

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.macs: dict[str, int] = {}
        self.effective = 0
        self.weights = {weight.untyped_storage()._cdata for weight in weights}
        self.stack = [""]

    def call(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        if formula := MACS.get(func.overloadpacket):
            macs = formula(args, out)
            self.macs[self.stack[-1]] = self.macs.get(self.stack[-1], 0) + macs
            if self.weights:
                self.effective += self.of_nonzeros(macs, args)
        return out

    def of_nonzeros(self, macs: int, args: tuple) -> int:
        matrices = (tensor for tensor in _tensors(args) if tensor.ndim > 1)
        constant = [matrix for matrix in matrices if matrix.untyped_storage()._cdata in self.weights]
        size = sum(matrix.numel() for matrix in constant)
        return macs * sum(int(matrix.count_nonzero()) for matrix in constant) // size if size else macs

    def watch(self, name: str, module: nn.Module) -> Iterator[Any]:
        def leave(*_: Any) -> None:
            self.stack.pop()

        yield module.register_forward_pre_hook(lambda *_: self.stack.append(name))
        yield module.register_forward_hook(leave, always_call=True)


def macs_by_layer(network: nn.Module, x: Any) -> dict[str, int]:
    """Multiply-accumulates of every module's own operations, by the module's path.

    Parameters
    ----------
    network : torch.nn.Module
    x : torch.Tensor or array_like, or a tuple of them
        The network's input (or its arguments), with the batch dimension: the count is of the whole batch.

    Returns
    -------
    dict of str to int
        In order of first execution; modules without multiply-accumulates of their own are left out. Functional calls
        belong to the innermost module that makes them, those of the network itself to ``""``; a module that is called
        twice counts twice, under its first name.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 10))
    >>> macs_by_layer(net, torch.zeros(1, 3, 4, 4))
    {'0': 3456, '3': 1280}
    """
    arguments = _arguments(network, x)
    counter = _Counter()
    watched = (handle for name, module in network.named_modules() for handle in counter.watch(name, module))
    with _inference(network), _hooks(watched), counter:
        network(*arguments)
    return counter.macs


def macs(network: nn.Module, x: Any) -> int:
    """Exact multiply-accumulates of one forward pass.

    Counted are convolutions (transposed and grouped ones too), linear layers, every form of matrix product (`matmul`,
    `bmm`, `baddbmm`, `einsum`, ...), recurrent layers with their projections, and attention: also
    ``scaled_dot_product_attention``, which on a CPU is an operation of its own that torch's flop counter misses.

    Parameters
    ----------
    network : torch.nn.Module
    x : torch.Tensor or array_like, or a tuple of them
        The network's input (or its arguments), with the batch dimension: the count is of the whole batch.

    Returns
    -------
    int

    Examples
    --------
    >>> macs(nn.Linear(64, 10), torch.zeros(5, 64))
    3200
    >>> macs(nn.GRU(8, 4), torch.zeros(7, 1, 8)) == 7 * 3 * 4 * (8 + 4)
    True
    """
    return sum(macs_by_layer(network, x).values())


def effective_macs(network: nn.Module, x: Any) -> int:
    """Multiply-accumulates of one forward pass whose weight differs from zero, as an ideal sparse machine executes.

    Every entry of a weight takes part in equally many products of its operation, so the share is exact. In a product of
    two activations, as attention's, all count.

    Parameters
    ----------
    network : torch.nn.Module
        Its constraints baked: parameters are looked at, not what a parametrization makes of them.
    x : torch.Tensor or array_like, or a tuple of them
        The network's input (or its arguments), with the batch dimension: the count is of the whole batch.

    Returns
    -------
    int

    Examples
    --------
    >>> layer = nn.Linear(10, 10)
    >>> _ = nn.init.eye_(layer.weight)
    >>> effective_macs(layer, torch.zeros(1, 10))
    10
    """
    arguments = _arguments(network, x)
    counter = _Counter(network.parameters())
    with _inference(network), counter:
        network(*arguments)
    return counter.effective if counter.weights else sum(counter.macs.values())


class _Lifetimes(_Watch):
    """When each storage is created and last read, in operations since the start."""

    def __init__(self, constants: Iterable[Tensor], inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.time = 0
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self.storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice
        self.constants = {tensor.untyped_storage()._cdata for tensor in constants}
        self.create(inputs)

    def create(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in self.constants:
                self.first.setdefault(storage._cdata, self.time)
                self.storages[storage._cdata] = storage

    def read(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata in self.first:
                self.last[storage._cdata] = self.time
            else:  # made before the start: a constant, and so are its views
                self.constants.add(storage._cdata)
                self.storages[storage._cdata] = storage

    def call(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        self.time += 1
        self.read(_tensors((args, kwargs)))
        out = func(*args, **kwargs)
        self.create(_tensors(out))
        return out

    def peak(self) -> int:
        change = [0] * (self.time + 2)
        for key, end in self.last.items():
            size = self.storages[key].nbytes()
            change[self.first[key]] += size
            change[end + 1] -= size
        live = peak = 0
        for delta in change:
            live += delta
            peak = max(peak, live)
        return peak


def peak_activation_bytes(network: nn.Module, x: Any) -> int:
    """The most bytes of activations that are alive at one moment of inference.

    A storage is alive from the operation that creates it (the input: from the start) through the last operation that
    reads it (a result of the network: to the end), so an operation's inputs and outputs are alive together. Views
    and in-place results share a storage, which counts once and whole. Parameters and buffers are no activations, nor
    is what nobody reads, such as the positions that max pooling also returns. What an operation allocates inside
    itself is not seen.

    Parameters
    ----------
    network : torch.nn.Module
    x : torch.Tensor or array_like, or a tuple of them
        The network's input (or its arguments), with the batch dimension.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> peak_activation_bytes(nn.Sequential(nn.Linear(64, 10), nn.ReLU()), torch.zeros(1, 64))  # 64 and 10 floats
    296
    """
    arguments = _arguments(network, x)
    lifetimes = _Lifetimes([*network.parameters(), *network.buffers()], _tensors(arguments))
    with _inference(network), lifetimes:
        result = network(*arguments)
    lifetimes.time += 1
    lifetimes.read(_tensors(result))
    return lifetimes.peak()


class _Allocations(_Watch):
    """Every storage that operations create, from then until somebody frees the last reference to it."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int]] = []  # (storage, bytes): positive when made, negative when freed
        self.alive: dict[int, int] = {}  # address of a live storage -> its number; an address is used again when free

    def free(self, address: int, number: int, size: int) -> None:
        del self.alive[address]
        self.events.append((number, -size))

    def call(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        before = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            address, number, size = storage._cdata, len(self.events), storage.nbytes()
            if address not in self.alive and address not in before:
                self.alive[address] = number
                self.events.append((number, size))
                weakref.finalize(storage, self.free, address, number, size)
        return out

    def peak(self, without: Iterable[Tensor]) -> int:
        left_out = {self.alive.get(tensor.untyped_storage()._cdata) for tensor in without}
        return max(accumulate((size for number, size in self.events if number not in left_out), initial=0))


def training_peak_bytes(network: nn.Module, step: Callable[[], Any]) -> int:
    """The most bytes that the tensors made by one training step hold at one moment, gradients of parameters apart.

    Unlike `peak_activation_bytes` this watches when memory is really freed, because what training keeps is decided by
    the graph of the backward pass: activations saved for it, what is computed again, gradients of activations. What
    exists before (parameters, the batch, the optimizer's state) does not count, nor do the gradients of the network's
    parameters, which every way of training needs; what one operation allocates inside itself is not seen.

    Parameters
    ----------
    network : torch.nn.Module
    step : callable
        Runs forward and backward once, e.g. ``lambda: loss(network(x), y).backward()``.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> network, x = nn.Sequential(nn.Linear(10, 100), nn.Sigmoid()), torch.zeros(5, 10)
    >>> training_peak_bytes(network, lambda: network(x).sum().backward())  # σ(z), the gradient of z, two scalars
    4008
    """
    allocations = _Allocations()
    with allocations:
        step()
    return allocations.peak(without=(p.grad for p in network.parameters() if p.grad is not None))


def parameters(network: nn.Module) -> int:
    """The number of trainable and frozen parameters, a shared one counted once (buffers are none).

    Examples
    --------
    >>> parameters(nn.Linear(64, 10))
    650
    """
    return sum(parameter.numel() for parameter in network.parameters())


def nonzero_parameters(network: nn.Module) -> int:
    """The number of parameters that are not zero; of a parametrized tensor, the values it takes are looked at.

    NaN is not zero, -0.0 is.

    Examples
    --------
    >>> layer = nn.Linear(2, 1)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[0.0, 3.0]])), layer.bias.fill_(1.0)
    >>> nonzero_parameters(layer)
    2
    """
    values: dict[int, Tensor] = {}
    originals: set[int] = set()
    with torch.no_grad():
        for module in network.modules():
            if not parametrize.is_parametrized(module):
                continue
            for name, chain in module.parametrizations.items():  # type: ignore[union-attr, operator]
                originals |= {id(parameter) for parameter in chain.parameters()}
                values[id(chain)] = getattr(module, name)
        values |= {id(p): p for p in network.parameters() if id(p) not in originals}
        return sum(int(value.count_nonzero()) for value in values.values())
