"""Auto-tuning: measure a few programs, learn which ones are fast, and measure next what looks fastest."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from kernels.implementation.loops.loop_tiling import LoopTiling
from kernels.model.architecture_search.random_search import History, best, evaluated

__all__ = ["SCHEDULES", "AutoTuning", "ProductTask", "features", "ranks"]

SCHEDULES: dict[str, tuple[int, ...]] = {
    "mc": (8, 24, 48, 96, 192, 384),
    "kc": (16, 32, 64, 128, 256, 512, 1024),
    "lanes": (4, 8, 16),
}
"""Programs for a matrix product: the block of A, the length of a block of the sum, the width of a vector. Those that
are wider than the machine's are taken in parts."""


def features(candidates: list[dict[str, Any]], space: Mapping[str, tuple[Any, ...]]) -> np.ndarray:
    """What a model knows of a program: sizes as powers of two, their squares and products; other choices one by one.

    Parameters
    ----------
    candidates : list of dict
    space : mapping of str to tuple
        The values of each choice.

    Returns
    -------
    ndarray of shape (candidates, features)

    Examples
    --------
    >>> features([{"mc": 8}, {"mc": 32}], {"mc": (8, 32)})
    array([[ 1., -1.,  1.],
           [ 1.,  1.,  1.]])
    """
    columns, sizes = [np.ones(len(candidates))], []
    for choice, values in space.items():
        if all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in values) and len(values) > 1:
            logs = np.log2(values)
            middle, half = (logs.max() + logs.min()) / 2, (logs.max() - logs.min()) / 2 or 1.0
            sizes.append((np.log2([c[choice] for c in candidates]) - middle) / half)
        else:
            columns += [np.array([float(c[choice] == v) for c in candidates]) for v in values]
    columns += sizes + [a * b for a, b in itertools.combinations_with_replacement(sizes, 2)]
    return np.stack(columns, 1)


def ranks(scores: np.ndarray) -> np.ndarray:
    """Scores from -1, the lowest, to 1; equal ones alike. A tuner needs to know which is faster, and not by how much.

    Examples
    --------
    >>> ranks(np.array([-3.0, -50.0, -4.0, -50.0]))
    array([ 1.        , -0.66666667,  0.33333333, -0.66666667])
    """
    below = (scores[None, :] < scores[:, None]).sum(1)
    equal = (scores[None, :] == scores[:, None]).sum(1)
    return (2 * below + equal - 1) / max(1, len(scores) - 1) - 1


@dataclass(frozen=True)
class AutoTuning:
    r"""Search programs by a model of their speed, which each measurement improves.

    Measure a batch of programs drawn at random. Then, until the budget is spent, fit a model to all that was measured,

    .. math:: \hat f = \arg\min_\beta \sum_i (r_i - \beta^\top \phi(x_i))^2 + \lambda \|\beta\|^2,

    r the ranks of the measured speeds and φ the `features` of a program; measure the programs that it ranks first among
    those not measured yet, and a share ε of others, drawn at random, from which it learns where it is wrong.

    Parameters
    ----------
    batch : int
        Programs measured between two fits.
    explore : float
        ε, from 0 to 1.
    ridge : float
        λ, above 0.

    Source: Chen et al., "Learning to Optimize Tensor Programs", NeurIPS 2018, algorithm 1: a model that ranks, batches,
    and the share ε. There the model is a tree ensemble or a network, and simulated annealing looks for its optimum;
    here the model is quadratic, and the space small enough to rank whole.

    Examples
    --------
    >>> class Valley:
    ...     cost = staticmethod(lambda candidate: 1)
    ...     evaluate = staticmethod(lambda c: -abs(np.log2(c["mc"]) - 5) - abs(np.log2(c["kc"]) - 7))
    >>> found, history = AutoTuning().search(SCHEDULES, Valley(), budget=24, seed=0)
    >>> found["mc"] in (24, 48), found["kc"], len(history)
    (True, 128, 24)
    """

    batch: int = 4
    explore: float = 0.1
    ridge: float = 0.1

    def __post_init__(self) -> None:
        if not (isinstance(self.batch, int) and self.batch >= 1):
            raise ValueError(f"batch: expected a positive integer, got {self.batch!r}")
        if not 0 <= self.explore <= 1:
            raise ValueError(f"explore: expected a share from 0 to 1, got {self.explore!r}")
        if not self.ridge > 0:
            raise ValueError(f"ridge: expected a positive number, got {self.ridge!r}")

    def search(
        self, space: Mapping[str, tuple[Any, ...]], task: Any, budget: float, seed: int
    ) -> tuple[dict[str, Any], History]:
        """Search until the budget, or the space, is spent; no program is measured twice.

        Parameters
        ----------
        space : mapping of str to tuple
            The values of each choice.
        task : object
            ``task.evaluate(candidate)`` gives a score, higher is better; ``task.cost(candidate)`` what it costs.
        budget : float
            In the unit of cost: programs measured.
        seed : int

        Returns
        -------
        best : dict
            The measured program of the highest score.
        history : list of (dict, float, float)
            Each program in the order of measurement, its score, and the cost spent up to it.

        Raises
        ------
        ValueError
            If the budget does not pay for one measurement.
        """
        generator = random.Random(seed)
        left = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
        known = features(left, space)
        history: History = []
        rows: list[np.ndarray] = []
        while left:
            for _ in range(min(self.batch, len(left))):
                at = self._next(known, rows, history, generator)
                if not evaluated(task, left[at], budget, history):
                    return best(history, budget), history
                rows.append(known[at])
                left.pop(at)
                known = np.delete(known, at, 0)
        return best(history, budget), history

    def _next(self, known: np.ndarray, rows: list[np.ndarray], history: History, generator: random.Random) -> int:
        """Which of the programs that are left to measure next; the model is that of the last whole batch."""
        fitted = len(rows) // self.batch * self.batch
        if not fitted or generator.random() < self.explore:
            return generator.randrange(len(known))
        phi, r = np.stack(rows[:fitted]), ranks(np.array([score for _, score, _ in history[:fitted]]))
        beta = np.linalg.solve(phi.T @ phi + self.ridge * np.eye(phi.shape[1]), phi.T @ r)
        return int(np.argmax(known @ beta))


@dataclass(frozen=True, eq=False)
class ProductTask:
    """The speed of a matrix product on this machine, program by program, to be searched; nothing of it is
    deterministic.

    Parameters
    ----------
    m, n, k : int
        C = A B with A of shape (m, k) and B, packed outside the time, of shape (k, n).
    rounds : int
        Calls of which the fastest counts.

    Examples
    --------
    >>> task = ProductTask(16, 16, 16)
    >>> found, history = AutoTuning(batch=2).search({"mc": (8, 16), "kc": (16, 32)}, task, budget=3, seed=0)
    >>> len(history), task.operator(found).matmul(np.ones((1, 2)), np.ones((2, 1)))
    (3, array([[2.]], dtype=float32))
    """

    m: int
    n: int
    k: int
    rounds: int = 3
    operands: tuple[np.ndarray, np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        a, b = rng.standard_normal((self.m, self.k), np.float32), rng.standard_normal((self.k, self.n), np.float32)
        object.__setattr__(self, "operands", (a, b))

    @staticmethod
    def operator(candidate: Mapping[str, Any]) -> LoopTiling:
        """The product by a program."""
        return LoopTiling(**candidate)

    def call(self, candidate: Mapping[str, Any]) -> Callable[[], Any]:
        """One product by a program, to be timed."""
        operator, (a, b) = self.operator(candidate), self.operands
        prepared = operator.prepare(b)
        return lambda: operator.matmul(a, prepared)

    def cost(self, candidate: Mapping[str, Any]) -> int:
        """One measurement."""
        return 1

    def evaluate(self, candidate: Mapping[str, Any]) -> float:
        """Minus the seconds of the fastest of some calls, after one that compiles."""
        call = self.call(candidate)
        call()
        return -min(_seconds(call) for _ in range(self.rounds))


def _seconds(call: Callable[[], Any]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start
