"""Digits of any base in as few bytes as 64-bit words allow: how a message holds its codes."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numba import njit

__all__ = ["digits_of", "pack", "packed_bytes", "unpack", "word_of"]


def word_of(digits: list[int], base: int) -> bytes:
    """A word of digits, the first the lowest, in as few bytes as hold every such word: the plain statement.

    Parameters
    ----------
    digits : list of int
        Each from 0 to base - 1.
    base : int

    Examples
    --------
    >>> word_of([2, 1, 0, 2, 2], base=3), word_of([1, 0, 1], base=2)
    (b'\\xdd', b'\\x05')
    """
    word = sum(digit * base**place for place, digit in enumerate(digits))
    return word.to_bytes(packed_bytes(len(digits), base), "little")


@cache
def digits_of(base: int) -> int:
    """How many digits of a base a word of 64 bits holds.

    Examples
    --------
    >>> digits_of(2), digits_of(3), digits_of(16)
    (64, 40, 16)
    """
    if base < 2:
        raise ValueError(f"base: expected at least 2, got {base}")
    digits = 0
    while base ** (digits + 1) <= 1 << 64:
        digits += 1
    return digits


def packed_bytes(count: int, base: int) -> int:
    """Bytes of so many digits: whole words of 64 bits, the last one cut to the bytes that its digits need.

    Examples
    --------
    >>> packed_bytes(40, 3), packed_bytes(45, 3), packed_bytes(0, 3)
    (8, 9, 0)
    """
    whole, rest = divmod(count, digits_of(base))
    return 8 * whole + math.ceil((base**rest - 1).bit_length() / 8)


@njit(cache=True, nogil=True)
def _pack(digits, base, per, words):
    for word in range(words.size):
        value = np.uint64(0)
        for i in range(min(digits.size, (word + 1) * per) - 1, word * per - 1, -1):
            value = value * np.uint64(base) + np.uint64(digits[i])
        words[word] = value


@njit(cache=True, nogil=True)
def _unpack(words, base, per, digits):
    bits = np.uint64(0)
    while np.uint64(1) << bits < np.uint64(base):
        bits += np.uint64(1)
    shifts = np.uint64(1) << bits == np.uint64(base)  # a division takes ten times as long
    for word in range(words.size):
        value = words[word]
        for i in range(word * per, min(digits.size, (word + 1) * per)):
            rest = value >> bits if shifts else value // np.uint64(base)
            digits[i] = value - rest * np.uint64(base)
            value = rest


def pack(digits: np.ndarray, base: int) -> bytes:
    """Digits as bytes, word after word as `word_of` has it.

    Parameters
    ----------
    digits : ndarray of integers from 0 to base - 1, one-dimensional

    Raises
    ------
    ValueError
        If a digit is none of the base's.

    Examples
    --------
    >>> len(pack(np.arange(100) % 3, base=3))
    20
    """
    digits, per = np.ascontiguousarray(digits, np.int64), digits_of(base)
    if digits.size and not 0 <= digits.min() <= digits.max() < base:
        raise ValueError(f"digits: expected 0 to {base - 1}, got {digits.min()} to {digits.max()}")
    words = np.empty(-(-digits.size // per), "<u8")
    _pack(digits, base, per, words)
    return words.tobytes()[: packed_bytes(digits.size, base)]


def unpack(data: bytes, base: int, count: int) -> np.ndarray:
    """The digits that `pack` was given: int64, one-dimensional.

    Raises
    ------
    ValueError
        If there are not as many bytes as so many digits take.

    Examples
    --------
    >>> unpack(pack(np.array([2, 0, 1]), base=3), base=3, count=3)
    array([2, 0, 1])
    """
    if len(data) != packed_bytes(count, base):
        raise ValueError(f"data: expected {packed_bytes(count, base)} bytes for {count} digits, got {len(data)}")
    per = digits_of(base)
    words = np.frombuffer(data + bytes(-len(data) % 8), "<u8")
    digits = np.empty(count, np.int64)
    _unpack(words, base, per, digits)
    return digits
