r"""Binary weights: every weight is -1 or +1 in each pass, and a real one below remembers the updates.

A weight is one bit. Its network sees its sign, or draws it: the likelier, the nearer the weight lies to that end.

.. math:: w_b = \begin{cases} +1 & w \ge 0 \\ -1 & \text{else,} \end{cases} \qquad\text{or}\qquad
   w_b = +1 \text{ with probability } \sigma(w) = \min\left(1, \max\left(0, \frac{w + 1}{2}\right)\right)

The gradient with respect to w_b moves w, and after every update w is clipped to [-1, 1]: further out it would change
nothing that the network sees, and only take longer to come back.

    w <- clip(w - rate * dL/dw_b, -1, 1)

Drawn signs are right on average, E[w_b] = w, and their noise regularizes like that of dropout. They are drawn only
while the network learns; it then runs with sign(w).

Source: M. Courbariaux, Y. Bengio, J.-P. David, "BinaryConnect: Training Deep Neural Networks with binary weights during
propagations", NeurIPS 2015, sections 2.2 to 2.6, algorithm 1.

Examples
--------
>>> binary(torch.tensor([0.2, 0.0, -0.7]))
tensor([ 1.,  1., -1.])
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kernels.model.quantization.quantizers import CodedWeights, RoundedAfterwards
from kernels.model.transform import constrain, layer_weights

__all__ = ["BinaryWeights", "SignWeights", "binary", "clip_below", "clipping", "glorot"]

Trace = list[dict[str, Any]]


def binary(w: Tensor) -> Tensor:
    """1 where `w` is at least zero, -1 elsewhere.

    Examples
    --------
    >>> binary(torch.tensor([-0.0, -1e-30]))
    tensor([ 1., -1.])
    """
    return torch.where(w >= 0, 1.0, -1.0).to(w.dtype)


def glorot(w: Tensor) -> float:
    """The square root of 1.5 / (inputs + outputs), which keeps sums of signs near 1.

    Parameters
    ----------
    w : Tensor of shape (outputs, inputs, ...)
        Of a convolution, each place of the kernel counts.

    Examples
    --------
    >>> glorot(torch.zeros(32, 64))
    0.125
    """
    return float((1.5 / (w[0, 0].numel() * (w.shape[0] + w.shape[1]))) ** 0.5)


class SignWeights(CodedWeights):
    """Signs of the weights below, or signs drawn by them in training mode, times a constant.

    Parameters
    ----------
    magnitude : float
    stochastic : bool
    """

    bits = 1

    def __init__(self, magnitude: float = 1.0, stochastic: bool = False) -> None:
        super().__init__()
        self.magnitude, self.stochastic = magnitude, stochastic

    def integers(self, w: Tensor) -> tuple[Tensor, Tensor]:
        if self.stochastic and self.training:
            chance = ((w / self.magnitude + 1) / 2).clamp(0, 1)
            signs = binary(chance - torch.rand_like(w))
        else:
            signs = binary(w)
        return signs, torch.tensor(self.magnitude, dtype=w.dtype)


def clip_below(network: nn.Module) -> None:
    """Keep the weights below signs within their magnitude, in place."""
    with torch.no_grad():
        for layer in network.modules():
            if parametrize.is_parametrized(layer):
                for constraints in layer.parametrizations.values():  # type: ignore[union-attr, operator]
                    if isinstance(constraints[0], SignWeights):
                        limit = constraints[0].magnitude
                        constraints.original.clamp_(-limit, limit)


@dataclass(frozen=True)
class BinaryWeights:
    r"""Train a network whose weights are -1 or +1, or these times a constant of the layer, in every pass.

    .. math:: w_b = \mathrm{sign}(w), \qquad
       w \leftarrow \mathrm{clip}\left(w - \eta \frac{\partial L}{\partial w_b}, -1, 1\right)

    Parameters
    ----------
    stochastic : bool
        Signs are drawn while the network learns: +1 with probability (w + 1) / 2.
    magnitude : {"one", "glorot"}
        What a sign stands for: 1, or the square root of 1.5 / (inputs + outputs) of the layer, which keeps sums near 1
        in networks without a norm behind each layer; weights below are then clipped to that.

    Notes
    -----
    The paper trains with a norm behind each layer, with rates scaled by that same root, and a squared hinge loss. Here
    loss, optimizer and rate are the recipe's, for a fair comparison; Adam's steps do not depend on a constant factor of
    the gradient. All layers are binary, biases and norms stay FP32. A network that learnt with drawn signs runs with
    their signs too, the first of the paper's three choices: the others need real weights, or many networks.

    Source: Courbariaux et al. 2015, algorithm 1; the constant is that of its authors' code.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network, trace = BinaryWeights().train(digits.network(), digits.data(), datasets.Recipe(epochs=1))
    >>> network[3].weight.unique()
    tensor([-0.1250,  0.1250], grad_fn=<Unique2Backward0>)
    """

    stochastic: bool = False
    magnitude: str = "glorot"

    def __post_init__(self) -> None:
        if self.magnitude not in ("one", "glorot"):
            raise ValueError(f"magnitude: expected one or glorot, got {self.magnitude!r}")
        if not isinstance(self.stochastic, bool):
            raise ValueError(f"stochastic: expected True or False, got {self.stochastic!r}")

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` by `recipe`, its weights binary in every pass.

        Parameters
        ----------
        network : nn.Module
            Left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : ignored
        seed : int, optional
            Instead of the recipe's own; of the signs that are drawn, too.

        Returns
        -------
        network, trace
            The network still holds the real weights below; `kernels.model.transform.bake` leaves the binary ones.
        """
        network = self.constrain(network)
        return network, recipe.train(network, data, seed=seed, on_step=clipping)

    def constrain(self, network: nn.Module) -> nn.Module:
        """A copy of `network` that computes with binary weights from now on.

        Raises
        ------
        ValueError
            If it has no layer to make binary.
        """
        network = copy.deepcopy(network)
        places = list(layer_weights(network))
        if not places:
            raise ValueError(
                f"network: expected convolution, linear or recurrent layers; {type(network).__name__} has none"
            )
        for layer, name in places:
            constrain(
                layer,
                name,
                SignWeights(1.0 if self.magnitude == "one" else glorot(getattr(layer, name)), self.stochastic),
            )
        return network

    def afterwards(self) -> RoundedAfterwards:
        """The same rule, applied once to a network that was trained without it; its signs are not drawn."""
        return RoundedAfterwards(BinaryWeights(magnitude=self.magnitude))


def clipping(step: int, network: nn.Module) -> None:
    """What follows each update, for `on_step` of a recipe: weights below are clipped."""
    clip_below(network)
