r"""Incremental quantization: round a part of the weights for good, train the rest to make up for it, and repeat.

Levels of a layer are zero and powers of two, as many as its bits allow:

.. math:: P = \{0, \pm 2^{n_2}, \dots, \pm 2^{n_1}\}, \qquad
   n_1 = \left\lfloor \log_2 \tfrac{4}{3} \max |W| \right\rfloor, \qquad n_2 = n_1 + 1 - 2^{k - 2}

and a weight goes to the nearest, a product with it to a shift. The largest weights are rounded first: half of them,
then half of what is left, and so on. Between the steps the free weights learn on, the fixed ones held,

    w <- w - rate * dL/dw   where w is still free

and after the last step none is left to repair anything: the weights rounded then are the smallest, with the smallest
errors.

Source: A. Zhou et al., "Incremental Network Quantization: Towards Lossless CNNs with Low-Precision Weights", ICLR 2017,
section 2, algorithm 1.

Examples
--------
>>> w = torch.tensor([1.0, -0.4, 0.1, 0.02])
>>> top = highest_exponent(w)
>>> top, nearest_power(w, top, bits=4)
(0, tensor([ 1.0000, -0.5000,  0.1250,  0.0000]))
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.quantization.quantizers import CodedWeights, RoundedAfterwards, checked_bits, refuse_infinite
from kernels.model.transform import constrain, layer_weights

__all__ = ["IncrementalQuantization", "highest_exponent", "nearest_power"]

Trace = list[dict[str, Any]]
APART, RANDOM = 1000, 500
"""Between the seeds of two phases, and from a seed to that of a random partition."""


def highest_exponent(w: Tensor) -> int:
    """n_1: the power of two that is nearest to the largest magnitude; 0 where all weights are zero.

    Examples
    --------
    >>> highest_exponent(torch.tensor([0.7])), highest_exponent(torch.tensor([0.76]))
    (-1, 0)
    """
    largest = float(w.detach().abs().max())
    return math.floor(math.log2(4 * largest / 3)) if largest > 0 else 0


def nearest_power(w: Tensor, top: int, bits: int) -> Tensor:
    """Each weight's nearest level; half way between two it is the larger one.

    Parameters
    ----------
    w : Tensor
    top : int
        n_1. Weights beyond 2^n_1 become that.
    bits : int
        Of a code: a zero, and 2^(bits - 2) powers of either sign.
    """
    low = top + 1 - 2 ** (bits - 2)
    size = w.abs()
    # 2^e is nearest from 3/4 of it up to 3/2 of it
    exponent = torch.floor(torch.log2(size.clamp(min=2.0 ** (low - 1)) * (4 / 3))).clamp(low, top)
    return torch.where(size >= 2.0 ** (low - 1), torch.sign(w) * torch.exp2(exponent), 0.0)


class PowerWeights(CodedWeights):
    """Weights some of which are fixed at powers of two.

    Parameters
    ----------
    bits : int
    w : Tensor
        The weights whose largest magnitude decides the levels.
    """

    fixed: Tensor
    values: Tensor

    def __init__(self, bits: int, w: Tensor) -> None:
        super().__init__()
        self.bits, self.top = bits, highest_exponent(w.detach())
        self.register_buffer("fixed", torch.zeros_like(w, dtype=torch.bool))
        self.register_buffer("values", torch.zeros_like(w))

    def fix(self, w: Tensor, share: float, generator: torch.Generator | None = None) -> None:
        """Round weights until `share` of all are fixed: the largest free ones, or with a generator any."""
        w = w.detach()
        order = w.abs() if generator is None else torch.rand(w.shape, generator=generator)
        wanted = round(share * w.numel()) - int(self.fixed.sum())
        chosen = torch.where(self.fixed, -1.0, order).flatten().argsort(descending=True, stable=True)[: max(0, wanted)]
        new = torch.zeros(w.numel(), dtype=torch.bool)
        new[chosen] = True
        new = new.view(w.shape)
        self.values = torch.where(new, nearest_power(w, self.top, self.bits), self.values)
        self.fixed = self.fixed | new

    def integers(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Powers of two over the smallest, once all are fixed."""
        low = 2.0 ** (self.top + 1 - 2 ** (self.bits - 2))
        return self.values / low, torch.tensor(low)

    def forward(self, w: Tensor) -> Tensor:
        refuse_infinite(w.detach())
        return torch.where(self.fixed, self.values, w)

    def stored_bits(self, w: Tensor) -> int:
        """A code each where it is fixed, FP32 where it is not, and of the layer an exponent of one byte."""
        fixed = int(self.fixed.sum())
        marks = 0 if fixed in (0, w.numel()) else w.numel()
        return self.bits * fixed + 32 * (w.numel() - fixed) + marks + 8


@dataclass(frozen=True)
class IncrementalQuantization:
    r"""Train a network, and make its weights powers of two part by part while the rest learns on.

    .. math:: \hat W_i \in \{0, \pm 2^{n_2}, \dots, \pm 2^{n_1}\}, \qquad
       W_i \leftarrow W_i - \eta \frac{\partial L}{\partial W_i} \; [\,i \text{ is still free}\,]

    Parameters
    ----------
    bits : int, 3 to 6
        Of a code.
    steps : int
        How often a part is rounded: each time half of what is free, at last all of it.
    partition : {"magnitude", "random"}
        Which weights are rounded first: the largest, or any.

    Notes
    -----
    The budget is the recipe's: half of its epochs train the network in FP32, the others are spread over the steps, with
    the learning rate falling from its full height in each. Adapted: the paper begins with a published network and
    trains several epochs after each step. Four steps leave 50, 25, 12.5 and 0 % free. All layers are rounded; biases
    and norms stay FP32.

    Source: Zhou et al. 2017, section 2, algorithm 1.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> method = IncrementalQuantization(bits=3)
    >>> network, trace = method.train(digits.network(), digits.data(), datasets.Recipe(epochs=6))
    >>> network[3].weight.unique().detach()
    tensor([-0.2500, -0.1250,  0.0000,  0.1250,  0.2500])
    """

    bits: int = 5
    steps: int = 4
    partition: str = "magnitude"

    def __post_init__(self) -> None:
        checked_bits(self.bits, "bits", 3, 6)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps: expected an integer of at least 1, got {self.steps!r}")
        if self.partition not in ("magnitude", "random"):
            raise ValueError(f"partition: expected magnitude or random, got {self.partition!r}")

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` by parts of `recipe`, its weights fixed step by step.

        Parameters
        ----------
        network : nn.Module
            Left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : ignored
        seed : int, optional
            Instead of the recipe's own; of a random partition, too.

        Returns
        -------
        network, trace
            All weights are fixed; `kernels.model.transform.bake` makes them plain. Of the trace, `fixed` is the share
            of weights that an update no longer reached.
        """
        seed = recipe.seed if seed is None else seed
        generator = torch.Generator().manual_seed(seed + RANDOM) if self.partition == "random" else None
        phases = self.phases(recipe.epochs)
        network = copy.deepcopy(network)
        trace = self._phase(network, data, recipe, phases[0], seed, 0.0, [])
        network = self._constrained(network)
        for step in range(self.steps):
            share = 1.0 if step == self.steps - 1 else 1 - 0.5 ** (step + 1)
            self._fix(network, share, generator)
            if share < 1 and phases[step + 1]:
                part = replace(recipe, schedule="cosine")
                self._phase(network, data, part, phases[step + 1], seed + APART * (step + 1), share, trace)
        network.eval()
        return network, trace

    def phases(self, epochs: int) -> list[int]:
        """Epochs of each phase of training: half of all, then equal parts of the rest, the first ones longer by one.

        Where there are fewer epochs than phases, the last steps follow at once upon those before.

        Examples
        --------
        >>> IncrementalQuantization().phases(20)
        [10, 4, 3, 3]
        """
        if self.steps == 1:
            return [epochs]
        rest, parts = epochs // 2, self.steps - 1
        return [epochs - rest, *(rest // parts + (place < rest % parts) for place in range(parts))]

    def _phase(
        self, network: nn.Module, data: Any, recipe: Any, epochs: int, seed: int, share: float, trace: Trace
    ) -> Trace:
        first, before = len(trace), trace[-1]["epoch"] + 1 if trace else 0
        for update in replace(recipe, epochs=epochs).train(network, data, seed=seed):
            place = {"step": first + update["step"], "epoch": before + update["epoch"], "fixed": share}
            trace.append({**update, **place})
        return trace

    def constrain(self, network: nn.Module) -> nn.Module:
        """A copy of `network` with every weight at its nearest level.

        Raises
        ------
        ValueError
            If it has no layer to quantize.
        """
        network = self._constrained(copy.deepcopy(network))
        self._fix(network, 1.0)
        return network

    def _constrained(self, network: nn.Module) -> nn.Module:
        places = list(layer_weights(network))
        if not places:
            raise ValueError(
                f"network: expected convolution, linear or recurrent layers; {type(network).__name__} has none"
            )
        for layer, name in places:
            constrain(layer, name, PowerWeights(self.bits, getattr(layer, name)))
        return network

    def _fix(self, network: nn.Module, share: float, generator: torch.Generator | None = None) -> None:
        for layer, name in layer_weights(network):
            constraints: Any = layer.parametrizations
            constraint = constraints[name][0]
            constraint.fix(constraints[name].original, share, generator)

    def randomly(self) -> IncrementalQuantization:
        """The same with weights rounded in any order."""
        return replace(self, partition="random")

    def afterwards(self) -> RoundedAfterwards:
        """All weights rounded at the end, none trained to make up for it."""
        return RoundedAfterwards(self)
