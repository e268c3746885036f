"""How far a circuit is off, over every pair of operands."""

from __future__ import annotations

import numpy as np

__all__ = ["circuit_errors"]


def circuit_errors(results: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """The field's five figures, over all operands, each as likely as the other.

        e = result - exact
        error_rate            share of operands with e != 0
        mean_absolute_error   mean |e|
        worst_absolute_error  max |e|
        mean_relative_error   mean |e| / |exact|, where exact is not zero
        error_bias            mean e

    Parameters
    ----------
    results, exact : ndarray of integers, of one shape

    Examples
    --------
    >>> circuit_errors(np.array([4, 6, 9]), np.array([4, 8, 10]))["worst_absolute_error"]
    2
    """
    off = np.asarray(results, np.int64) - exact
    size, known = np.abs(off), exact != 0
    return {
        "error_rate": float(np.mean(off != 0)),
        "mean_absolute_error": float(size.mean()),
        "worst_absolute_error": int(size.max()),
        "mean_relative_error": float(np.mean(size[known] / np.abs(exact[known]))),
        "error_bias": float(off.mean()),
    }
