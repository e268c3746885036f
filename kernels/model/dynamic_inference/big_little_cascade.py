"""Big/little cascade: a small network answers, and a large one is asked where the small one doubts."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.counting import macs
from kernels.model.dynamic_inference.learning import learn
from kernels.model.dynamic_inference.slicing import thinned

__all__ = ["BigLittleCascade", "Cascade", "margin"]


def margin(logits: Tensor) -> Tensor:
    """How far the likeliest class is ahead of the next: the difference of their probabilities, 0 to 1.

    Examples
    --------
    >>> margin(torch.tensor([[0.6, 0.3, 0.1]]).log())
    tensor([0.3000])
    """
    first, second = logits.softmax(-1).topk(2, dim=-1).values.unbind(-1)
    return first - second


class Cascade(nn.Module):
    """Two networks; the big one sees only items on which the little one is not ahead far enough.

    Parameters
    ----------
    little, big : nn.Module
    threshold : float
        The margin from which on the little one's answer stands.
    x : Tensor
        One item, for counting.
    """

    def __init__(self, little: nn.Module, big: nn.Module, threshold: float, x: Tensor) -> None:
        super().__init__()
        self.little, self.big, self.threshold = little, big, threshold
        first = float(macs(little, x))
        self.costs = [first, first + macs(big, x)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, (batch, classes), and each item's cost in multiply-accumulates, (batch,)."""
        logits = self.little(x)
        doubted = ~(margin(logits) >= self.threshold)  # a margin that is no number is in doubt
        cost = torch.full((len(x),), self.costs[0])
        if doubted.any():
            logits = logits.masked_scatter(doubted[:, None], self.big(x[doubted]))
            cost[doubted] = self.costs[1]
        return logits, cost

    def exits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both networks, (2, batch, classes), and the margins of each."""
        every = torch.stack([self.little(x), self.big(x)])
        return every, margin(every)


@dataclass(frozen=True)
class BigLittleCascade:
    r"""Run the little network on every item, and the big one on those with a small margin:

    .. math:: y(x) = \begin{cases} \arg\max_c p_c^{\text{little}} & p_{(1)} - p_{(2)} \ge T \\
        \arg\max_c p_c^{\text{big}} & \text{else} \end{cases}

    with :math:`p_{(1)}, p_{(2)}` the little network's two largest probabilities. The mean cost is that of the little
    one, and the share of doubted items times that of the big one. Unlike exits along one network the two share
    nothing: the work on a doubted item is done twice, but either may be any network.

    Parameters
    ----------
    threshold : float
        T, 0 to 1; at 0 the little network answers all, above 1 the big one.
    width : float
        The little network: this share of the big one's channels, taught on labels and the big one's soft labels.
    steps : int
        Updates that teach it.

    Source
    ------
    Park et al., "Big/little deep neural network for ultra low power inference", CODES+ISSS 2015.

    Examples
    --------
    >>> import datasets
    >>> noisy = datasets.workload("noisy-digits-cnn")
    >>> cascade = BigLittleCascade(steps=50).apply(noisy.trained(), noisy.data())
    >>> logits, cost = cascade(torch.tensor(noisy.data().validation.x[:64]))
    >>> sorted(set(cost.tolist())) == cascade.costs
    True
    """

    threshold: float = 0.5
    width: float = 0.25
    steps: int = 600

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold: expected a margin of at least 0, got {self.threshold}")
        if not 0 < self.width < 1:
            raise ValueError(f"width: expected 0 < width < 1, got {self.width}")
        if self.steps < 0:
            raise ValueError(f"steps: expected at least 0, got {self.steps}")

    def apply(self, network: nn.Module, data: Any) -> Cascade:
        """The network behind a little one of the same structure, taught on ``data.train``.

        Parameters
        ----------
        network : nn.Sequential
            Trained; left as it is.
        data : datasets.Data

        Raises
        ------
        TypeError, ValueError
            If the network is no chain, or holds a layer that cannot be thinned, by its name.
        """
        big = copy.deepcopy(network).eval()
        little = thinned(network, self.width)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                soft = (big(x) / 4).log_softmax(1)
            logits = little(x)
            taught = functional.kl_div((logits / 4).log_softmax(1), soft, reduction="batchmean", log_target=True)
            return 0.1 * functional.cross_entropy(logits, y) + 0.9 * 16 * taught

        learn(little, data, loss, self.steps)
        return Cascade(little, big, self.threshold, torch.tensor(data.train.x[:1])).eval()
