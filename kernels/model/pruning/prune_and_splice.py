r"""Prune and splice: a network is pruned while it learns, and a connection that turns out to be missed may return.

Each weight W has a place T in the mask. Two thresholds a < b decide, with a band between them in which nothing changes,

.. math:: T_i \leftarrow \begin{cases} 0 & |W_i| < a \\ T_i & a \le |W_i| < b \\ 1 & |W_i| \ge b \end{cases}

and the loss sees :math:`W \odot T`. What makes a return possible is that *all* weights are trained, those that are
pruned too, by the gradient at the place where they would act,

.. math:: W \leftarrow W - \eta \, \frac{\partial L(W \odot T)}{\partial (W \odot T)}:

a pruned weight whose absence hurts grows until it passes b, and is spliced in again. Masks are drawn anew at an update
t with the probability :math:`(1 + \gamma t)^{-1}`, often at first and ever more rarely, so that weights can settle.

Source: Y. Guo, A. Yao and Y. Chen, "Dynamic Network Surgery for Efficient DNNs", NIPS 2016, section 3.

Examples
--------
>>> w, mask = torch.tensor([1.0, 0.95, 1.05, 0.2]), torch.tensor([True, False, True, True])
>>> surgery(w, mask, kept=2, margin=0.1)
tensor([ True, False,  True, False])
>>> surgery(torch.tensor([1.0, 1.3, 1.05, 0.2]), mask, kept=2, margin=0.1)  # the pruned one has grown past the band
tensor([False,  True,  True, False])
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.pruning.mask import Mask, largest
from kernels.model.pruning.masked_training import Contested, Trace, check_density, falling, mask_by
from kernels.model.transform import constrain, layer_weights

__all__ = ["PruneAndSplice", "band", "surgery"]


def band(w: Tensor, mask: Tensor, margin: float) -> Tensor:
    """Magnitudes as two thresholds see them: what is there counts for more, what is not for less.

    With a = (1 - margin) θ and b = (1 + margin) θ the rule of the paper reads: a weight that is there stays if
    |w| / (1 - margin) >= θ, and one that is not returns if |w| / (1 + margin) >= θ.

    Parameters
    ----------
    w : Tensor
    mask : Tensor of bool
    margin : float

    Examples
    --------
    >>> band(torch.tensor([0.9, 1.1]), torch.tensor([True, False]), 0.1)
    tensor([1., 1.])
    """
    return w.abs() / torch.where(mask, 1 - margin, 1 + margin)


def surgery(w: Tensor, mask: Tensor, kept: int, margin: float) -> Tensor:
    """The next mask of one layer, its thresholds where exactly `kept` pass.

    Parameters
    ----------
    w : Tensor
        All weights, the pruned ones too.
    mask : Tensor of bool
    kept : int
    margin : float

    Returns
    -------
    Tensor of bool
    """
    return largest(band(w, mask, margin), kept)


class _Spliced(Mask):
    """A mask whose gradient reaches every weight: forward W ⊙ T, backward the gradient by W ⊙ T as it is."""

    def forward(self, weight: Tensor) -> Tensor:
        still = weight.detach()
        return torch.where(self.mask, still, 0.0) + (weight - still)  # what is added is zero, and carries the gradient


@dataclass(frozen=True)
class PruneAndSplice(Contested):
    r"""Train with a mask that prunes what is small and takes back what grows, down to the share `density`.

    .. math:: T_i \leftarrow \begin{cases} 0 & |W_i| < a \\ T_i & a \le |W_i| < b \\ 1 & |W_i| \ge b \end{cases},
       \qquad W \leftarrow W - \eta \, \frac{\partial L(W \odot T)}{\partial (W \odot T)}

    Parameters
    ----------
    density : float
        Share of the weights that remain, 0 < density <= 1.
    margin : float
        Half the width of the band, as a share of its middle: a, b = (1 ∓ margin) θ; 0 <= margin < 1.
    slowing : float
        γ of the probability with which an update is followed by a new mask.
    scope : {"global", "layer"}
        Whether one θ serves all layers, or each has its own.

    Notes
    -----
    Adapted: the paper begins with a trained network and fixes each layer's thresholds from the mean and the deviation
    of its weights, so that the density is what comes of them. Here θ is set, at each new mask, where the wanted share
    passes, and that share falls over the first two thirds of the training, as in gradual pruning, beside which it can
    then be put at equal density.

    Source
    ------
    Guo, Yao and Chen, "Dynamic Network Surgery for Efficient DNNs", NIPS 2016, section 3.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network, _ = PruneAndSplice(0.25).train(digits.network(), digits.data(), datasets.Recipe(epochs=2))
    >>> sum(int((network[i].weight != 0).sum()) for i in (1, 3, 5)) == round(0.25 * (64 * 64 + 64 * 32 + 32 * 10))
    True
    """

    density: float = 0.1
    margin: float = 0.1
    slowing: float = 0.02
    scope: str = "global"

    def __post_init__(self) -> None:
        check_density(self.density, self.scope)
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin: expected 0 <= margin < 1, got {self.margin}")
        if not 0 <= self.slowing < float("inf"):
            raise ValueError(f"slowing: expected a number of at least 0, got {self.slowing}")

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network`, and prune and splice it meanwhile.

        Parameters
        ----------
        network : nn.Module
            Untrained; left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : ignored
        seed : int, optional
            Instead of the recipe's own; of the draws as well.

        Returns
        -------
        network, trace
            Of each update the trace also says how many weights came back (``spliced``).

        Raises
        ------
        ValueError
            If there is nothing to prune.
        """
        network, random = copy.deepcopy(network), torch.Generator()
        random.manual_seed(recipe.seed if seed is None else seed)
        places = list(layer_weights(network))
        if not places:
            raise ValueError(
                f"network: expected convolution, linear or recurrent layers; {type(network).__name__} has none"
            )
        for layer, name in places:
            constrain(layer, name, _Spliced(torch.ones_like(getattr(layer, name), dtype=torch.bool)))
        steps, spliced = recipe.steps(data), []
        density = falling(steps, self.density)

        def on_step(step: int, network: nn.Module) -> None:
            # the last mask of the descent is drawn in any case, so that the density is what was asked for
            chance = float(torch.rand((), generator=random)) < 1 / (1 + self.slowing * step)
            due = chance or (density(step) == self.density and density(step - 1) != self.density)
            spliced.append(self._operate(places, network, density(step)) if due else 0)

        trace = recipe.train(network, data, seed=seed, on_step=on_step)
        return network, [{**update, "spliced": count} for update, count in zip(trace, spliced, strict=True)]

    def _operate(self, places: list[tuple[Any, str]], network: nn.Module, density: float) -> int:
        """Draw the masks anew; how many weights return."""
        chains = [layer.parametrizations[name] for layer, name in places]
        before = [chain[-1].mask.clone() for chain in chains]
        scores = [band(chain.original.detach(), mask, self.margin) for chain, mask in zip(chains, before, strict=True)]
        mask_by(network, scores, density, self.scope)
        return sum(int((chain[-1].mask & ~mask).sum()) for chain, mask in zip(chains, before, strict=True))
