"""All networks of the search space in one: weights that they share, trained once, and the networks cut out of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.model.architecture_search.random_search import History, best, evaluated

__all__ = [
    "PLACES", "Operation", "Paths", "Residual", "Supernet", "architectures", "inherited_scores", "plain",
    "recalibrated", "share_right", "trained_in_order", "uniform",
]  # fmt: skip

PLACES = ("first", "second", "third")
Architecture = Mapping[str, Any]


class Operation(nn.Module):
    """What may stand at a place, at the widest width: a convolution, or a depthwise and a pointwise one, with its norm.

    Parameters
    ----------
    name : {"convolution", "separable", "residual"}
    width : int
        The widest.
    """

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.name = name
        groups = width if name == "separable" else 1
        self.convolution = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.pointwise = nn.Conv2d(width, width, 1) if name == "separable" else None
        self.norm = nn.BatchNorm2d(width, track_running_stats=False)

    def convolved(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The convolutions alone, by the first channels of their weights, as many as `x` has; between them a mask."""
        width, conv = x.shape[1], self.convolution
        weight, groups = (conv.weight[:width], width) if self.pointwise else (conv.weight[:width, :width], 1)
        y = functional.conv2d(x, weight, conv.bias[:width], padding=1, groups=groups)  # type: ignore[index]
        if self.pointwise is None:
            return y
        y = y if mask is None else y * mask
        return functional.conv2d(y, self.pointwise.weight[:width, :width], self.pointwise.bias[:width])  # type: ignore[index]

    def normalized(self, y: Tensor) -> Tensor:
        """By the batch's own mean and variance, and by the first channels of scale and shift."""
        width = y.shape[1]
        return functional.batch_norm(y, None, None, self.norm.weight[:width], self.norm.bias[:width], training=True)

    def finished(self, x: Tensor, y: Tensor) -> Tensor:
        """Rectified; of a residual operation, added to what went in."""
        return x + y.relu() if self.name == "residual" else y.relu()

    def forward(self, x: Tensor, norm: bool) -> Tensor:
        y = self.convolved(x)
        return self.finished(x, self.normalized(y) if norm else y)


class Supernet(nn.Module):
    """One set of weights for every network of the space: of each width the first channels, of each place the operation.

    Parameters
    ----------
    space : mapping of str to tuple
        That of ``datasets.workloads.digits_search``, or a part of it.

    Examples
    --------
    >>> import datasets
    >>> space = datasets.workload("digits-search").space
    >>> one = {"first": "residual", "second": "separable", "third": "identity", "width": 8, "norm": False}
    >>> supernet, x = Supernet(space), torch.randn(5, 1, 8, 8)
    >>> torch.allclose(supernet(x, one), supernet.child(one)(x), atol=1e-6)
    True
    """

    def __init__(self, space: Mapping[str, tuple[Any, ...]]) -> None:
        super().__init__()
        if set(space) != {*PLACES, "width", "norm"}:
            raise ValueError(f"space: expected the choices {', '.join((*PLACES, 'width', 'norm'))}, got {list(space)}")
        self.space, width = dict(space), max(space["width"])
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.places = nn.ModuleDict({
            place: nn.ModuleDict({name: Operation(name, width) for name in space[place] if name != "identity"})
            for place in PLACES
        })  # fmt: skip
        self.classifier = nn.Linear(4 * width, 10)

    def operations(self, place: str) -> nn.ModuleDict:
        """Of a place, by name; identity has no weights."""
        found = self.places[place]
        assert isinstance(found, nn.ModuleDict)
        return found

    def enter(self, x: Tensor, width: int) -> Tensor:
        """The first convolution, by its first channels."""
        return functional.conv2d(x, self.stem.weight[:width], self.stem.bias[:width], padding=1).relu()  # type: ignore[index]

    def leave(self, x: Tensor) -> Tensor:
        """The classifier, by as many of its inputs as there are."""
        flat = x.flatten(1)
        return functional.linear(flat, self.classifier.weight[:, : flat.shape[1]], self.classifier.bias)

    def forward(self, x: Tensor, architecture: Architecture) -> Tensor:
        """Logits of one network of the space; norms take the batch's own statistics."""
        x = self.enter(x, architecture["width"])
        for place in PLACES:
            if place != PLACES[0]:
                x = functional.max_pool2d(x, 2)
            if architecture[place] != "identity":
                x = self.operations(place)[architecture[place]](x, architecture["norm"])
        return self.leave(x)

    def child(self, architecture: Architecture) -> nn.Module:
        """That network by itself, with a copy of the weights; its norms' running statistics are of no data yet."""
        width, held = architecture["width"], []
        held += [(self.stem.weight[:width], self.stem.bias[:width])]  # type: ignore[index]
        for place in PLACES:
            if architecture[place] == "identity":
                continue
            operation = self.operations(place)[architecture[place]]
            assert isinstance(operation, Operation)
            conv, pointwise = operation.convolution, operation.pointwise
            across = slice(None) if pointwise else slice(width)
            held += [(conv.weight[:width, across], conv.bias[:width])]  # type: ignore[index]
            if pointwise is not None:
                held += [(pointwise.weight[:width, :width], pointwise.bias[:width])]  # type: ignore[index]
            if architecture["norm"]:
                held += [(operation.norm.weight[:width], operation.norm.bias[:width])]
        held += [(self.classifier.weight[:, : 4 * width], self.classifier.bias)]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            alone = plain(architecture)
            layers: list[Any] = [m for m in alone.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
            for layer, (weight, bias) in zip(layers, held, strict=True):
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
        return alone

    def reorder(self) -> None:
        """Put the channels that weigh most first, for narrower networks keep the first; what it computes stays.

        A channel's weight is the sum of the magnitudes of all that reads it. Identity and residual paths tie the
        channels of all places together, so there is one order for the whole network.
        """
        width = self.stem.out_channels
        with torch.no_grad():
            importance = self.classifier.weight.abs().reshape(10, width, 4).sum((0, 2))
            every = [op for place in PLACES for op in self.operations(place).values()]
            for operation in every:
                assert isinstance(operation, Operation)
                reads = operation.pointwise or operation.convolution
                importance = importance + reads.weight.abs().sum((0, 2, 3))
            order = importance.argsort(descending=True, stable=True)
            _take(self.stem, order)
            for operation in every:
                assert isinstance(operation, Operation)
                _take(operation.convolution, order, inputs=operation.pointwise is None)
                if operation.pointwise is not None:
                    _take(operation.pointwise, order, inputs=True)
                _take(operation.norm, order)
            read = self.classifier.weight.reshape(10, width, 4)[:, order]
            self.classifier.weight.copy_(read.reshape(10, 4 * width))


def _take(layer: Any, order: Tensor, inputs: bool = False) -> None:
    weight = layer.weight[order]
    layer.weight.copy_(weight[:, order] if inputs else weight)
    layer.bias.copy_(layer.bias[order])


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def plain(architecture: Architecture) -> nn.Module:
    """An untrained network of the space by itself, layer by layer that of ``datasets.workloads.digits_search``."""
    width = architecture["width"]
    modules: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU()]
    for place in PLACES:
        if place != PLACES[0]:
            modules.append(nn.MaxPool2d(2))
        if architecture[place] == "identity":
            continue
        separable = architecture[place] == "separable"
        branch: list[nn.Module] = [nn.Conv2d(width, width, 3, padding=1, groups=width if separable else 1)]
        branch += [nn.Conv2d(width, width, 1)] * separable
        branch += [nn.BatchNorm2d(width)] * architecture["norm"] + [nn.ReLU()]
        modules += [Residual(nn.Sequential(*branch))] if architecture[place] == "residual" else branch
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(4 * width, 10))


def architectures(space: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """All of them, in lexical order of the choices' values."""
    return (dict(zip(space, values, strict=True)) for values in itertools.product(*space.values()))


def uniform(space: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """One of them, each choice drawn evenly by torch's generator."""
    return {choice: values[int(torch.randint(len(values), ()))] for choice, values in space.items()}


@dataclass(frozen=True, eq=False)
class Paths:
    """A loss that trains one network of a supernet at each update, another each time.

    Parameters
    ----------
    draw : callable
        Gives the architecture to be trained next; what it draws, it draws by torch's generator.
    teacher : nn.Module, optional
        Whose answers are learned too, as much as the labels.

    Examples
    --------
    >>> import datasets
    >>> space, data = datasets.workload("digits-search").space, datasets.load("noisy-digits")
    >>> supernet = Supernet(space)
    >>> trace = Paths(lambda: uniform(space)).train(supernet, data, datasets.Recipe(batch=32), epochs=2, seed=0)
    >>> len(trace)
    26
    """

    draw: Callable[[], Architecture]
    teacher: nn.Module | None = None

    def __call__(self, supernet: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = supernet(x, self.draw())
        loss = functional.cross_entropy(logits, y)
        if self.teacher is not None:
            with torch.no_grad():
                answer = self.teacher(x).softmax(1)
            loss = loss + functional.cross_entropy(logits, answer)
        return loss

    def train(self, supernet: Supernet, data: Any, recipe: Any, epochs: int, seed: int) -> list[dict[str, Any]]:
        """Train by the recipe of a single network, for other epochs; one path an update, so that none costs more."""
        return replace(recipe, epochs=epochs, loss=self).train(supernet, data, seed=seed)


def share_right(alone: nn.Module, split: Any) -> float:
    """Share of a split's items whose largest logit is their label's, in evaluation mode."""
    alone.eval()
    with torch.no_grad():
        found = alone(torch.tensor(split.x)).argmax(1)
    return int((found == torch.tensor(split.y)).sum()) / len(split)


def recalibrated(alone: nn.Module, data: Any) -> nn.Module:
    """The network with its norms' running statistics set to those of the training items, in evaluation mode.

    While the weights were shared, those of other networks were mixed into any average.
    """
    norms = [module for module in alone.modules() if isinstance(module, nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # an average over what comes, here everything at once
        with torch.no_grad():
            alone.train()(torch.tensor(data.train.x))
    return alone.eval()


def inherited_scores(
    supernet: Supernet, data: Any, every: Iterable[Architecture] | None = None, items: int = 500
) -> list[float]:
    """Validation accuracy of networks of the space with the weights that they inherit, no weight trained again.

    Parameters
    ----------
    supernet : Supernet
    data : datasets.Data
    every : iterable of architectures, optional
        Which; all of the space, in its order.
    items : int
        Validation items that are looked at, the first.
    """
    seen = data.validation[:items]
    chosen = architectures(supernet.space) if every is None else every
    return [share_right(recalibrated(supernet.child(one), data), seen) for one in chosen]


def trained_in_order(
    ranked: Iterable[Architecture], task: Any, budget: float, spent: float, first: float
) -> tuple[dict[str, Any], History]:
    """Train networks in full in the order in which they were ranked, as many as the rest of the budget pays for.

    Parameters
    ----------
    ranked : iterable of architectures
    task : object
        Trains (``evaluate``) and says what that takes (``cost``).
    budget : float
    spent : float
        Epochs that the ranking took.
    first : float
        The score of the first by which it was ranked; it is what is found if nothing is left to train with.

    Returns
    -------
    best, history
        As of any search; the first entry is the ranking itself.

    Raises
    ------
    ValueError
        If the ranking alone exceeds the budget.
    """
    if spent > budget:
        raise ValueError(f"budget: {budget} epochs do not pay for the {spent:g} of the shared weights")
    every = [dict(one) for one in ranked]
    history: History = [(every[0], first, spent)]
    for one in every:
        if not evaluated(task, one, budget, history):
            break
    return best(history[1:] or history, budget), history
