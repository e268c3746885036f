"""Slimmable network: one set of weights that runs at several widths, chosen when it runs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.counting import macs
from kernels.model.dynamic_inference.learning import learn
from kernels.model.dynamic_inference.slicing import Slice, slices, thinned

__all__ = ["SlimmableChain", "SlimmableNetwork"]

WIDTHS = (1.0, 0.75, 0.5, 0.25)


class SlimmableChain(nn.Module):
    """A chain that computes with the first channels of each layer; every width has batch norms of its own.

    Parameters
    ----------
    network : nn.Sequential
        Gives the weights of the widest, which all share.
    widths : sequence of float
        The first is the widest.
    width : float
        At which it runs; may be set at any time to one of `widths`.
    x : Tensor
        One item, for counting.
    """

    def __init__(self, network: nn.Module, widths: Sequence[float], width: float, x: Tensor) -> None:
        super().__init__()
        self.widths, self.width = tuple(widths), width
        self.shared = copy.deepcopy(network)
        self.plans = {w: list(slices(self.shared, w)) for w in self.widths}
        self.norms = nn.ModuleList()  # of each width in turn; the widest has the network's own
        self.own: dict[tuple[float, int], nn.Module] = {}
        for w in self.widths:
            thin = thinned(network, w)
            for place, part in enumerate(self.plans[w]):
                if isinstance(part.layer, nn.BatchNorm2d | nn.BatchNorm1d):
                    self.norms.append(thin[place])
                    self.own[w, place] = thin[place]
        self.costs = [float(macs(thinned(network, w), x)) for w in self.widths]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, (batch, classes), and each item's cost in multiply-accumulates, (batch,), at the present width."""
        return self.at(x, self.width), torch.full((len(x),), self.costs[self.widths.index(self.width)])

    def at(self, x: Tensor, width: float) -> Tensor:
        """Logits at one of the widths."""
        for place, part in enumerate(self.plans[width]):
            x = self.own[width, place](x) if (width, place) in self.own else _run(part, x)
        return x


def _run(part: Slice, x: Tensor) -> Tensor:
    layer = part.layer
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return layer(x)
    weight = layer.weight[: part.out, : part.into]
    bias = None if layer.bias is None else layer.bias[: part.out]
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, bias)
    return layer._conv_forward(x, weight, bias)


@dataclass(frozen=True)
class SlimmableNetwork:
    r"""Teach a trained network to run at several widths w, with the first share w of each layer's channels.

    .. math:: L = H(y, q_1) + \sum_{w < 1} \mathrm{KL}(q_1 \,\|\, q_w)

    with :math:`q_w` the answer at width w: the widest learns from the labels, the others from the widest, in the same
    step. Weights are shared; batch norms are not, since the mean and spread of a sum over fewer channels are others.

    Parameters
    ----------
    width : float
        At which the network runs, one of 1, 0.75, 0.5 and 0.25.
    steps : int
        Updates that teach all widths at once.

    Source
    ------
    Yu, Yang, Xu, Yang and Huang, "Slimmable Neural Networks", ICLR 2019 (norms of their own); Yu and Huang,
    "Universally Slimmable Networks and Improved Training Techniques", ICCV 2019 (learning in place from the widest).

    Examples
    --------
    >>> import datasets
    >>> noisy = datasets.workload("noisy-digits-cnn")
    >>> network = SlimmableNetwork(width=0.5, steps=5).apply(noisy.trained(), noisy.data())
    >>> logits, cost = network(torch.tensor(noisy.data().validation.x[:3]))
    >>> bool((cost < network.costs[0] / 3).all())
    True
    """

    width: float = 0.5
    steps: int = 400

    def __post_init__(self) -> None:
        if self.width not in WIDTHS:
            raise ValueError(f"width: expected one of {', '.join(map(str, WIDTHS))}, got {self.width}")
        if self.steps < 0:
            raise ValueError(f"steps: expected at least 0, got {self.steps}")

    def apply(self, network: nn.Module, data: Any) -> SlimmableChain:
        """A slimmable copy of the network, taught on ``data.train``.

        Parameters
        ----------
        network : nn.Sequential
            Trained; left as it is.
        data : datasets.Data

        Raises
        ------
        TypeError, ValueError
            If the network is no chain, or holds a layer that cannot be sliced, by its name.
        """
        slim = SlimmableChain(network, WIDTHS, self.width, torch.tensor(data.train.x[:1]))

        def loss(x: Tensor, y: Tensor) -> Tensor:
            widest = slim.at(x, slim.widths[0])
            total, target = functional.cross_entropy(widest, y), widest.detach().log_softmax(1)
            for width in slim.widths[1:]:
                answer = slim.at(x, width).log_softmax(1)
                total = total + functional.kl_div(answer, target, reduction="batchmean", log_target=True)
            return total

        learn(slim, data, loss, self.steps)
        return slim
