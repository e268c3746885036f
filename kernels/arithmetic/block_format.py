"""Formats whose scales belong to blocks: runs of neighbouring numbers that share one scale.

An array is read as a matrix, its first axis the rows, the other axes one after another the columns, as a convolution's
weight is when its product is computed; what has one axis or none is one row. A row is cut into blocks of `block`
numbers, the last of them shorter where the length is no multiple. A scale follows from the numbers of its block, so
there is nothing to calibrate: `fit` returns the format itself, and each array gets scales of its own.

A block that holds a NaN or an infinity has no largest number. Its scale is NaN, and so is every number of it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
from numba import njit

from kernels.arithmetic.bits import cast, shift_left, width
from kernels.arithmetic.number_format import Encoded, NumberFormat, _floats, _pool, _round_to_odd, _target
from kernels.arrays import describe

__all__ = ["BlockFormat", "in_blocks", "largest_exponents", "power_of_two_scales", "same_order"]

PIECE = 1 << 19
"""Elements of a contiguous array that are read twice, for the scales and then for the codes."""
BUFFER = 1 << 13
"""Elements of any other array that are copied at a time."""


def in_blocks(x: np.ndarray, block: int | str) -> np.ndarray:
    """An array cut into its blocks, as the plain statements of the formats see it.

    Parameters
    ----------
    x : ndarray of floats, any shape
    block : int or "tensor"

    Returns
    -------
    ndarray of float64, of shape (rows, blocks, block)
        Short last blocks are filled up with zeros, which change no block's largest magnitude.

    Examples
    --------
    >>> in_blocks(np.arange(1.0, 6), block=2)[0].tolist()
    [[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]]
    """
    x = np.asarray(x, np.float64)
    if block == "tensor":
        return x.reshape(1, 1, -1)
    rows = x.reshape(len(x) if x.ndim > 1 else 1, -1 if x.size else prod(x.shape[1:] if x.ndim > 1 else x.shape))
    length = int(block)
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % length)))
    return padded.reshape(len(rows), -1, length) if padded.size else padded.reshape(len(rows), 0, length)


def same_order(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `in_blocks`: blocks as an array of a shape, what filled them up dropped."""
    row = prod(shape[1:] if len(shape) > 1 else shape)
    flat = blocks.reshape(blocks.shape[0], blocks.shape[1] * blocks.shape[2])
    return flat.reshape(shape) if flat.size == prod(shape) else flat[:, :row].reshape(shape)


def largest_exponents(blocks: np.ndarray) -> np.ndarray:
    """floor(log2 of the largest magnitude) of every block, with its axis kept; NaN where a number is none.

    A block of zeros has -inf, which every format bounds below.

    Examples
    --------
    >>> largest_exponents(np.array([[[1.0, -9.0], [0.0, 0.0], [np.inf, 1.0]]])).ravel()
    array([  3., -inf,  nan])
    """
    top = np.abs(blocks).max(axis=-1, keepdims=True, initial=0.0)
    exponents = np.frexp(top)[1] - 1.0
    return np.where(np.isfinite(top), np.where(top > 0, exponents, -np.inf), np.nan)


class BlockFormat(NumberFormat):
    """Base of formats with a scale for each block; subclasses say how a scale follows from the largest magnitude."""

    block: int | str
    """Numbers that share a scale, or "tensor": all of them."""
    scale_bits: int
    """Bits in which a scale is stored."""
    narrows = True
    """Whether float64 is first rounded to odd float32, which is no detour where decisions fall on short numbers."""

    @property
    def together(self) -> bool:
        """Whether a scale depends on more than its own block, so that all blocks must be seen first."""
        return self.block == "tensor"

    def encode(self, x: Any, out: Any = None, *, threads: int = 1) -> Encoded:
        """Round as `round` does, and keep codes and scales in place of values.

        Parameters
        ----------
        x : array_like or torch.Tensor of floats, any shape
        out : ndarray or torch.Tensor, optional
            Where the codes go: the same shape, of type `code_dtype`.
        threads : int
            As for `round`.

        Returns
        -------
        Encoded
            Codes of the shape of `x`; scales as float32, of shape (rows, blocks a row), or (blocks,) for one axis.
        """
        source = _floats(x)
        codes = _target(out, source.shape, self.code_dtype)
        scales = np.empty(self.scales_shape(source.shape), np.float32)
        self._work(source, codes, self._encode_blocks, threads, scales.reshape(-1))
        return Encoded(codes, scales, source.shape)

    def decode(self, encoded: Encoded) -> np.ndarray:
        """The numbers that codes and scales stand for: ``decode(encode(x))`` equals ``round(x)``.

        Returns
        -------
        ndarray of float32, of the encoded shape

        Raises
        ------
        TypeError, ValueError
            If codes or scales have another type or shape than `encode` gives them, or codes have more bits.
        """
        codes, shape = self._codes(encoded), tuple(encoded.shape)
        if encoded.scales is None:
            raise ValueError("encoded: expected scales, got none")
        scales = np.asarray(encoded.scales)
        if scales.dtype != np.float32:
            raise TypeError(f"encoded: expected scales of dtype float32, got {describe(scales)}")
        if scales.shape != self.scales_shape(shape):
            raise ValueError(f"encoded: expected scales of shape {self.scales_shape(shape)}, got {describe(scales)}")
        out = np.empty(shape, np.float32)
        row, block = self._layout(shape)
        flat = np.ascontiguousarray(scales).reshape(-1)
        self._decode_blocks(np.ascontiguousarray(codes).reshape(-1), out.reshape(-1), row, block, flat)
        return out

    def scales_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales of an array of this shape: (rows, blocks a row), or (blocks,) for one axis or none.

        Examples
        --------
        >>> from kernels.arithmetic.block_formats.block_floating_point import BlockFloatingPoint
        >>> form = BlockFloatingPoint(block=32)
        >>> form.scales_shape((16, 8, 3, 3)), form.scales_shape((100,)), form.scales_shape(())
        ((16, 3), (4,), (1,))
        """
        if self.block == "tensor":
            return (min(prod(shape), 1),)
        blocks = -(-prod(shape[1:] if len(shape) > 1 else shape) // int(self.block))
        return (shape[0], blocks) if len(shape) > 1 else (blocks,)

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Bits that an array of this shape takes: codes packed without gaps, and a scale for each block."""
        return self.bits * prod(shape) + self.scale_bits * prod(self.scales_shape(shape))

    def values(self) -> np.ndarray:
        """Refused: the grid is another one in each block. `element_values` is that of a block whose scale is one."""
        raise ValueError(f"the grid belongs to a block, and an array has many of them: {self}")

    @abstractmethod
    def element_values(self) -> np.ndarray:
        """The grid of a block whose scale is one: ascending, as float64."""

    # --- what a subclass says -----------------------------------------------------------------------------------------

    @abstractmethod
    def _settle(self, largest: np.ndarray, scales: np.ndarray) -> None:
        """Scales from the largest magnitudes of blocks, which are NaN or infinite where a number is."""

    @abstractmethod
    def _round_blocks(
        self, numbers: np.ndarray, out: np.ndarray, row: int, block: int, largest: np.ndarray, scales: np.ndarray
    ) -> None:
        """Round contiguous rows of length `row`, cut into blocks; their largest magnitudes and scales are given.

        It runs beside itself in other threads: its loops are compiled with ``nogil=True``.
        """

    @abstractmethod
    def _encode_blocks(
        self, numbers: np.ndarray, codes: np.ndarray, row: int, block: int, largest: np.ndarray, scales: np.ndarray
    ) -> None:
        """Encode contiguous rows."""

    @abstractmethod
    def _decode_blocks(self, codes: np.ndarray, out: np.ndarray, row: int, block: int, scales: np.ndarray) -> None:
        """Decode contiguous rows."""

    # --- the walk over blocks -----------------------------------------------------------------------------------------

    def _round(self, numbers: np.ndarray, out: np.ndarray, first: int) -> None:
        self._work(numbers, out, self._round_blocks, 1)

    def _encode(self, numbers: np.ndarray, codes: np.ndarray, first: int) -> None:
        self._work(numbers, codes, self._encode_blocks, 1)

    def _decode(self, codes: np.ndarray, out: np.ndarray) -> None:
        raise ValueError("encoded: expected scales, got none")

    def _over(self, source: np.ndarray, target: np.ndarray, work: str, threads: int) -> None:
        self._work(source, target, getattr(self, f"{work}_blocks"), threads)

    def _layout(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Length of a row and of a block. Rows that end where a block ends are as good as one long row."""
        size = prod(shape)
        if self.block == "tensor":
            return max(size, 1), max(size, 1)
        row, block = prod(shape[1:] if len(shape) > 1 else shape), int(self.block)
        return (size if row % block == 0 else row) or 1, block

    def _work(
        self,
        source: np.ndarray,
        target: np.ndarray,
        work: Callable[..., None],
        threads: int,
        kept: np.ndarray | None = None,
    ) -> None:
        """Do `work` on every block, by threads that take whole blocks; scales go to `kept`, one after another."""
        if not (isinstance(threads, int) and threads >= 1):
            raise ValueError(f"threads: expected a positive integer, got {threads!r}")
        if source.size == 0:
            return
        row, block = self._layout(source.shape)
        whole = self.block == "tensor"
        direct = source.flags.c_contiguous and source.flags.aligned and source.dtype in (np.float32, np.float64)
        piece = min(PIECE, -(-source.size // threads)) if direct else BUFFER
        pieces = list(_pieces(source.size, row, block, piece, whole=whole))
        wide = np.float64 if source.dtype == np.float64 and not self.narrows else np.float32

        def measure(numbers: np.ndarray, largest: np.ndarray) -> None:
            _largest(_patterns(numbers), min(row, numbers.size), block, _patterns(largest))

        def look(number: int) -> None:
            start, stop, own = pieces[number]
            part = seen[number : number + 1] if whole else seen[own]
            measure(_chunk(source, start, stop, direct, self.narrows), part)

        def do(number: int) -> None:
            start, stop, own = pieces[number]
            numbers = _chunk(source, start, stop, direct, self.narrows)
            if self.together:
                largest, scales = seen[own], settled[own]
            else:  # small and used at once: they stay in the cache
                largest = np.empty(own.stop - own.start, wide)
                scales = np.empty(largest.size, np.float32) if kept is None else kept[own]
                measure(numbers, largest)
                self._settle(largest, scales)
            with _span(target, start, stop) as out:
                work(numbers, out, min(row, numbers.size), block, largest, scales)

        run: Callable[..., Any] = map if threads == 1 or len(pieces) == 1 else _pool(threads).map
        if self.together:
            seen = np.empty(len(pieces) if whole else pieces[-1][2].stop, wide)
            list(run(look, range(len(pieces))))
            seen = seen.max(keepdims=True) if whole else seen
            settled = np.empty(seen.size, np.float32) if kept is None else kept
            self._settle(seen, settled)
        list(run(do, range(len(pieces))))


def _pieces(size: int, row: int, block: int, about: int, *, whole: bool) -> Iterator[tuple[int, int, slice]]:
    """Start and stop of pieces of about a size, and which blocks they hold: whole rows, or whole blocks of one row.

    Where the whole array is one block, they are parts of it.
    """
    if whole:
        for start in range(0, size, about):
            yield start, min(start + about, size), slice(0, 1)
        return
    blocks = -(-row // block)
    if row <= about:
        rows = about // row
        for first in range(0, size // row, rows):
            last = min(first + rows, size // row)
            yield first * row, last * row, slice(first * blocks, last * blocks)
        return
    step = -(-about // block)
    for first in range(size // row):
        for at in range(0, blocks, step):
            end = min(at + step, blocks)
            stop = min(end * block, row)
            yield first * row + at * block, first * row + stop, slice(first * blocks + at, first * blocks + end)


def _chunk(source: np.ndarray, start: int, stop: int, direct: bool, narrows: bool) -> np.ndarray:
    """Elements of an array in its own order, contiguous: of float32, or of float64 where it is not to be narrowed."""
    numbers = source.reshape(-1)[start:stop] if direct else source.flat[start:stop]
    with np.errstate(invalid="ignore"):  # a signalling NaN that is cast would warn
        if numbers.dtype != np.float64 or not narrows:
            return numbers.astype(np.float64 if numbers.dtype == np.float64 else np.float32, copy=False)
        narrow = np.empty(numbers.shape, np.float32)
        _round_to_odd(numbers.astype(np.float64, copy=False), narrow)
        return narrow


@contextmanager
def _span(target: np.ndarray, start: int, stop: int) -> Iterator[np.ndarray]:
    """A contiguous view of elements of an array in its own order, or a copy that is written back."""
    if target.flags.c_contiguous and target.flags.aligned:
        yield target.reshape(-1)[start:stop]
    else:
        out = np.empty(stop - start, target.dtype)
        yield out
        target.flat[start:stop] = out


def _patterns(x: np.ndarray) -> np.ndarray:
    return x.view(np.int32 if x.dtype == np.float32 else np.int64)


@njit(cache=True, nogil=True)
def _largest(patterns, row, block, largest):
    """The pattern of the largest magnitude of every block: floats without a sign are ordered like their patterns."""
    mask = patterns.dtype.type(-1) ^ shift_left(cast(1, patterns[0]), width(patterns[0]) - 1)
    at = 0
    for start in range(0, patterns.size, row):
        end = min(start + row, patterns.size)
        for first in range(start, end, block):
            top = cast(0, patterns[0])
            numbers = patterns[first : min(first + block, end)]  # a view starts at 0: no index is tested for its sign
            for i in range(numbers.size):
                top = max(top, cast(numbers[i] & mask, top))
            largest[at] = top
            at += 1


@njit(cache=True, nogil=True)
def _power_of_two_scales(patterns, scales, reach):
    for i in range(patterns.size):
        field = max(np.int32(np.int32(patterns[i] >> np.int32(23)) - np.int32(reach)), np.int32(0))
        scale = max(np.int32(field << np.int32(23)), np.int32(0x00400000))  # 2^-127 is a subnormal float32
        scales[i] = scale if patterns[i] < np.int32(0x7F800000) else np.int32(0x7FC00000)


def power_of_two_scales(largest: np.ndarray, scales: np.ndarray, reach: int) -> None:
    """2^(e - reach) for blocks whose largest magnitude lies in [2^e, 2^(e + 1)), not below 2^-127: E8M0 holds it.

    Parameters
    ----------
    largest : ndarray of float32
        NaN or infinite where a number of the block is.
    scales : ndarray of float32
        Where the scales go; NaN for such a block.
    reach : int
        The exponent of the largest element at scale one.
    """
    _power_of_two_scales(largest.view(np.int32), scales.view(np.int32), reach)


@njit(cache=True, nogil=True)
def decode_by_table(codes, out, row, block, scales, table):
    """Contiguous rows of codes: what the table says of a code, times the scale of its block."""
    at = 0
    for start in range(0, codes.size, row):
        end = min(start + row, codes.size)
        for first in range(start, end, block):
            stop = min(first + block, end)
            own, numbers = codes[first:stop], out[first:stop]
            scale = scales[at]
            at += 1
            for i in range(own.size):
                numbers[i] = table[own[i]] * scale
