"""A recipe: how a network is trained, to the last bit the same each time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from datasets.data import Data, Split

__all__ = ["CrossEntropy", "Loss", "Recipe", "Trace", "accuracy", "one_thread"]

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Trace = list[dict[str, Any]]

SCHEDULES = ("one-cycle", "cosine", "constant")


@dataclass(frozen=True)
class CrossEntropy:
    """The plain loss: cross-entropy of the network's logits and the labels, the mean over the items.

    Parameters
    ----------
    factor : float
        Multiplies it: in exact arithmetic AdamW would train the same network.
    smoothing : float
        The share of a label that is spread evenly over all classes.
    """

    factor: float = 1.0
    smoothing: float = 0.0

    def __call__(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self.factor * functional.cross_entropy(network(x), y, label_smoothing=self.smoothing)


@dataclass(frozen=True)
class Recipe:
    """A loss and an optimizer on shuffled batches, with a learning rate that follows a schedule.

    A technique that trains changes what it must with `dataclasses.replace`, and leaves the rest to the recipe: `loss`
    sees the network and a batch (a teacher, a penalty, mixed items), `optimizer` what comes of the gradients, and
    `on_step` of `train` the network between two updates. What weights are computed from is the network's own affair: a
    constraint (`kernels.model.transform.constrain`) is trained as any network is.

    Parameters
    ----------
    epochs : int
        Passes through the training set.
    batch : int
        Items of one update.
    learning_rate : float
        The schedule's peak.
    weight_decay : float
        Decoupled from the gradient, as AdamW does.
    schedule : {"one-cycle", "cosine", "constant"}
        One-cycle rises linearly over the first fifth of the updates, then falls as a cosine to zero; cosine only falls.
    seed : int
        Of the order of items, and of whatever the network draws while it trains.
    loss : callable of (network, x, y)
        Gives the scalar tensor to be minimised.
    optimizer : callable of (parameters, lr, weight_decay)
        Gives a `torch.optim.Optimizer`: a class, or what binds its other options. It is called as
        ``step(closure)``, where the closure computes the loss and the gradients, once or as often as an update needs.

    Examples
    --------
    >>> import datasets
    >>> mlp = datasets.workload("digits-mlp")
    >>> network = mlp.network(seed=1)
    >>> trace = Recipe(epochs=2).train(network, mlp.data())
    >>> trace[-1]["loss"] < trace[0]["loss"]
    True
    """

    epochs: int = 20
    batch: int = 64
    learning_rate: float = 0.005
    weight_decay: float = 0.01
    schedule: str = "one-cycle"
    seed: int = 0
    loss: Loss = CrossEntropy()
    optimizer: Callable[..., Any] = torch.optim.AdamW

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if self.epochs < 0 or self.batch < 1:
            raise ValueError(f"epochs, batch: expected >= 0 and >= 1, got {self.epochs} and {self.batch}")

    @property
    def fine_tuning(self) -> Recipe:
        """The shorter recipe for a trained network: a quarter of the epochs, falling from the full rate."""
        return replace(self, epochs=math.ceil(self.epochs / 4), schedule="cosine")

    def steps(self, data: Data) -> int:
        """How many updates training on `data` takes."""
        return self.epochs * math.ceil(len(data.train) / self.batch)

    def train(
        self,
        network: nn.Module,
        data: Data,
        *,
        seed: int | None = None,
        on_step: Callable[[int, nn.Module], None] | None = None,
    ) -> Trace:
        """Train `network` in place on ``data.train``; it is left in evaluation mode.

        Parameters
        ----------
        network : nn.Module
        data : Data
        seed : int, optional
            Instead of the recipe's own.
        on_step : callable of (step, network), optional
            Called after each update.

        Returns
        -------
        list of dict
            The step, epoch and loss of each update.
        """
        x, y = _tensors(data.train)
        steps = self.steps(data)
        learned = [p for p in network.parameters() if p.requires_grad]
        optimizer = self.optimizer(learned, lr=self.learning_rate, weight_decay=self.weight_decay)
        trace: Trace = []

        @torch.enable_grad()
        def closure(items: Tensor) -> Tensor:
            optimizer.zero_grad()
            value = self.loss(network, x[items], y[items])
            value.backward()
            return value

        network.train()
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed if seed is None else seed)
            for epoch in range(self.epochs):
                for items in torch.randperm(len(y)).split(self.batch):
                    step = len(trace)
                    for group in optimizer.param_groups:
                        group["lr"] = self.learning_rate * self._share(step, steps)
                    value = optimizer.step(partial(closure, items))
                    trace.append({"step": step, "epoch": epoch, "loss": value.item()})
                    if on_step is not None:
                        on_step(step, network)
        network.eval()
        return trace

    def finetune(self, network: nn.Module, data: Data, **options: Any) -> Trace:
        """Train a trained network a little more, by `fine_tuning`; arguments as for `train`."""
        return self.fine_tuning.train(network, data, **options)

    def _share(self, step: int, steps: int) -> float:
        """The share of the peak learning rate at an update."""
        if self.schedule == "constant":
            return 1.0
        rise = steps // 5 if self.schedule == "one-cycle" else 0
        if step < rise:
            return (step + 1) / rise
        return (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def accuracy(network: nn.Module, split: Split, batch: int = 256) -> float:
    """Share of items whose largest logit is their label's.

    Parameters
    ----------
    network : nn.Module
        Evaluated in evaluation mode, and left in the mode it was in.
    split : Split
    batch : int
        Items at a time; a convenience of memory, without influence on the result.

    Raises
    ------
    ValueError
        If the split is empty.
    """
    if not len(split):
        raise ValueError("split: expected at least one item, got an empty split")
    x, y = _tensors(split)
    was_training = network.training
    network.eval()
    with one_thread(), torch.no_grad():
        right = sum(
            int((network(some).argmax(1) == labels).sum())
            for some, labels in zip(x.split(batch), y.split(batch), strict=True)
        )
    network.train(was_training)
    return right / len(split)


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread inside, as many as before afterwards: more make sums depend on how they were divided."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tensors(split: Split) -> tuple[Tensor, Tensor]:
    # tensors of their own: a read-only array would make torch warn
    return torch.tensor(split.x), torch.tensor(split.y)
