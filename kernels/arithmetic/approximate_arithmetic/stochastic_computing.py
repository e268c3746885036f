"""Stochastic computing: a number is the share of ones in a stream of bits, and one gate multiplies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit

from kernels.arithmetic.approximate_arithmetic.bit_planes import Planes, pack_words, planes_product, tile_shape
from kernels.arithmetic.approximate_arithmetic.codes import Coded, CodedProduct, InCodes
from kernels.arithmetic.rounding import random_bits
from kernels.simd import LANES

__all__ = ["StochasticComputing", "plain_streams", "random_bytes"]

HALF = 128
"""An integer v of 8 bits stands for v / 128."""
CHUNK = 2**22
"""Words of streams that are held at a time."""


def plain_streams(thresholds: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The definition: bit t of the stream of u is random number t < u; booleans of shape (..., length).

    Examples
    --------
    >>> plain_streams(np.array([64, 192]), np.array([0, 100, 150, 255])).astype(int)
    array([[1, 0, 0, 0],
           [1, 1, 1, 0]])
    """
    return numbers < thresholds[..., None]


def random_bytes(streams: int, length: int, generator: str, seed: int) -> np.ndarray:
    """What the comparators of so many streams compare with, clock by clock.

    Parameters
    ----------
    streams, length : int
    generator : {"hash", "lfsr"}
        A hash of stream and clock; or a shift register of 16 bits with linear feedback for each stream, x^16 + x^15 +
        x^13 + x^4 + 1, started at a hash of the stream, of which each eighth state gives its low byte.
    seed : int

    Returns
    -------
    ndarray of uint8, shape (streams, length)
    """
    numbers = np.empty((streams, length), np.uint8)
    (_hashed if generator == "hash" else _shifted)(numbers, seed)
    return numbers


@dataclass(frozen=True)
class StochasticComputing(CodedProduct):
    """Matrix product on random streams of bits.

        bipolar    P(bit) = (v + 1) / 2,  v in [-1, 1]    an XNOR multiplies:  2 P(XNOR) - 1 = v w
        unipolar   P(bit) = |v|, a sign beside it          an AND multiplies:       P(AND) = |v| |w|

        apc   a counter adds up the ones of all products, clock by clock
        mux   at each clock one product, drawn at random, is taken for all k: the sum divided by k, in one gate

    A product is a count of ones out of `length` bits, so its error is that of the binomial law and falls with the root
    of the length: bipolar, each product has variance (1 - v^2 w^2) / length, largest for the small numbers of which
    networks are full; unipolar |v w| (1 - |v w|) / length, smallest for those. A multiplexer adds the variance of
    drawing one of k, and multiplies by k: its error is as large as if each product had k / sqrt(k) times the error.

    Inputs and weights are rounded to 8 bits, row by row and column by column, as the comparators of a stream generator
    take them. All rows meet the same random numbers, and all columns the same others: generators are shared.

    Parameters
    ----------
    length : int
        Bits in a stream, a multiple of 64.
    coding : {"unipolar", "bipolar"}
    adder : {"apc", "mux"}
        `mux` only with bipolar coding.
    generator : {"hash", "lfsr"}
    seed : int

    Notes
    -----
    Source: Ren et al., "SC-DCNN", ASPLOS 2017, arXiv 1611.05939: codings, multiplexer and counter. The counter here is
    exact, where the paper's parallel counter is approximate.

    Examples
    --------
    >>> x, w = np.random.default_rng(0).standard_normal((2, 64, 64), np.float32)
    >>> for length in (64, 1024):
    ...     for coding in ("bipolar", "unipolar"):
    ...         y = StochasticComputing(length, coding).matmul(x, w)
    ...         print(length, coding, f"{np.linalg.norm(y - x @ w) / np.linalg.norm(x @ w):.2f}")
    64 bipolar 1.07
    64 unipolar 0.23
    1024 bipolar 0.35
    1024 unipolar 0.06
    """

    length: int = 256
    coding: str = "unipolar"
    adder: str = "apc"
    generator: str = "hash"
    seed: int = 0

    arithmetic: ClassVar[str] = "gates on streams of bits"
    signed_inputs: ClassVar[bool | None] = True

    def __post_init__(self) -> None:
        if not isinstance(self.length, int) or isinstance(self.length, bool) or self.length < 64 or self.length % 64:
            raise ValueError(f"length: expected a positive multiple of 64, got {self.length!r}")
        for name, known in (
            ("coding", ("unipolar", "bipolar")), ("adder", ("apc", "mux")), ("generator", ("hash", "lfsr")),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected {' or '.join(known)}, got {getattr(self, name)!r}")
        if self.adder == "mux" and self.coding != "bipolar":
            raise ValueError("adder: a multiplexer takes bipolar streams, whose sign is in the bits")

    def variance(self, v: np.ndarray, w: np.ndarray) -> np.ndarray:
        """The variance of each entry of a product, by the binomial law.

        Parameters
        ----------
        v : ndarray, shape (m, k)
        w : ndarray, shape (k, n)
            In [-1, 1].

        Returns
        -------
        ndarray of float64, shape (m, n)
        """
        squares = v.astype(np.float64) ** 2 @ w.astype(np.float64) ** 2
        if self.coding == "unipolar":
            return (np.abs(v) @ np.abs(w) - squares) / self.length
        k = v.shape[1]
        return ((k**2 - (v @ w) ** 2) if self.adder == "mux" else (k - squares)) / self.length

    def _form(self, coded: Coded) -> Any:
        width = tile_shape(LANES // 2)[1] * LANES // 2
        if not coded.depth:
            return None  # nothing to stream, and a product of zeros
        if self.coding == "bipolar":
            words = self._words(coded, 1)
            return {"planes": self._packed(words, width), "ones": _ones(words)}
        up, down = self._halves(coded, slice(None), 1)
        return {"same": self._packed(np.hstack([up, down]), width), "other": self._packed(np.hstack([down, up]), width)}

    def _multiplied(self, a: Coded, w: InCodes) -> np.ndarray:
        m, n, k, length = len(a.codes), w.shape[1], a.depth, self.length
        total, tall, lanes = np.zeros((m, n), np.int64), tile_shape(LANES // 2)[0], LANES // 2
        each = length // 64 * (1 if self.adder == "mux" else k) * (1 if self.coding == "bipolar" else 2)
        for first in range(0, m if k else 0, step := max(1, CHUNK // max(each, 1))):
            rows = slice(first, first + step)
            out = total[rows]
            if self.coding == "bipolar":
                words = self._words(a, 0, rows)
                bits = (
                    64 * words.shape[1]
                )  # ones of XNOR: bits - ones of each + 2 ones of AND; and v w is 2 XNOR - bits
                left, ones = self._packed(words, tall), bits - 2 * _ones(words)
                planes_product(left, w.form["planes"], lanes, out, 2, ones, -2 * w.form["ones"])
            else:
                left = self._packed(np.hstack(self._halves(a, rows, 0)), tall)
                planes_product(left, w.form["same"], lanes, out)
                out -= planes_product(left, w.form["other"], lanes, np.empty_like(out))
        worth = HALF * HALF / length * (k if self.adder == "mux" else 1)
        return (total * np.multiply.outer(worth * a.scales.astype(np.float64), w.coded.scales)).astype(np.float32)

    def _words(self, coded: Coded, side: int, rows: slice = slice(None)) -> np.ndarray:
        """Bipolar streams, 64 bits a word: of all entries of a row one after the other, or of those that are drawn."""
        codes = coded.codes[rows, : coded.depth]  # v + 128: the threshold is the code itself
        streams = 1 if self.adder == "mux" else coded.depth
        numbers = random_bytes(streams, self.length, self.generator, 3 * self.seed + side)
        if self.adder == "mux":
            drawn = np.empty(self.length, np.int64)
            _draw(drawn, coded.depth, 3 * self.seed + 2)
            bits = np.ascontiguousarray(numbers[0] < codes[:, drawn])
            return np.packbits(bits, axis=1, bitorder="little").view(np.uint64)
        return _generate(codes, numbers)

    def _halves(self, coded: Coded, rows: slice, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Unipolar streams of the positive numbers, zero elsewhere, and of the negative ones."""
        numbers = random_bytes(coded.depth, self.length, self.generator, 3 * self.seed + side)
        values = coded.codes[rows, : coded.depth].astype(np.int16) - coded.zero
        up, down = (np.clip(sign * values, 0, None) * 2 for sign in (1, -1))
        return _generate(up.astype(np.uint8), numbers), _generate(down.astype(np.uint8), numbers)

    @staticmethod
    def _packed(words: np.ndarray, width: int) -> Planes:
        return pack_words(np.ascontiguousarray(words), width)


def _ones(words: np.ndarray) -> np.ndarray:
    return np.bitwise_count(words).sum(1, dtype=np.int64)


def _generate(thresholds: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """`plain_streams` of a matrix (rows, k), 64 bits a word: uint64 of shape (rows, k length / 64).

    Whether number < threshold is found for 64 clocks at once, bit by bit from the lowest: where the two bits differ
    they decide, where they agree the lower bits have decided.
    """
    planes = np.stack([numbers >> bit & 1 for bit in range(8)], axis=1) ^ 1  # (k, 8, length): not the number's bits
    inverse = np.packbits(planes, axis=2, bitorder="little").view(np.uint64)
    words = np.empty((thresholds.shape[0], thresholds.shape[1] * inverse.shape[2]), np.uint64)
    _compare(np.ascontiguousarray(thresholds), inverse, words)
    return words


@njit(cache=True, nogil=True)
def _compare(thresholds, inverse, words):
    (rows, k), each = thresholds.shape, inverse.shape[2]
    for i in range(rows):
        for p in range(k):
            for w in range(each):
                less = np.uint64(0)
                for bit in range(8):
                    one = np.uint64(0) - np.uint64(thresholds[i, p] >> bit & 1)
                    number = inverse[p, bit, w]
                    less = np.uint64((less & number) | (one & (less | number)))
                words[i, p * each + w] = less


@njit(cache=True, nogil=True)
def _hashed(numbers, seed):
    streams, length = numbers.shape
    for s in range(streams):
        for t in range(length):
            numbers[s, t] = np.uint8(random_bits(s * length + t, seed) >> np.uint32(24))


@njit(cache=True, nogil=True)
def _shifted(numbers, seed):
    streams, length = numbers.shape
    for s in range(streams):
        state = np.int64(random_bits(s, seed)) % 65535 + 1  # any state but zero, which stays
        for t in range(length):
            for _ in range(8):
                bit = (state ^ (state >> 1) ^ (state >> 3) ^ (state >> 12)) & 1
                state = state >> 1 | bit << 15
            numbers[s, t] = np.uint8(state & 255)


@njit(cache=True, nogil=True)
def _draw(drawn, k, seed):
    for t in range(drawn.size):
        drawn[t] = np.int64(random_bits(t, seed)) * k >> 32
