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

`train_in(precision, network, data, recipe, ...)` trains a copy by a recipe, so that without any format it is the plain
recipe bit for bit. It returns the network, its weights as the products saw them last, and the trace, one entry an
update. The precision may be a function of (step, steps) that gives a `Precision`: bits that change while training runs.
A `scaler` scales the loss: an object with `factor` and `update(overflow)`, such as `loss_scaling.DynamicScale`.

A technique is a `LowPrecisionTraining`: it says its `precision`, perhaps its `scaler`, and is trained. One that can be
switched off offers ``without()``, a technique with the same face: the protocol's contestant of that name. `cost_bits()`
gives the bits of an element of each array, from which bytes and energy are counted.

Source: P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kernels.arithmetic.floating_point.bfloat16 import BFloat16
from kernels.arithmetic.floating_point.fp8 import FP8
from kernels.arithmetic.floating_point.fp16 import FP16

__all__ = ["FORMATS", "FormatTraining", "LowPrecisionTraining", "Precision", "precision_of", "rounded", "train_in"]

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


class _Scaled(torch.autograd.Function):
    """Forward nothing, backward S times the gradient: that of S L where the loss is L."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.factor, None


def train_in(
    precision: Precision | Callable[[int, int], Precision],
    network: nn.Module,
    data: Any,
    recipe: Any,
    *,
    scaler: Any = None,
    seed: int | None = None,
    on_step: Callable[[int, nn.Module], None] | None = None,
) -> tuple[nn.Module, Trace]:
    """Train a copy of `network` by `recipe` in a precision.

    Parameters
    ----------
    precision : Precision, or callable of (step, steps)
    network : nn.Module
        Left as it is.
    data : datasets.Data
        Its ``train`` split is learned.
    recipe : datasets.Recipe
        With any loss and optimizer.
    scaler : optional
        Its ``factor`` multiplies the loss; gradients are divided by it. Where one of them is then not finite the update
        is skipped, and ``update(overflow)`` hears of it each time.
    seed : int, optional
        Instead of the recipe's own.
    on_step : callable of (step, network), optional
        Called after each update, skipped ones too; the network holds the weights that are kept.

    Returns
    -------
    network, trace
        The network in evaluation mode with weights rounded as the products last saw them; of each update the step,
        epoch and loss, and with a scaler its ``scale`` and whether it was ``skipped``.
    """
    network = copy.deepcopy(network)
    steps = recipe.steps(data)
    if not steps:
        return network.eval(), []
    at = precision if callable(precision) else lambda step, steps: precision
    learned = [p for p in network.parameters() if p.requires_grad]
    notes: Trace = []

    def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        value = recipe.loss(arithmetic, x, y)
        return value if scaler is None else _Scaled.apply(value, scaler.factor)

    def optimizer(parameters: list[nn.Parameter], **options: Any) -> _Update:
        return _Update(recipe.optimizer(parameters, **options), parameters, arithmetic, scaler, notes)

    with _Arithmetic(network, recipe.seed if seed is None else seed, lambda step: at(step, steps)) as arithmetic:
        _store(arithmetic.begin(0, -1).stored, learned)
        trace = replace(recipe, loss=loss, optimizer=optimizer).train(network, data, seed=seed, on_step=on_step)
        _store(arithmetic.begin(steps - 1, steps).weights, learned)
    return network, [entry | note for entry, note in zip(trace, notes, strict=True)]


class LowPrecisionTraining:
    """What training in low precision is for a technique: its `precision`, its `scaler`, and one way to train."""

    precision: Any
    """A `Precision`, or a method of (step, steps) that gives one."""
    scaler: Any = None
    """Of the loss, new for each training; None leaves the loss as it is."""

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: nn.Module | None = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` by `recipe`; what comes back are the weights as the products saw them last.

        Parameters
        ----------
        network : nn.Module
            Left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : optional
            Not used.
        seed : int, optional
            Instead of the recipe's own.

        Returns
        -------
        network, trace
            The trace is that of `train_in`.
        """
        return train_in(self.precision, network, data, recipe, scaler=self.scaler, seed=seed)


class FormatTraining(LowPrecisionTraining):
    """Training whose passes are in one format, with FP32 master weights unless a technique says otherwise."""

    format: str
    """One of `FORMATS`."""

    def __post_init__(self) -> None:
        precision_of(self.format)

    @property
    def precision(self) -> Precision:
        """Formats of the passes, and of the weights that are kept."""
        return precision_of(self.format)

    def cost_bits(self) -> dict[str, int]:
        """Bits of an element of each array of training."""
        return self.precision.bits()


def _store(format: Any, parameters: list[nn.Parameter]) -> None:
    if format is not None:
        for place, p in enumerate(parameters):
            p.data.copy_(_round(_drawn(format, place), p))


class _Update:
    """An optimizer after rounded passes: gradients are divided by the scale, and weights rounded as they are kept."""

    def __init__(
        self, optimizer: Any, parameters: list[nn.Parameter], arithmetic: _Arithmetic, scaler: Any, notes: Trace
    ) -> None:
        self.optimizer, self.parameters, self.arithmetic = optimizer, parameters, arithmetic
        self.scaler, self.notes = scaler, notes
        self.param_groups, self.zero_grad = optimizer.param_groups, optimizer.zero_grad

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        step = len(self.notes)
        formats = self.arithmetic.begin(step, step)
        value = closure()
        note = {} if self.scaler is None else {"scale": self.scaler.factor, "skipped": self._overflow()}
        self.notes.append(note)
        if not note.get("skipped"):
            self.optimizer.step()
            _store(formats.stored, self.parameters)
        return value

    def _overflow(self) -> bool:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        for gradient in gradients:
            gradient.mul_(1 / self.scaler.factor)
        overflow = not all(bool(gradient.isfinite().all()) for gradient in gradients)
        self.scaler.update(overflow)
        return overflow


class _Arithmetic:
    """A network whose passes round; in place of it in a loss, it is called as the network is."""

    def __init__(self, network: nn.Module, seed: int, at: Callable[[int], Precision]) -> None:
        self.network, self.seed, self.at, self.formats, self.count = network, seed, at, Precision(), 0
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> _Arithmetic:
        for module in self.network.modules():
            if not isinstance(module, EXACT) and not list(module.children()):
                self.handles.append(module.register_forward_hook(self._output))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def begin(self, step: int, place: int) -> Precision:
        """The formats of an update; those that round at random draw other bits at each place."""
        self.count = 0
        kinds = ("weights", "activations", "gradients", "stored")
        precision = self.at(step)
        drawn = {kind: _drawn(getattr(precision, kind), self.seed, place, kind) for kind in kinds}
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
