"""Architecture search within the memory of a microcontroller: the space is chosen by the limits, then searched."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import mean
from typing import Any

import torch

from kernels.counting import macs, parameters, peak_activation_bytes
from kernels.model.architecture_search.evolutionary_search import EvolutionarySearch
from kernels.model.architecture_search.random_search import History, draw
from kernels.model.architecture_search.restated import Restated, RestatedTask
from kernels.model.architecture_search.supernet import plain

__all__ = ["MemoryConstrainedSearch", "Needs", "needs"]


@dataclass(frozen=True)
class Needs:
    """What a network needs of a device: bytes of activations alive at once, bytes of weights, work for one image."""

    sram: int
    flash: int
    macs: int


def needs(candidate: Mapping[str, Any]) -> Needs:
    """Counted on the untrained network, which costs no training.

    Examples
    --------
    >>> needs({"first": "convolution", "second": "identity", "third": "identity", "width": 4, "norm": False})
    Needs(sram=2048, flash=1432, macs=11680)
    """
    return _needs(tuple(candidate.items()))


@lru_cache(maxsize=4096)
def _needs(chosen: tuple[tuple[str, Any], ...]) -> Needs:
    built, x = plain(dict(chosen)), torch.zeros(1, 1, 8, 8)
    return Needs(peak_activation_bytes(built, x), 4 * parameters(built), macs(built, x))


@dataclass(frozen=True)
class MemoryConstrainedSearch:
    r"""First choose the part of the space that suits the limits, then evolve within both.

    .. math:: \max_a \mathrm{accuracy}(a) \quad \text{subject to} \quad
        \mathrm{SRAM}(a) \le M, \qquad \mathrm{flash}(a) \le F

    A part of the space is one value of `scale`. Of each, some networks are drawn and counted, none trained; the part
    whose networks within the limits have the most multiply-accumulates on average is kept: within the same memory, more
    work tends to mean more accuracy. Of the part that is kept, evolution trains only what fits.

    Parameters
    ----------
    sram : int
        M: bytes for the activations that are alive at once.
    flash : int
        F: bytes for the weights, of four each.
    scale : str
        The choice whose values divide the space; with "none" the whole space is searched within the limits.
    draws : int
        Networks counted of each part.
    population, sample : int
        Of the evolution.

    Source: Lin et al., "MCUNet: Tiny Deep Learning on IoT Devices", arXiv 2007.10319, section 3.1. There parts differ
    in width and resolution, and candidates inherit their weights; here parts differ in width, and each candidate is
    trained. A device would store bytes where four bytes are counted here: the limits scale along.

    Examples
    --------
    >>> import datasets
    >>> table, tiny = datasets.workload("digits-search"), MemoryConstrainedSearch(sram=6144, flash=12288)
    >>> problem = tiny.restated(table)
    >>> found, _ = tiny.search(problem.space, problem.task(0), budget=540, seed=0)
    >>> needs(found).sram <= 6144 and needs(found).flash <= 12288
    True
    """

    sram: int = 6144
    flash: int = 12288
    scale: str = "width"
    draws: int = 50
    population: int = 10
    sample: int = 5

    def __post_init__(self) -> None:
        if not (self.sram > 0 and self.flash > 0):
            raise ValueError(f"sram, flash: expected bytes above 0, got {self.sram!r} and {self.flash!r}")
        if not (isinstance(self.draws, int) and self.draws >= 1):
            raise ValueError(f"draws: expected a positive integer, got {self.draws!r}")
        EvolutionarySearch(self.population, self.sample)

    def fits(self, candidate: Mapping[str, Any]) -> bool:
        """Whether a network keeps both limits."""
        needed = needs(candidate)
        return needed.sram <= self.sram and needed.flash <= self.flash

    def restated(self, problem: Any) -> Restated:
        """The problem among what fits: anything else scores minus infinity, and is not trained."""
        return Restated(problem, _accuracy, self.fits)

    def part(self, space: Mapping[str, tuple[Any, ...]], generator: random.Random) -> dict[str, tuple[Any, ...]]:
        """The space with the one value of `scale` whose networks within the limits have the most work on average.

        Raises
        ------
        ValueError
            If there is no such choice, or no network that was drawn fits.
        """
        if self.scale == "none":
            return dict(space)
        if self.scale not in space:
            raise ValueError(f"scale: expected a choice of the space, one of {', '.join(space)}, got {self.scale!r}")
        worth: dict[Any, float] = {}
        for value in space[self.scale]:
            narrow = {**space, self.scale: (value,)}
            drawn = [draw(narrow, generator) for _ in range(self.draws)]
            if within := [needs(candidate).macs for candidate in drawn if self.fits(candidate)]:
                worth[value] = mean(within)
        if not worth:
            raise ValueError(f"sram, flash: no network drawn fits in {self.sram} and {self.flash} bytes")
        return {**space, self.scale: (max(worth, key=lambda value: worth[value]),)}

    def search(
        self, space: Mapping[str, tuple[Any, ...]], task: Any, budget: float, seed: int
    ) -> tuple[dict[str, Any], History]:
        """As `EvolutionarySearch.search`, within the part of the space that the limits choose.

        Raises
        ------
        ValueError
            If nothing fits, or the budget does not pay for one evaluation.
        """
        narrow = self.part(space, random.Random(seed))
        evolution = EvolutionarySearch(self.population, self.sample)
        return evolution.search(narrow, RestatedTask(task, _accuracy, self.fits), budget, seed)


def _accuracy(accuracy: float, costs: Any, candidate: Mapping[str, Any]) -> float:
    return accuracy
