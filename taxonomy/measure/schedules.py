"""Make the table of `datasets.workloads.gemm_tiles`: ``python -m taxonomy.measure.schedules``, two minutes on a
quiet core.

Every measurement is a process of its own, in which all programs of a shape take turns for some rounds; a program's
time is the median of its rounds.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

from datasets.card import ROOT, read_card
from datasets.make import _stamp
from datasets.workloads.gemm_tiles import SHAPES
from kernels.implementation.compilation.auto_tuning import SCHEDULES, ProductTask
from taxonomy.measure.timing import interleave

PROCESSES, ROUNDS = 5, 3


def once() -> Iterator[tuple[tuple[int, ...], float]]:
    """Seconds of every program at every shape, in this process."""
    for shape in SHAPES:
        task = ProductTask(*shape)
        programs = list(itertools.product(*SCHEDULES.values()))
        calls = {str(p): task.call(dict(zip(SCHEDULES, p, strict=True))) for p in programs}
        times = interleave(calls, ROUNDS)
        yield from (((*shape, *p), median(times[str(p)])) for p in programs)


def main() -> None:
    """Measure, write the table, and stamp its card."""
    table: dict[tuple[int, ...], list[float]] = {}
    for _ in range(PROCESSES):
        lines = subprocess.run(
            [sys.executable, "-m", "taxonomy.measure.schedules", "once"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        for line in lines:
            *key, seconds = line.split(",")
            table.setdefault(tuple(map(int, key)), []).append(float(seconds))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["m", "n", "k", *SCHEDULES, *(f"seconds_{i}" for i in range(PROCESSES))])
    writer.writerows([*key, *(f"{t:.3e}" for t in times)] for key, times in table.items())
    content = buffer.getvalue().encode()
    file = ROOT / "workloads" / read_card("workloads")["gemm-tiles"]["file"]
    file.write_bytes(content)
    _stamp(file.parent / "card.yml", "sha256", hashlib.sha256(content).hexdigest(), below="gemm-tiles")
    print(f"{file}: {len(table)} programs")


if __name__ == "__main__":
    if sys.argv[1:] == ["once"]:
        for key, seconds in once():
            print(*key, f"{seconds:.6e}", sep=",")
    else:
        main()
