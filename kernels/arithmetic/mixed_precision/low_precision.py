r"""Training in low precision, emulated: every array is rounded to a format where a machine would store it.

With Q_w, Q_a, Q_g the rounding of weights, activations and gradients, and Q_s that of the weights that are kept, one
update on a batch B is

.. math::
   \hat w = Q_w(w), \qquad a_0 = Q_a(x), \qquad a_l = Q_a\big(f_l(a_{l-1}, \hat w_l)\big)

   \delta_l = Q_g(\partial S L / \partial a_l), \qquad g_l = Q_g(\partial S L / \partial \hat w_l) / S

   w \leftarrow Q_s\big(\text{update}(w, g)\big)

where S is the scale of the loss, f_l the layers that compute (sums inside a layer are FP32), and any Q may be absent.
A rounding is passed straight through: its derivative is taken to be one. Without a Q_s the weights kept are FP32
*master* weights. Optimizer state is FP32 unless the optimizer says otherwise.

How to use it
-------------
`Precision(weights=, activations=, gradients=, stored=)` says the four formats, each a `NumberFormat` (anything with
`round(tensor)`) or None. `precision_of(name, master=True)` gives the usual one of "fp32", "bfloat16", "fp16", "fp8".

`train_in(precision, network, data, recipe, ...)` trains a copy by a recipe (duck-typed: `epochs`, `batch`,
`learning_rate`, `weight_decay`, `schedule`, `seed` are read, and `loss(network, x, y)` where it has one) with the same
batches, rates and random numbers as the recipe itself, so that without any format it is the plain recipe bit for bit.
It returns the network, its weights as the products saw them last, and the trace, one entry an update. Its options:

- `precision` may be a function of (step, steps, trace) that gives a `Precision`: bits that change while training runs;
- `scale`: an object with `factor` and `update(overflow)`, such as `loss_scaling.DynamicScale`;
- `optimizer`: a function of (parameters, recipe) that gives a `torch.optim.Optimizer`; AdamW by default;
- `on_step`: called with (step, network) after each update, e.g. to average weights.

A technique wraps it in ``train(network, data, recipe, teacher=None, *, seed=None) -> network, trace``; one that can be
switched off offers ``without()``, a technique with the same face: the protocol's contestant of that name. `cost_bits()`
gives the bits of an element of each array, from which bytes and energy are counted.

Source: P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from kernels.arithmetic.floating_point.bfloat16 import BFloat16
from kernels.arithmetic.floating_point.fp8 import FP8
from kernels.arithmetic.floating_point.fp16 import FP16

__all__ = ["FORMATS", "Precision", "adamw", "precision_of", "rate_share", "rounded", "train_in"]

FORMATS = ("fp32", "bfloat16", "fp16", "fp8")
EXACT = (nn.ReLU, nn.MaxPool1d, nn.MaxPool2d, nn.Flatten, nn.Unflatten, nn.Identity)
"""Layers that compute nothing that could need rounding: their outputs are some of their inputs, or zero."""

Trace = list[dict[str, Any]]


@dataclass(frozen=True)
class Precision:
    """The formats of the four kinds of array in training; None leaves FP32.

    Parameters
    ----------
    weights : NumberFormat, optional
        All parameters as the products see them, forward and backward.
    activations : NumberFormat, optional
        The network's input and the output of every layer that computes.
    gradients : NumberFormat, optional
        With respect to activations and to weights.
    stored : NumberFormat, optional
        The weights that are kept from update to update; None keeps FP32 master weights.

    Source
    ------
    Micikevicius et al. 2018, figure 1.

    Examples
    --------
    >>> Precision(weights=BFloat16(), stored=BFloat16()).activations is None
    True
    """

    weights: Any = None
    activations: Any = None
    gradients: Any = None
    stored: Any = None

    def bits(self) -> dict[str, int]:
        """Bits of an element of each array: the four, and ``state`` for each of the optimizer's two moments.

        Examples
        --------
        >>> Precision(weights=BFloat16()).bits()
        {'weights': 16, 'activations': 32, 'gradients': 32, 'stored': 32, 'state': 32}
        """
        kinds = ("weights", "activations", "gradients", "stored")
        return {kind: getattr(getattr(self, kind), "bits", 32) for kind in kinds} | {"state": 32}


def precision_of(name: str, master: bool = True) -> Precision:
    """The usual formats of a training in `name`, with FP32 master weights or with weights kept in the format.

    FP8 is two formats: e4m3, which saturates, for weights and activations; e5m2, which has infinities and more range,
    for gradients.

    Raises
    ------
    ValueError
        If the name is not one of `FORMATS`.

    Examples
    --------
    >>> precision_of("fp8").gradients.format
    'e5m2'
    >>> precision_of("fp32", master=False)
    Precision(weights=None, activations=None, gradients=None, stored=None)
    """
    if name not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {name!r}")
    if name == "fp32":
        return Precision()
    forward, backward = _formats(name)
    return Precision(forward, forward, backward, None if master else forward)


def _formats(name: str) -> tuple[Any, Any]:
    if name == "bfloat16":
        return BFloat16(), BFloat16()
    if name == "fp16":
        return FP16(), FP16()
    return FP8("e4m3"), FP8("e5m2", saturate=False)


# --- the plain statement --------------------------------------------------------------------------------------------


class _Rounded(torch.autograd.Function):
    """Forward Q(x), backward Q_g(gradient): straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Any, backward: Any) -> Tensor:
        ctx.format = backward
        return x.view_as(x) if forward is None else _round(forward, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient = gradients[0]
        return gradient if ctx.format is None else _round(ctx.format, gradient), None, None


def rounded(x: Tensor, forward: Any = None, backward: Any = None) -> Tensor:
    """`x` rounded to a format, and the gradient that comes back rounded to another.

    Parameters
    ----------
    x : Tensor of floats
    forward, backward : NumberFormat, optional
        None rounds nothing.

    Returns
    -------
    Tensor of the shape and type of `x`

    Examples
    --------
    >>> x = torch.tensor([1.0, 1.001], requires_grad=True)
    >>> y = rounded(x, BFloat16(), BFloat16())
    >>> (y * torch.tensor([1.0, 0.3333])).sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([1.0, 1.0], [1.0, 0.333984375])
    """
    if forward is None and backward is None:
        return x
    return _Rounded.apply(x, forward, backward)  # type: ignore[no-untyped-call, no-any-return]


def _round(format: Any, x: Tensor) -> Tensor:
    y: Tensor = format.round(x.detach())
    return y if y.dtype == x.dtype else y.to(x.dtype)


def adamw(parameters: list[nn.Parameter], recipe: Any) -> torch.optim.Optimizer:
    """The recipe's optimizer; its two moments are FP32."""
    return torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def rate_share(schedule: str, step: int, steps: int) -> float:
    """The share of the peak learning rate at an update, as recipes have it.

    One-cycle rises linearly over the first fifth of the updates, then falls as a cosine to zero; cosine only falls.

    Examples
    --------
    >>> [round(rate_share("one-cycle", step, 10), 3) for step in (0, 1, 2, 6)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if schedule == "constant":
        return 1.0
    rise = steps // 5 if schedule == "one-cycle" else 0
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def train_in(
    precision: Precision | Callable[[int, int, Trace], Precision],
    network: nn.Module,
    data: Any,
    recipe: Any,
    *,
    scale: Any = None,
    optimizer: Callable[[list[nn.Parameter], Any], torch.optim.Optimizer] = adamw,
    seed: int | None = None,
    on_step: Callable[[int, nn.Module], None] | None = None,
) -> tuple[nn.Module, Trace]:
    """Train a copy of `network` by `recipe` in a precision.

    Parameters
    ----------
    precision : Precision, or callable of (step, steps, trace)
    network : nn.Module
        Left as it is.
    data : datasets.Data
        Its ``train`` split is learned.
    recipe : datasets.Recipe
        Or anything with its fields; a method ``loss(network, x, y)`` takes the place of cross-entropy.
    scale : optional
        Its ``factor`` multiplies the loss; gradients are divided by it. Where one of them is then not finite the update
        is skipped, and ``update(overflow)`` hears of it each time.
    optimizer : callable of (parameters, recipe)
    seed : int, optional
        Instead of the recipe's own.
    on_step : callable of (step, network), optional
        Called after each update, skipped ones too; the network holds the weights that are kept.

    Returns
    -------
    network, trace
        The network in evaluation mode with weights rounded as the products last saw them; of each update the step,
        epoch and loss, and with a scale its ``scale`` and whether it was ``skipped``.
    """
    network = copy.deepcopy(network)
    at = precision if callable(precision) else lambda step, steps, trace: precision
    loss = getattr(recipe, "loss", _cross_entropy)
    seed = recipe.seed if seed is None else seed
    x, y = torch.tensor(data.train.x), torch.tensor(data.train.y)
    steps = recipe.epochs * math.ceil(len(y) / recipe.batch)
    learned = {name: p for name, p in network.named_parameters() if p.requires_grad}
    update = optimizer(list(learned.values()), recipe)
    trace: Trace = []
    network.train()
    with _one_thread(), torch.random.fork_rng(devices=[]), _Arithmetic(network, seed) as arithmetic:
        torch.manual_seed(seed)
        if steps:
            _store(arithmetic.now(at(0, steps, trace), -1).stored, learned)
        for epoch in range(recipe.epochs):
            for items in torch.randperm(len(y)).split(recipe.batch):
                step = len(trace)
                formats = arithmetic.now(at(step, steps, trace), step)
                for group in update.param_groups:
                    group["lr"] = recipe.learning_rate * rate_share(recipe.schedule, step, steps)
                update.zero_grad()
                value = loss(arithmetic, x[items], y[items])
                entry = {"step": step, "epoch": epoch, "loss": value.item()}
                overflow = False
                if scale is None:
                    value.backward()
                else:
                    entry |= {"scale": scale.factor, "skipped": False}
                    (value * scale.factor).backward()
                    for p in learned.values():
                        if p.grad is not None:
                            p.grad.mul_(1 / scale.factor)
                            overflow |= not bool(p.grad.isfinite().all())
                    entry["skipped"] = overflow
                    scale.update(overflow)
                if not overflow:
                    update.step()
                    _store(formats.stored, learned)
                trace.append(entry)
                if on_step is not None:
                    on_step(step, network)
        if trace:
            _store(arithmetic.now(at(steps - 1, steps, trace), steps).weights, learned)
    network.eval()
    return network, trace


def _cross_entropy(network: Any, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(network(x), y)


def _store(format: Any, parameters: dict[str, nn.Parameter]) -> None:
    if format is not None:
        for place, p in enumerate(parameters.values()):
            p.data.copy_(_round(_drawn(format, place), p))


class _Arithmetic:
    """A network whose passes round; in place of it in a loss, it is called as the network is."""

    def __init__(self, network: nn.Module, seed: int) -> None:
        self.network, self.seed, self.formats, self.count = network, seed, Precision(), 0
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> _Arithmetic:
        for module in self.network.modules():
            if not isinstance(module, EXACT) and not list(module.children()):
                self.handles.append(module.register_forward_hook(self._output))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def now(self, precision: Precision, step: int) -> Precision:
        """The formats of this update; those that round at random draw other bits at each."""
        self.count = 0
        kinds = ("weights", "activations", "gradients", "stored")
        drawn = {kind: _drawn(getattr(precision, kind), self.seed, step, kind) for kind in kinds}
        self.formats = Precision(**drawn)
        return self.formats

    def __call__(self, x: Tensor) -> Any:
        formats = self.formats
        weights = {
            name: rounded(p, _drawn(formats.weights, i), _drawn(formats.gradients, "weights", i))
            for i, (name, p) in enumerate(self.network.named_parameters())
        }
        x = rounded(x, _drawn(formats.activations, "input"))
        return torch.func.functional_call(self.network, weights, (x,))

    def _output(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(self._output(module, inputs, part) for part in output)
        if not (isinstance(output, Tensor) and output.is_floating_point()):
            return output
        self.count += 1
        return rounded(output, _drawn(self.formats.activations, self.count), _drawn(self.formats.gradients, self.count))


def _drawn(format: Any, *place: Any) -> Any:
    """A format that rounds at random with other random bits at each place; any other as it is."""
    if not hasattr(format, "seed") or getattr(format, "rounding", "stochastic") != "stochastic":
        return format
    return replace(format, seed=zlib.crc32(repr((format.seed, *place)).encode()))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
