r"""Ternary weights: every weight of a layer is -a, 0 or +a while the network learns, and when it runs.

Of a weight tensor w with n entries the ternary one is nearest, in squares, for a threshold D and a scale a:

    min over a, t of || w - a t ||^2,  t_i in {-1, 0, 1}:    t_i = sign(w_i) [|w_i| > D],   a = mean of |w_i| > D

the mean over the weights that pass. Which D is best has no closed form. For weights spread evenly or normally it lies
near 0.7 times their mean magnitude, and that is the rule:

    D = 0.7 mean |w_i|

Training keeps the weights w in FP32. Each pass sees a t; the gradient of the loss with respect to a t is passed
*straight through* to w, as if nothing had been rounded, so that small updates add up until a weight crosses D.

With D = 0 no weight is zero: binary weights, sign(w) times the mean magnitude (Rastegari et al. 2016).

*Trained* scales (Zhu et al. 2017) are two numbers a layer, for weights that pass D = 0.05 max |w| upwards and
downwards, learned like any other parameter; the gradient of w is then multiplied by the scale that its place has:

    w_t = p, 0 or -m,     dL/dp = sum of dL/dw_t where w_t = p,     dL/dm = - sum of dL/dw_t where w_t = -m

Source: F. Li et al., "Ternary Weight Networks", 2016, section 2; C. Zhu et al., "Trained Ternary Quantization", ICLR
2017, section 3.

Examples
--------
>>> codes, scale = ternarize(torch.tensor([[0.9, -0.1, 0.2, -0.7]]))
>>> codes, f"{float(scale):.2f}"
(tensor([[ 1.,  0.,  0., -1.]]), '0.80')
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.transform import constrain, layer_weights

__all__ = ["TernarizedAfterwards", "TernaryWeights", "ternarize"]

Trace = list[dict[str, Any]]


def ternarize(w: Tensor, threshold: float = 0.7, per: str = "layer") -> tuple[Tensor, Tensor]:
    """The signs of the weights that pass the threshold, and the scale that fits them best.

    Parameters
    ----------
    w : Tensor of floats, of at least one dimension
    threshold : float
        D over the mean magnitude; at 0 every weight passes.
    per : {"layer", "filter"}
        One mean and one scale for all of `w`, or for each index of its first dimension.

    Returns
    -------
    codes : Tensor of the shape and type of `w`
        -1, 0 or 1.
    scale : Tensor
        a, of a shape that `codes` broadcasts with; zero where no weight passes.

    Raises
    ------
    ValueError
        If a weight is NaN or infinite.

    Examples
    --------
    >>> ternarize(torch.tensor([[3.0, 1.0], [-0.1, 0.3]]), per="filter")[1]
    tensor([[3.0000],
            [0.3000]])
    """
    _refuse_infinite(w)
    magnitude = w.abs()
    along = list(range(w.ndim)) if per == "layer" else list(range(1, w.ndim))
    if threshold == 0:
        passes = torch.ones_like(w, dtype=torch.bool)
    else:
        passes = magnitude > threshold * magnitude.mean(along, keepdim=True)
    codes = torch.where(passes, torch.where(w < 0, -1.0, 1.0), 0.0).to(w.dtype)
    scale = (magnitude * passes).sum(along, keepdim=True) / passes.sum(along, keepdim=True).clamp(min=1)
    return codes, scale


def _refuse_infinite(w: Tensor) -> None:
    if not w.isfinite().all():
        raise ValueError("w: expected finite weights, got NaN or infinity: the training has diverged")


class _Fitted(nn.Module):
    """A parametrization: a t forward, the gradient straight through backward."""

    def __init__(self, threshold: float, per: str) -> None:
        super().__init__()
        self.threshold, self.per = threshold, per

    def forward(self, w: Tensor) -> Tensor:
        codes, scale = ternarize(w.detach(), self.threshold, self.per)
        return codes * scale + (w - w.detach())  # what is added is zero, and carries the gradient

    def stored_bits(self, w: Tensor) -> int:
        """A code each, of one bit where none is zero, and the scales in FP32."""
        return (2 if self.threshold else 1) * w.numel() + 32 * (1 if self.per == "layer" else len(w))


class _Trained(nn.Module):
    """A parametrization with a scale of its own for each sign; they begin as the fitted one."""

    def __init__(self, threshold: float, w: Tensor) -> None:
        super().__init__()
        self.threshold = threshold
        scale = ternarize(w.detach())[1].flatten()
        self.up, self.down = nn.Parameter(scale.clone()), nn.Parameter(scale.clone())

    def forward(self, w: Tensor) -> Tensor:
        still = w.detach()
        _refuse_infinite(still)
        border = self.threshold * still.abs().max()
        codes = torch.where(still > border, 1.0, torch.where(still < -border, -1.0, 0.0)).to(w.dtype)
        value = self.up * (codes > 0) - self.down * (codes < 0)
        share = torch.where(codes > 0, self.up, torch.where(codes < 0, self.down, 1.0)).detach()
        return value + share * (w - still)

    def stored_bits(self, w: Tensor) -> int:
        """A code of two bits each, and two scales in FP32."""
        return 2 * w.numel() + 2 * 32


@dataclass(frozen=True)
class TernaryWeights:
    r"""Train a network whose weights are -a, 0 or +a in every pass.

    .. math:: \tilde w_i = \alpha \, \mathrm{sign}(w_i) \, [\,|w_i| > \Delta\,], \qquad
       \Delta = \frac{0.7}{n} \sum_i |w_i|, \qquad \alpha = \frac{1}{|I_\Delta|} \sum_{i \in I_\Delta} |w_i|

    Parameters
    ----------
    threshold : float
        Of fitted scales, D over the mean magnitude of the weights that share a scale, 0 for binary weights; of trained
        ones, D over the largest magnitude.
    scales : {"fitted", "trained"}
        One scale that follows the weights, or two a layer that are learned.
    per : {"layer", "filter"}
        What shares a fitted scale: a layer's weights, or those of one output.

    Notes
    -----
    Weights are those of convolutions, linear and recurrent layers; biases and norms stay FP32. Trained scales have a
    threshold of 0.05 in the paper, whose networks begin trained and keep first and last layers in FP32. Adapted: here
    all layers are ternary from the first update on, and the recipe's optimizer and rate serve the scales, too.

    Source: Li et al. 2016, section 2; Zhu et al. 2017, section 3.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network, trace = TernaryWeights().train(digits.network(), digits.data(), datasets.Recipe(epochs=1))
    >>> len(network[1].weight.unique())
    3
    """

    threshold: float = 0.7
    scales: str = "fitted"
    per: str = "layer"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < float("inf"):
            raise ValueError(f"threshold: expected a number of at least 0, got {self.threshold!r}")
        for name, known in (("scales", ("fitted", "trained")), ("per", ("layer", "filter"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected {' or '.join(known)}, got {getattr(self, name)!r}")
        if self.scales == "trained" and not (0 < self.threshold < 1 and self.per == "layer"):
            raise ValueError(
                "threshold, per: trained scales expect a threshold between 0 and 1, and a layer to share them, got"
                f" {self.threshold!r} and {self.per!r}"
            )

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` by `recipe`, its weights ternary in every pass.

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
            The network still holds the FP32 weights below; `kernels.model.transform.bake` leaves the ternary ones.
        """
        network = self.constrain(network)
        return network, recipe.train(network, data, seed=seed)

    def constrain(self, network: nn.Module) -> nn.Module:
        """A copy of `network` that computes with ternary weights from now on.

        Raises
        ------
        ValueError
            If it has no layer to make ternary.
        """
        network = copy.deepcopy(network)
        places = list(layer_weights(network))
        if not places:
            raise ValueError(
                f"network: expected convolution, linear or recurrent layers; {type(network).__name__} has none"
            )
        for layer, name in places:
            if self.scales == "trained":
                constrain(layer, name, _Trained(self.threshold, getattr(layer, name)))
            else:
                constrain(layer, name, _Fitted(self.threshold, self.per))
        return network

    def afterwards(self) -> TernarizedAfterwards:
        """The same rule, applied once to a network that was trained without it."""
        return TernarizedAfterwards(self)


@dataclass(frozen=True)
class TernarizedAfterwards:
    """The plain recipe, and ternary weights when it is over: what training with them is worth.

    Parameters
    ----------
    rule : TernaryWeights

    Source: the rule of Li et al. 2016, section 2, for weights that know nothing of it.

    Examples
    --------
    >>> TernaryWeights().afterwards().rule.threshold
    0.7
    """

    rule: TernaryWeights

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Train a copy of `network` by `recipe`, then make its weights ternary."""
        network = copy.deepcopy(network)
        trace = recipe.train(network, data, seed=seed)
        return self.rule.constrain(network), trace
