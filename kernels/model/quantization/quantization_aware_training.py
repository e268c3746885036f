r"""Quantization-aware training: the forward pass rounds as the integer network will, the backward pass does not.

A range [a, b] that holds zero is cut into 2^k - 1 steps, with zero on a code of its own, the zero point:

.. math:: \hat r = S \left( \mathrm{clamp}\left( \mathrm{round}(r / S) + Z,\; 0,\; 2^k - 1 \right) - Z \right), \qquad
   S = \frac{b - a}{2^k - 1}, \qquad Z = \mathrm{round}(-a / S)

Weights have the range that they have in this pass. Inputs have an exponential average of the ranges of the batches so
far, which stays when training ends: then a layer is a product of integers, q_w - Z_w by q_x - Z_x, summed in integers
and scaled once by S_w S_x. Gradients go straight through, and are zero for what lies outside of the range.

    q = (r / S).round() + Z;  r_hat = (q.clamp(0, 2**k - 1) - Z) * S;  dL/dr = dL/dr_hat where 0 <= q <= 2**k - 1

Source: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018, sections 2 and 3.

Examples
--------
>>> import torch
>>> fake_quantize(torch.tensor([-1.0, 0.1, 0.9, 5.0]), torch.tensor(-1.0), torch.tensor(2.0), bits=2)
tensor([-1.,  0.,  1.,  2.])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kernels.model.quantization.quantizers import (
    AffineInputs,
    AffineWeights,
    RoundedAfterwards,
    affine_grid,
    checked_bits,
    quantize_network,
)

__all__ = ["QuantizationAwareTraining", "fake_quantize"]

Trace = list[dict[str, Any]]


def fake_quantize(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """The definition: `x` rounded to the codes of a range, in floating point.

    Parameters
    ----------
    x, low, high : Tensor of floats
        The range broadcasts with `x`.
    bits : int

    Examples
    --------
    >>> import torch
    >>> fake_quantize(torch.tensor([0.4, 0.6]), torch.tensor(0.0), torch.tensor(1.0), bits=1)
    tensor([0., 1.])
    """
    scale, zero = affine_grid(low, high, bits)
    codes = ((x / scale).round() + zero).clamp(0, 2**bits - 1)
    return (codes - zero) * scale


@dataclass(frozen=True)
class QuantizationAwareTraining:
    r"""Train a network whose weights and inputs of layers are rounded to integers of few bits in every pass.

    .. math:: \hat r = S \left( \mathrm{clamp}(\mathrm{round}(r / S) + Z, 0, 2^k - 1) - Z \right), \qquad
       \frac{\partial L}{\partial r} := \frac{\partial L}{\partial \hat r} \; [a \le r \le b]

    Parameters
    ----------
    weight_bits, input_bits : int, 2 to 8
    per : {"layer", "filter"}
        What shares a range: a layer's weights, or those of one output.
    momentum : float
        What stays of an input's average range at each batch.

    Notes
    -----
    All layers compute with so many bits, sums and biases in FP32 here, in 32-bit integers on the machine that this is
    for. Adapted: the paper folds batch norm into the weights before they are rounded. Here it stays behind the product
    as a scale and a shift for each channel: in integers both are part of the multiplication that scales the sums
    anyway. And inputs are rounded from the first batch on, where the paper first waits fifty thousand updates or more.

    Source: Jacob et al. 2018, sections 2.1 and 3.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> method = QuantizationAwareTraining(weight_bits=3, input_bits=4)
    >>> network, trace = method.train(digits.network(), digits.data(), datasets.Recipe(epochs=1))
    >>> len(network[3].weight.unique()), network[3].input_quantizer.bits
    (8, 4)
    """

    weight_bits: int = 8
    input_bits: int = 8
    per: str = "layer"
    momentum: float = 0.99

    def __post_init__(self) -> None:
        checked_bits(self.weight_bits, "weight_bits", 2)
        checked_bits(self.input_bits, "input_bits", 2)
        if self.per not in ("layer", "filter"):
            raise ValueError(f"per: expected layer or filter, got {self.per!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected a number of at least 0 and below 1, got {self.momentum!r}")

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` by `recipe`, rounded in every pass.

        Parameters
        ----------
        network : nn.Module
            Left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : ignored
        seed : int, optional
            Instead of the recipe's own.

        Returns
        -------
        network, trace
            The network still holds the FP32 weights below; `kernels.model.transform.bake` leaves the rounded ones.
        """
        network = self.constrain(network)
        return network, recipe.train(network, data, seed=seed)

    def constrain(self, network: nn.Module) -> nn.Module:
        """A copy of `network` that rounds from now on.

        Raises
        ------
        ValueError
            If it has a recurrent layer, or no layer to quantize.
        """
        return quantize_network(
            network,
            lambda layer: AffineWeights(self.weight_bits, self.per),
            lambda layer: AffineInputs(self.input_bits, self.momentum),
        )

    def afterwards(self) -> RoundedAfterwards:
        """The same ranges and codes, taken once of a network that was trained without them."""
        return RoundedAfterwards(self)
