"""Intervals and tests on a handful of repetitions; nothing here knows what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

__all__ = ["benjamini_hochberg", "mean", "median", "p_beyond", "t_interval"]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def t_interval(values: Sequence[float], alpha: float = 0.05) -> tuple[float, float, float]:
    """Mean and two-sided Student-t interval at level 1 - alpha; a single value has no interval (nan).

    Examples
    --------
    >>> centre, low, high = t_interval([1.0, 2.0, 3.0])
    >>> round(centre, 3), round(low, 3), round(high, 3)
    (2.0, -0.484, 4.484)
    """
    centre = mean(values)
    n = len(values)
    if n < 2:
        return centre, math.nan, math.nan
    from scipy.special import stdtrit

    spread = math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (n - 1) / n)
    half = float(stdtrit(n - 1, 1 - alpha / 2)) * spread
    return centre, centre - half, centre + half


def p_beyond(values: Sequence[float], smallest: float) -> float:
    """p-value of the hypothesis that the mean lies within +-smallest, two one-sided Student t tests.

    Values that are all the same show no chance that a test could weigh: they give 1.

    Examples
    --------
    >>> p_beyond([1.0, 1.1, 0.9, 1.0, 1.05], 0.1) < 0.001, p_beyond([0.0, 0.1, -0.1], 0.1), p_beyond([1.0] * 5, 0.1)
    (True, 1.0, 1.0)
    """
    centre = mean(values)
    n = len(values)
    excess = abs(centre) - smallest
    if n < 2 or excess <= 0:
        return 1.0
    spread = math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (n - 1) / n)
    if spread == 0:
        return 1.0
    from scipy.special import stdtr

    return min(1.0, 2 * float(stdtr(n - 1, -excess / spread)))


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjusted p-values that control the false discovery rate (Benjamini and Hochberg, 1995).

    Examples
    --------
    >>> [round(q, 3) for q in benjamini_hochberg([0.01, 0.04, 0.03])]
    [0.03, 0.04, 0.04]
    """
    order = sorted(range(len(p)), key=lambda i: p[i], reverse=True)
    adjusted, least = [1.0] * len(p), 1.0
    for rank, i in zip(range(len(p), 0, -1), order, strict=True):
        least = min(least, p[i] * len(p) / rank)
        adjusted[i] = least
    return adjusted
