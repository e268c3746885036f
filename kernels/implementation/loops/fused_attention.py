"""Fused attention: scores, softmax and weighted sum in tiles, the matrix of scores never stored."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numba import njit

from kernels.arrays import as_array, describe, is_tensor, like
from kernels.simd import LANES, tile_fma, tile_load, tile_store, tile_zero

__all__ = ["Context", "FusedAttention", "memory_access", "plain_attention"]

ROWS = 8
"""Queries of a tile."""
KEYS = 2 * LANES
"""Keys of a register tile."""


def plain_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool = False) -> np.ndarray:
    """softmax(Q Kᵀ / √d) V for one head, as it is written, in float64.

    Examples
    --------
    >>> plain_attention(np.zeros((1, 2)), np.ones((2, 2)), np.array([[1.0], [3.0]]))
    array([[2.]])
    """
    scores = q.astype(np.float64) @ k.astype(np.float64).T / sqrt(q.shape[1])
    if causal:
        scores[np.arange(len(k))[None] > np.arange(len(q))[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ v.astype(np.float64)


def memory_access(n: int, d: int, cache: int) -> dict[str, int]:
    r"""Numbers that cross the edge of a cache of so many numbers, for n queries and keys of d numbers.

    .. math:: \Theta\!\left(n d + n^2\right) \text{ unfused}, \qquad \Theta\!\left(\frac{n^2 d^2}{M}\right) \text{
    fused}

    Counted are the passes of the two algorithms: unfused writes and reads the scores twice; fused reads keys and
    values once for every block of queries, of which M / 4d fit.

    Source: Dao et al., "FlashAttention", arXiv 2205.14135, theorem 2.

    Examples
    --------
    >>> memory_access(4096, 64, 2**16)
    {'unfused': 68157440, 'fused': 8912896}
    """
    rows = max(1, cache // (4 * d))
    return {"unfused": 4 * n * d + 4 * n * n, "fused": 2 * n * d + 2 * n * d * -(-n // rows)}


@dataclass(frozen=True, eq=False)
class Context:
    """Keys and values of every head, transposed and filled up for the tiles; made by `FusedAttention.prepare`.

    Attributes
    ----------
    keys : numpy.ndarray of shape (..., d, columns), float32
    values : numpy.ndarray of shape (..., columns, wide), float32
    shape : tuple of int
        (m, d, e): keys, and numbers of a key and of a value.
    """

    keys: np.ndarray
    values: np.ndarray
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class FusedAttention:
    r"""Exact attention that keeps no more of the scores than a tile.

    .. math:: m' = \max(m, \max_j s_j), \quad l' = e^{m - m'} l + \sum_j e^{s_j - m'}, \quad
              o' = e^{m - m'} o + \sum_j e^{s_j - m'} v_j

    The softmax needs the largest score and the sum before it can divide. Both can be corrected as they become known:
    when a block of keys raises the maximum, what was added so far is scaled down by the same factor. At the end o / l
    is the result, the same as by the definition to rounding. Memory for scores is that of a tile, in place of n².

    Parameters
    ----------
    block : int
        Keys taken at one time.
    causal : bool
        Whether query i sees keys 0 to i alone.

    Source: Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", NeurIPS 2022,
    algorithm 1; the running maximum is that of Milakov and Gimelshein, "Online normalizer calculation for softmax",
    2018.

    Examples
    --------
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 100, 16), np.float32)
    >>> bool(np.abs(FusedAttention().attention(q, k, v) - plain_attention(q, k, v)).max() < 1e-5)
    True
    """

    block: int = 256
    causal: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.block, int) and self.block >= 1):
            raise ValueError(f"block: expected a positive number of keys, got {self.block!r}")

    def prepare(self, context: Any) -> Context:
        """Bring keys and values, of a context that many queries see, into form once.

        Parameters
        ----------
        context : pair of array_like or torch.Tensor, of shapes (..., m, d) and (..., m, e)
            Keys and values. They are copied: a later change is not seen.

        Returns
        -------
        Context

        Raises
        ------
        TypeError, ValueError
            If there are no two arrays of real numbers of such shapes, or there is no key.
        """
        try:
            k, v = context
        except (TypeError, ValueError):
            raise ValueError("context: expected the pair (keys, values)") from None
        keys, values = as_array(k, "k", dtype=np.float32), as_array(v, "v", dtype=np.float32)
        if keys.ndim < 2 or values.ndim < 2 or values.shape[:-1] != keys.shape[:-1]:
            raise ValueError(f"k, v: expected (..., m, d) and (..., m, e), got {describe(k)} and {describe(v)}")
        (*heads, m, d), e = keys.shape, values.shape[-1]
        if not (m and d):
            raise ValueError(f"k: expected at least one key of at least one number, got {describe(k)}")
        block = self._block(m)
        deep, wide = -(-m // block) * block, -(-e // KEYS) * KEYS
        packed = Context(np.zeros((*heads, d, deep), np.float32), np.zeros((*heads, deep, wide), np.float32), (m, d, e))
        packed.keys[..., :m], packed.values[..., :m, :e] = np.swapaxes(keys, -1, -2), values
        return packed

    def attention(self, q: Any, k: Any, v: Any = None) -> Any:
        """Weighted sums of values, for every head.

        Parameters
        ----------
        q : array_like or torch.Tensor of shape (..., n, d)
        k : array_like or torch.Tensor of shape (..., m, d), or Context
            The keys, or keys and values as `prepare` gives them.
        v : array_like or torch.Tensor of shape (..., m, e), optional
            Leading axes, such as batch and heads, are the same for all three.

        Returns
        -------
        numpy.ndarray or torch.Tensor of shape (..., n, e), float32
            A tensor where an operand is one.

        Raises
        ------
        TypeError, ValueError
            If an operand is not real numbers, shapes do not fit, or there is no key.
        """
        if isinstance(k, Context) and v is not None:
            raise ValueError("v: expected nothing beside a prepared context, which holds the values")
        context = k if isinstance(k, Context) else self.prepare((k, v))
        (m, d, e), heads = context.shape, context.keys.shape[:-2]
        left = as_array(q, "q", dtype=np.float32)
        if left.shape[:-2] != heads or left.ndim != len(heads) + 2 or left.shape[-1] != d:
            raise ValueError(f"q: expected {(*heads, 'n', d)}, as the keys have, got {describe(q)}")
        n, block = left.shape[-2], self._block(m)
        seen = 1 if self.causal else m
        if context.keys.shape[-1] % block:
            raise ValueError(f"k: expected a context prepared for blocks of {self.block} keys")
        rows = -(-n // ROWS) * ROWS
        out = np.empty((*heads, n, e), np.float32)
        queries, sums = np.zeros((rows, d), np.float32), np.empty((rows, context.values.shape[-1]), np.float32)
        for head in np.ndindex(*heads):
            if n == 1:
                _attend_one(left[head][0], context.keys[head], context.values[head], seen, out[head][0])
                continue
            queries[:n], sums[:] = left[head] * np.float32(1 / sqrt(d)), 0
            _attend(queries, context.keys[head], context.values[head], m, block, self.causal, sums)
            out[head] = sums[:n, :e]
        return like(out, next((x for x in (q, k, v) if is_tensor(x)), None))

    def supports(self, layer: Any, format: Any = None) -> bool:
        """False: attention holds no weights, so no layer of a network stands for it."""
        return False

    def _block(self, m: int) -> int:
        return -(-min(self.block, m) // KEYS) * KEYS


@njit(cache=True, nogil=True, inline="always")
def _exponential(x):
    """e^x to two units in the last place: a power of two by the exponent's bits, a polynomial for the rest."""
    y = (np.float32(-87) if x < np.float32(-87) else x) * np.float32(1.4426950408889634)  # NaN stays NaN
    whole = np.floor(y + np.float32(0.5))
    t = (y - whole) * np.float32(0.6931471805599453)
    p = np.float32(1.0 / 720)
    p = p * t + np.float32(1.0 / 120)
    p = p * t + np.float32(1.0 / 24)
    p = p * t + np.float32(1.0 / 6)
    p = p * t + np.float32(0.5)
    p = (p * t + np.float32(1)) * t + np.float32(1)
    return p, np.int32(whole)


@njit(cache=True, nogil=True, fastmath={"contract"})
def _attend(q, k, v, m, block, causal, out):
    (n, d), deep, wide = q.shape, k.shape[1], v.shape[1]
    left, right, values, sums = q.reshape(-1), k.reshape(-1), v.reshape(-1), out.reshape(-1)
    scores, powers = np.empty(ROWS * block, np.float32), np.empty(block, np.int32)
    scales = powers.view(np.float32)
    largest, total = np.empty(ROWS, np.float32), np.empty(ROWS, np.float32)
    for i0 in range(0, n, ROWS):
        largest[:], total[:] = -np.inf, 0
        for j0 in range(0, deep, block):
            if causal and j0 > i0 + ROWS - 1:
                break
            for j in range(0, block, KEYS):
                tile = tile_zero(ROWS, 2, LANES)
                for p in range(d):
                    tile = tile_fma(tile, left, i0 * d + p, d, right, p * deep + j0 + j)
                tile_store(tile, scores, j, block)
            for r in range(ROWS):
                row = scores[r * block : (r + 1) * block]
                seen = min(block, m - j0)
                if causal:
                    seen = min(seen, i0 + r - j0 + 1)
                high = largest[r]
                for j in range(seen):
                    high = max(high, row[j])
                factor = np.exp(largest[r] - high) if largest[r] != high else np.float32(1)
                if factor != 1:
                    for e in range(wide):
                        sums[(i0 + r) * wide + e] *= factor
                for j in range(block):
                    x = row[j] - high
                    value, power = _exponential(x)
                    row[j], powers[j] = value, (power + np.int32(127)) << np.int32(23)
                added = np.float32(0)
                for j in range(max(0, seen)):
                    row[j] *= scales[j]
                for j in range(max(0, seen)):
                    added += row[j]
                for j in range(max(0, seen), block):
                    row[j] = 0
                total[r], largest[r] = total[r] * factor + added, high
            for e in range(0, wide, KEYS):
                tile = tile_load(sums, i0 * wide + e, wide, ROWS, 2, LANES)
                for j in range(block):
                    tile = tile_fma(tile, scores, j, block, values, (j0 + j) * wide + e)
                tile_store(tile, sums, i0 * wide + e, wide)
        for r in range(ROWS):
            share = np.float32(1) / total[r]
            for e in range(wide):
                sums[(i0 + r) * wide + e] *= share


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _attend_one(q, k, v, seen, out):
    """One query, as in generating: its scores are a vector, a tile of queries would be empty but for a row."""
    scores, sums = np.zeros(seen, np.float32), np.zeros(v.shape[1], np.float32)
    root = np.float32(1 / np.sqrt(q.size))
    for p in range(q.size):
        factor = q[p] * root
        for j in range(seen):
            scores[j] += factor * k[p, j]
    high = scores[0]
    for j in range(seen):
        high = max(high, scores[j])
    total = np.float32(0)
    for j in range(seen):
        scores[j] = np.exp(scores[j] - high)
        total += scores[j]
    for j in range(seen):
        for e in range(sums.size):
            sums[e] += scores[j] * v[j, e]
    for e in range(out.size):
        out[e] = sums[e] / total
