"""Does a search for time gain more from tuned kernels than one that counts multiplications?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from kernels.implementation.compilation.auto_tuning import SCHEDULES, AutoTuning, ProductTask
from kernels.implementation.loops.loop_tiling import LoopTiling
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial
from taxonomy.measure.timing import interleave

BATCHES = (1, 64)
LEAST_ACCURATE = 0.8
"""Mean validation accuracy of the networks that are chosen among."""
PROGRAMS = 16
"""Measured when a product is tuned."""
SIDES = {"first": 8, "second": 4, "third": 2}


@dataclass(frozen=True)
class Product:
    """The matrix product of a layer, m pixels of all images by k inputs by n outputs; it is done once a group."""

    m: int
    k: int
    n: int
    groups: int = 1


def products(architecture: Mapping[str, Any], batch: int) -> list[Product]:
    """The products of a network's layers, each convolution as im2col makes it."""
    width = architecture["width"]
    found = [Product(64 * batch, 9, width)]
    for place, side in SIDES.items():
        pixels = side * side * batch
        if architecture[place] == "separable":
            found += [Product(pixels, 9, 1, width), Product(pixels, width, width)]
        elif architecture[place] != "identity":
            found += [Product(pixels, 9 * width, width)]
    return [*found, Product(batch, 4 * width, 10)]


class Experiment(Protocol):
    kind = "hardware-aware-search--auto-tuning"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"batch": batch}, seed, timing=True) for seed in range(REPETITIONS) for batch in BATCHES]

    def contest(self, case: Case) -> Contest:
        """Four cells: the network with the fewest multiplications (`neither`, `target`) and the fastest of as accurate
        ones (`source`, `both`), each with the library's tile sizes and, in the second of the pair, with tuned ones.

        What is fastest is looked up, product by product, under the kernels of the cell.
        """
        table, batch = case.workload, case.setting["batch"]
        every = [dict(zip(table.space, values, strict=True)) for values in table.entries]
        allowed = [a for a in every if mean(table.entry(a).validation) >= LEAST_ACCURATE]
        distinct = sorted({p for a in allowed for p in products(a, batch)}, key=lambda p: (p.m, p.k, p.n, p.groups))
        calls: dict[str, dict[Product, Callable[[], Any]]] = {"untuned": {}, "tuned": {}}
        for product in distinct:
            task = ProductTask(product.m, product.n, product.k)
            found, _ = AutoTuning().search(SCHEDULES, task, PROGRAMS, case.seed)
            calls["tuned"][product] = _repeated(task.call(found), product.groups)
            calls["untuned"][product] = _repeated(_untuned(task), product.groups)
        counted = min(allowed, key=lambda a: table.entry(a).macs)
        contestants = {}
        for kernels, (by_count, by_time) in {"untuned": ("neither", "source"), "tuned": ("target", "both")}.items():
            times = interleave({str(p): call for p, call in calls[kernels].items()}, rounds=5)
            seconds = {p: min(times[str(p)]) for p in distinct}
            fastest = min(allowed, key=lambda a: sum(seconds[p] for p in products(a, batch)))
            for who, chosen in ((by_count, counted), (by_time, fastest)):
                contestants[who] = _sequence([calls[kernels][p] for p in products(chosen, batch)])
        return Contest(contestants, work=float(batch), unit="items")


def _untuned(task: ProductTask) -> Callable[[], Any]:
    operator, (a, b) = LoopTiling(), task.operands
    prepared = operator.prepare(np.asarray(b))
    return lambda: operator.matmul(a, prepared)


def _repeated(call: Callable[[], Any], groups: int) -> Callable[[], Any]:
    def repeated() -> None:
        for _ in range(groups):
            call()

    return repeated


def _sequence(calls: list[Callable[[], Any]]) -> Callable[[], Any]:
    def sequence() -> None:
        for call in calls:
            call()

    return sequence


protocol = Experiment()
