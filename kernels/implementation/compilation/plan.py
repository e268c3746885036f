"""Where each result lies: one arena for all of them, in which places are used again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Life", "place"]


@dataclass(frozen=True)
class Life:
    """A buffer of `size` numbers that is written at step `first` and last read at step `last`."""

    size: int
    first: int
    last: int


def place(lives: Mapping[int, Life], align: int = 16, reuse: bool = True) -> tuple[dict[int, int], int]:
    """Offsets in an arena such that buffers alive at one time do not overlap: the largest first, each as low as it
    goes.

    Parameters
    ----------
    lives : dict of int to Life
    align : int
        Offsets are multiples of it.
    reuse : bool
        If not, every buffer has a place of its own.

    Returns
    -------
    offsets : dict of int to int
    size : int
        Of the arena.

    Examples
    --------
    >>> place({0: Life(100, 0, 1), 1: Life(50, 1, 2), 2: Life(80, 2, 3)}, align=1)
    ({0: 0, 2: 0, 1: 100}, 150)
    """
    offsets: dict[int, int] = {}
    for key in sorted(lives, key=lambda k: (-lives[k].size, lives[k].first)):
        life, at = lives[key], 0
        clashing = [o for o in offsets if not reuse or (lives[o].first <= life.last and life.first <= lives[o].last)]
        for other in sorted(clashing, key=lambda o: offsets[o]):
            if offsets[other] >= at + life.size:
                break
            at = max(at, -(-(offsets[other] + lives[other].size) // align) * align)
        offsets[key] = at
    return offsets, max((offsets[k] + lives[k].size for k in lives), default=0)
