"""Matrix product by hashing and table lookup: no multiplication where one operand is known beforehand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numba import njit

from kernels.arithmetic.prepared_product import Prepared, PreparedProduct
from kernels.arrays import as_array, describe

__all__ = ["HashTrees", "LutMatmul", "Tables", "learn_trees", "plain_encode", "plain_prototypes"]

LEVELS = 4
LEAVES = 2**LEVELS
CANDIDATES = 4
"""Columns that a level of a tree is split by at most: those along which its rows vary most."""
STREAM = b"rows"
"""Beside a seed, so that rows to learn from are never the numbers that another draws from the same seed."""
BLOCK = 256
"""Columns of the result that are made at a time, so that their tables stay in a near cache."""


@dataclass(frozen=True, eq=False)
class HashTrees:
    """A balanced binary tree for each codebook; all nodes of one level ask for the same entry of a row.

    Attributes
    ----------
    columns : ndarray of int64, shape (codebooks, 4)
        The entry that each level asks for.
    thresholds : ndarray of float32, shape (codebooks, 16)
        Of node i, the root being 1 and the children of i being 2 i and 2 i + 1: right where the entry is larger.
    prototypes : ndarray of float64, shape (codebooks * 16, k)
        A row stands for the sum of one prototype of each codebook.
    """

    columns: np.ndarray
    thresholds: np.ndarray
    prototypes: np.ndarray


def plain_encode(x: np.ndarray, columns: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The definition: the leaf that each row falls into, in each codebook; ints of shape (m, codebooks).

    Examples
    --------
    >>> one_level = np.zeros((1, 16), np.float32)                   # every node asks: is entry 0 above 0?
    >>> plain_encode(np.float32([[-1.0], [1.0]]), np.zeros((1, 4), int), one_level)
    array([[ 0],
           [15]])
    """
    codes = np.empty((len(x), len(columns)), np.int64)
    for i, row in enumerate(x):
        for c, (asked, threshold) in enumerate(zip(columns, thresholds, strict=True)):
            node = 1
            for column in asked:
                node = 2 * node + int(row[column] > threshold[node])
            codes[i, c] = node - LEAVES
    return codes


def plain_prototypes(x: np.ndarray, codes: np.ndarray, ridge: float) -> np.ndarray:
    """The definition: ridge regression of the rows on their one-hot codes, P = (G'G + ridge I)^-1 G'X."""
    hot = (codes[:, :, None] == np.arange(LEAVES)).reshape(len(x), -1).astype(np.float64)
    return np.linalg.solve(hot.T @ hot + ridge * np.eye(hot.shape[1]), hot.T @ x.astype(np.float64))


def learn_trees(x: np.ndarray, subspace: int, ridge: float) -> HashTrees:
    """Trees and prototypes for rows such as these.

    A codebook has `subspace` neighbouring entries of a row. Level by level, all its leaves are split by that entry,
    each at that threshold, which leave the smallest squared distance between rows and the mean of their leaf; tried are
    the four entries along which the rows of a leaf vary most. Then all prototypes together are fitted to whole rows.

    Parameters
    ----------
    x : ndarray of float32, shape (rows, k)
    subspace : int
    ridge : float
        Weight of the prototypes' squares.

    Returns
    -------
    HashTrees
    """
    rows, k = x.shape
    count = -(-k // subspace)
    columns = np.zeros((count, LEVELS), np.int64)
    thresholds = np.full((count, LEAVES), np.inf, np.float32)
    codes = np.zeros((rows, count), np.uint8)
    for c in range(count):
        first, last = c * subspace, min((c + 1) * subspace, k)
        part = np.ascontiguousarray(x[:, first:last], np.float64)
        _grow(part, columns[c], thresholds[c], codes[:, c])
        columns[c] += first
    gram, moments = np.zeros((count * LEAVES,) * 2), np.zeros((count * LEAVES, k))
    _moments(codes, np.ascontiguousarray(x), gram, moments)
    gram[np.diag_indices_from(gram)] += ridge
    return HashTrees(columns, thresholds, np.linalg.solve(gram, moments))


@dataclass(frozen=True, eq=False)
class Tables(Prepared):
    """A constant right operand as tables.

    Attributes
    ----------
    tables : ndarray of uint8, shape (codebooks * 16, n)
        The product of each prototype with each column, above the smallest of its codebook, in units of `scales`.
    scales, offsets : ndarray of float32, shape (n,)
    """

    trees: HashTrees
    tables: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of what a product reads: tables, trees, scales and offsets; the prototypes are no longer needed."""
        trees = self.trees.columns.nbytes + self.trees.thresholds.nbytes
        return self.tables.nbytes + trees + self.scales.nbytes + self.offsets.nbytes


@dataclass(frozen=True)
class LutMatmul(PreparedProduct):
    """Matrix product without multiplications: hash a row, look up products of its prototypes, add.

        A ~ G P,    A B ~ G (P B),      G one-hot: one prototype of 16 for each codebook

    P B is known before A is: a table of 16 numbers for each codebook and column, in 8 bits. A row is hashed by trees of
    four comparisons, one tree for each `subspace` entries, so that k multiply-adds become k / subspace lookups and
    additions. It is exact for rows that are sums of prototypes and wrong otherwise: the trees and the prototypes are
    learned from rows like those to come (`fit`).

    Parameters
    ----------
    subspace : int
        Entries of a row that share a codebook.
    ridge : float
        Of the regression that fits the prototypes, at least 0.
    seed : int
        Of the normally distributed rows that an operator learns from which was not fitted.

    Notes
    -----
    Source: Blalock and Guttag, "Multiplying matrices without multiplying" (MADDNESS), ICML 2021, arXiv 2106.10860:
    balanced trees, ridge regression of the prototypes, tables of 8 bits. Sums here are exact in 16
    bits, where the paper averages in 8; thresholds are floats, where the paper rounds rows to 8 bits.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.choice([-1.0, 1.0], (512, 4)) @ rng.standard_normal((4, 32))     # rows of 16 kinds
    >>> w = rng.standard_normal((32, 64))
    >>> operator = LutMatmul().fit(w, x)
    >>> weights = operator.prepare(w)
    >>> weights.tables.shape, bool(np.abs(operator.matmul(x, weights) - x @ w).max() < 0.02 * np.abs(x @ w).max())
    ((64, 64), True)
    """

    subspace: int = 8
    ridge: float = 1.0
    seed: int = 0
    _trees: HashTrees | None = field(default=None, compare=False, repr=False)

    operand_bits = 32
    arithmetic = "a comparison and a lookup among 16 entries"

    def __post_init__(self) -> None:
        if not isinstance(self.subspace, int) or isinstance(self.subspace, bool) or self.subspace < 1:
            raise ValueError(f"subspace: expected a positive integer, got {self.subspace!r}")
        if not 0 <= self.ridge < np.inf:
            raise ValueError(f"ridge: expected a number of at least 0, got {self.ridge!r}")

    def fit(self, w: Any, x: Any) -> LutMatmul:
        """The operator with trees and prototypes learned from rows.

        Parameters
        ----------
        w : array_like or torch.Tensor of shape (k, n)
            The weights, of which only the shape matters here.
        x : array_like or torch.Tensor of shape (rows, k)
            Rows like those to be multiplied.

        Raises
        ------
        TypeError, ValueError
            If an operand is not a matrix of finite real numbers, the shapes do not fit, or there is no row.
        """
        matrix, rows = _finite(w, "w"), _finite(x, "x")
        if rows.shape[1] != len(matrix) or not rows.size:
            raise ValueError(
                f"x: expected rows of {len(matrix)} entries, as w of shape {matrix.shape}, got {describe(x)}"
            )
        return replace(self, _trees=learn_trees(rows, self.subspace, self.ridge))

    def prepare(self, w: Any) -> Tables:
        """Multiply the prototypes by a constant right operand, once, and round the products to 8 bits.

        Parameters
        ----------
        w : array_like or torch.Tensor of shape (k, n)

        Raises
        ------
        TypeError, ValueError
            If `w` is not a matrix of finite real numbers, or the operator was fitted to rows of another length.
        """
        matrix = _finite(w, "w")
        trees = self._trees
        if trees is None:
            rng = np.random.default_rng((self.seed, *STREAM))
            rows = rng.standard_normal((2048, len(matrix)), np.float32)
            trees = learn_trees(rows, self.subspace, self.ridge)
        if trees.prototypes.shape[1] != len(matrix):
            raise ValueError(f"w: expected {trees.prototypes.shape[1]} rows, as fitted, got {describe(w)}")
        products = (trees.prototypes @ matrix).reshape(-1, LEAVES, matrix.shape[1])
        lowest = products.min(1)
        scales = (products.max(1) - lowest).max(0) / 255 if len(products) else np.zeros(matrix.shape[1])
        steps = np.where(scales > 0, scales, 1)
        tables = np.rint((products - lowest[:, None, :]) / steps).astype(np.uint8).reshape(-1, matrix.shape[1])
        return Tables(
            self, (matrix.shape[0], matrix.shape[1]), trees, tables,
            steps.astype(np.float32), lowest.sum(0).astype(np.float32),
        )  # fmt: skip

    def _times(self, x: np.ndarray, w: Tables) -> np.ndarray:
        codes = encode(x.astype(np.float32, copy=False), w.trees)
        out = np.empty((len(x), w.shape[1]), np.float32)
        _look_up(codes, w.tables, w.scales, w.offsets, out)
        return out

    def energy(self, macs: int, moved: int) -> float:
        """There is none: the cited table has no coefficient for a lookup in a table of 16 entries."""
        raise KeyError(f"no cited energy for {self.arithmetic}")


def encode(x: np.ndarray, trees: HashTrees) -> np.ndarray:
    """The leaf of each row in each codebook, as the row of its table: uint8 of shape (m, codebooks)."""
    codes = np.empty((len(x), len(trees.columns)), np.uint8)
    _encode(np.ascontiguousarray(x), trees.columns, trees.thresholds, codes)
    return codes


def _finite(x: Any, name: str) -> np.ndarray:
    matrix = np.ascontiguousarray(as_array(x, name, ndim=2, dtype=np.float32))
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name}: expected finite numbers to learn from, got infinity or NaN")
    return matrix


@njit(cache=True, nogil=True)
def _encode(x, columns, thresholds, codes):
    # eight rows at a time: a comparison waits for the one before it, those of other rows do not
    m, count = codes.shape
    for i0 in range(0, m - m % 8, 8):
        for c in range(count):
            n0 = n1 = n2 = n3 = n4 = n5 = n6 = n7 = 1
            nodes = thresholds[c]
            for level in range(4):
                at = columns[c, level]
                n0 = 2 * n0 + (x[i0, at] > nodes[n0])
                n1 = 2 * n1 + (x[i0 + 1, at] > nodes[n1])
                n2 = 2 * n2 + (x[i0 + 2, at] > nodes[n2])
                n3 = 2 * n3 + (x[i0 + 3, at] > nodes[n3])
                n4 = 2 * n4 + (x[i0 + 4, at] > nodes[n4])
                n5 = 2 * n5 + (x[i0 + 5, at] > nodes[n5])
                n6 = 2 * n6 + (x[i0 + 6, at] > nodes[n6])
                n7 = 2 * n7 + (x[i0 + 7, at] > nodes[n7])
            codes[i0, c], codes[i0 + 1, c], codes[i0 + 2, c], codes[i0 + 3, c] = n0 - 16, n1 - 16, n2 - 16, n3 - 16
            codes[i0 + 4, c], codes[i0 + 5, c], codes[i0 + 6, c], codes[i0 + 7, c] = n4 - 16, n5 - 16, n6 - 16, n7 - 16
    for i in range(m - m % 8, m):
        for c in range(count):
            node = 1
            for level in range(4):
                node = 2 * node + (x[i, columns[c, level]] > thresholds[c, node])
            codes[i, c] = node - 16


@njit(cache=True, nogil=True)
def _look_up(codes, tables, scales, offsets, out):
    (m, count), n = codes.shape, out.shape[1]
    sums, whole = np.empty(BLOCK, np.uint16), np.empty(BLOCK, np.uint32)
    for j0 in range(0, n, BLOCK):
        width = min(BLOCK, n - j0)
        narrow, wide = sums[:width], whole[:width]
        for i in range(m):
            row = codes[i]
            wide[:] = 0
            for begin in range(0, count, 256):  # 256 numbers of 8 bits have a sum of 16
                end = min(begin + 256, count)
                narrow[:] = 0
                fours = end - (end - begin) % 4
                for c in range(begin, fours, 4):
                    a = tables[c * 16 + row[c], j0 : j0 + width]
                    b = tables[c * 16 + 16 + row[c + 1], j0 : j0 + width]
                    d = tables[c * 16 + 32 + row[c + 2], j0 : j0 + width]
                    e = tables[c * 16 + 48 + row[c + 3], j0 : j0 + width]
                    for t in range(width):
                        four = np.uint16(np.uint16(a[t]) + np.uint16(b[t]) + np.uint16(d[t]) + np.uint16(e[t]))
                        narrow[t] = np.uint16(narrow[t] + four)
                for c in range(fours, end):
                    a = tables[c * 16 + row[c], j0 : j0 + width]
                    for t in range(width):
                        narrow[t] = np.uint16(narrow[t] + np.uint16(a[t]))
                for t in range(width):
                    wide[t] = np.uint32(wide[t] + np.uint32(narrow[t]))
            for t in range(width):
                out[i, j0 + t] = np.float32(np.int32(wide[t])) * scales[j0 + t] + offsets[j0 + t]


@njit(cache=True, nogil=True)
def _grow(x, columns, thresholds, codes):
    rows, width = x.shape
    nodes = np.ones(rows, np.int64)
    for level in range(LEVELS):
        first = 2**level
        spread = np.zeros(width)
        for node in range(first, 2 * first):
            inside = x[nodes == node]
            for d in range(width if len(inside) else 0):
                spread[d] += np.sum((inside[:, d] - inside[:, d].mean()) ** 2)
        best, asked = np.inf, 0
        chosen = np.empty(first)
        for d in np.argsort(-spread)[:CANDIDATES]:
            total, found = 0.0, np.empty(first)
            for node in range(first):
                left, found[node] = _split(x[nodes == first + node], d)
                total += left
            if total < best:
                best, asked = total, d
                chosen[:] = found
        columns[level] = asked
        for node in range(first):
            thresholds[first + node] = chosen[node]
        for i in range(rows):
            nodes[i] = 2 * nodes[i] + (np.float32(x[i, asked]) > thresholds[nodes[i]])
    for i in range(rows):
        codes[i] = nodes[i] - LEAVES


@njit(cache=True, nogil=True)
def _split(x, along):
    """The squared distance that the best threshold along a column leaves to the means of both sides, and it."""
    rows, width = x.shape
    if rows == 0:
        return 0.0, np.inf
    order = np.argsort(x[:, along])
    left, right, squares = np.zeros(width), np.zeros(width), 0.0
    for i in range(rows):
        for d in range(width):
            right[d] += x[i, d]
            squares += x[i, d] ** 2
    best, threshold = squares - np.sum(right**2) / rows, np.inf
    for s in range(1, rows):
        row = order[s - 1]
        explained_left, explained_right = 0.0, 0.0
        for d in range(width):
            left[d] += x[row, d]
            right[d] -= x[row, d]
            explained_left += left[d] ** 2
            explained_right += right[d] ** 2
        low, high = np.float32(x[row, along]), np.float32(x[order[s], along])
        rest = squares - explained_left / s - explained_right / (rows - s)
        if low < high and rest < best:
            best, threshold = rest, low + (high - low) / np.float32(2)
            if threshold >= high:
                threshold = low
    return best, threshold


@njit(cache=True, nogil=True)
def _moments(codes, x, gram, moments):
    rows, count = codes.shape
    for i in range(rows):
        for c in range(count):
            at = c * LEAVES + codes[i, c]
            for other in range(count):
                gram[at, other * LEAVES + codes[i, other]] += 1
            for p in range(x.shape[1]):
                moments[at, p] += x[i, p]
