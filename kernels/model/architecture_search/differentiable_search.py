"""Differentiable architecture search: every choice a mixture, whose proportions have a gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.architecture_search.random_search import History
from kernels.model.architecture_search.supernet import PLACES, Operation, Supernet, architectures, trained_in_order

__all__ = ["DifferentiableSearch", "Mixed", "alpha_gradient"]

ORDERS = (1, 2)


class Mixed(Supernet):
    """A supernet that computes all networks of the space at once, each choice mixed by a softmax over its values.

    At a place the operations' results are added in the proportions of ``alpha[place]``; with and without norm likewise,
    one choice for the whole network; of what convolutions give, each channel is kept in the proportion of those widths
    that have it. With all of every proportion on one value it is that one network.
    """

    def __init__(self, space: Mapping[str, tuple[Any, ...]]) -> None:
        super().__init__(space)
        self.alpha = nn.ParameterDict({c: nn.Parameter(torch.zeros(len(values))) for c, values in space.items()})
        widths = torch.tensor(space["width"])
        self.register_buffer("kept", (torch.arange(self.stem.out_channels) < widths[:, None]).float())

    def weights(self) -> list[nn.Parameter]:
        """All parameters but the proportions."""
        return [p for name, p in self.named_parameters() if not name.startswith("alpha.")]

    def alphas(self) -> list[nn.Parameter]:
        """The proportions' logits, a tensor a choice."""
        return list(self.alpha.values())

    def forward(self, x: Tensor, architecture: Any = None) -> Tensor:
        """Logits of the mixture; of one network, if it is given."""
        if architecture is not None:
            return super().forward(x, architecture)
        share = {choice: alpha.softmax(0) for choice, alpha in self.alpha.items()}
        mask = (share["width"] @ self.kept)[None, :, None, None]  # type: ignore[operator]
        x = self.enter(x, self.stem.out_channels) * mask
        for place in PLACES:
            if place != PLACES[0]:
                x = functional.max_pool2d(x, 2)
            total = torch.zeros_like(x)
            for part, name in zip(share[place], self.space[place], strict=True):
                total = total + part * (x if name == "identity" else self._mixed(place, name, x, share["norm"], mask))
            x = total
        return self.leave(x)

    def _mixed(self, place: str, name: str, x: Tensor, share: Tensor, mask: Tensor) -> Tensor:
        operation = self.operations(place)[name]
        assert isinstance(operation, Operation)
        y = operation.convolved(x, mask)
        parts = [
            part * operation.finished(x, mask * (operation.normalized(y) if norm else y))
            for part, norm in zip(share, self.space["norm"], strict=True)
        ]
        return torch.stack(parts).sum(0)


def alpha_gradient(
    network: Mixed,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    rate: float,
    loss: Any = functional.cross_entropy,
) -> list[Tensor]:
    r"""The gradient of the validation loss by the proportions, weights being those after one step of training.

    .. math:: \nabla_\alpha L_{\text{val}}(w', \alpha)
        - \xi \frac{\nabla_\alpha L_{\text{train}}(w^+, \alpha) - \nabla_\alpha L_{\text{train}}(w^-, \alpha)}
        {2 \varepsilon}, \qquad w' = w - \xi \nabla_w L_{\text{train}}(w, \alpha), \qquad
        w^\pm = w \pm \varepsilon \nabla_{w'} L_{\text{val}}(w', \alpha)

    with ε = 0.01 / ‖∇L_val‖; with ξ = 0 it is the gradient at the weights as they are, of first order.

    Parameters
    ----------
    network : Mixed
        Or any module with ``weights()`` and ``alphas()``; its weights are moved and put back.
    train, validation : pairs of Tensor
        Items and labels of a batch of each.
    rate : float
        ξ.

    Source: Liu et al., "DARTS: Differentiable Architecture Search", arXiv 1806.09055, equations 7 and 8.
    """
    weights, alphas = network.weights(), network.alphas()

    def gradients(batch: tuple[Tensor, Tensor], of: Sequence[Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(loss(network(batch[0]), batch[1]), list(of), allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(of, found, strict=True)]

    if rate == 0:
        return gradients(validation, alphas)
    before = [w.detach().clone() for w in weights]
    _shift(weights, gradients(train, weights), -rate)
    both = gradients(validation, [*alphas, *weights])
    direct, beyond = both[: len(alphas)], both[len(alphas) :]
    epsilon = 0.01 / float(torch.cat([g.flatten() for g in beyond]).norm().clamp_min(1e-12))
    ends = []
    for sign in (1, -1):
        _put(weights, before)
        _shift(weights, beyond, sign * epsilon)
        ends.append(gradients(train, alphas))
    _put(weights, before)
    return [d - rate * (up - down) / (2 * epsilon) for d, up, down in zip(direct, *ends, strict=True)]


def _shift(weights: Sequence[Tensor], by: Sequence[Tensor], factor: float) -> None:
    with torch.no_grad():
        for weight, step in zip(weights, by, strict=True):
            weight.add_(step, alpha=factor)


def _put(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)


@dataclass(frozen=True)
class DifferentiableSearch:
    r"""Descend the validation loss in the proportions of a mixture, and the training loss in its weights, by turns.

    .. math:: \bar o(x) = \sum_{o} \frac{\exp \alpha_o}{\sum_{o'} \exp \alpha_{o'}}\, o(x), \qquad
        \min_\alpha L_{\text{val}}(w^\ast(\alpha), \alpha) \quad \text{s.t.} \quad
        w^\ast(\alpha) = \arg\min_w L_{\text{train}}(w, \alpha)

    The inner minimum is approximated by the weights of the moment (first order), or by one step from them (second
    order). Networks are ranked by the product of their values' proportions, the first being the likeliest value of each
    choice; what the budget leaves trains the first of the ranking in full, each from scratch.

    Parameters
    ----------
    epochs : int
        Of the mixture. One counts as 8, in second order as 20: a pass for the weights and one for the proportions, in
        second order four, each through the four operations of a place.
    order : {1, 2}
    rate : float
        Of the proportions, Adam's.

    Source: Liu et al., "DARTS: Differentiable Architecture Search", arXiv 1806.09055, algorithm 1. There a cell has
    many edges and only operations are mixed; widths are mixed here by masks. Training items are for the weights,
    validation items for the proportions.

    Examples
    --------
    >>> import datasets
    >>> table = datasets.workload("digits-search")
    >>> narrow = {**table.space, "first": ("identity",), "second": ("identity", "convolution"), "third": ("identity",)}
    >>> found, history = DifferentiableSearch(epochs=4, rate=0.1).search(narrow, table.task(0), budget=44, seed=0)
    >>> found["second"], [spent for _, _, spent in history]
    ('convolution', [32.0, 44.0])
    """

    epochs: int = 20
    order: int = 1
    rate: float = 0.05

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order: expected 1 or 2, got {self.order!r}")
        if not (isinstance(self.epochs, int) and self.epochs >= 1):
            raise ValueError(f"epochs: expected a positive integer, got {self.epochs!r}")
        if not self.rate > 0:
            raise ValueError(f"rate: expected a positive number, got {self.rate!r}")

    @property
    def cost(self) -> float:
        """Epochs that the mixture takes, as often as networks are passed through."""
        return float(self.epochs * 4 * (2 if self.order == 1 else 5))

    def proportions(self, space: Mapping[str, tuple[Any, ...]], task: Any, seed: int) -> dict[str, list[float]]:
        """The share of each value of each choice, at the end."""
        mixed = _trained(self, tuple(space.items()), task, seed)
        return {choice: alpha.detach().softmax(0).tolist() for choice, alpha in mixed.alpha.items()}

    def scores(self, space: Mapping[str, tuple[Any, ...]], task: Any, seed: int) -> list[float]:
        """The logarithm of the product of every network's proportions, in the order of the space."""
        share = self.proportions(space, task, seed)
        logs = {c: dict(zip(values, map(math.log, share[c]), strict=True)) for c, values in space.items()}
        return [sum(logs[choice][value] for choice, value in one.items()) for one in architectures(space)]

    def search(
        self, space: Mapping[str, tuple[Any, ...]], task: Any, budget: float, seed: int
    ) -> tuple[dict[str, Any], History]:
        """As `OneShotSearch.search`.

        Raises
        ------
        ValueError
            If the budget does not pay for the mixture.
        """
        if self.cost > budget:
            raise ValueError(f"budget: {budget} epochs do not pay for the {self.cost:g} of the shared weights")
        scores = self.scores(space, task, seed)
        ranked = sorted(zip(scores, architectures(space), strict=True), key=lambda pair: -pair[0])
        return trained_in_order((one for _, one in ranked), task, budget, self.cost, ranked[0][0])


@lru_cache(maxsize=16)
def _trained(
    search: DifferentiableSearch, space: tuple[tuple[str, tuple[Any, ...]], ...], task: Any, seed: int
) -> Mixed:
    data, recipe = task.data, task.recipe
    parts = {
        name: (torch.tensor(split.x), torch.tensor(split.y))
        for name, split in (("train", data.train), ("validation", data.validation))
    }
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        mixed = Mixed(dict(space))
        of_alphas = torch.optim.Adam(mixed.alphas(), lr=search.rate, betas=(0.5, 0.999))
        of_weights = recipe.optimizer(mixed.weights(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        steps = search.epochs * -(-len(data.train) // recipe.batch)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(of_weights, steps)
        for _ in range(search.epochs):
            for items in torch.randperm(len(data.train)).split(recipe.batch):
                train = tuple(t[items] for t in parts["train"])
                others = torch.randint(len(data.validation), (len(items),))
                validation = tuple(t[others] for t in parts["validation"])
                rate = 0.0 if search.order == 1 else falling.get_last_lr()[0]
                for alpha, gradient in zip(
                    mixed.alphas(), alpha_gradient(mixed, train, validation, rate), strict=True  # type: ignore[arg-type]
                ):  # fmt: skip
                    alpha.grad = gradient
                of_alphas.step()
                of_weights.zero_grad()
                functional.cross_entropy(mixed(train[0]), train[1]).backward()
                of_weights.step()
                falling.step()
    return mixed
