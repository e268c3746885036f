"""A systolic array run cycle by cycle: registers that know nothing but their neighbours, and a product that comes
out."""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["simulate"]


@njit(cache=True, nogil=True)
def _still_operand(still, stream, rows, columns):
    """stream (t, k) times still (k, c): tiles of `still` are held, sums fall; the product and the cycles."""
    k, c = still.shape
    t = stream.shape[0]
    result = np.zeros((t, c), np.int64)
    cycles = 0
    held = np.zeros((rows, columns), np.int64)
    right, down = held.copy(), held.copy()
    for c0 in range(0, c, columns):
        for k0 in range(0, k, rows):
            held[:], right[:], down[:] = 0, 0, 0
            for step in range(rows):  # the tile enters at the top, its last row first
                for i in range(rows - 1, 0, -1):
                    held[i] = held[i - 1]
                at = k0 + rows - 1 - step
                for j in range(columns):
                    held[0, j] = still[at, c0 + j] if at < k and c0 + j < c else 0
                cycles += 1
            left = t * columns
            now = 0
            while left:
                for i in range(rows - 1, -1, -1):
                    for j in range(columns - 1, -1, -1):
                        if j:
                            right[i, j] = right[i, j - 1]
                        else:  # row i of the array lags by i cycles
                            right[i, 0] = stream[now - i, k0 + i] if 0 <= now - i < t and k0 + i < k else 0
                        down[i, j] = (down[i - 1, j] if i else 0) + held[i, j] * right[i, j]
                for j in range(columns):
                    row = now - (rows - 1) - j
                    if 0 <= row < t:
                        left -= 1
                        if c0 + j < c:
                            result[row, c0 + j] += down[rows - 1, j]
                now += 1
                cycles += 1
    return result, cycles


@njit(cache=True, nogil=True)
def _still_output(a, b, rows, columns):
    """a (m, k) times b (k, n): a tile of outputs is held, and drained downwards when its last product is in."""
    m, k = a.shape
    n = b.shape[1]
    result = np.zeros((m, n), np.int64)
    cycles = 0
    held = np.zeros((rows, columns), np.int64)
    right, down = held.copy(), held.copy()
    for n0 in range(0, n, columns):
        for m0 in range(0, m, rows):
            held[:], right[:], down[:] = 0, 0, 0
            for now in range(k + rows - 1 + columns - 1):
                for i in range(rows - 1, -1, -1):
                    for j in range(columns - 1, -1, -1):
                        if j:
                            right[i, j] = right[i, j - 1]
                        else:
                            right[i, 0] = a[m0 + i, now - i] if 0 <= now - i < k and m0 + i < m else 0
                        if i:
                            down[i, j] = down[i - 1, j]
                        else:
                            down[0, j] = b[now - j, n0 + j] if 0 <= now - j < k and n0 + j < n else 0
                        held[i, j] += right[i, j] * down[i, j]
                cycles += 1
            for step in range(rows):  # what leaves at the bottom is the last row first
                at = m0 + rows - 1 - step
                for j in range(columns):
                    if at < m and n0 + j < n:
                        result[at, n0 + j] = held[rows - 1, j]
                for i in range(rows - 1, 0, -1):
                    held[i] = held[i - 1]
                held[0] = 0
                cycles += 1
    return result, cycles


def simulate(a: np.ndarray, b: np.ndarray, rows: int, columns: int, dataflow: str) -> tuple[np.ndarray, int]:
    """Multiply on a systolic array of so many rows and columns, register by register.

    Parameters
    ----------
    a : ndarray of integers, shape (m, k)
        Input windows.
    b : ndarray of integers, shape (k, n)
        Filters.
    rows, columns : int
    dataflow : {"weight", "output", "input"}
        Which operand stays.

    Returns
    -------
    product : ndarray of int64, shape (m, n)
        What came out of the array.
    cycles : int
        How long it took, fill and drain included.

    Examples
    --------
    >>> product, cycles = simulate(np.array([[1, 2]]), np.array([[3], [4]]), 2, 2, "weight")
    >>> product, cycles                             # 2 to load, then 2 + 2 + 1 - 2
    (array([[11]]), 5)
    """
    a, b = np.ascontiguousarray(a, np.int64), np.ascontiguousarray(b, np.int64)
    if dataflow == "weight":
        return _still_operand(b, a, rows, columns)
    if dataflow == "input":
        product, cycles = _still_operand(np.ascontiguousarray(a.T), np.ascontiguousarray(b.T), rows, columns)
        return np.ascontiguousarray(product.T), cycles
    if dataflow == "output":
        return _still_output(a, b, rows, columns)
    raise ValueError(f"dataflow: expected weight, output or input, got {dataflow!r}")
