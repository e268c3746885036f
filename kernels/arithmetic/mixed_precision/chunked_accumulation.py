r"""Chunked accumulation: long sums in a short accumulator, cut into pieces so that small terms are not swamped.

A running sum grows while its terms do not. In a float of p significant bits a term is rounded away altogether once the
sum is more than 2^p times as large (*swamping*), and loses bits long before. Adding L terms at a time, and then the
partial sums, keeps both sums short: with Q rounding to the accumulator's format and P to that of the products,

    s_c = Q(s_c + P(a_i b_i))  for the terms i of chunk c,          y = Q(y + s_c)  for one chunk after the other.

The error of n terms grows with L + n / L in place of n, least for L about the root of n. A chunk of one term is the
plain sum. Rounding each addition stochastically is the other remedy: small terms then count with a probability in place
of never. A wide accumulator (FP32) is the third.

Every addition and every product is computed exactly (or to many more bits than twice those of the result), then
rounded once.

Source: N. Wang et al., "Training Deep Neural Networks with 8-bit Floating Point Numbers", NeurIPS 2018, section 3:
operands in FP8 (1, 5, 2), sums in FP16 (1, 6, 9), chunks of 64.

Examples
--------
>>> ones = np.ones(4096, np.float32)
>>> [float(ChunkedAccumulation(chunk=chunk).dot(ones, ones)) for chunk in (1, 16, 64)]
[1024.0, 4096.0, 4096.0]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from kernels.arithmetic.bits import as_float, as_pattern
from kernels.arithmetic.floating_point.grid import nearest, stochastic
from kernels.arithmetic.mixed_precision.rounded_operands import FORMATS, RoundedOperands, grid_of
from kernels.arithmetic.rounding import check_rounding, random_bits

__all__ = ["ChunkedAccumulation", "plain_matmul", "significant_bits"]

BLOCK = 64
"""Sums that are carried along side by side."""
OTHER_SEED = 0x5BD1
"""Added to the seed where chunks are summed: they draw for themselves."""


def significant_bits(name: str) -> int:
    """Of a format's normal numbers, the leading one included.

    Examples
    --------
    >>> significant_bits("fp32"), significant_bits("bfloat16")
    (24, 8)
    """
    return 24 if name == "fp32" else 24 - int(FORMATS[name].grid.shift)


def plain_matmul(a: np.ndarray, b: np.ndarray, chunk: int, product: Any, accumulator: Any) -> np.ndarray:
    """The equation, step by step: all results side by side, one term after the other.

    Parameters
    ----------
    a : ndarray of shape (m, k)
    b : ndarray of shape (k, n)
    chunk : int
    product, accumulator : callable
        From an array of float64 to the nearest numbers of the format.

    Returns
    -------
    ndarray of shape (m, n)
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    total = np.zeros((a.shape[0], b.shape[1]))
    for start in range(0, a.shape[1], chunk):
        partial = np.zeros_like(total)
        for p in range(start, min(start + chunk, a.shape[1])):
            partial = accumulator(partial + product(np.outer(a[:, p], b[p]))).astype(np.float64)
        total = accumulator(total + partial).astype(np.float64)
    return total


@dataclass(frozen=True)
class ChunkedAccumulation(RoundedOperands):
    """Products of matrices whose every product and every addition is rounded to a chosen format.

    Parameters
    ----------
    operands, product, accumulator : str
        "fp32", "fp16", "fp16-e6m9", "bfloat16", "fp8-e4m3" or "fp8-e5m2": what the operands are rounded to first, what
        each product is rounded to, and the format of all sums. FP8 saturates; the others overflow to infinity.
    chunk : int
        Terms of a partial sum. One is the plain sum, from the first term to the last.
    rounding : {"nearest-even", "stochastic"}
        Of the additions. Operands and products always go to the nearest.
    seed : int
        Of stochastic rounding: the same seed gives the same result.

    Notes
    -----
    Emulated: the result is, bit for bit, that of a unit with these formats; the time is not.

    Source: Wang et al. 2018, section 3.

    Examples
    --------
    >>> x = np.random.default_rng(0).random((4, 16384), np.float32)
    >>> for operator in (ChunkedAccumulation(chunk=1), ChunkedAccumulation(), ChunkedAccumulation(accumulator="fp32")):
    ...     print(f"{np.abs(operator.matmul(x, x.T) / (x @ x.T) - 1).max():.2f}")
    0.81
    0.01
    0.01
    """

    operands: str = "fp8-e5m2"
    product: str = "fp32"
    accumulator: str = "fp16-e6m9"
    chunk: int = 64
    rounding: str = "nearest-even"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("operands", "product", "accumulator"):
            if getattr(self, name) not in ("fp32", *FORMATS):
                raise ValueError(f"{name}: expected fp32, {', '.join(FORMATS)}, got {getattr(self, name)!r}")
        if not (isinstance(self.chunk, int) and self.chunk >= 1):
            raise ValueError(f"chunk: expected a positive integer, got {self.chunk!r}")
        check_rounding(self.rounding, ("nearest-even", "stochastic"))
        if self.rounding == "stochastic" and self.accumulator == "fp32":
            raise ValueError("rounding: stochastic rounding is for accumulators narrower than fp32")

    @property
    def _operands(self) -> str:
        return self.operands

    @property
    def operand_format(self) -> str:
        """What a multiply-add costs in energy is cited for FP32 and FP16 into FP32 only."""
        return self.operands if self.accumulator == "fp32" else f"{self.operands} into {self.accumulator}"

    def _product(self, a: np.ndarray, b: np.ndarray, c: np.ndarray, turned: bool) -> None:
        product, accumulator = grid_of(self.product), grid_of(self.accumulator)
        term = min(significant_bits(self.product), 2 * significant_bits(self.operands), 24)
        # float32 holds these products, and rounding their sums first to its 24 bits changes nothing up to 11 of them
        exact = 2 * significant_bits(self.operands) <= 24 or product is None
        wide = None if exact and max(term, significant_bits(self.accumulator)) <= 11 else 1
        seeds = (self.seed, self.seed + OTHER_SEED) if self.rounding == "stochastic" else (None, None)
        places = (1, len(c)) if turned else (c.shape[1], 1)  # a result draws by its place in the product asked for
        _chunked(a, b, c, self.chunk, product, accumulator, wide, *seeds, *places)


@njit(cache=True, nogil=True)
def _to_odd(x):
    """Float64 to the pattern of float32; what is inexact gets an odd last bit: rounding it again rounds once."""
    near = np.float32(x)
    back = np.float64(near)
    pattern = as_pattern(near)
    truncated = np.int32(pattern - (np.int32(1) if abs(back) > abs(x) else np.int32(0)))
    return np.int32(truncated | (np.int32(1) if back != x else np.int32(0)))


@njit(cache=True, nogil=True)
def _term(a, b, product, wide):
    """One product, rounded once."""
    if product is None:
        return np.float32(a * b)
    if wide is None:
        return as_float(nearest(as_pattern(np.float32(a * b)), product))
    return as_float(nearest(_to_odd(np.float64(a) * np.float64(b)), product))


@njit(cache=True, nogil=True)
def _sum(s, t, accumulator, wide, seed, place):
    """One addition, rounded once."""
    if accumulator is None:
        return np.float32(s + t)
    pattern = as_pattern(np.float32(s + t)) if wide is None else _to_odd(np.float64(s) + np.float64(t))
    if seed is None:
        return as_float(nearest(pattern, accumulator))
    return as_float(stochastic(pattern, random_bits(place, seed), accumulator))


@njit(cache=True, nogil=True)
def _chunked(a, b, c, chunk, product, accumulator, wide, seed, other_seed, row, column):
    (m, k), n = a.shape, b.shape[1]
    total, partial = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for i in range(m):
        for j in range(0, n, BLOCK):
            size = min(BLOCK, n - j)
            total[:] = 0
            for start in range(0, k, chunk):
                partial[:] = 0
                for p in range(start, min(start + chunk, k)):
                    x, y = a[i, p], b[p, j : j + size]
                    first = (i * row + j * column) * k + p
                    for t in range(size):
                        value = _term(x, y[t], product, wide)
                        partial[t] = _sum(partial[t], value, accumulator, wide, seed, first + t * column * k)
                first = (i * row + j * column) * k + start
                for t in range(size):
                    total[t] = _sum(total[t], partial[t], accumulator, wide, other_seed, first + t * column * k)
            c[i, j : j + size] = total[:size]
