"""Quantized distillation: a student whose weights take few values learns from a teacher in full precision."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.distillation.teaching import SoftLabels, answering
from kernels.model.transform import constrain, layer_weights

__all__ = ["QuantizedDistillation", "UniformBuckets", "quantized"]

BUCKET = 256
"""Weights that share a scale and an offset, in FP32."""


def quantized(weight: Tensor, bits: int) -> Tensor:
    r"""Weights on 2^bits evenly spaced values between the smallest and the largest of their bucket.

    .. math:: Q(v) = \alpha \, \hat Q\!\left(\frac{v - \beta}{\alpha}\right) + \beta, \qquad
        \hat Q(u) = \frac{\lfloor s u + \tfrac12 \rfloor}{s}, \quad s = 2^b - 1

    with β the smallest and α the range of each bucket of consecutive weights.

    Parameters
    ----------
    weight : Tensor
    bits : int

    Returns
    -------
    Tensor
        Of the same shape.

    Examples
    --------
    >>> quantized(torch.tensor([0.0, 0.2, 0.9, 3.0]), bits=2)
    tensor([0., 0., 1., 3.])
    """
    buckets = _buckets(weight)
    low, high = buckets.amin(1, keepdim=True), buckets.amax(1, keepdim=True)
    scale = (high - low).clamp_min(torch.finfo(weight.dtype).tiny)
    steps = 2**bits - 1
    found = scale * torch.floor((buckets - low) / scale * steps + 0.5) / steps + low
    return found.flatten()[: weight.numel()].reshape(weight.shape)


def _buckets(weight: Tensor) -> Tensor:
    """Rows of consecutive weights; the last is filled up with its own last value, which changes no range."""
    flat = weight.flatten()
    more = -len(flat) % min(BUCKET, max(len(flat), 1))
    return torch.cat([flat, flat[-1:].expand(more)]).reshape(-1, min(BUCKET, max(len(flat), 1)))


class UniformBuckets(nn.Module):
    """A constraint: the forward pass sees quantized weights, the backward pass goes straight through.

    Parameters
    ----------
    bits : int
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (quantized(weight, self.bits) - weight).detach()

    def stored_bits(self, weight: Tensor) -> int:
        """Codes, and a scale and an offset a bucket."""
        return self.bits * weight.numel() + 64 * len(_buckets(weight))


@dataclass(frozen=True)
class QuantizedDistillation:
    """Train a low-bit student on a teacher's soft labels: gradients are those of the quantized weights.

    At each step the weights are quantized, the distillation loss and its gradient are computed with what came of it,
    and the gradient is applied to weights kept in full precision.

    Parameters
    ----------
    bits : int
        Of each weight of convolution, linear and recurrent layers, 1 to 8; biases and norms stay in FP32.

    Source
    ------
    Polino, Pascanu and Alistarh, "Model compression via distillation and quantization", ICLR 2018, its first method;
    Mishra and Marr, "Apprentice", ICLR 2018, its first scheme.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> recipe = datasets.Recipe(epochs=1)
    >>> student, _ = QuantizedDistillation(bits=2).train(digits.student(), digits.data(), recipe, digits.trained())
    >>> len(student[1].weight[0].unique()) <= 4 * 2  # a row may lie in two buckets
    True
    """

    bits: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits: expected 1 to 8, got {self.bits}")

    def without(self) -> _WithoutTeacher:
        """The same student of as few bits, trained on the labels alone."""
        return _WithoutTeacher(self.bits)

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: nn.Module | None = None, *, seed: int | None = None
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train a copy of `network` by `recipe` with the teacher's help.

        Parameters
        ----------
        network : nn.Module
            The student; left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : nn.Module
            Trained, with the same classes, in full precision.
        seed : int, optional
            Instead of the recipe's own.

        Returns
        -------
        network, trace
            The network under its constraints; `kernels.model.transform.bake` makes plain weights of them.

        Raises
        ------
        ValueError
            Without a teacher.
        """
        guide = answering(teacher)
        student = _constrained(network, self.bits)
        return student, replace(recipe, loss=SoftLabels(guide)).train(student, data, seed=seed)


@dataclass(frozen=True)
class _WithoutTeacher:
    bits: int

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: nn.Module | None = None, *, seed: int | None = None
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        student = _constrained(network, self.bits)
        return student, recipe.train(student, data, seed=seed)


def _constrained(network: nn.Module, bits: int) -> nn.Module:
    network = copy.deepcopy(network)
    for layer, name in list(layer_weights(network)):
        constrain(layer, name, UniformBuckets(bits))
    return network
