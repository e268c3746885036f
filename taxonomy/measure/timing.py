"""Contestants timed against each other: warmed up, interleaved round by round, one thread, no garbage collection."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

__all__ = ["ROUNDS", "interleave", "orders"]

ROUNDS = 15
LEAST = 0.002
"""Seconds that one sample lasts at least: short calls are repeated within it."""


def interleave(contestants: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds per call of each contestant in each round.

    Whom a contestant follows, and so what it finds in the caches, changes from round to round (`orders`).

    Examples
    --------
    >>> times = interleave({"self": lambda: sum(range(100)), "baseline": lambda: sum(range(1000))}, rounds=3)
    >>> sorted(times), len(times["self"])
    (['baseline', 'self'], 3)
    """
    repeats = {who: _repeats(call) for who, call in contestants.items()}
    times: dict[str, list[float]] = {who: [] for who in contestants}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for order in orders(list(contestants), rounds):
            for who in order:
                call, count = contestants[who], repeats[who]
                start = perf_counter()
                for _ in range(count):
                    call()
                times[who].append((perf_counter() - start) / count)
    finally:
        if enabled:
            gc.enable()
    return times


def orders(names: list[str], rounds: int) -> list[list[str]]:
    """An order a round, such that each follows each other equally often.

    The first order zigzags, so that neighbours lie at every distance once; each round turns it by one place. An even
    number of contestants is balanced after as many rounds, an odd one after twice as many, half of them backwards.

    Examples
    --------
    >>> ["".join(order) for order in orders(list("abcd"), 4)]
    ['abdc', 'bcad', 'cdba', 'dacb']
    """
    count = len(names)
    zigzag = [(place + 1) // 2 if place % 2 else -place // 2 for place in range(count)]
    turned = [[names[(place + turn) % count] for place in zigzag] for turn in range(rounds)]
    return [order[::-1] if turn // count % 2 else order for turn, order in enumerate(turned)]


def _repeats(call: Callable[[], Any]) -> int:
    """Warm up (compile, fill caches), then see how many calls a sample needs."""
    call()
    start = perf_counter()
    call()
    return max(1, round(LEAST / max(perf_counter() - start, 1e-7)))
