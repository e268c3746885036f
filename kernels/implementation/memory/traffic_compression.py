"""Traffic compression: zeros are not sent, between chip and memory; whatever else there is comes back bit for bit."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from kernels.arrays import describe, is_tensor

__all__ = ["METHODS", "TrafficCompression", "plain_run_lengths", "plain_zero_values", "zero_value_bits"]

MAGIC = b"TRC1"
METHODS = ("zero-value", "run-length")
LONGEST = 255
"""Zeros that one byte of a run length counts."""


def plain_zero_values(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which elements are there, and those elements: the definition for a flat array.

    Examples
    --------
    >>> plain_zero_values(np.array([0, 7, 0, 0, 5], np.int8))
    (array([False,  True, False, False,  True]), array([7, 5], dtype=int8))
    """
    return x != 0, x[x != 0]


def zero_value_bits(elements: int, nonzero: int, width: int) -> int:
    """Bits that zero-value compression sends, for elements of any width, a description of the array apart.

    Examples
    --------
    >>> zero_value_bits(elements=5, nonzero=2, width=8)
    21
    """
    return elements + width * nonzero


def plain_run_lengths(x: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of a number of zeros and the element behind them; a run that is too long to count ends with a zero.

    Examples
    --------
    >>> plain_run_lengths(np.array([0, 7, 0, 0, 5, 0], np.int8))
    [(1, 7), (2, 5), (0, 0)]
    """
    pairs, run = [], 0
    for value in x.tolist():
        if value == 0 and run < LONGEST:
            run += 1
        else:
            pairs.append((run, value))
            run = 0
    if run:
        pairs.append((run - 1, 0))
    return pairs


@dataclass(frozen=True)
class TrafficCompression:
    r"""Lossless compression of arrays with many zeros, simple enough for the edge of a chip.

    .. math:: \text{bits} = n + w\,d\,n \;\text{(zero-value)}, \qquad \text{bits} \approx (8 + w)\,d\,n
    \;\text{(run-length)}

    for n elements of w bits of which the share d is not zero. *Zero-value* compression sends a bit for each element
    and the non-zero ones; it never takes more than 1/w above the plain array. *Run-length* compression sends each
    non-zero element behind the number of zeros before it; it takes less where zeros are very many, and more than the
    plain array where they are few.

    An element is zero if all its bits are: -0.0 is not, and comes back as it was.

    Parameters
    ----------
    method : {"zero-value", "run-length"}

    Source: Rhu et al., "Compressing DMA Engine: Leveraging Activation Sparsity for Training Deep Neural Networks",
    HPCA 2018, for zero values; Chen et al., "Eyeriss", 2016, for run lengths, there of 5 bits.

    Examples
    --------
    >>> x = np.zeros(1000, np.float32)
    >>> x[::10] = 1.5
    >>> for method in METHODS:
    ...     codec = TrafficCompression(method)
    ...     print(method, len(codec.encode(x)), bool((codec.decode(codec.encode(x)) == x).all()))
    zero-value 547 True
    run-length 535 True
    """

    method: str = "zero-value"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: expected {' or '.join(METHODS)}, got {self.method!r}")

    def encode(self, x: Any) -> bytes:
        """The array in bytes, its shape and dtype included.

        Parameters
        ----------
        x : array_like or torch.Tensor
            Booleans, integers or floats of any shape, of 1, 2, 4 or 8 bytes each.

        Returns
        -------
        bytes
            Shape, dtype and a checksum take 11 bytes, the dtype's name and 8 for each dimension.

        Raises
        ------
        TypeError
            If it holds something else.
        """
        array = np.asarray(x.detach().numpy() if is_tensor(x) else x)
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise TypeError(f"x: expected booleans, integers or floats of up to 8 bytes, got {describe(array)}")
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        words = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
        kind = array.dtype.str.encode()
        sizes = (METHODS.index(self.method), len(kind), array.ndim, *array.shape)
        head = struct.pack(f"<4sBBB{array.ndim}q", MAGIC, *sizes)
        if self.method == "zero-value":
            marks, values = _zero_values(words)
            counts = b""
        else:
            marks, values = _run_lengths(words)
            counts = struct.pack("<q", len(marks))
        body = b"".join((head, kind, counts, marks.tobytes(), values.tobytes()))
        return body + struct.pack("<I", zlib.crc32(body))

    def decode(self, data: bytes) -> np.ndarray:
        """The array that `encode` was given, bit for bit.

        Raises
        ------
        ValueError
            If the data are truncated or altered, or were made by another method.
        """
        if len(data) < 11 or data[:4] != MAGIC:
            raise ValueError(f"data: expected bytes that encode gave, got {len(data)} of another kind")
        body, (check,) = data[:-4], struct.unpack("<I", data[-4:])
        if zlib.crc32(body) != check:
            raise ValueError("data: expected bytes as encode gave them; they were truncated or altered")
        method, letters, ndim = struct.unpack_from("<BBB", body, 4)
        if METHODS[method] != self.method:
            raise ValueError(f"data: expected {self.method}, they were made by {METHODS[method]}")
        shape = struct.unpack_from(f"<{ndim}q", body, 7)
        at = 7 + 8 * ndim
        dtype, at = np.dtype(body[at : at + letters].decode()), at + letters
        words = np.zeros(int(np.prod(shape, dtype=np.int64)), f"u{dtype.itemsize}")
        count = -(-words.size // 8)
        if self.method == "run-length":
            (count,) = struct.unpack_from("<q", body, at)
            at += 8
        marks, values = np.frombuffer(body, np.uint8, count, at), np.frombuffer(body[at + count :], words.dtype)
        (_restore if self.method == "zero-value" else _unroll)(marks, values, words)
        return words.view(dtype).reshape(shape)


@njit(cache=True, nogil=True)
def _zero_values(words):
    marks, values, count = np.zeros(-(-words.size // 8), np.uint8), np.empty_like(words), 0
    for i in range(words.size):
        values[count] = words[i]  # overwritten by the next one unless it stays: cheaper than a branch
        there = words[i] != 0
        marks[i >> 3] |= np.uint8(there) << np.uint8(i & 7)
        count += there
    return marks, values[:count]


@njit(cache=True, nogil=True)
def _restore(marks, values, words):
    count, last = 0, values.size - 1
    if last >= 0:
        for i in range(words.size):
            there = marks[i >> 3] >> np.uint8(i & 7) & np.uint8(1)
            words[i] = values[min(count, last)] * there
            count += there


@njit(cache=True, nogil=True)
def _run_lengths(words):
    marks, values = np.empty(words.size, np.uint8), np.empty_like(words)
    count = run = 0
    for i in range(words.size):
        if words[i] != 0 or run == LONGEST or i == words.size - 1:
            marks[count], values[count] = run, words[i]
            count, run = count + 1, 0
        else:
            run += 1
    return marks[:count], values[:count]


@njit(cache=True, nogil=True)
def _unroll(marks, values, words):
    at = -1
    for j in range(marks.size):
        at += marks[j] + 1
        words[at] = values[j]
