r"""What networks that learn with few bits share: rounding that gradients pass, and its places in a network.

A weight's quantizer is a constraint (`kernels.model.transform.constrain`), an input's a module of its layer's own,
``layer.input_quantizer``, through which whatever the layer is given goes first. Both round in the forward pass, and
let the gradient through in the backward pass as if nothing had been rounded (*straight through*),

.. math:: \frac{\partial L}{\partial x} := \frac{\partial L}{\partial \hat x}

except where `x` lies beyond the range that codes reach, for there a small step changes nothing.

A constraint says what it keeps: integers of `bits` bits and a scale, `integers(w)`, whose product is the weight that
the network sees to the last bit, and `stored_bits(w)`. `pack` and `unpack` write such codes down.

Source: Y. Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation",
2013; B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018, section 3.

Examples
--------
>>> x = torch.tensor([0.2, 0.7], requires_grad=True)
>>> y = passed_through(x.round(), x)
>>> y.detach(), torch.autograd.grad((3 * y).sum(), x)[0]
(tensor([0., 1.]), tensor([3., 3.]))
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kernels.model.transform import CONVOLUTIONS, constrain

__all__ = [
    "AffineInputs",
    "AffineWeights",
    "CodedWeights",
    "InputQuantizer",
    "RoundedAfterwards",
    "affine_grid",
    "calibrate",
    "checked_bits",
    "levels_of",
    "pack",
    "passed_through",
    "product_layers",
    "quantize_inputs",
    "quantize_network",
    "refuse_infinite",
    "symmetric_codes",
    "unpack",
]

Trace = list[dict[str, Any]]
CALIBRATION = 256
"""Training items from which ranges are taken, where nothing is learned any more."""


def passed_through(value: Tensor, x: Tensor) -> Tensor:
    """`value` forward, the gradient to `x` as it comes backward.

    Examples
    --------
    >>> float(passed_through(torch.tensor(2.0), torch.tensor(0.3)))
    2.0
    """
    return value.detach() + (x - x.detach())  # what is added is zero, and carries the gradient


def refuse_infinite(w: Tensor) -> None:
    """Weights that are NaN or infinite have no code.

    Raises
    ------
    ValueError
    """
    if not w.isfinite().all():
        raise ValueError("w: expected finite weights, got NaN or infinity: the training has diverged")


def checked_bits(value: Any, name: str, low: int = 1, high: int = 8) -> None:
    """Refuse a number of bits that is no integer from `low` to `high`.

    Raises
    ------
    ValueError
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}: expected an integer from {low} to {high}, got {value!r}")


# --- codes ----------------------------------------------------------------------------------------------------------


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of so many bits one after the other, lowest bit first, the last byte filled with zeros.

    Parameters
    ----------
    codes : ndarray of integers from 0 to 2^bits - 1
    bits : int

    Returns
    -------
    ndarray of uint8

    Raises
    ------
    ValueError
        If a code needs more bits.

    Examples
    --------
    >>> pack(np.array([3, 0, 1]), 2)
    array([19], dtype=uint8)
    """
    flat = np.asarray(codes).ravel()
    if flat.size and (flat.min() < 0 or flat.max() >= 2**bits):
        raise ValueError(f"codes: expected integers from 0 to {2**bits - 1}, got {flat.min()} to {flat.max()}")
    return np.packbits((flat[:, None] >> np.arange(bits)) & 1, bitorder="little")


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` codes that `pack` wrote.

    Examples
    --------
    >>> unpack(pack(np.array([3, 0, 1]), 2), 2, 3)
    array([3, 0, 1])
    """
    planes = np.unpackbits(packed, count=bits * count, bitorder="little").reshape(count, bits)
    return planes.astype(np.int64) @ (1 << np.arange(bits))


def symmetric_codes(w: Tensor, bits: int) -> Tensor:
    """Odd integers from 1 - 2^bits to 2^bits - 1, nearest to `w`, from -1 to 1, times the largest; ties to even.

    These are the levels 2 k / (2^bits - 1) - 1: as many on each side of zero, and no zero.

    Examples
    --------
    >>> symmetric_codes(torch.tensor([-1.0, -0.2, 0.3, 1.0]), 2)
    tensor([-3., -1.,  1.,  3.])
    """
    top = 2**bits - 1
    return 2 * (top * (w / 2 + 0.5)).round() - top


class CodedWeights(nn.Module):
    """A constraint that keeps codes: `integers(w)` times a scale forward, straight through backward.

    Attributes
    ----------
    bits : int
        Of a code.
    """

    bits: int

    def integers(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees of `w`: integers in the type of `w`, and a scale that they broadcast with."""
        raise NotImplementedError

    def forward(self, w: Tensor) -> Tensor:
        refuse_infinite(w.detach())
        integers, scale = self.integers(w.detach())
        return passed_through(integers * scale, w)

    def stored_bits(self, w: Tensor) -> int:
        """A code each, and the scales in FP32."""
        return self.bits * w.numel() + 32 * self.integers(w.detach())[1].numel()


def levels_of(constraint: CodedWeights, w: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of a weight, the integers that they stand for, and the scale; integer times scale is the weight.

    Raises
    ------
    ValueError
        If there are more integers than codes.

    Examples
    --------
    >>> codes, integers, scale = levels_of(AffineWeights(8), torch.tensor([[1.0, -1.0, 0.5]]))
    >>> integers[codes].tolist(), len(codes)
    ([127, -127, 64], 3)
    """
    integers, scale = constraint.integers(w.detach())
    values, codes = np.unique(integers.numpy().astype(np.int64), return_inverse=True)
    if len(values) > 2**constraint.bits:
        raise ValueError(f"w: expected at most {2**constraint.bits} integers, got {len(values)}")
    return codes.ravel(), values, scale.numpy()


# --- ranges from the least and the largest --------------------------------------------------------------------------


def affine_grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    r"""Scale and zero point of the range from `low` to `high`, widened to hold zero, which gets a code of its own.

    .. math:: r = S (q - Z), \qquad S = \frac{\max(b, 0) - \min(a, 0)}{2^k - 1}, \qquad Z = \mathrm{round}(-a / S)

    Returns
    -------
    scale, zero : Tensor
        FP32, and integers from 0 to 2^bits - 1 in the same type; of a range that is only zero, 1 and 0.

    Source: Jacob et al. 2018, sections 2.1 and 3.

    Examples
    --------
    >>> scale, zero = affine_grid(torch.tensor(-1.0), torch.tensor(2.0), 2)
    >>> float(scale), float(zero)
    (1.0, 1.0)
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale > 0, scale, 1.0)
    return scale, (-low / scale).round()


def _affine(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Rounded to the grid; the gradient passes inside of it, and stops where codes end."""
    still = x.detach()
    codes = (still * (1 / scale)).round() + zero
    inside = (codes >= 0) & (codes <= 2**bits - 1)
    value = (codes.clamp(0, 2**bits - 1) - zero) * scale
    return value + inside * (x - still)


class AffineWeights(CodedWeights):
    """Weights on a grid of their own least and largest value, anew in every pass.

    Parameters
    ----------
    bits : int
    per : {"layer", "filter"}
        What shares a grid: a layer's weights, or those of one output.
    """

    def __init__(self, bits: int, per: str = "layer") -> None:
        super().__init__()
        self.bits, self.per = bits, per

    def grid(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point, of a shape that `w` broadcasts with."""
        along = tuple(range(0 if self.per == "layer" else 1, w.ndim))
        return affine_grid(w.amin(along, keepdim=True), w.amax(along, keepdim=True), self.bits)

    def integers(self, w: Tensor) -> tuple[Tensor, Tensor]:
        scale, zero = self.grid(w)
        return ((w * (1 / scale)).round() + zero).clamp(0, 2**self.bits - 1) - zero, scale

    def forward(self, w: Tensor) -> Tensor:
        refuse_infinite(w.detach())
        return _affine(w, *self.grid(w.detach()), self.bits)

    def stored_bits(self, w: Tensor) -> int:
        """A code each; of a grid, its scale in FP32 and its zero point as a code."""
        grids = 1 if self.per == "layer" else len(w)
        return self.bits * (w.numel() + grids) + 32 * grids


class InputQuantizer(nn.Module):
    """What rounds the input of a layer.

    Attributes
    ----------
    bits : int
        Of a number that it gives.
    """

    bits: int


class AffineInputs(InputQuantizer):
    """Inputs on a grid of the least and largest value that batches had of late, as an exponential average.

    Parameters
    ----------
    bits : int
    momentum : float
        What stays of the average at each batch.

    Notes
    -----
    The range moves in training mode only; the first batch sets it, and before it inputs pass as they are.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, bits: int, momentum: float = 0.99) -> None:
        super().__init__()
        self.bits, self.momentum = bits, momentum
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            share = self.momentum if self.seen else 0.0
            with torch.no_grad():
                self.low.mul_(share).add_((1 - share) * x.min())
                self.high.mul_(share).add_((1 - share) * x.max())
                self.seen.fill_(True)
        return _affine(x, *affine_grid(self.low, self.high, self.bits), self.bits) if self.seen else x


# --- places in a network ----------------------------------------------------------------------------------------------


def product_layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Convolutions and linear layers by their paths, in the order in which the network registers them.

    Raises
    ------
    ValueError
        If there is none, or a recurrent layer, whose state no quantizer of inputs reaches.

    Examples
    --------
    >>> [name for name, _ in product_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(2, 3)))]
    ['0', '2']
    """
    layers: list[tuple[str, nn.Module]] = []
    for name, layer in network.named_modules():
        if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
            raise ValueError(
                f"{name or type(layer).__name__}: expected no recurrent layer, whose state stays in FP32, got"
                f" {type(layer).__name__}"
            )
        if isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
            layers.append((name, layer))
    if not layers:
        raise ValueError(f"network: expected convolutions or linear layers; {type(network).__name__} has none")
    return layers


def quantize_inputs(layer: nn.Module, quantizer: InputQuantizer) -> None:
    """From now on `layer` computes with ``quantizer(x)`` instead of its input x."""
    layer.input_quantizer = quantizer
    layer.register_forward_pre_hook(_quantize)


def _quantize(layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layer.input_quantizer(args[0]), *args[1:])


def quantize_network(
    network: nn.Module,
    weights: Callable[[Any], nn.Module] | None,
    inputs: Callable[[Any], InputQuantizer] | None,
    ends: int | None = None,
) -> nn.Module:
    """A copy of a network that computes with few bits.

    Parameters
    ----------
    network : nn.Module
        Left as it is.
    weights, inputs : callable
        Gives a layer's quantizer; None for FP32.
    ends : int, optional
        Bits of weights and inputs of the first and the last layer, on a grid of least and largest value. If absent,
        they are treated like all others.

    Raises
    ------
    ValueError
        If there is no layer to quantize, between the ends where these are left out.
    """
    network = copy.deepcopy(network)
    layers = product_layers(network)
    if ends is not None and len(layers) < 3:
        raise ValueError(
            f"network: expected layers between the first and the last, which keep {ends} bits; it has"
            f" {' and '.join(name or type(layer).__name__ for name, layer in layers)}"
        )
    for place, (_, layer) in enumerate(layers):
        if ends is not None and place in (0, len(layers) - 1):
            constrain(layer, "weight", AffineWeights(ends))
            quantize_inputs(layer, AffineInputs(ends))
            continue
        if weights is not None:
            constrain(layer, "weight", weights(layer))
        if inputs is not None:
            quantize_inputs(layer, inputs(layer))
    return network


def quantizers(network: nn.Module) -> Iterator[InputQuantizer]:
    """The quantizers of inputs, in order."""
    return (module for module in network.modules() if isinstance(module, InputQuantizer))


def calibrate(network: nn.Module, data: Any) -> None:
    """Let the quantizers of inputs see training items, as they would while they learn; nothing else changes.

    Parameters
    ----------
    network : nn.Module
        In place; left in evaluation mode.
    data : datasets.Data
    """
    network.eval()
    for quantizer in quantizers(network):
        quantizer.train()
    with torch.no_grad():
        network(torch.tensor(data.train.x[:CALIBRATION]))
    network.eval()


@dataclass(frozen=True)
class RoundedAfterwards:
    """The plain recipe, and a technique's few bits when it is over: what training with them is worth.

    Parameters
    ----------
    rule
        Has `constrain`, which gives a copy of a network that computes with few bits.

    Source: the techniques' own rules, for weights that know nothing of them.

    Examples
    --------
    >>> RoundedAfterwards("any rule").rule
    'any rule'
    """

    rule: Any

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` by `recipe`, then let it compute with few bits."""
        network = copy.deepcopy(network)
        trace = recipe.train(network, data, seed=seed)
        return self.finish(network, data), trace

    def finish(self, network: nn.Module, data: Any) -> nn.Module:
        """A copy of a trained network that computes with few bits, its ranges taken from training items."""
        network = self.rule.constrain(network)
        calibrate(network, data)
        return network
