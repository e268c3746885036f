"""Mapping search: in which order and in which tiles a layer's loops should run on a given accelerator."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from math import inf
from typing import Any

import numpy as np

from kernels.energy import DRAM_ENERGY, OPERAND_BYTES, sram_energy
from kernels.implementation.dataflow.tiled_product import (
    ORDERS,
    Tiling,
    bytes_of,
    compulsory_words,
    every_tiling,
    least_words,
    sizes,
)
from kernels.model.architecture_search.random_search import History, best, evaluated

__all__ = ["MappingProblem", "MappingSearch"]


@dataclass(frozen=True)
class MappingProblem:
    r"""The mappings of a product to an array behind one buffer, and what each costs.

    A mapping is an order of the three loops over tiles, and the extents of a tile. Its cost is the energy of moving
    operands between chip and memory,

    .. math:: E = (e_\text{DRAM} + e_\text{SRAM})\, D

    for the D bytes of `Tiling.words`; tiles that do not fit the buffer are no mapping, and cost infinitely much.
    What the array itself reads from the buffer does not depend on the tiles. The space is small enough to be looked
    at whole, so that the optimum is known.

    Parameters
    ----------
    m, n, k : int
        C (m, n) = A (m, k) B (k, n).
    kib : int
        Capacity of the buffer.
    format : {"int8", "fp16", "fp32"}
        Sums have 32 bits.

    Examples
    --------
    >>> problem = MappingProblem(64, 64, 64, kib=1)
    >>> problem.task(0).evaluate({"order": "mnk", "m": 64, "n": 64, "k": 64})        # does not fit
    -inf
    >>> problem.best, problem.regret(problem.best, 0)
    ({'order': 'mnk', 'm': 8, 'n': 1, 'k': 64}, 0.0)
    """

    m: int
    n: int
    k: int
    kib: int = 64
    format: str = "int8"
    searches: int = 8

    @cached_property
    def space(self) -> dict[str, tuple[Any, ...]]:
        """The values of each choice."""
        return {"order": ORDERS, "m": sizes(self.m), "n": sizes(self.n), "k": sizes(self.k)}

    def task(self, seed: int) -> MappingProblem:
        """What a search may ask for; there is nothing random about it."""
        return self

    def cost(self, candidate: Mapping[str, Any]) -> int:
        """One evaluation."""
        return 1

    def evaluate(self, candidate: Mapping[str, Any]) -> float:
        """Minus the joules of a mapping; minus infinity where its tiles do not fit."""
        return -float(self.joules(candidate["order"], np.array([[candidate[d] for d in "mnk"]]))[0])

    def joules(self, order: str, tiles: np.ndarray) -> np.ndarray:
        """Joules of many tiles in one order; infinite where they do not fit."""
        return np.where(self._fits(tiles), self._moving(order, tiles), np.inf)

    def _fits(self, tiles: np.ndarray) -> np.ndarray:
        """Whether a tile of each operand fits the buffer."""
        word, (m, n, k) = OPERAND_BYTES[self.format], tiles.T
        return word * k * (m + n) + 4 * m * n <= self.kib * 1024

    def _moving(self, order: str, tiles: np.ndarray) -> np.ndarray:
        """Joules of what crosses the chip's edge, and is written to the buffer or read from it there."""
        moved = bytes_of(order, tiles, self.m, self.n, self.k, OPERAND_BYTES[self.format], 4)
        return moved * (DRAM_ENERGY + sram_energy(self.kib))

    @cached_property
    def best(self) -> dict[str, Any]:
        """The mapping of least energy, found by looking at all."""
        tiles = every_tiling(self.m, self.n, self.k)
        costs = np.stack([self.joules(order, tiles) for order in ORDERS])
        order, at = np.unravel_index(np.argmin(costs), costs.shape)
        return {"order": ORDERS[order], **dict(zip("mnk", (int(t) for t in tiles[at]), strict=True))}

    @cached_property
    def bound(self) -> float:
        """Minus the joules that no mapping goes below: those of the words of `bounds`, as narrow as operands."""
        words = max(self.bounds().values())
        return -words * OPERAND_BYTES[self.format] * (DRAM_ENERGY + sram_energy(self.kib))

    def fits(self, tile: Mapping[str, int]) -> bool:
        """Whether tiles of these extents fit the buffer."""
        return bool(self._fits(np.array([[tile[d] for d in "mnk"]]))[0])

    def regret(self, candidate: Mapping[str, Any], seed: int = 0) -> float:
        """By what share a mapping's energy exceeds the least; infinite where its tiles do not fit."""
        return self.evaluate(candidate) / self.evaluate(self.best) - 1

    def figures(self, candidate: Mapping[str, Any], seed: int = 0) -> dict[str, float]:
        """Bytes across the chip's edge, and energy of moving them."""
        tile = np.array([[candidate[d] for d in "mnk"]])
        word = OPERAND_BYTES[self.format]
        return {
            "memory_access": float(bytes_of(candidate["order"], tile, self.m, self.n, self.k, word, 4)[0]),
            "energy": -self.evaluate(candidate),
        }

    def bounds(self) -> dict[str, float]:
        """Words across the chip's edge that no mapping goes below: once each, and by the buffer's size.

        Examples
        --------
        >>> MappingProblem(512, 512, 512, kib=8).bounds()
        {'compulsory': 786432.0, 'buffer': 2949436.8}
        """
        room = self.kib * 1024 // OPERAND_BYTES[self.format]
        return {
            "compulsory": float(compulsory_words(self.m, self.n, self.k)),
            "buffer": round(least_words(self.m, self.n, self.k, room), 1),
        }

    def tiling(self, candidate: Mapping[str, Any]) -> Tiling:
        """A candidate as a tiling."""
        return Tiling(candidate["order"], candidate["m"], candidate["n"], candidate["k"])


IDLE = 20
"""Starts in a row that lead to nothing new, after which the full tiles count as known."""


@dataclass(frozen=True)
class MappingSearch:
    """Beam search: keep the few best mappings, and look at what lies next to them.

    Larger tiles never move more, so the optimum is among the *full* tiles, none of whose extents can grow and still
    fit; whether a tile fits is known without evaluating it. The start is drawn: for every order random extents,
    grown until full. A step evaluates the neighbours of each mapping in the beam: one extent a size down, the others
    grown; or another order. The `width` best of all go on. It ends when none of them is new, and starts again while
    there is budget; at once if the best has reached the task's `bound` for all mappings, and so is proved optimal.

    Parameters
    ----------
    width : int
        Mappings kept.

    Source: Parashar et al., "Timeloop: A Systematic Approach to DNN Accelerator Evaluation", ISPASS 2019, for mapspaces
    and their search by a model; Yang et al., "Interstellar", ASPLOS 2020, for what of a mapping matters.

    Examples
    --------
    >>> problem = MappingProblem(256, 256, 256, kib=8)
    >>> found, history = MappingSearch().search(problem.space, problem, budget=300, seed=0)
    >>> problem.regret(found), len(history) <= 300
    (0.0, True)
    """

    width: int = 4

    def __post_init__(self) -> None:
        if not (isinstance(self.width, int) and self.width >= 1):
            raise ValueError(f"width: expected a positive integer, got {self.width!r}")

    def problem(self, shape: Mapping[str, Any]) -> MappingProblem:
        """What is searched for a shape of an operand workload: m, n, k, and the buffer's `kib`."""
        return MappingProblem(**shape)

    def search(
        self, space: Mapping[str, tuple[Any, ...]], task: Any, budget: float, seed: int
    ) -> tuple[dict[str, Any], History]:
        """Search until the budget is spent, the space is, or the best is proved to be the optimum.

        Parameters
        ----------
        space : mapping of str to tuple
            The values of each choice, sizes ascending.
        task : object
            ``task.evaluate(candidate)`` gives a score, higher is better, minus infinity where it is no mapping;
            ``task.cost(candidate)`` what it costs; ``task.bound``, if there is one, a score that none exceeds.
        budget : float
            Evaluations.
        seed : int

        Returns
        -------
        best : dict
        history : list of (dict, float, float)
            Each mapping in the order of evaluation, its score, and the cost spent up to it.

        Raises
        ------
        ValueError
            If the budget does not pay for one evaluation.
        """
        generator = random.Random(seed)
        history: History = []
        known: dict[tuple[Any, ...], float] = {}
        bound, idle = getattr(task, "bound", inf), 0

        def spent(candidates: Iterable[dict[str, Any]]) -> bool:
            """Evaluate those that are new; whether the search is over."""
            for candidate in candidates:
                key = tuple(candidate.values())
                if key in known:
                    continue
                if not evaluated(task, candidate, budget, history):
                    return True
                known[key] = history[-1][1]
                if known[key] >= bound:
                    return True
            return False

        while idle < IDLE:
            before, beam = len(known), self._start(space, task, generator)
            if spent(beam):
                return best(history, budget), history
            while True:
                around = [near for candidate in beam for near in neighbours(candidate, space, task.fits)]
                if spent(around):
                    return best(history, budget), history
                ranked = sorted([*beam, *around], key=lambda c: -known[tuple(c.values())])
                kept = list({tuple(c.values()): c for c in ranked}.values())[: self.width]
                if kept == beam:
                    break
                beam = kept
            idle = idle + 1 if len(known) == before else 0
        return best(history, budget), history

    def _start(self, space: Mapping[str, tuple[Any, ...]], task: Any, generator: random.Random) -> list[dict[str, Any]]:
        """Mappings to begin with: extents drawn one after another among those that fit, the last as large as may be."""
        first, *sizes = space
        started = []
        for order in space[first]:
            tile = {choice: space[choice][0] for choice in sizes}
            for choice in generator.sample(sizes, len(sizes)):
                tile[choice] = generator.choice([v for v in space[choice] if task.fits({**tile, choice: v})])
            started.append({first: order, **grown(tile, generator.sample(sizes, len(sizes)), space, task.fits)})
        return started


def grown(
    tile: Mapping[str, Any], choices: Iterable[str], space: Mapping[str, tuple[Any, ...]], fits: Callable[..., bool]
) -> dict[str, Any]:
    """A tile with each of the extents in turn as large as still fits.

    Examples
    --------
    >>> grown({"m": 1, "n": 1}, "nm", {"m": (1, 2, 4), "n": (1, 2, 4)}, lambda tile: tile["m"] * tile["n"] <= 8)
    {'m': 2, 'n': 4}
    """
    tile = dict(tile)
    for choice in choices:
        tile[choice] = max(v for v in space[choice] if v == tile[choice] or fits({**tile, choice: v}))
    return tile


def neighbours(
    candidate: Mapping[str, Any], space: Mapping[str, tuple[Any, ...]], fits: Callable[..., bool]
) -> list[dict[str, Any]]:
    """Another order; or an extent a size down, and the others grown, one of them first.

    Examples
    --------
    >>> space = {"order": ("a", "b"), "m": (1, 2, 4), "n": (1, 2, 4)}
    >>> neighbours({"order": "a", "m": 2, "n": 4}, space, lambda tile: tile["m"] * tile["n"] <= 8)
    [{'order': 'b', 'm': 2, 'n': 4}, {'order': 'a', 'm': 4, 'n': 2}]
    """
    first, *sizes = space
    found = [{**candidate, first: other} for other in space[first] if other != candidate[first]]
    for choice in sizes:
        at = space[choice].index(candidate[choice])
        if at:
            less = {c: candidate[c] for c in sizes} | {choice: space[choice][at - 1]}
            for others in permutations(c for c in sizes if c != choice):
                near = {first: candidate[first], **grown(less, (*others, choice), space, fits)}
                if near not in found and near != candidate:
                    found.append(near)
    return found
