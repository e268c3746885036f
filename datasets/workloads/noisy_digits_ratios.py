"""Which share of its channels each layer of a trained network keeps, under a hard limit: every answer can be computed.

The network is that of noisy-digits-cnn. A candidate says for each convolution how many eighths of its filters stay;
those of largest l1 norm do, the network becomes narrower by the others, and its batch norms count their means and
variances anew on the training items. No weight is trained, so a candidate costs one pass. A search sees the validation
accuracy of one half of the items, drawn by its seed; how well it chose is judged by the other half. The network that
was chosen is fine-tuned at the end.

What is limited is a resource: seconds of 64 images at once, summed over layers from a table of measured ones, or
whatever is put `under` a limit. The table is made by ``python -m datasets.make ratios`` on the machine that the card
names; another machine has other times.
"""

from __future__ import annotations

import copy
import csv
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.card import ROOT, read_card, verified_bytes
from datasets.data import Data
from datasets.workloads import noisy_digits_cnn
from datasets.workloads.base import Workload
from datasets.workloads.recipe import accuracy, one_thread

__all__ = ["Part", "RatiosTask", "RatiosWorkload", "narrowed", "workload"]

Candidate = Mapping[str, float]
"""Share of the filters that stay, by the convolution's path."""

Resource = Callable[[Candidate], Mapping[str, float]]
"""What a candidate takes, by part of the network: a convolution and all up to the next."""

EIGHTHS = tuple(eighth / 8 for eighth in range(1, 9))
SHARE = 0.6
IMAGES = 64
PROCESSES = 5
"""Of the table; each entry is the lowest of fifteen rounds in each."""


@dataclass(frozen=True)
class Part:
    """The size of a convolution and all up to the next: products of one item, parameters, numbers read by products."""

    macs: int
    parameters: int
    inputs: int


def narrowed(network: nn.Module, kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of a chain of convolutions, norms and a linear layer without the filters that are not kept.

    Parameters
    ----------
    network : nn.Sequential
        Each convolution reads what the one before it gives; the last layer is linear, behind a flattening.
    kept : mapping of str to sequence of int
        Of each convolution, by its path, the filters that stay.

    Examples
    --------
    >>> chain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    >>> narrowed(chain, {"0": [1, 3]})[3]
    Linear(in_features=8, out_features=2, bias=True)
    """
    network = copy.deepcopy(network)
    read: list[int] | None = None
    made = 0
    with torch.no_grad():
        for path, layer in network.named_children():
            if isinstance(layer, nn.Conv2d):
                made, stay = layer.out_channels, list(kept[path])
                weight = layer.weight if read is None else layer.weight[:, read]
                layer.weight = nn.Parameter(weight[stay].clone())
                if layer.bias is not None:
                    layer.bias = nn.Parameter(layer.bias[stay].clone())
                layer.in_channels, layer.out_channels, read = weight.shape[1], len(stay), stay
            elif isinstance(layer, nn.BatchNorm2d):
                for name in ("weight", "bias"):
                    setattr(layer, name, nn.Parameter(getattr(layer, name)[read].clone()))
                for name in ("running_mean", "running_var"):
                    setattr(layer, name, getattr(layer, name)[read].clone())
                layer.num_features = len(layer.weight)
            elif isinstance(layer, nn.Linear):
                places = layer.weight.unflatten(1, (made, -1))[:, read]
                layer.weight = nn.Parameter(places.flatten(1).clone())
                layer.in_features = layer.weight.shape[1]
    return network


class RatiosWorkload:
    """The shares that a network's layers may keep, what each candidate takes, and what it is worth.

    Parameters
    ----------
    id : str
    network : Workload
        Gives the trained network, a chain as `narrowed` takes it, the data and the recipe.
    times : mapping of (str, int, int) to float
        Seconds of each part, by its path, its channels read and its channels made.
    choices : tuple of float
        Shares that a layer may keep, rising up to 1.

    Attributes
    ----------
    limit : float
        What a candidate may take at most: at first six tenths of the whole network's seconds.

    Examples
    --------
    >>> ratios = workload()
    >>> half, whole = dict.fromkeys(ratios.space, 0.5), dict.fromkeys(ratios.space, 1.0)
    >>> ratios.fits(half), ratios.fits(whole), ratios.fits(ratios.lowered(whole))
    (True, False, True)
    """

    budgets = (6, 12, 24, 48)
    searches = 4

    def __init__(
        self,
        id: str,
        network: Workload,
        times: Mapping[tuple[str, int, int], float],
        choices: tuple[float, ...] = EIGHTHS,
    ) -> None:
        self.id, self.workload, self.times, self.choices = id, network, times, choices
        self.whole = network.trained()
        convolutions = [(path, layer) for path, layer in self.whole.named_children() if isinstance(layer, nn.Conv2d)]
        self.widths = {path: layer.out_channels for path, layer in convolutions}
        self.space = {path: choices for path in self.widths}
        norms = {path: layer.weight.detach().abs().flatten(1).sum(1) for path, layer in convolutions}
        self._order = {path: norm.argsort(descending=True, stable=True).tolist() for path, norm in norms.items()}
        self._right: dict[tuple[float, ...], np.ndarray] = {}
        self._final: dict[tuple[Any, ...], tuple[float, float]] = {}
        self.resources: dict[str, Resource] = {"latency": self.latency}
        self._limit("latency", SHARE)

    def __repr__(self) -> str:
        return f"RatiosWorkload({self.id!r})"

    def under(self, resource: str, share: float, **others: Resource) -> RatiosWorkload:
        """The same under another limit: a share of what the whole network takes of a resource.

        Parameters
        ----------
        resource : str
            "latency", or the name of one of the others.
        share : float
        others : callable of candidate
            Gives what a candidate takes of it, by part of the network.

        Raises
        ------
        ValueError
            If the resource is unknown, or the narrowest network does not fit.
        """
        found = copy.copy(self)  # accuracies are remembered in common
        found.resources = {**self.resources, **others}
        found.__dict__.pop("every", None)
        found._limit(resource, share)
        return found

    def _limit(self, resource: str, share: float) -> None:
        if resource not in self.resources:
            raise ValueError(f"resource: expected one of {', '.join(self.resources)}, got {resource!r}")
        self.parts = self.resources[resource]
        most = self.taken(dict.fromkeys(self.space, self.choices[-1]))
        self.limit = share * most
        if not self.fits(least := dict.fromkeys(self.space, self.choices[0])):
            raise ValueError(f"share: expected at least {self.taken(least) / most:.3f}, got {share}")

    @property
    def data(self) -> Data:
        return self.workload.data()

    def task(self, seed: int) -> RatiosTask:
        """The task as one half of the validation items shows it."""
        return RatiosTask(self, seed)

    # --- what a candidate takes --------------------------------------------------------------------------------------

    def channels(self, candidate: Candidate) -> dict[str, tuple[int, int]]:
        """Of each convolution the channels that it reads and that it makes."""
        made = {path: max(1, round(share * self.widths[path])) for path, share in candidate.items()}
        return dict(zip(made, itertools.pairwise([1, *made.values()]), strict=True))

    def latency(self, candidate: Candidate) -> dict[str, float]:
        """Seconds of each part for 64 images, looked up."""
        return {path: self.times[path, *sizes] for path, sizes in self.channels(candidate).items()}

    def sizes(self, candidate: Candidate) -> dict[str, Part]:
        """Of each part its size; the linear layer belongs to the last."""
        found, side, (*_, last) = {}, self.workload.input_shape[-1], self.space
        for path, (read, made) in self.channels(candidate).items():
            weights, area = 9 * read * made, side**2
            parts = [area * weights, weights + 2 * made, read * area]  # a scale and a shift for each channel
            if path != next(iter(self.space)):
                side //= 2  # pooled behind each convolution but the first
            if path == last:
                features, classes = made * side**2, self.whole[-1].out_features  # type: ignore[index]
                linear = (features * classes, (features + 1) * classes, features)
                parts = [a + b for a, b in zip(parts, linear, strict=True)]
            found[path] = Part(*parts)
        return found

    def taken(self, candidate: Candidate) -> float:
        """What the candidate takes of the resource that is limited."""
        return sum(self.parts(candidate).values())

    def fits(self, candidate: Candidate, limit: float | None = None) -> bool:
        """Whether it takes no more than the limit."""
        return self.taken(candidate) <= (self.limit if limit is None else limit)

    def lowered(self, candidate: Candidate, limit: float | None = None) -> dict[str, float]:
        """The candidate, its layers narrowed one after the other by one choice, again and again, until it fits.

        Raises
        ------
        ValueError
            If it has not one of the choices for each layer, or the narrowest network does not fit.
        """
        if candidate.keys() != self.space.keys() or any(share not in self.choices for share in candidate.values()):
            raise ValueError(f"candidate: expected one of {self.choices} for each of {[*self.space]}, got {candidate}")
        found = dict(candidate)
        for path in itertools.cycle(self.space):
            if self.fits(found, limit):
                return found
            if set(found.values()) == {self.choices[0]}:
                raise ValueError(f"limit: expected one that the narrowest network fits, got {limit}")
            found[path] = self.choices[max(0, self.choices.index(found[path]) - 1)]
        raise AssertionError("a cycle does not end")

    # --- what a candidate is worth -----------------------------------------------------------------------------------

    def network(self, candidate: Candidate) -> nn.Module:
        """The narrower network, its batch norms estimated anew on the training items."""
        made = {path: made for path, (_, made) in self.channels(candidate).items()}
        network = narrowed(self.whole, {path: sorted(self._order[path][:count]) for path, count in made.items()})
        norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
        usual = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over all batches, here one
        with one_thread(), torch.no_grad():
            network.train()(torch.tensor(self.data.train.x))
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum
        return network.eval()

    def right(self, candidate: Candidate) -> np.ndarray:
        """Which validation items are answered rightly; remembered."""
        key = tuple(candidate[path] for path in self.space)
        if key not in self._right:
            network, split = self.network(candidate), self.data.validation
            with one_thread(), torch.no_grad():
                answers: Tensor = network(torch.tensor(split.x)).argmax(1)
            self._right[key] = answers.numpy() == split.y
        return self._right[key]

    def half(self, seed: int) -> np.ndarray:
        """True at the validation items that ``task(seed)`` shows."""
        count = len(self.data.validation)
        return np.random.default_rng(seed).permutation(count) < count // 2

    @cached_property
    def every(self) -> list[dict[str, float]]:
        """All candidates that fit."""
        found = (dict(zip(self.space, shares, strict=True)) for shares in itertools.product(*self.space.values()))
        return [candidate for candidate in found if self.fits(candidate)]

    def regret(self, candidate: Candidate, seed: int) -> float:
        """By how much the best candidate that fits is more accurate on the half that the task did not show."""
        unseen = ~self.half(seed)
        best = max(float(self.right(other)[unseen].mean()) for other in self.every)
        return best - float(self.right(self.lowered(candidate))[unseen].mean())

    def figures(self, candidate: Candidate, seed: int) -> dict[str, float]:
        """Of the candidate, lowered until it fits: accuracy on the test items before and after the recipe's
        fine-tuning, its size, and what it takes of each resource."""
        final = self.lowered(candidate)
        key = (*final.values(), seed)
        if key not in self._final:
            network = self.network(final)
            before = accuracy(network, self.data.test)
            self.workload.recipe.finetune(network, self.data, seed=seed)
            self._final[key] = before, accuracy(network, self.data.test)
        before, after = self._final[key]
        parts = self.sizes(final).values()
        return {
            "accuracy": after,
            "accuracy_before_finetuning": before,
            "parameters": sum(part.parameters for part in parts),
            "macs": sum(part.macs for part in parts),
            **{name: sum(resource(final).values()) for name, resource in self.resources.items()},
        }


@dataclass(frozen=True)
class RatiosTask:
    """What a search may ask for: accuracies on half of the validation items, and what the problem says is taken."""

    problem: RatiosWorkload
    seed: int

    def evaluate(self, candidate: Candidate) -> float:
        """Accuracy of the candidate, lowered until it fits."""
        return self.accuracy(self.problem.lowered(candidate))

    def accuracy(self, candidate: Candidate) -> float:
        """Accuracy of the candidate as it is, whether it fits or not."""
        return float(self.problem.right(candidate)[self.problem.half(self.seed)].mean())

    def cost(self, candidate: Candidate) -> float:
        """In evaluations."""
        return 1.0


def workload() -> RatiosWorkload:
    """The network and the committed table."""
    card = read_card("workloads")["noisy-digits-ratios"]
    content = verified_bytes(ROOT / "workloads" / card["file"], card["sha256"], rebuild="ratios")
    times = {
        (row["part"], int(row["read"]), int(row["made"])): min(float(row[f"seconds_{i}"]) for i in range(PROCESSES))
        for row in csv.DictReader(io.StringIO(content.decode()))
    }
    return RatiosWorkload("noisy-digits-ratios", noisy_digits_cnn.workload(), times)


def once() -> Iterator[tuple[tuple[str, int, int], float]]:
    """Seconds of every part, in this process: its path, channels read and made, seconds for 64 images.

    Whole networks that keep one share everywhere stand among them as the part "all", by their first and last widths.
    """
    from datasets.workloads.digits_latency import lowest

    torch.set_num_threads(1)
    source = noisy_digits_cnn.workload()
    chain, side = source.trained(), source.input_shape[-1]
    paths = [path for path, layer in chain.named_children() if isinstance(layer, nn.Conv2d)]
    starts = [int(path) for path in paths]
    widths = [[max(1, round(e * chain[start].out_channels)) for e in EIGHTHS] for start in starts]  # type: ignore[index]
    calls: dict[tuple[str, int, int], Callable[[], Any]] = {}
    for shares in zip(*widths, strict=True):
        kept = {path: range(made) for path, made in zip(paths, shares, strict=True)}
        calls["all", shares[0], shares[-1]] = _call(narrowed(chain, kept), torch.zeros(IMAGES, 1, side, side))
    for at, (start, end) in enumerate(itertools.pairwise([*starts, len(chain)])):  # type: ignore[arg-type]
        for read, made in itertools.product(widths[at - 1] if at else [1], widths[at]):
            kept = {path: range(count) for path, count in zip(paths, _around(at, read, made), strict=True)}
            part = narrowed(chain, kept)[start:end]  # type: ignore[index]
            size = side // 2 ** max(0, at - 1)
            calls[paths[at], read, made] = _call(part, torch.zeros(IMAGES, read, size, size))
    yield from lowest(calls).items()


def _around(at: int, read: int, made: int) -> tuple[int, int, int]:
    """Widths of all layers, of which the one before and the one at a place are given."""
    return tuple({at - 1: read, at: made}.get(place, 1) for place in range(3))  # type: ignore[return-value]


def _call(module: nn.Module, x: Tensor) -> Callable[[], Any]:
    module.eval()

    def call() -> Any:
        with torch.inference_mode():
            return module(x)

    return call


if __name__ == "__main__":
    for key, seconds in once():
        print(*key, f"{seconds:.4e}", sep=",")
