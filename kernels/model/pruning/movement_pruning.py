r"""Movement pruning: what stays is not what is large, but what has moved away from zero.

Each weight W has a score S. The forward pass sees the weights of the highest scores,

.. math:: W' = W \odot M, \qquad M = \mathrm{Top}_v(S),

and scores learn as weights do, the gradient passed *straight through* the selection,

.. math:: \frac{\partial L}{\partial S_i} = \frac{\partial L}{\partial W'_i} \, W_i,
          \qquad \frac{\partial L}{\partial W_i} = \frac{\partial L}{\partial W'_i} \, M_i.

Under gradient descent the scores then sum up

.. math:: S_i = - \eta \sum_t \left( \frac{\partial L}{\partial W'_i} \right)^{(t)} W_i^{(t)}:

where the gradient pushes a weight away from zero its score rises, where it pushes it towards zero the score falls,
whatever the weight's size. The share v falls by a cubic schedule while both learn.

Source: V. Sanh, T. Wolf and A. Rush, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020, section 4 and
table 1.

Examples
--------
>>> layer = nn.Linear(2, 1, bias=False)
>>> scored = Scored(layer.weight)
>>> scored.mask = torch.tensor([[True, False]])
>>> w = torch.tensor([[2.0, 3.0]], requires_grad=True)
>>> (scored(w) * torch.tensor([[1.0, -1.0]])).sum().backward()
>>> w.grad, scored.scores.grad
(tensor([[1., -0.]]), tensor([[ 2., -3.]]))
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.pruning.mask import Mask
from kernels.model.pruning.masked_training import Contested, Trace, check_density, falling, mask_by
from kernels.model.transform import constrain, layer_weights

__all__ = ["MovementPruning", "Scored"]


class Scored(Mask):
    """A mask whose scores learn: forward W ⊙ M, backward as if M were 1 for the scores, and as it is for the weights.

    Parameters
    ----------
    weight : Tensor
        Of the shape that the scores have; they begin at zero, and the mask keeps everything.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__(torch.ones_like(weight, dtype=torch.bool))
        self.scores = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        chosen = self.mask.to(weight.dtype) + (self.scores - self.scores.detach())
        return weight * chosen


@dataclass(frozen=True)
class MovementPruning(Contested):
    r"""Train with scores that sum up movement, and keep the share `density` of the highest.

    .. math:: W' = W \odot \mathrm{Top}_v(S), \qquad
       S_i = - \eta \sum_t \left( \frac{\partial L}{\partial W'_i} \right)^{(t)} W_i^{(t)}

    Parameters
    ----------
    density : float
        v at the end, 0 < density <= 1.
    begin : float
        Share of the updates before anything is pruned; scores sum up from the first one on.
    scope : {"global", "layer"}
        Whether the scores of all layers compete, or those of each layer among themselves.

    Notes
    -----
    Adapted: the paper prunes large networks that were trained on another task, while they are fine-tuned. Here the
    network learns its task from the start, and `begin` leaves it some time before pruning sets in; v then falls until
    two thirds of the updates. Scores have the recipe's optimizer and rate, as weights do.

    Source
    ------
    Sanh, Wolf and Rush, "Movement Pruning", NeurIPS 2020, section 4.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network, _ = MovementPruning(0.25).train(digits.network(), digits.data(), datasets.Recipe(epochs=2))
    >>> sum(int((network[i].weight != 0).sum()) for i in (1, 3, 5)) == round(0.25 * (64 * 64 + 64 * 32 + 32 * 10))
    True
    """

    density: float = 0.1
    begin: float = 0.2
    scope: str = "global"

    def __post_init__(self) -> None:
        check_density(self.density, self.scope)
        if not 0 <= self.begin < 2 / 3:
            raise ValueError(f"begin: expected 0 <= begin < 2/3, got {self.begin}")

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` and its scores.

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
            Under its last mask; `kernels.model.transform.bake` leaves plain weights, without scores.

        Raises
        ------
        ValueError
            If there is nothing to prune.
        """
        network = copy.deepcopy(network)
        places = list(layer_weights(network))
        if not places:
            raise ValueError(
                f"network: expected convolution, linear or recurrent layers; {type(network).__name__} has none"
            )
        scored: list[Scored] = []
        for layer, name in places:
            scored.append(Scored(getattr(layer, name).detach()))
            constrain(layer, name, scored[-1])
        density = falling(recipe.steps(data), self.density, self.begin)

        def on_step(step: int, network: nn.Module) -> None:
            if density(step) < 1:
                mask_by(network, [place.scores.detach() for place in scored], density(step), self.scope)

        return network, recipe.train(network, data, seed=seed, on_step=on_step)
