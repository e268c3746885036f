r"""Dynamic sparse training: a network is sparse from the first update to the last, and its connections move meanwhile.

It begins with a random mask. Every so many updates, each layer drops the share f of its connections that are smallest
in magnitude, and grows as many elsewhere, so that the density stays. The share falls as a cosine,

.. math:: f(t) = \frac{\alpha}{2} \left( 1 + \cos \frac{\pi t}{T} \right),

until T, from where on the connections stay. What grows is drawn at random (SET), or is where the gradient of the loss
by the absent weights is largest in magnitude on the batch at hand (RigL),

.. math:: I_\mathrm{drop} = \mathrm{argTopK}(-|w|, k), \qquad I_\mathrm{grow} = \mathrm{argTopK}(|\nabla_w L|, k),
          \qquad k = f(t) \, \|m\|_0 .

A new connection begins at zero, so that it changes nothing yet, and without a memory of moments. Only in those updates
is a gradient of all weights needed; they move connections in place of weights.

Layers get their shares as in a random graph of Erdős and Rényi with kernels (ERK): the density of a layer is in
proportion to the sum of its dimensions over their product, so that small layers are denser.

Source: D. Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
network science", Nature Communications 2018, algorithm 1; U. Evci et al., "Rigging the Lottery", ICML 2020, section 3.

Examples
--------
>>> mask = torch.tensor([True, True, False, False])
>>> rewired(torch.tensor([0.1, -3.0, 0.0, 0.0]), mask, torch.tensor([0.0, 0.0, 0.5, -2.0]), 1)
tensor([False,  True, False,  True])
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.pruning.mask import Mask, largest
from kernels.model.pruning.masked_training import GradualMagnitude, Trace, check_density
from kernels.model.transform import constrain, layer_weights

__all__ = ["DynamicSparseTraining", "erdos_renyi", "rewired"]

GROWTH = ("gradient", "random")


def rewired(w: Tensor, mask: Tensor, promise: Tensor, moved: int) -> Tensor:
    """The mask with its smallest connections dropped, and as many grown: the plain statement.

    Parameters
    ----------
    w : Tensor
    mask : Tensor of bool
        Of the connections that there are.
    promise : Tensor
        Of a connection that there is not, the gradient by it; the largest magnitudes grow.
    moved : int
        How many.

    Returns
    -------
    Tensor of bool
        As many are true as before. What was just dropped may grow again.

    Examples
    --------
    >>> rewired(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([True, True, False]), torch.tensor([0.0, 0.0, 9.0]), 1)
    tensor([False,  True,  True])
    """
    kept = largest(torch.where(mask, w.abs(), -1.0), int(mask.sum()) - moved)
    return kept | largest(torch.where(kept, -1.0, promise.abs()), moved)


def erdos_renyi(shapes: Sequence[tuple[int, ...]], density: float) -> list[int]:
    """Connections of each layer, by ERK; none has more than it has places, and together they have the density.

    Parameters
    ----------
    shapes : sequence of tuple of int
        Of the weight tensors.
    density : float
        Of all together.

    Examples
    --------
    >>> erdos_renyi([(64, 64), (10, 64)], density=0.1)
    [300, 174]
    """
    sizes, raw = [prod(shape) for shape in shapes], [sum(shape) for shape in shapes]
    total, full = round(density * sum(sizes)), [False] * len(sizes)
    while True:
        left = total - sum(size for size, is_full in zip(sizes, full, strict=True) if is_full)
        rest = sum(r for r, is_full in zip(raw, full, strict=True) if not is_full)
        counts = [size if is_full else left * r / rest for size, r, is_full in zip(sizes, raw, full, strict=True)]
        over = [count > size for count, size in zip(counts, sizes, strict=True)]
        if not any(over):
            break
        full = [a or b for a, b in zip(full, over, strict=True)]
    whole = [round(count) for count in counts]
    roomiest = max(range(len(sizes)), key=lambda i: sizes[i] - whole[i])
    whole[roomiest] += total - sum(whole)  # what rounding has lost or won
    return whole


class _Wires(Mask):
    """A mask that can look at the gradient by all weights, present or not."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask)
        self.looking = False
        self.gradient: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        effective = super().forward(weight)
        if self.looking and effective.requires_grad:
            effective.register_hook(self._look)
        return effective

    def _look(self, gradient: Tensor) -> None:
        self.gradient = gradient if self.gradient is None else self.gradient + gradient


class _Rewiring:
    """An optimizer that moves connections in place of weights when it is time."""

    def __init__(
        self, inner: Any, wires: list[tuple[nn.Parameter, _Wires]], share: Callable[[int], float], draw: Any
    ) -> None:
        self.inner, self.wires, self.share, self.draw = inner, wires, share, draw
        self.param_groups, self.done = inner.param_groups, 0

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        share, self.done = self.share(self.done), self.done + 1
        if not share:
            return self.inner.step(closure)
        for _, wire in self.wires:
            wire.looking, wire.gradient = True, None
        value = closure()
        with torch.no_grad():
            for weight, wire in self.wires:
                wire.looking = False
                promise = self.draw(weight) if self.draw else wire.gradient
                if promise is None:  # a layer that did not take part
                    continue
                after = rewired(weight, wire.mask, promise, round(share * int(wire.mask.sum())))
                new = after & ~wire.mask
                weight[new] = 0
                for moment in self.inner.state.get(weight, {}).values():
                    if isinstance(moment, Tensor) and moment.shape == weight.shape:
                        moment[new] = 0
                wire.mask.copy_(after)
        return value


@dataclass(frozen=True)
class DynamicSparseTraining:
    r"""Train with a mask of fixed density that drops small connections and grows promising ones.

    .. math:: k = \frac{\alpha}{2} \left( 1 + \cos \frac{\pi t}{T} \right) \|m\|_0, \qquad
       I_\mathrm{drop} = \mathrm{argTopK}(-|w|, k), \qquad I_\mathrm{grow} = \mathrm{argTopK}(|\nabla_w L|, k)

    Parameters
    ----------
    density : float
        Share of the weights that there are at any time, 0 < density <= 1.
    growth : {"gradient", "random"}
        Where connections grow: RigL, or SET.
    share : float
        α, 0 <= α < 1, of a layer's connections moved at first; at 0 the mask stays as it was drawn.
    every : int
        Updates from one move to the next.
    until : float
        T, as a share of all updates.

    Notes
    -----
    Adapted: SET moves a constant share once an epoch, and gives what grows a random value; here both follow one
    schedule and begin at zero, so that they differ in where they grow alone. The products are computed by dense
    kernels, masked: what sparse training saves is not shown as time.

    Source
    ------
    Mocanu et al. 2018, algorithm 1; Evci et al. 2020, section 3, algorithm 1.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> technique = DynamicSparseTraining(0.25)
    >>> network, _ = technique.train(digits.network(), digits.data(), datasets.Recipe(epochs=1))
    >>> sum(int((network[i].weight != 0).sum()) for i in (1, 3, 5)) <= round(0.25 * (64 * 64 + 64 * 32 + 32 * 10))
    True
    """

    density: float = 0.1
    growth: str = "gradient"
    share: float = 0.3
    every: int = 10
    until: float = 0.75

    def __post_init__(self) -> None:
        check_density(self.density)
        if self.growth not in GROWTH:
            raise ValueError(f"growth: expected one of {', '.join(GROWTH)}, got {self.growth!r}")
        if not 0 <= self.share < 1:
            raise ValueError(f"share: expected 0 <= share < 1, got {self.share}")
        if self.every < 1 or not 0 < self.until <= 1:
            raise ValueError(f"every, until: expected >= 1 and 0 < until <= 1, got {self.every} and {self.until}")

    def moves(self, steps: int) -> Callable[[int], float]:
        """The share of connections that each of so many updates moves.

        Examples
        --------
        >>> shares = DynamicSparseTraining(share=0.4, every=2, until=0.5).moves(steps=16)
        >>> [round(shares(step), 2) for step in range(10)]
        [0.0, 0.0, 0.34, 0.0, 0.2, 0.0, 0.06, 0.0, 0.0, 0.0]
        """
        last = self.until * steps

        def share(step: int) -> float:
            if step == 0 or step % self.every or step >= last:
                return 0.0
            return self.share / 2 * (1 + math.cos(math.pi * step / last))

        return share

    def wire(self, network: nn.Module, seed: int) -> nn.Module:
        """A copy of `network` under a random mask, layers sharing the density by ERK.

        Raises
        ------
        ValueError
            If there is nothing to mask.
        """
        network, random = copy.deepcopy(network), torch.Generator().manual_seed(seed)
        places = list(layer_weights(network))
        if not places:
            raise ValueError(
                f"network: expected convolution, linear or recurrent layers; {type(network).__name__} has none"
            )
        counts = erdos_renyi([tuple(getattr(*place).shape) for place in places], self.density)
        for (layer, name), count in zip(places, counts, strict=True):
            mask = largest(torch.rand(getattr(layer, name).shape, generator=random), count)
            constrain(layer, name, _Wires(mask))
        return network

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network`, sparse all along.

        Parameters
        ----------
        network : nn.Module
            Untrained; left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : ignored
        seed : int, optional
            Instead of the recipe's own.

        Returns
        -------
        network, trace
            Under its last masks; `kernels.model.transform.bake` leaves plain weights.
        """
        seed = recipe.seed if seed is None else seed
        network = self.wire(network, seed)
        if not self.share:
            return network, recipe.train(network, data, seed=seed)
        wires = []
        for layer, name in layer_weights(network):
            chains: Any = layer.parametrizations
            wires.append((chains[name].original, chains[name][0]))
        random = torch.Generator().manual_seed(seed + 1000)

        def draw(weight: Tensor) -> Tensor:
            return torch.rand(weight.shape, generator=random)

        def optimizer(parameters: Any, **options: Any) -> _Rewiring:
            inner = recipe.optimizer(parameters, **options)
            return _Rewiring(inner, wires, self.moves(recipe.steps(data)), draw if self.growth == "random" else None)

        return network, replace(recipe, optimizer=optimizer).train(network, data, seed=seed)

    def fixed(self) -> DynamicSparseTraining:
        """The same random mask, never moved."""
        return replace(self, share=0.0)

    def magnitude(self) -> GradualMagnitude:
        """The smallest weights cut, a few at a time, while all learn."""
        return GradualMagnitude(self.density)
