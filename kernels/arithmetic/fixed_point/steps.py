"""Numbers to whole multiples of a step and back: the loops that every format of the family shares.

A number x becomes the integer k nearest to x times `up`, kept within `low` and `high`, and reads as k times `down`.
Integers have one zero and no NaN: the loops say whether they met one, and `refuse_nan` raises. Infinities saturate.

Source: S. Gupta et al., "Deep Learning with Limited Numerical Precision", 2015, sections 3.1 and 3.2.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kernels.arithmetic.rounding import random_bits

__all__ = ["MODES", "decode_steps", "encode_steps", "refuse_nan", "round_steps", "steps"]

MODES = {"nearest-even": 0, "toward-zero": 1, "stochastic": 2}
TWO31 = np.float32(2**31)


def steps(x: np.ndarray, up: float, low: int, high: int, rounding: str = "nearest-even") -> np.ndarray:
    """The plain statement: integers k = round(x up), kept within low and high, as float64.

    Parameters
    ----------
    x : ndarray of floats
        No NaN.
    up : float
        Steps a unit; multiplied in the type of `x`.
    low, high : int
    rounding : {"nearest-even", "toward-zero"}

    Returns
    -------
    ndarray of float64

    Examples
    --------
    >>> steps(np.float32([0.3, -0.375, 9.0]), 4, -8, 7)
    array([ 1., -2.,  7.])
    """
    x = np.asarray(x)
    whole = {"nearest-even": np.rint, "toward-zero": np.trunc}[rounding]
    return np.clip(whole(x * x.dtype.type(up)), low, high).astype(np.float64) + 0.0


def refuse_nan(found: bool) -> None:
    """Raise for a NaN that a loop has met.

    Raises
    ------
    ValueError
    """
    if found:
        raise ValueError("x: expected numbers, got NaN, for which an integer has no code")


# Clipping to whole bounds before rounding is clipping after it. A select `v if v < high else high` lets no NaN through,
# so that what is cast to an integer is always in its range.


@njit(cache=True, nogil=True, inline="always")
def _clipped(v, low, high):
    v = v if v < high else high
    return v if v > low else low


@njit(cache=True, nogil=True, inline="always")
def _stochastic(v, place, seed):
    """To a neighbour by 31 random bits; a fraction of less than 2^-31 is dropped."""
    magnitude = np.abs(v)
    whole = np.trunc(magnitude)
    draw = np.int32(random_bits(place, seed) >> np.uint32(1))
    up = draw < np.int32((magnitude - whole) * TWO31)
    return np.copysign(whole + np.float32(up), v)


@njit(cache=True, nogil=True)
def round_steps(x, out, up, down, low, high, mode, first, seed):
    """Round a contiguous chunk to multiples of `down`; whether it held a NaN.

    `up`, `down`, `low` and `high` are of the type of `x`; `mode` is one of `MODES`.
    """
    nan = False
    if mode == 0:
        for i in range(x.size):
            nan |= x[i] != x[i]
            out[i] = np.rint(_clipped(x[i] * up, low, high)) * down + np.float32(0)  # -0 + 0 is 0
    elif mode == 1:
        for i in range(x.size):
            nan |= x[i] != x[i]
            out[i] = np.trunc(_clipped(x[i] * up, low, high)) * down + np.float32(0)
    else:
        for i in range(x.size):
            nan |= x[i] != x[i]
            out[i] = _stochastic(_clipped(x[i] * up, low, high), first + i, seed) * down + np.float32(0)
    return nan


@njit(cache=True, nogil=True)
def encode_steps(x, codes, up, low, high, mask, zero, mode, first, seed):
    """The same integers plus `zero`, in two's complement cut to `mask`; whether the chunk held a NaN."""
    nan = False
    if mode == 0:
        for i in range(x.size):
            nan |= x[i] != x[i]
            codes[i] = (np.int32(np.rint(_clipped(x[i] * up, low, high))) + zero) & mask
    elif mode == 1:
        for i in range(x.size):
            nan |= x[i] != x[i]
            codes[i] = (np.int32(np.trunc(_clipped(x[i] * up, low, high))) + zero) & mask
    else:
        for i in range(x.size):
            nan |= x[i] != x[i]
            codes[i] = (np.int32(_stochastic(_clipped(x[i] * up, low, high), first + i, seed)) + zero) & mask
    return nan


@njit(cache=True, nogil=True)
def decode_steps(codes, out, down, sign, zero):
    """Two's complement whose sign bit has the value `sign`, less `zero`, times `down` of the type of `out`."""
    for i in range(codes.size):
        k = np.int32((np.int64(codes[i]) ^ sign) - sign - zero)
        out[i] = k * down
