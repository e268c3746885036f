r"""Pruning at initialisation: choose the weights that will be trained before any of them is.

At random weights magnitude says nothing of the task. Three scores say something else; the highest stay.

*SNIP*, connection sensitivity: by how much the loss on one batch changes when a connection's strength :math:`c_i` does,

.. math:: s_i = \left| \frac{\partial L(c \odot w)}{\partial c_i} \Big|_{c = 1} \right| = | w_i \, g_i |,
          \qquad g = \nabla_w L.

*GraSP*, gradient flow: by how much :math:`g^\top g`, the pace at which the loss will fall, falls when a weight goes. To
first order removing weight i changes it by :math:`-2 w_i (Hg)_i`, H the Hessian; so what stays has the largest

.. math:: s_i = w_i \, (H g)_i.

*SynFlow*, synaptic flow: without data, how much of what flows through the network flows through a weight,

.. math:: R = \mathbf 1^\top \Big( \prod_l |W_l| \Big) \mathbf 1, \qquad s_i = \frac{\partial R}{\partial |w_i|} |w_i|.

The scores of a layer sum to R in every layer, so that a small layer's weights have large scores, and no layer is cut
through before the others. Each of n rounds keeps :math:`d^{k/n}` of the weights, and then the flow is computed anew.

Source: N. Lee, T. Ajanthan and P. Torr, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019;
C. Wang, G. Zhang and R. Grosse, "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR 2020; H.
Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", NeurIPS 2020,
algorithm 1.

Examples
--------
>>> layer, x = nn.Linear(2, 2, bias=False), torch.tensor([[1.0, 0.0]])
>>> snip(layer, x, torch.tensor([0]))[0][:, 1]  # an input that is zero carries nothing
tensor([0., 0.])
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.pruning.mask import largest
from kernels.model.pruning.masked_training import Contested, Trace, check_density, mask_by
from kernels.model.transform import layer_weights

__all__ = ["PruningAtInitialisation", "grasp", "snip", "synflow"]

SCORES = ("snip", "grasp", "synflow")
TEMPERATURE = 200.0
"""By which GraSP divides logits: its authors' code does, so that the loss is nearly linear in them."""


def snip(network: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Connection sensitivity of each weight, in the order of `kernels.model.transform.layer_weights`.

    Parameters
    ----------
    network : nn.Module
        Left as it is; run in training mode.
    x, y : Tensor
        A batch of items and their labels.
    """
    network = copy.deepcopy(network).train()
    weights = _weights(network)
    with torch.enable_grad():
        gradients = torch.autograd.grad(functional.cross_entropy(network(x), y), weights)
    return [(w * g).abs().detach() for w, g in zip(weights, gradients, strict=True)]


def grasp(network: nn.Module, x: Tensor, y: Tensor, temperature: float = TEMPERATURE) -> list[Tensor]:
    """What each weight adds to the flow of gradients; as `snip`.

    Raises
    ------
    ValueError
        If a layer is recurrent: torch has no second derivatives of it.
    """
    network = copy.deepcopy(network).train()
    _refuse_recurrent(network, "gradient flow")
    weights = _weights(network)
    with torch.enable_grad():
        loss = functional.cross_entropy(network(x) / temperature, y)
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        flow = sum((g * g.detach()).sum() for g in gradients)
        products = torch.autograd.grad(flow, weights)  # type: ignore[arg-type]
    return [(w * hg).detach() for w, hg in zip(weights, products, strict=True)]


def synflow(network: nn.Module, shape: tuple[int, ...], density: float, rounds: int = 100) -> list[Tensor]:
    """Synaptic flow of each weight in the last of so many rounds, float64; of what is pruned by then, zero.

    Parameters
    ----------
    network : nn.Module
        Left as it is; run in evaluation mode on one item of ones, with magnitudes in place of parameters.
    shape : tuple of int
        Of an item.
    density : float
        At the end.
    rounds : int

    Raises
    ------
    ValueError
        If a layer is recurrent: what flows through it is no product of magnitudes.

    Examples
    --------
    >>> chain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    >>> _ = nn.init.zeros_(chain[0].bias)
    >>> first, second = synflow(chain, (3,), density=1.0, rounds=1)
    >>> bool(torch.isclose(first.sum(), second.sum()))
    True
    """
    network = copy.deepcopy(network).double().eval()
    _refuse_recurrent(network, "synaptic flow")
    weights, ones = _weights(network), torch.ones(1, *shape, dtype=torch.float64)
    scores: list[Tensor] = []
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    for done in range(1, rounds + 1):
        with torch.enable_grad():
            gradients = torch.autograd.grad(network(ones).sum(), weights)
        scores = [(w * g).detach() for w, g in zip(weights, gradients, strict=True)]
        together = torch.cat([s.flatten() for s in scores])
        kept = largest(together, round(density ** (done / rounds) * len(together)))
        masks = kept.split([s.numel() for s in scores])
        scores = [s * mask.view(s.shape) for s, mask in zip(scores, masks, strict=True)]
        with torch.no_grad():
            for w, mask in zip(weights, masks, strict=True):
                w *= mask.view(w.shape)
    return scores


def _weights(network: nn.Module) -> list[Tensor]:
    weights = [getattr(layer, name) for layer, name in layer_weights(network)]
    if not weights:
        raise ValueError(
            f"network: expected convolution, linear or recurrent layers to prune; {type(network).__name__} has none"
        )
    return weights


def _refuse_recurrent(network: nn.Module, what: str) -> None:
    for name, layer in network.named_modules():
        if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
            raise ValueError(f"network: expected layers that {what} is defined for, layer {name} is {layer}")


@dataclass(frozen=True)
class PruningAtInitialisation(Contested):
    r"""Score the random weights, keep the share `density` of them, and train those.

    .. math:: s_i = |w_i g_i| \;\text{(snip)}, \qquad s_i = w_i (Hg)_i \;\text{(grasp)}, \qquad
       s_i = |w_i| \, \frac{\partial}{\partial |w_i|} \, \mathbf 1^\top \Big( \prod_l |W_l| \Big) \mathbf 1
       \;\text{(synflow)}

    Parameters
    ----------
    density : float
        Share of the weights that are trained, 0 < density <= 1.
    score : {"snip", "grasp", "synflow"}
    items : int
        Training items of the one batch that snip and grasp look at.
    rounds : int
        Of synflow.
    scope : {"global", "layer"}
        Whether the weights of all layers compete, or those of each layer among themselves.

    Source
    ------
    Lee, Ajanthan and Torr, "SNIP", ICLR 2019; Wang, Zhang and Grosse, "GraSP", ICLR 2020; Tanaka et al., "SynFlow",
    NeurIPS 2020.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> masked = PruningAtInitialisation(0.25).mask(digits.network(), digits.data(), seed=0)
    >>> sum(int((masked[i].weight != 0).sum()) for i in (1, 3, 5)) == round(0.25 * (64 * 64 + 64 * 32 + 32 * 10))
    True
    """

    density: float = 0.1
    score: str = "snip"
    items: int = 256
    rounds: int = 100
    scope: str = "global"

    def __post_init__(self) -> None:
        check_density(self.density, self.scope)
        if self.score not in SCORES:
            raise ValueError(f"score: expected one of {', '.join(SCORES)}, got {self.score!r}")
        if self.rounds < 1 or self.items < 1:
            raise ValueError(f"items, rounds: expected at least 1 of each, got {self.items} and {self.rounds}")

    def mask(self, network: nn.Module, data: Any, seed: int = 0) -> nn.Module:
        """A copy of `network`, all but the highest scores masked.

        Parameters
        ----------
        network : nn.Module
            Untrained.
        data : datasets.Data
            A batch of ``data.train`` is drawn by `seed`; of an item synflow takes the shape only.
        seed : int

        Raises
        ------
        ValueError
            If there is nothing to prune, or a layer that the score is not defined for: its name is in the message.
        """
        drawn = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[: self.items].numpy()
        x, y = torch.tensor(data.train.x[drawn]), torch.tensor(data.train.y[drawn])
        if self.score == "synflow":
            scores = synflow(network, x.shape[1:], self.density, self.rounds)
        else:
            scores = (snip if self.score == "snip" else grasp)(network, x, y)
        masked = copy.deepcopy(network)
        mask_by(masked, scores, self.density, self.scope)
        return masked

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Mask a copy of `network`, and train it by `recipe`.

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
            Under its masks; `kernels.model.transform.bake` leaves plain weights.
        """
        seed = recipe.seed if seed is None else seed
        network = self.mask(network, data, seed)
        return network, recipe.train(network, data, seed=seed)
