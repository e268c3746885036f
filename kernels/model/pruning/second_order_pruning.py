r"""Second-order pruning: remove the weights whose removal raises the loss least, as its curvature predicts.

At a trained network the gradient is gone, and the loss L changes with the weights by

.. math:: \Delta L = \tfrac12 \, \delta w^\top H \, \delta w, \qquad H = \nabla^2 L.

*Optimal Brain Damage* (OBD) takes H as diagonal. Removing weight i is then worth, and costs the others nothing,

.. math:: \rho_i = \tfrac12 h_{ii} w_i^2, \qquad \delta w = -w_i e_i.

*Optimal Brain Surgeon* (OBS) keeps the mixed derivatives, and lets the other weights move. Of all changes with
:math:`\delta w_i = -w_i` the least harmful, and its harm, are

.. math:: \delta w = -\frac{w_i}{[H^{-1}]_{ii}} H^{-1} e_i, \qquad \rho_i = \frac{w_i^2}{2 [H^{-1}]_{ii}}.

Without weight i the inverse of what is left of H is found by one step of elimination,

.. math:: H^{-1} \leftarrow H^{-1} - \frac{H^{-1} e_i e_i^\top H^{-1}}{[H^{-1}]_{ii}},

and the next weight can go. H is that of Gauss and Newton; for the cross-entropy of a softmax it is the Fisher matrix,

.. math:: H \approx \frac1N \sum_{n} \sum_c p_c(x_n) \, g_{nc} g_{nc}^\top, \qquad g_{nc} = \nabla_w \log p_c(x_n).

It is never negative, and exact where the network is linear. One block of it is kept for each output unit or channel,
with the weights that lead there; between blocks it is taken as zero.

Source: Y. LeCun, J. Denker and S. Solla, "Optimal Brain Damage", NIPS 1989, section 2; B. Hassibi and D. Stork,
"Second Order Derivatives for Network Pruning: Optimal Brain Surgeon", NIPS 1992, section 2; the order of removal in
many blocks: E. Frantar and D. Alistarh, "Optimal Brain Compression", NeurIPS 2022.

Examples
--------
>>> h = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
>>> w, harm = surgeon(torch.tensor([1.0, 0.5], dtype=torch.float64), h.inverse(), 1)
>>> w, float(harm)
(tensor([1.2500, 0.0000], dtype=torch.float64), 0.1875)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from kernels.model.pruning.magnitude_pruning import SCOPES, RandomPruning
from kernels.model.pruning.mask import Mask, prune
from kernels.model.transform import layer_weights

__all__ = ["SecondOrderPruning", "compensated", "curvature", "removal_costs", "surgeon"]

METHODS = ("obs", "obd")


def surgeon(w: Tensor, inverse: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """Remove one weight and move the others: the plain statement of Optimal Brain Surgeon.

    Parameters
    ----------
    w : Tensor of shape (n,)
    inverse : Tensor of shape (n, n)
        Of the Hessian.
    i : int

    Returns
    -------
    w, harm : Tensor of shape (n,), scalar
        The weights afterwards, and by how much the quadratic loss has risen.

    Examples
    --------
    >>> surgeon(torch.tensor([3.0, 2.0]), torch.eye(2), 0)
    (tensor([0., 2.]), tensor(4.5000))
    """
    after = w - w[i] / inverse[i, i] * inverse[:, i]
    after[i] = 0
    return after, w[i] ** 2 / (2 * inverse[i, i])


def removal_costs(w: Tensor, hessian: Tensor) -> Tensor:
    """The price of each weight when a block is taken apart, always the cheapest next, the others moving along.

    Parameters
    ----------
    w : Tensor of shape (blocks, n)
    hessian : Tensor of shape (blocks, n, n)
        Positive definite.

    Returns
    -------
    Tensor of shape (blocks, n)
        ρ at the time of removal, but at least the price of whatever went before: so the dearest weights of a block are
        those that were left last.

    Examples
    --------
    >>> removal_costs(torch.tensor([[1.0, 3.0, 2.0]]), torch.eye(3)[None])
    tensor([[0.5000, 4.5000, 2.0000]])
    """
    w, hessian = w.clone(), hessian.clone()
    left = w != 0
    apart = ~(left[:, :, None] & left[:, None, :])
    hessian[apart] = 0  # what is zero already stays so: it is taken out of H before H is inverted
    hessian.diagonal(dim1=1, dim2=2)[~left] = 1
    inverse, row = torch.linalg.inv(hessian), torch.arange(len(w))
    costs, paid = torch.zeros_like(w), torch.zeros(len(w), dtype=w.dtype)
    for _ in range(int(left.sum(1).max())):
        diagonal = inverse.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(w.dtype).tiny)
        price, i = torch.where(left, w.square() / (2 * diagonal), torch.inf).min(1)
        column, pivot = inverse[row, :, i], diagonal[row, i][:, None]
        here = left[row, i]
        paid = torch.where(here, torch.maximum(paid, price), paid)
        costs[row[here], i[here]] = paid[here]
        w -= torch.where(here, w[row, i], 0.0)[:, None] / pivot * column
        inverse.baddbmm_(column[:, :, None], (column / pivot)[:, None, :], alpha=-1)
        left[row, i] = False
        w[~left] = 0
    return costs


def compensated(w: Tensor, hessian: Tensor, mask: Tensor) -> Tensor:
    r"""The weights that are left, moved to where the quadratic loss is least with the others at zero.

    .. math:: w_K \leftarrow w_K + H_{KK}^{-1} H_{KP} \, w_P

    for kept ones K and pruned ones P: what `surgeon` comes to when all of P are removed, in whatever order.

    Parameters
    ----------
    w : Tensor of shape (n,)
    hessian : Tensor of shape (n, n)
    mask : Tensor of bool, of shape (n,)
        True where a weight is kept.

    Examples
    --------
    >>> compensated(torch.tensor([1.0, 0.5]), torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([True, False]))
    tensor([1.2500, 0.0000])
    """
    after = torch.zeros_like(w)
    if mask.any():
        after[mask] = w[mask] + torch.linalg.solve(hessian[mask][:, mask], hessian[mask][:, ~mask] @ w[~mask])
    return after


def curvature(network: nn.Module, x: Tensor) -> list[Tensor]:
    """The Gauss-Newton matrix of the mean cross-entropy on some items, in blocks.

    Parameters
    ----------
    network : nn.Module
        Gives logits; run in evaluation mode.
    x : Tensor of shape (items, ...)
        Labels are not needed: each class counts with the probability that the network gives it.

    Returns
    -------
    list of Tensor of shape (outputs, inputs, inputs), float64
        Of each linear or convolution layer, in the order of `kernels.model.transform.layer_weights`.

    Raises
    ------
    ValueError
        If there is another layer with weights, or one that runs more than once.

    Examples
    --------
    >>> line = nn.Linear(1, 2, bias=False)
    >>> _ = nn.init.zeros_(line.weight)
    >>> curvature(line, torch.tensor([[3.0]]))[0].flatten()  # p (1 - p) x²
    tensor([2.2500, 2.2500], dtype=torch.float64)
    """
    layers = [layer for layer, _ in layer_weights(network)]
    total = [torch.zeros(len(w), w[0].numel(), w[0].numel(), dtype=torch.float64) for w in _weights(network)]
    with _watched(network) as seen, torch.enable_grad():
        logits = network(x)
        outputs = []
        for name, _ in _named(network):
            if len(seen[name]) != 1:
                raise ValueError(f"network: expected layer {name} to run once, it runs {len(seen[name])} times")
            outputs.append(seen[name][0][1])
        p = logits.detach().softmax(1)
        for c in range(logits.shape[1]):
            weighted = (p[:, c].sqrt() * functional.log_softmax(logits, 1)[:, c]).sum()
            gradients = torch.autograd.grad(weighted, outputs, retain_graph=True)
            for layer, (name, _), block, g in zip(layers, _named(network), total, gradients, strict=True):
                each = _of_each_item(layer, seen[name][0][0].detach(), g).double().transpose(0, 1)
                block.baddbmm_(each.transpose(1, 2), each, alpha=1 / len(x))
    return total


def _of_each_item(layer: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    """Gradients of the weights from each item alone, of shape (items, outputs, inputs)."""
    if isinstance(layer, nn.Conv2d):
        patches = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        return torch.einsum("nop,nkp->nok", g.flatten(2), patches)
    return torch.einsum("npo,npk->nok", g.reshape(len(g), -1, g.shape[-1]), x.reshape(len(x), -1, x.shape[-1]))


def _named(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    names = {id(layer): name or "(the network itself)" for name, layer in network.named_modules()}
    for layer, _ in layer_weights(network):
        yield names[id(layer)], layer


def _weights(network: nn.Module) -> list[Tensor]:
    return [getattr(layer, name).detach() for layer, name in layer_weights(network)]


@contextmanager
def _watched(network: nn.Module) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Inputs and outputs of each layer's runs, the network in evaluation mode; everything put back afterwards."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name, _ in _named(network)}

    def keep(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            seen[name].append((inputs[0], output))

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in _named(network)]
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class SecondOrderPruning:
    r"""Keep the share `density` of the weights, those whose loss the curvature predicts to be the most harmful.

    .. math:: \rho_i = \tfrac12 h_{ii} w_i^2 \quad \text{(obd)}, \qquad
       \rho_i = \frac{w_i^2}{2 [H^{-1}]_{ii}}, \quad
       \delta w = -\frac{w_i}{[H^{-1}]_{ii}} H^{-1} e_i \quad \text{(obs)}

    Parameters
    ----------
    density : float
        Share of the weights that remain, 0 < density <= 1.
    method : {"obs", "obd"}
        With mixed derivatives, the remaining weights moved; or the diagonal alone.
    scope : {"global", "layer"}
        Whether the weights of all layers compete, or those of each layer among themselves.
    rounds : int
        How often the curvature is taken anew, at densities that fall by the same factor each time.
    items : int
        Of so many training items.
    damping : float
        Added to the diagonal of H before it is inverted, as a share of its mean.

    Notes
    -----
    Adapted: Optimal Brain Surgeon keeps one matrix of all weights, and computes it anew for each that goes. Here a
    block holds the weights of one output, and a round removes many.

    Source
    ------
    LeCun, Denker and Solla, "Optimal Brain Damage", NIPS 1989; Hassibi and Stork, "Second Order Derivatives for Network
    Pruning: Optimal Brain Surgeon", NIPS 1992.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> pruned = SecondOrderPruning(density=0.25, items=32, rounds=1).apply(digits.trained(), digits.data())
    >>> sum(int((pruned[i].weight != 0).sum()) for i in (1, 3, 5)) == round(0.25 * (64 * 64 + 64 * 32 + 32 * 10))
    True
    """

    density: float = 0.1
    method: str = "obs"
    scope: str = "global"
    rounds: int = 4
    items: int = 256
    damping: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density: expected 0 < density <= 1, got {self.density}")
        for name, known in (("method", METHODS), ("scope", SCOPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not 0 < self.damping < float("inf"):
            raise ValueError(f"damping: expected a positive number, got {self.damping}")
        if self.rounds < 1 or self.items < 1:
            raise ValueError(f"rounds, items: expected at least 1 of each, got {self.rounds} and {self.items}")

    def apply(self, network: nn.Module, data: Any) -> nn.Module:
        """A pruned copy of `network`; fine-tune it to regain accuracy, then `kernels.model.transform.bake` it.

        Parameters
        ----------
        network : nn.Module
            Trained; its linear and convolution layers are pruned, biases and norms are not.
        data : datasets.Data
            The curvature is that on the first `items` of ``data.train``.

        Raises
        ------
        TypeError, ValueError
            If `network` is no module, or has a layer that cannot be taken into account: its name is in the message.
        """
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: expected a torch.nn.Module, got {type(network).__name__}")
        network = copy.deepcopy(network)
        _refuse(network)
        prune(network, torch.abs, 1.0, self.scope)  # masks that keep everything, so that what follows finds some
        x = torch.tensor(data.train.x[: self.items])
        for done in range(1, self.rounds + 1):
            self._prune(network, x, self.density ** (done / self.rounds))
        return network

    def at_random(self, seed: int) -> RandomPruning:
        """Pruning of the same strength that chooses blindly."""
        return RandomPruning(self.density, self.scope, seed)

    def _prune(self, network: nn.Module, x: Tensor, density: float) -> None:
        blocks, before = curvature(network, x), _weights(network)
        flat = [w.flatten(1).double() for w in before]
        if self.method == "obd":
            costs = [h.diagonal(dim1=1, dim2=2) * w.square() / 2 for w, h in zip(flat, blocks, strict=True)]
        else:
            diagonal = torch.cat([h.diagonal(dim1=1, dim2=2).flatten() for h in blocks])
            floor = self.damping * diagonal.mean()
            blocks = [h + floor * torch.eye(h.shape[-1], dtype=h.dtype) for h in blocks]
            costs = [removal_costs(w, h) for w, h in zip(flat, blocks, strict=True)]
        # what is masked already is zero, and must not win a tie against a weight that does nothing either
        in_turn = iter([torch.where(w == 0, -1.0, c) for w, c in zip(flat, costs, strict=True)])
        prune(network, lambda w: next(in_turn).view(w.shape), density, self.scope)
        if self.method == "obs":
            for (layer, name), w, h in zip(layer_weights(network), flat, blocks, strict=True):
                constraints: Any = layer.parametrizations
                chain = constraints[name]
                mask = chain[-1].mask.flatten(1)
                moved = torch.stack([compensated(*one) for one in zip(w, h, mask, strict=True)])
                with torch.no_grad():
                    chain.original.copy_(moved.view(chain.original.shape))


def _refuse(network: nn.Module) -> None:
    for name, layer in _named(network):
        plain = isinstance(layer, nn.Linear) or (
            isinstance(layer, nn.Conv2d) and layer.groups == 1 and not isinstance(layer.padding, str)
            and layer.padding_mode == "zeros"
        )  # fmt: skip
        if not plain:
            raise ValueError(
                f"network: expected linear layers and plain two-dimensional convolutions, layer {name} is {layer}"
            )
        if parametrize.is_parametrized(layer, "weight"):
            chain: Any = layer.parametrizations
            if len(chain.weight) != 1 or not isinstance(chain.weight[0], Mask):
                raise ValueError(f"network: expected weights that are free or masked, layer {name} has {chain.weight}")
