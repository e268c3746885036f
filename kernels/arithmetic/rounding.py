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

__all__ = ["ROUNDINGS", "check_rounding", "random_bits"]

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
    h = np.uint32(np.uint32(place) * np.uint32(0x9E3779B9) + np.uint32(seed) * np.uint32(0x85EBCA77) + np.uint32(1))
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))
