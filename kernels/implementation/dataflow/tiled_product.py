"""A product whose tiles pass through an on-chip buffer: what crosses the chip's edge, for any order of the loops."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import ceil, sqrt
from typing import Any

import numpy as np

__all__ = ["ORDERS", "Tiling", "best_tiling", "bytes_of", "compulsory_words", "every_tiling", "least_words", "sizes"]

ORDERS = tuple("".join(order) for order in permutations("mnk"))
"""Loops over tiles, the outermost first."""

OPERANDS = {"ifmap": "mk", "filter": "kn", "ofmap": "mn"}
"""The dimensions of each operand of C (m, n) = A (m, k) B (k, n)."""


@dataclass(frozen=True)
class Tiling:
    """Tiles of a product, and the order in which they are taken; each operand has one tile on chip at a time.

    Parameters
    ----------
    order : str
        A permutation of "mnk", the outermost loop first.
    m, n, k : int
        Extents of a tile.

    Examples
    --------
    >>> Tiling("mnk", 8, 8, 64).words(64, 64, 64)     # a row of tiles of A stays while n runs, sums while k does
    {'ifmap': 4096, 'filter': 32768, 'ofmap': 4096}
    """

    order: str
    m: int
    n: int
    k: int

    def words(self, m: int, n: int, k: int) -> dict[str, int]:
        """Words of each operand that cross the chip's edge; partial sums that leave come back.

        A tile stays as long as the loops within do not move it, so an operand is fetched once for each round of all
        loops down to the innermost that indexes it:

            fetches(X) = size(X) x product of the trips of loops outside X's innermost loop that do not index X.

        Parameters
        ----------
        m, n, k : int
            Extents of the product.
        """
        extent = {"m": m, "n": n, "k": k}
        trips = {d: -(-extent[d] // getattr(self, d)) for d in "mnk"}
        counts = {}
        for operand, dims in OPERANDS.items():
            # a loop of one trip moves nothing
            moving = [d for d in self.order if d in dims and trips[d] > 1]
            inner = self.order.index(moving[-1]) if moving else -1
            again = 1
            for d in self.order[: inner + 1]:
                again *= trips[d] if d not in dims else 1
            size = extent[dims[0]] * extent[dims[1]]
            counts[operand] = size * (2 * again - 1 if operand == "ofmap" else again)
        return counts

    def room(self, word: int = 1, sum_word: int = 4) -> int:
        """Bytes on chip: a tile of each operand."""
        return word * (self.m * self.k + self.k * self.n) + sum_word * self.m * self.n


def compulsory_words(m: int, n: int, k: int) -> int:
    """Words that cross at least, whatever the buffer: each operand once."""
    return m * k + k * n + m * n


def least_words(m: int, n: int, k: int, room: int) -> float:
    r"""A bound that no schedule goes below with so many words on chip: the larger of the compulsory ones and

    .. math:: \frac{2 m n k}{\sqrt{S}} - 2 S

    Source: Smith et al., "A Tight I/O Lower Bound for Matrix Multiplication", arXiv 1702.02017; the order of growth is
    that of Hong and Kung, 1981.

    Examples
    --------
    >>> least_words(64, 64, 64, 64), least_words(8, 8, 8, 1 << 20)
    (65408.0, 192.0)
    """
    return float(max(2 * m * n * k / sqrt(room) - 2 * room, compulsory_words(m, n, k)))


def sizes(extent: int, most: int = 24) -> tuple[int, ...]:
    """Extents that a tile may have: powers of two, and those that divide the extent into equal parts.

    Examples
    --------
    >>> sizes(12)
    (1, 2, 3, 4, 6, 8, 12)
    """
    powers = [1 << p for p in range(extent.bit_length()) if 1 << p <= extent]
    parts = {ceil(extent / parts) for parts in range(1, most)}
    return tuple(sorted({*powers, *(p for p in parts if extent % p == 0 or p == extent)}))


def every_tiling(m: int, n: int, k: int) -> np.ndarray:
    """All tiles of a product, shape (tiles, 3): m, n and k of each.

    Examples
    --------
    >>> every_tiling(1, 2, 3).tolist()
    [[1, 1, 1], [1, 1, 2], [1, 1, 3], [1, 2, 1], [1, 2, 2], [1, 2, 3]]
    """
    return np.array(np.meshgrid(sizes(m), sizes(n), sizes(k), indexing="ij")).reshape(3, -1).T


def bytes_of(order: str, tiles: np.ndarray, m: int, n: int, k: int, word: int, sum_word: int) -> np.ndarray:
    """`Tiling.words` of many tiles at once, in bytes, all operands together.

    Examples
    --------
    >>> bytes_of("mnk", np.array([[8, 8, 64]]), 64, 64, 64, word=1, sum_word=4)
    array([40960])
    """
    extent = dict(zip("mnk", (m, n, k), strict=True))
    trips = {d: -(-extent[d] // tiles[:, i].astype(np.int64)) for i, d in enumerate("mnk")}
    total = np.zeros(len(tiles), np.int64)
    for operand, dims in OPERANDS.items():
        again, outside = np.ones(len(tiles), np.int64), np.ones(len(tiles), np.int64)
        for d in order:
            if d in dims:
                again = np.where(trips[d] > 1, outside, again)  # the innermost loop that moves the tile decides
            else:
                outside = outside * trips[d]
        size = extent[dims[0]] * extent[dims[1]]
        if operand == "ofmap":
            total += sum_bytes((2 * again - 1) * size, size, word, sum_word)
        else:
            total += again * size * word
    return total


def best_tiling(m: int, n: int, k: int, room: int, orders: tuple[str, ...], word: int, sum_word: int) -> Tiling:
    """The tiling of fewest bytes among all tiles that fit and the orders given; the least room among equals.

    Raises
    ------
    ValueError
        If not even tiles of one number fit.
    """
    tiles = every_tiling(m, n, k)
    needs = word * (tiles[:, 0] * tiles[:, 2] + tiles[:, 2] * tiles[:, 1]) + sum_word * tiles[:, 0] * tiles[:, 1]
    tiles, needs = tiles[needs <= room], needs[needs <= room]
    if not len(tiles):
        raise ValueError(f"room: {room} bytes do not hold a tile of one number of each operand")
    found = []
    for order in orders:
        total = bytes_of(order, tiles, m, n, k, word, sum_word)
        at = np.lexsort((needs, total))[0]
        found.append((int(total[at]), int(needs[at]), order, tuple(int(t) for t in tiles[at])))
    _, _, order, tile = min(found)
    return Tiling(order, *tile)


def sum_bytes(words: Any, results: int, word: int, sum_word: int) -> Any:
    """Bytes of outputs: finished ones as narrow as operands, partial sums that leave and come back wide."""
    return results * word + (words - results) * sum_word
