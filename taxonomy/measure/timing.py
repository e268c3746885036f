"""Contestants timed against each other: warmed up, interleaved round by round, one thread, no garbage collection."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

__all__ = ["ROUNDS", "interleave"]

ROUNDS = 15
LEAST = 0.002
"""Seconds that one sample lasts at least: short calls are repeated within it."""


def interleave(contestants: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds per call of each contestant in each round.

    The order turns by one place each round, so that nobody always follows the same neighbour.

    Examples
    --------
    >>> times = interleave({"self": lambda: sum(range(100)), "baseline": lambda: sum(range(1000))}, rounds=3)
    >>> sorted(times), len(times["self"])
    (['baseline', 'self'], 3)
    """
    repeats = {who: _repeats(call) for who, call in contestants.items()}
    order = list(contestants)
    times: dict[str, list[float]] = {who: [] for who in order}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for who in order:
                call, count = contestants[who], repeats[who]
                start = perf_counter()
                for _ in range(count):
                    call()
                times[who].append((perf_counter() - start) / count)
            order = order[1:] + order[:1]
    finally:
        if enabled:
            gc.enable()
    return times


def _repeats(call: Callable[[], Any]) -> int:
    """Warm up (compile, fill caches), then see how many calls a sample needs."""
    call()
    start = perf_counter()
    call()
    return max(1, round(LEAST / max(perf_counter() - start, 1e-7)))
