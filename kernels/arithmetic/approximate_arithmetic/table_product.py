"""A matrix product whose multiplier is a table: what a circuit of 256 x 256 products would compute, bit for bit."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["plain_table_product", "signed_table", "table_product"]


def plain_table_product(a: np.ndarray, b: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The definition, C[i, j] = sum_p table[a[i, p], b[p, j]].

    Examples
    --------
    >>> squares = np.add.outer(np.arange(4), np.arange(4))          # a "multiplier" that adds
    >>> plain_table_product(np.array([[1, 2]]), np.array([[3], [3]]), squares)
    array([[9]])
    """
    return table[a[:, :, None], b[None, :, :]].sum(1, dtype=np.int64)


def signed_table(table: np.ndarray, left_zero: int, right_zero: int) -> np.ndarray:
    """The table of shifted codes: circuits multiply magnitudes, and signs go round them.

        T[u, v] = sign(u - zu) sign(v - zv) table[|u - zu|, |v - zv|]

    Parameters
    ----------
    table : ndarray of integers, shape (256, 256)
        Products of unsigned magnitudes.
    left_zero, right_zero : int
        The codes of zero, zu and zv.

    Returns
    -------
    ndarray of int32, shape (256, 256)
    """
    u, v = np.arange(256) - left_zero, np.arange(256) - right_zero
    products = np.asarray(table)[np.abs(u)[:, None], np.abs(v)[None, :]]
    return (np.sign(u)[:, None] * np.sign(v)[None, :] * products).astype(np.int32)


def table_product(a: np.ndarray, b: np.ndarray, table: np.ndarray) -> np.ndarray:
    """C[i, j] = sum_p table[a[i, p], b[p, j]], any table.

    Parameters
    ----------
    a : ndarray of uint8, shape (m, k)
    b : ndarray of uint8, shape (k, n)
    table : ndarray of int32, shape (256, 256)

    Returns
    -------
    ndarray of int64, shape (m, n)

    Raises
    ------
    ValueError
        If a shape or a type is another.

    Examples
    --------
    >>> exact = np.multiply.outer(np.arange(256, dtype=np.int32), np.arange(256, dtype=np.int32))
    >>> table_product(np.uint8([[1, 2], [255, 0]]), np.uint8([[3], [4]]), exact)
    array([[ 11],
           [765]])
    """
    if table.shape != (256, 256) or table.dtype != np.int32:
        raise ValueError(f"table: expected 256 x 256 of int32, got {table.shape} of {table.dtype}")
    if a.dtype != np.uint8 or b.dtype != np.uint8 or a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"a, b: expected uint8 of (m, k) and (k, n), got {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    out = np.zeros((a.shape[0], b.shape[1]), np.int64)
    _table_product(np.ascontiguousarray(a), np.ascontiguousarray(b), np.ascontiguousarray(table), out)
    return out


@njit(cache=True, nogil=True)
def _table_product(a, b, table, out):
    (m, k), n = a.shape, b.shape[1]
    sums = np.empty(n, np.int32)
    for i in range(m):
        for begin in range(0, k, 4096):  # products of 8 bits have 16: so many of them fit 32 bits with room to spare
            sums[:] = 0
            end = min(begin + 4096, k)
            for p in range(begin, end - 1, 2):
                one, two = table[a[i, p]], table[a[i, p + 1]]
                left, right = b[p], b[p + 1]
                for j in range(n):
                    sums[j] += one[left[j]] + two[right[j]]
            if (end - begin) % 2:
                one, left = table[a[i, end - 1]], b[end - 1]
                for j in range(n):
                    sums[j] += one[left[j]]
            for j in range(n):
                out[i, j] += sums[j]
