"""Which of two neighbours a number goes to, and random bits that depend on nothing but a seed and a place.

Stochastic rounding sends x, between the grid's neighbours a < x < b, to b with probability (x - a) / (b - a): right on
average. The bits it needs come from a hash of the element's place, not from a state that is passed along, so that
loops vectorise, and one thread and many draw the same.

Source: S. Gupta et al., "Deep Learning with Limited Numerical Precision", 2015, section 3.1; the hash is the finaliser
of A. Appleby's MurmurHash3.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from kernels.arithmetic.bits import multiply, shift_right

__all__ = ["NEXT_PLACE", "ROUNDINGS", "check_rounding", "random_bits", "random_state", "scrambled"]

NEXT_PLACE = 0x9E3779B9
ROUNDINGS = ("nearest-even", "toward-zero", "stochastic")


def check_rounding(rounding: str, allowed: tuple[str, ...] = ROUNDINGS) -> None:
    """Refuse a rounding mode that is not one of these, naming those that are."""
    if rounding not in allowed:
        raise ValueError(f"rounding: expected {' or '.join(allowed)}, got {rounding!r}")


@njit(cache=True, nogil=True, inline="always")
def random_bits(place, seed):
    """Thirty-two random bits for the element at a place, for one seed.

    Parameters
    ----------
    place, seed : int

    Returns
    -------
    uint32

    Examples
    --------
    >>> random_bits(0, 1) == random_bits(0, 1), random_bits(0, 1) == random_bits(1, 1)
    (True, False)
    """
    return scrambled(random_state(place, seed))


@njit(cache=True, nogil=True, inline="always")
def random_state(place, seed):
    """What `scrambled` turns into the random bits of a place; that of the next place is larger by `NEXT_PLACE`.

    A loop that adds it up, in 32 bits, is faster than one that calls `random_bits`.
    """
    return np.uint32(multiply(np.uint32(place), NEXT_PLACE) + multiply(np.uint32(seed), 0x85EBCA77) + np.uint32(1))


@njit(cache=True, nogil=True, inline="always")
def scrambled(state):
    """The random bits of a state."""
    h = multiply(np.uint32(state ^ shift_right(state, 16)), 0x85EBCA6B)
    h = multiply(np.uint32(h ^ shift_right(h, 13)), 0xC2B2AE35)
    return np.uint32(h ^ shift_right(h, 16))
