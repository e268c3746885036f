"""What every number format can do: round real numbers to its grid, and turn them into codes and back.

A format is a finite set of numbers, its *grid*, and a rule that sends every real number to one of them. A subclass says
that rule for contiguous chunks; shapes, layouts, tensors, threads and refusals are dealt with once, here.

A format may have scales, by which its grid is stretched. `fit(x)` fixes them for `x`; a format that was not fitted is
fitted to each array that it is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Self

import numpy as np
from numba import njit

from kernels.arrays import as_array, describe, is_tensor, like

__all__ = ["Encoded", "NumberFormat"]

PIECE = 4096
"""Threads divide an array at multiples of this many elements: a page of memory at the least."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """Numbers as codes of a format; only the format that made them knows what they mean.

    Parameters
    ----------
    codes : ndarray of unsigned integers
        One code a number, in the smallest unsigned type that holds it.
    scales : ndarray of float32 or None
        What the decoded grid is multiplied by, for formats that have scales.
    shape : tuple of int
        Shape of the numbers.
    """

    codes: np.ndarray
    scales: np.ndarray | None
    shape: tuple[int, ...]


class NumberFormat(ABC):
    """Base of all number formats; subclasses are frozen dataclasses whose fields are the format's parameters."""

    bits: int
    """Bits of one code."""

    @property
    def dtype(self) -> type[np.floating]:
        """The float type of rounded values: float32 where it holds the grid and its midpoints, else float64."""
        return np.float32

    @property
    def code_dtype(self) -> type[np.unsignedinteger]:
        """The smallest unsigned integer type that holds a code."""
        return np.uint8 if self.bits <= 8 else np.uint16 if self.bits <= 16 else np.uint32

    def round(self, x: Any, out: Any = None, *, threads: int = 1) -> Any:
        """Replace every number by the one of the grid that the format's rule chooses, once and without a detour.

        Parameters
        ----------
        x : array_like or torch.Tensor of float16, bfloat16, float32 or float64, any shape
            Integers are refused, since the reader should say which float type is meant.
        out : ndarray or torch.Tensor, optional
            Where the result goes: the same shape, of type `dtype`. It may be `x`.
        threads : int
            How many share the work where both arrays are contiguous; the result does not depend on it.

        Returns
        -------
        ndarray or torch.Tensor of the shape of `x`
            Values of type `dtype`; a tensor where `x` is one. No gradient flows through it.

        Raises
        ------
        TypeError
            If `x` is not floats, or `out` is no array of type `dtype`.
        ValueError
            If `out` has another shape than `x` or cannot be written, or `threads` is not positive.
        """
        source = _floats(x)
        if out is None:
            target = np.empty_like(source, dtype=self.dtype, subok=False)
        else:
            target = _target(out, source.shape, self.dtype)
            if np.may_share_memory(source, target) and not _same(source, target):
                source = source.copy()
        self._fitted(source)._over(source, target, "_round", threads)
        return like(target, x) if out is None else out

    def encode(self, x: Any, out: Any = None, *, threads: int = 1) -> Encoded:
        """Round as `round` does, and keep codes in place of values.

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
            Codes in numpy arrays, of the shape of `x`, and the scales of a format that has them.
        """
        source = _floats(x)
        own = self._fitted(source)
        codes = _target(out, source.shape, self.code_dtype)
        own._over(source, codes, "_encode", threads)
        return Encoded(codes, own._scales(), source.shape)

    def decode(self, encoded: Encoded) -> np.ndarray:
        """The numbers that codes stand for: ``decode(encode(x))`` equals ``round(x)``.

        Returns
        -------
        ndarray of type `dtype`, of the encoded shape

        Raises
        ------
        TypeError, ValueError
            If the codes have another type, another shape, or more bits than the format gives them.
        """
        codes, shape = self._codes(encoded), tuple(encoded.shape)
        out = np.empty(shape, self.dtype)
        own = self if encoded.scales is None else self._scaled(encoded.scales)
        own._decode(np.ascontiguousarray(codes).reshape(-1), out.reshape(-1))
        return out

    def _codes(self, encoded: Encoded) -> np.ndarray:
        codes, shape = np.asarray(encoded.codes), tuple(encoded.shape)
        if codes.dtype != self.code_dtype:
            raise TypeError(f"encoded: expected codes of dtype {np.dtype(self.code_dtype)}, got {describe(codes)}")
        if codes.shape != shape:
            raise ValueError(f"encoded: expected codes of shape {shape}, got {describe(codes)}")
        if codes.size and int(codes.max()) >> self.bits:
            raise ValueError(f"encoded: expected codes below 2^{self.bits}, got {int(codes.max())}")
        return codes

    def fit(self, x: Any) -> Self:
        """The format with its scales chosen for `x`; a format without scales is its own fit."""
        _floats(x)
        return self

    def for_activations(self) -> NumberFormat:
        """What stands for the format where numbers change from call to call: without scales of single channels."""
        return self

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Bits that an array of this shape takes: codes packed without gaps, and scales where the format has them."""
        return self.bits * prod(shape)

    def values(self) -> np.ndarray:
        """The grid: all finite values, ascending, as float64; for formats of at most 16 bits."""
        if self.bits > 16:
            raise ValueError(f"values: expected a format of at most 16 bits, got {self}")
        codes = np.arange(2**self.bits).astype(self.code_dtype)
        values = self.decode(Encoded(codes, None, codes.shape))
        return np.unique(values[np.isfinite(values)].astype(np.float64)) + 0.0  # -0 and 0 are one value

    def _fitted(self, x: np.ndarray) -> NumberFormat:
        """The format with scales: itself where it has none or they are fixed, else fitted to `x`."""
        return self

    def _scales(self) -> np.ndarray | None:
        """The scales that were fixed, as they are kept beside codes."""
        return None

    def _scaled(self, scales: np.ndarray) -> NumberFormat:
        """The format with these scales fixed."""
        raise ValueError(f"encoded: expected no scales, {self} has none")

    @abstractmethod
    def _round(self, numbers: np.ndarray, out: np.ndarray, first: int) -> None:
        """Round a contiguous chunk of type `dtype` into another; `first` is its first element's place in memory order.

        It runs beside itself in other threads: its loops are compiled with ``nogil=True``.
        """

    @abstractmethod
    def _encode(self, numbers: np.ndarray, codes: np.ndarray, first: int) -> None:
        """Encode a contiguous chunk of type `dtype`."""

    @abstractmethod
    def _decode(self, codes: np.ndarray, out: np.ndarray) -> None:
        """Decode a contiguous chunk of codes."""

    def _over(self, source: np.ndarray, target: np.ndarray, work: str, threads: int) -> None:
        """Do `work`, `_round` or `_encode`, on all numbers."""
        self._share(source, target, getattr(self, work), threads)

    def _share(self, source: np.ndarray, target: np.ndarray, work: Callable[..., None], threads: int) -> None:
        """Do `work` chunk by chunk; in pieces of equal size where threads can share them."""
        if not (isinstance(threads, int) and threads >= 1):
            raise ValueError(f"threads: expected a positive integer, got {threads!r}")

        def run(piece: np.ndarray, into: np.ndarray, first: int) -> None:
            for numbers, out in self._chunks(piece, into):
                work(numbers, out, first)
                first += numbers.size

        size = -(-source.size // (threads * PIECE)) * PIECE
        if threads > 1 and source.size > size and source.flags.c_contiguous and target.flags.c_contiguous:
            flat, into = source.reshape(-1), target.reshape(-1)
            starts = range(0, source.size, size)

            def each(start: int) -> None:
                run(flat[start : start + size], into[start : start + size], start)

            list(_pool(threads).map(each, starts))
        else:
            run(source, target, 0)

    def _chunks(self, source: np.ndarray, target: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of contiguous 1-D views that cover both arrays in memory order; only what must be is copied, in pieces.

        Rounding float64 to float32 and then to the grid would round twice. Rounding *to odd* in between does not: an
        inexact number never lands on a float32 with an even pattern, and all the grid's decision points are such.
        (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd",
        IEEE Transactions on Computers, 2008.)
        """
        narrows = source.dtype == np.float64 and self.dtype is np.float32
        flags = ["external_loop", "buffered", "zerosize_ok"]
        if not narrows:  # else a chunk holds 8192 numbers at most: what narrowing makes stays in the cache
            flags.append("grow_inner")
        each = ["aligned", "contig"]
        chunks = np.nditer(  # type: ignore[call-overload]
            [source, target],
            flags=flags,
            op_flags=[["readonly", *each], ["writeonly", *each]],
            op_dtypes=[np.float64 if narrows else self.dtype, target.dtype],
            order="K",
            casting="safe",
        )
        with np.errstate(invalid="ignore"), chunks:  # a signalling NaN that is cast would warn
            for numbers, out in chunks:
                if narrows:
                    narrow = np.empty(numbers.shape, np.float32)
                    _round_to_odd(numbers, narrow)
                    numbers = narrow
                yield numbers, out


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def _floats(x: Any) -> np.ndarray:
    """Floats in this machine's byte order: a view, or a copy of numbers in the other."""
    array = as_array(x, "x")
    if array.dtype.type not in (np.float16, np.float32, np.float64):
        raise TypeError(f"x: expected float16, bfloat16, float32 or float64, got {describe(x)}; convert it first")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _target(out: Any, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """A view of `out`, refused where results cannot go there; a new array where there is none."""
    if out is None:
        return np.empty(shape, dtype)
    name = np.dtype(dtype).name
    if not (is_tensor(out) or isinstance(out, np.ndarray)):
        raise TypeError(f"out: expected an array or tensor of {name}, got {describe(out)}")
    if str(out.dtype).removeprefix("torch.") != name:  # of bfloat16, or of the other byte order, there is no view
        raise TypeError(f"out: expected dtype {name}, got {describe(out)}")
    target = as_array(out, "out")
    if target.shape != shape:
        raise ValueError(f"out: expected the shape of x, {shape}, got {describe(out)}")
    if not target.flags.writeable:
        raise ValueError(f"out: expected an array that can be written, got a read-only {describe(out)}")
    return target


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are the same numbers at the same places of memory."""
    places = (x.__array_interface__["data"][0] for x in (a, b))
    return len(set(places)) == 1 and (a.strides, a.dtype) == (b.strides, b.dtype)


@njit(cache=True, nogil=True)
def _round_to_odd(x, out):
    """Float64 to float32; an inexact number goes to its neighbour whose last bit is one."""
    pattern = out.view(np.int32)
    for i in range(x.size):
        out[i] = np.float32(x[i])
        back = np.float64(out[i])
        truncated = pattern[i] - (abs(back) > abs(x[i]))
        pattern[i] = truncated | (back != x[i])
