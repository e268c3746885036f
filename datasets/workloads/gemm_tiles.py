"""The time of a matrix product by each of 126 programs, at three shapes, measured five times: the optimum is known.

A search over it costs lookups. It sees one measurement of each program, as a real tuner would; how well it chose is
judged by the mean of the others. Made by ``python -m taxonomy.measure.schedules`` on the machine that the card
names; another machine has other times, and a reader's own tuner measures those.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

from datasets.card import ROOT, read_card, verified_bytes

__all__ = ["SHAPES", "TileSearch", "TileTask", "workload"]

SHAPES = ((512, 512, 512), (32, 1024, 1024), (2048, 64, 512))
"""m, n, k: a square product, a layer with a small batch, a layer of few outputs on many rows."""


@dataclass(frozen=True)
class TileTask:
    """What a search may ask for: the time of a program at one shape, in one measurement."""

    times: Mapping[tuple[Any, ...], tuple[float, ...]]
    choices: tuple[str, ...]
    repeat: int

    def evaluate(self, candidate: Mapping[str, Any]) -> float:
        """Minus the seconds of a product."""
        return -self.times[tuple(candidate[c] for c in self.choices)][self.repeat]

    def cost(self, candidate: Mapping[str, Any]) -> int:
        """One measurement."""
        return 1


@dataclass(frozen=True)
class TileSearch:
    """Programs for matrix products, and how long each took.

    Parameters
    ----------
    id : str
    space : mapping of str to tuple
    times : mapping of shape to mapping of program to seconds
        Of each shape, for each combination of values in the order of the choices, the seconds of each measurement.

    Examples
    --------
    >>> tiles = workload()
    >>> task = tiles.task(seed=0)
    >>> tiles.regret(tiles.best(0), 0), task.evaluate(tiles.best(0)) > task.evaluate({"mc": 8, "kc": 16, "lanes": 4})
    (0.0, True)
    """

    id: str
    space: Mapping[str, tuple[Any, ...]]
    times: Mapping[tuple[int, ...], Mapping[tuple[Any, ...], tuple[float, ...]]]
    budgets: tuple[int, ...] = (8, 16, 32)

    def _of(self, seed: int) -> tuple[Mapping[tuple[Any, ...], tuple[float, ...]], int]:
        """The table of the seed's shape, and which measurement of it the seed shows."""
        shapes = list(self.times)
        table = self.times[shapes[seed % len(shapes)]]
        return table, seed // len(shapes) % len(next(iter(table.values())))

    def task(self, seed: int) -> TileTask:
        """The task of a seed: shapes take turns, and measurements with them."""
        return TileTask(*self._of(seed)[:1], tuple(self.space), self._of(seed)[1])

    def _unseen(self, seed: int) -> dict[tuple[Any, ...], float]:
        """Mean seconds of each program in the measurements that the seed's task does not show."""
        table, shown = self._of(seed)
        return {key: mean(t for i, t in enumerate(times) if i != shown) for key, times in table.items()}

    def best(self, seed: int) -> dict[str, Any]:
        """The fastest program at the seed's shape, by what its task does not show."""
        fastest = min(self._unseen(seed).items(), key=lambda item: item[1])[0]
        return dict(zip(self.space, fastest, strict=True))

    def regret(self, candidate: Mapping[str, Any], seed: int) -> float:
        """By what share the program is slower than the fastest."""
        unseen = self._unseen(seed)
        return unseen[tuple(candidate[c] for c in self.space)] / min(unseen.values()) - 1

    def figures(self, candidate: Mapping[str, Any], seed: int) -> dict[str, float]:
        """Seconds of a product by the program."""
        return {"latency": self._unseen(seed)[tuple(candidate[c] for c in self.space)]}


def workload() -> TileSearch:
    """The committed table."""
    card = read_card("workloads")["gemm-tiles"]
    content = verified_bytes(ROOT / "workloads" / card["file"], card["sha256"], rebuild="taxonomy.measure.schedules")
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    repeats = [name for name in rows[0] if name.startswith("seconds")]
    choices = [name for name in rows[0] if name not in ("m", "n", "k", *repeats)]
    space = {choice: tuple(sorted({int(row[choice]) for row in rows})) for choice in choices}
    times: dict[tuple[int, ...], dict[tuple[Any, ...], tuple[float, ...]]] = {shape: {} for shape in SHAPES}
    for row in rows:
        shape, key = tuple(int(row[d]) for d in "mnk"), tuple(int(row[choice]) for choice in choices)
        times[shape][key] = tuple(float(row[name]) for name in repeats)
    return TileSearch("gemm-tiles", space, times)
