"""Where to keep a state when only so many may be kept: the fewest computations of a chain's layers again."""

from __future__ import annotations

from functools import cache
from math import comb

__all__ = ["advances", "fewest_advances", "split"]


@cache
def advances(n: int, slots: int) -> int:
    r"""The fewest layers run without a graph, to go back through n layers with so many states kept beside the input.

    .. math:: t(n, s) = \min_{0 < m < n} \; m + t(n - m, s - 1) + t(m, s), \qquad t(1, s) = 0, \quad
              t(n, 0) = n (n - 1) / 2

    Go forward to m and keep that state; go back through what lies behind it, with a state fewer to spare; then, with
    the state free again, through what lies before it. Beside these runs each layer runs once with a graph.

    Parameters
    ----------
    n, slots : int

    Examples
    --------
    >>> [advances(10, slots) for slots in (0, 1, 2, 3, 9)]
    [45, 20, 15, 14, 9]
    """
    if n == 1:
        return 0
    return n * (n - 1) // 2 if slots == 0 else _cost(n, slots, split(n, slots))


@cache
def split(n: int, slots: int) -> int:
    """The layer before which the state is kept: the m of the least `advances`, the last of several."""
    return n - 1 if slots == 0 else min(range(n - 1, 0, -1), key=lambda m: _cost(n, slots, m))


def _cost(n: int, slots: int, m: int) -> int:
    return m + advances(n - m, slots - 1) + advances(m, slots)


def fewest_advances(n: int, slots: int) -> int:
    r"""The same in closed form, with β(s, r) = C(s + r, s) and the least r for which n ≤ β(s + 1, r).

    .. math:: t(n, s) = r n - \beta(s + 2, r - 1)

    Source: Griewank and Walther, "Algorithm 799: revolve", 2000; there the input counts as one of the states.

    Examples
    --------
    >>> all(advances(n, s) == fewest_advances(n, s) for n in range(1, 40) for s in range(6))
    True
    """
    if n == 1:
        return 0
    r = next(r for r in range(n + 1) if n <= comb(slots + 1 + r, r))
    return r * n - comb(slots + 1 + r, r - 1)
