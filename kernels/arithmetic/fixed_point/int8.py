r"""INT8: eight-bit integers with a real scale for each tensor or channel, multiplied and added up as integers.

A number is an integer q, a scale S > 0 and a zero point Z, the integer that stands for zero:

    x = S (q - Z)

    symmetric    Z = 0, -127 <= q <= 127, S = max |x| / 127
    affine       -128 <= q <= 127, S = (max x - min x) / 255 and Z = -128 - round(min x / S), zero among the x

A product of matrices is then a product of integers with integer corrections, summed in 32 bits,

    S3 (q3 - Z3) = S1 S2 (sum q1 q2 - Z2 sum q1 - Z1 sum q2 + K Z1 Z2)

and M = S1 S2 / S3, the only real number left, is written as M0 2^-n with an integer M0 of 31 bits: one integer
multiplication and one shift, to the nearest, ties upwards. Nothing in a layer is a float.

Rounding is q = round(x (1 / S)) + Z in float32, to nearest, ties to even, as PyTorch's `fake_quantize` has it. What
lies beyond the ends saturates, infinities too (PyTorch sends both to the lower end); a NaN is refused.

Source: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", 2018, section 2, equations 1 to 8; symmetric 8-bit codes with a scale found from the largest magnitude go
back to V. Vanhoucke et al., "Improving the speed of neural networks on CPUs", 2011.

Examples
--------
>>> x = np.float32([[1.0, -0.5, 0.25], [100.0, 3.0, -50.0]])
>>> Int8().round(x)                                            # one scale: the first row is nearly lost
array([[  0.78740156,  -0.78740156,   0.        ],
       [100.        ,   3.1496062 , -50.3937    ]], dtype=float32)
>>> Int8(granularity="channel").round(x)[0]
array([ 1.       , -0.503937 ,  0.2519685], dtype=float32)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any, Self

import numpy as np
from numba import njit

from kernels.arithmetic.fixed_point.steps import encode_steps, refuse_nan, round_steps
from kernels.arithmetic.number_format import Encoded, NumberFormat
from kernels.arrays import as_array, describe

__all__ = ["Int8", "accumulate", "int8_round", "integers", "multiplier", "requantize"]

LARGEST = float(np.finfo(np.float32).max)
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-126, float(np.float32(LARGEST) / 128)
"""Below the one the inverse of a scale overflows, beyond the other the lowest number does."""
INT32 = 2**31 - 1


def int8_round(x: np.ndarray, scale: float, zero_point: int = 0, low: int = -127, high: int = 127) -> np.ndarray:
    """The plain statement: S (clip(round(x (1 / S)) + Z) - Z) in float32.

    Parameters
    ----------
    x : ndarray of float32
        No NaN.
    scale, zero_point : float, int
    low, high : int
        The range of q.

    Returns
    -------
    ndarray of float32

    Examples
    --------
    >>> int8_round(np.float32([0.3, 200.0, -200.0]), scale=0.5, zero_point=-28, low=-128)
    array([  0.5,  77.5, -50. ], dtype=float32)
    """
    s, z = np.float32(scale), np.float32(zero_point)
    with np.errstate(over="ignore"):
        q = np.clip(np.rint(x * (np.float32(1) / s)) + z, low, high)
    return (q - z) * s


@dataclass(frozen=True)
class Int8(NumberFormat):
    """Eight-bit integers with scales, x = S (q - Z); a code is q in two's complement.

    Parameters
    ----------
    symmetric : bool
        Zero point 0 and q from -127 to 127; else a zero point, and q from -128 to 127.
    granularity : {"tensor", "channel"}
        One scale, or one for each index of the first axis (a layer's outputs).
    scale : float or tuple of float, optional
        S, or as many as there are channels; set by `fit`.
    zero_point : int or tuple of int, optional
        Z, likewise.

    Notes
    -----
    A float64 number is narrowed to float32 first. An array of zeros has the scale 1.

    Source: Jacob et al. 2018, section 2; Vanhoucke et al. 2011.

    Examples
    --------
    >>> x = np.float32([0.0, 1.0, 2.55])
    >>> affine = Int8(symmetric=False).fit(x)
    >>> affine.zero_point, affine.encode(x).codes.view(np.int8)
    (-128, array([-128,  -28,  127], dtype=int8))

    A product without a float between its operands' codes and its own:

    >>> a, b = np.float32([[1, -2], [3, 4]]), np.float32([[0.5], [1.5]])
    >>> a8, b8, product = Int8(granularity="channel").fit(a), Int8().fit(b), Int8().fit(a @ b)
    >>> product.decode(product.matmul(a8.encode(a), b8.encode(b)))
    array([[-2.480315],
           [ 7.5     ]], dtype=float32)
    """

    symmetric: bool = True
    granularity: str = "tensor"
    scale: float | tuple[float, ...] | None = None
    zero_point: int | tuple[int, ...] | None = None
    bits = 8  # without annotation: a constant, not a field

    def __post_init__(self) -> None:
        if not isinstance(self.symmetric, bool):
            raise ValueError(f"symmetric: expected True or False, got {self.symmetric!r}")
        if self.granularity not in ("tensor", "channel"):
            raise ValueError(f"granularity: expected tensor or channel, got {self.granularity!r}")
        if self.scale is None:
            if self.zero_point is not None:
                raise ValueError(f"zero_point: expected none without a scale, got {self.zero_point!r}")
            return
        many = self.granularity == "channel"
        for name in ("scale", "zero_point"):
            if isinstance(getattr(self, name), tuple) != many and getattr(self, name) is not None:
                expected = "a tuple, an entry a channel" if many else "a number"
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
        scales, zeros = self._parameters
        if scales.size and not (scales.min() >= SMALLEST_SCALE and scales.max() <= LARGEST_SCALE):
            raise ValueError(f"scale: expected positive numbers from 2^-126 to below 2^121, got {self.scale!r}")
        if zeros.size != scales.size or (zeros.size and not -128 <= zeros.min() <= zeros.max() <= 127):
            raise ValueError(f"zero_point: expected an integer from -128 to 127 a scale, got {self.zero_point!r}")
        if self.symmetric and zeros.any():
            raise ValueError(f"zero_point: expected none in a symmetric format, got {self.zero_point!r}")

    def fit(self, x: Any) -> Self:
        """Scales, and zero points of an affine format, from the smallest and largest number.

        Parameters
        ----------
        x : array_like or torch.Tensor of floats, any shape
            Of the shape of what is to be rounded, in its first axis at least, where each channel has its scale.

        Raises
        ------
        ValueError
            If a number is NaN or infinite, or a scalar has no channels.
        """
        super().fit(x)
        return self._fitted(as_array(x, "x"), refit=True)  # type: ignore[return-value]

    def for_activations(self) -> Int8:
        """The same kind of codes with one scale for the whole tensor, not fitted yet: channels mean outputs."""
        return Int8(self.symmetric)

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Eight bits a number; of each scale 32, and 8 for its zero point."""
        many = shape[0] if self.granularity == "channel" and shape else 1
        return 8 * prod(shape) + many * (32 if self.symmetric else 40)

    def values(self) -> np.ndarray:
        """The grid of a tensor; where it was not fitted, that of scale 1.

        Raises
        ------
        ValueError
            If each channel has a grid of its own.
        """
        if self.granularity == "channel":
            raise ValueError("values: each channel has a grid of its own")
        scale, zero = (1.0, 0) if self.scale is None else (self._parameters[0][0], self._parameters[1][0])
        low, high = self._range
        return ((np.arange(low, high + 1) - zero).astype(np.float32) * np.float32(scale)).astype(np.float64)

    def matmul(self, a: Encoded, b: Encoded, bias: Any = None) -> Encoded:
        """The product of two encoded matrices in this format, whose scale is fixed: integers from codes to codes.

        Parameters
        ----------
        a : Encoded of shape (m, k)
            Of any `Int8`, a scale a row included: a layer's weights, say.
        b : Encoded of shape (k, n)
            Of an `Int8` with one scale: its inputs, one a column.
        bias : array_like of int32, shape (m,), optional
            In steps of S1 S2, added to the sums.

        Returns
        -------
        Encoded of shape (m, n)
            To the nearest, ties upwards, saturated.

        Raises
        ------
        ValueError
            If shapes do not fit, a scale is missing, or k is so large that a sum could overflow 32 bits.

        Examples
        --------
        >>> eye = Int8(scale=1.0).encode(np.float32([[1, 0], [0, 1]]))
        >>> Int8(scale=2.0).matmul(eye, Int8(scale=1.0).encode(np.float32([[6], [-5]]))).codes.view(np.int8)
        array([[ 3],
               [-2]], dtype=int8)
        """
        if self.scale is None or self.granularity == "channel":
            raise ValueError("matmul: expected the product's format with one fixed scale; fit it to products first")
        sums = accumulate(a, b)
        (scale_a, _), (scale_b, _) = _scales_of(a, "a"), _scales_of(b, "b")
        m0, shift = multiplier(scale_a * scale_b / self._parameters[0][0])
        if bias is not None:
            offsets = as_array(bias, "bias", ndim=1)
            if offsets.dtype != np.int32 or offsets.shape != sums.shape[:1]:
                raise ValueError(f"bias: expected int32 of shape {sums.shape[:1]}, got {describe(offsets)}")
            sums = np.clip(sums + offsets.astype(np.int64)[:, None], -INT32 - 1, INT32).astype(np.int32)
        rows = np.broadcast_to(m0, sums.shape[:1]), np.broadcast_to(shift, sums.shape[:1])
        codes = requantize(sums, *rows, int(self._parameters[1][0]), *self._range)
        return Encoded(codes.view(np.uint8), self._scales(), codes.shape)

    @property
    def _range(self) -> tuple[int, int]:
        return (-127, 127) if self.symmetric else (-128, 127)

    @property
    def _parameters(self) -> tuple[np.ndarray, np.ndarray]:
        """Scales as float64 (each a float32) and zero points as int64, one a channel."""
        scales = np.atleast_1d(np.asarray(self.scale, np.float32).astype(np.float64))
        zeros = np.zeros(scales.size) if self.zero_point is None else np.atleast_1d(self.zero_point)
        return scales, zeros.astype(np.int64)

    def _fitted(self, x: np.ndarray, refit: bool = False) -> Int8:
        if self.scale is not None and not refit:
            self._check(x)
            return self
        low, high = self._extremes(x)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError("x: expected finite numbers to fit scales to, got NaN or infinity")
        low, high = np.clip((low, high), -LARGEST, LARGEST)  # to which float64 is narrowed
        if self.symmetric:
            scales = np.maximum(-low, high) / 127
        else:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            scales = (high - low) / 255
        scales = np.where(scales > 0, np.clip(scales, SMALLEST_SCALE, LARGEST_SCALE), 1.0).astype(np.float32)
        zeros = np.zeros(scales.shape) if self.symmetric else np.clip(-128 - np.rint(low / scales), -128, 127)
        return self._with(scales, zeros)

    def _extremes(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and largest number, of each channel where it matters, as float64; zeros where there is none."""
        if self.granularity == "channel":
            if x.ndim == 0:
                raise ValueError("x: expected an array with a first axis of channels, got a scalar")
            axes, shape = tuple(range(1, x.ndim)), (len(x),)
        else:
            axes, shape = tuple(range(x.ndim)), (1,)
        if x.size == 0:
            return np.zeros(shape), np.zeros(shape)
        return tuple(f(x, axis=axes).reshape(shape).astype(np.float64) for f in (np.min, np.max))  # type: ignore

    def _with(self, scales: np.ndarray, zeros: np.ndarray) -> Int8:
        if self.granularity == "channel":
            fixed = tuple(map(float, scales)), None if self.symmetric else tuple(map(int, zeros))
        else:
            fixed = float(scales[0]), None if self.symmetric else int(zeros[0])  # type: ignore[assignment]
        return replace(self, scale=fixed[0], zero_point=fixed[1])

    def _check(self, x: np.ndarray) -> None:
        if self.granularity == "channel" and (x.ndim == 0 or len(x) != len(self.scale)):  # type: ignore[arg-type]
            many = len(self.scale)  # type: ignore[arg-type]
            raise ValueError(f"x: expected {many} channels on the first axis, got {describe(x)}")

    def _scales(self) -> np.ndarray:
        """Scales as float32; of an affine format a second row with the zero points."""
        scales, zeros = self._parameters
        return (scales if self.symmetric else np.array([scales, zeros])).astype(np.float32)

    def _scaled(self, scales: np.ndarray) -> Int8:
        rows = np.asarray(scales, np.float32)
        if rows.ndim != (1 if self.symmetric else 2) or (not self.symmetric and len(rows) != 2):
            raise ValueError(f"encoded: expected scales{'' if self.symmetric else ' and zero points'} of {self}")
        scales, zeros = (rows, np.zeros(len(rows))) if self.symmetric else rows
        if self.granularity == "tensor" and scales.size != 1:
            raise ValueError(f"encoded: expected one scale, got {scales.size}")
        return self._with(scales, zeros)

    def _over(self, source: np.ndarray, target: np.ndarray, work: str, threads: int) -> None:
        if self.granularity == "tensor":
            super()._over(source, target, work, threads)
        elif source.flags.c_contiguous and target.flags.c_contiguous:
            bound = _Bound(self, source[0].size if len(source) else 0)
            self._share(source, target, getattr(bound, work), threads)
        else:  # places in memory say nothing of channels: one channel after the other
            for c, (scale, zero) in enumerate(zip(*self._parameters, strict=True)):
                alone = Int8(self.symmetric, scale=float(scale), zero_point=None if self.symmetric else int(zero))
                alone._over(source[c : c + 1], target[c : c + 1], work, threads)

    def _round(self, numbers: np.ndarray, out: np.ndarray, first: int) -> None:
        _Bound(self, 0)._round(numbers, out, first)

    def _encode(self, numbers: np.ndarray, codes: np.ndarray, first: int) -> None:
        _Bound(self, 0)._encode(numbers, codes, first)

    def _decode(self, codes: np.ndarray, out: np.ndarray) -> None:
        scales, zeros = self._parameters if self.scale is not None else (np.ones(1), np.zeros(1, np.int64))
        if codes.size:
            if codes.size % scales.size:
                raise ValueError(f"encoded: expected codes of {scales.size} channels, got {codes.size} codes")
            _decode(codes.view(np.int8), out, scales.astype(np.float32), zeros, codes.size // scales.size)


class _Bound:
    """What an `Int8` does to a chunk, told how many numbers each of its channels has."""

    def __init__(self, of: Int8, inner: int):
        scales, zeros = of._parameters
        low, high = of._range
        self.down = scales.astype(np.float32)
        self.up = np.float32(1) / self.down
        self.low, self.high = ((end - zeros).astype(np.float32) for end in (low, high))
        self.zeros, self.inner = zeros, inner

    def _round(self, numbers: np.ndarray, out: np.ndarray, first: int) -> None:
        if self.up.size == 1:
            nan = round_steps(numbers, out, self.up[0], self.down[0], self.low[0], self.high[0], 0, 0, 0)
        else:
            nan = _round(numbers, out, self.up, self.down, self.low, self.high, self.inner, first)
        refuse_nan(nan)

    def _encode(self, numbers: np.ndarray, codes: np.ndarray, first: int) -> None:
        if self.up.size == 1:
            zero = int(self.zeros[0])
            nan = encode_steps(numbers, codes, self.up[0], self.low[0], self.high[0], 0xFF, zero, 0, 0, 0)
        else:
            nan = _encode(numbers, codes, self.up, self.low, self.high, self.zeros, self.inner, first)
        refuse_nan(nan)


def integers(encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """The integers q of encoded numbers as int8, and their zero points as int64.

    Parameters
    ----------
    encoded : Encoded
        Of an `Int8`.

    Examples
    --------
    >>> integers(Int8().encode(np.float32([-1, 0.5])))
    (array([-127,   64], dtype=int8), array([0]))
    """
    return np.asarray(encoded.codes).view(np.int8), _scales_of(encoded, "encoded")[1]


def accumulate(a: Encoded, b: Encoded) -> np.ndarray:
    """Sums of products of integers, zero points folded in: sum (q1 - Z1)(q2 - Z2), exact in INT32.

    Parameters
    ----------
    a : Encoded of shape (m, k), one scale or one a row
    b : Encoded of shape (k, n), one scale

    Returns
    -------
    ndarray of int32, shape (m, n)
    """
    for name, x in (("a", a), ("b", b)):
        if np.ndim(x.codes) != 2 or np.asarray(x.codes).dtype != np.uint8:
            raise ValueError(f"{name}: expected 8-bit codes of a matrix, got {describe(x.codes)}")
    if a.codes.shape[1] != b.codes.shape[0]:
        raise ValueError(f"b: expected {a.codes.shape[1]} rows, got {describe(b.codes)}")
    (_, zeros_a), (_, zeros_b) = _scales_of(a, "a"), _scales_of(b, "b")
    if zeros_b.size != 1:
        raise ValueError(f"b: expected one scale, since channels would be summed over, got {zeros_b.size}")
    m, k = a.codes.shape
    if zeros_a.size not in (1, m):
        raise ValueError(f"a: expected one scale or {m}, got {zeros_a.size}")
    reach = 1
    for x in (a, b):
        reach *= 127 if x.scales is not None and x.scales.ndim == 1 else 255
    if k * reach > INT32:
        raise ValueError(f"a: expected at most {INT32 // reach} columns, so that sums stay in 32 bits, got {k}")
    q1, q2 = (np.ascontiguousarray(x.codes).view(np.int8) for x in (a, b))
    sums = np.zeros((m, b.codes.shape[1]), np.int32)
    _products(q1, q2, sums)
    za, zb = np.broadcast_to(zeros_a, m).astype(np.int32), np.int32(zeros_b[0])
    if zb:
        sums -= zb * q1.sum(axis=1, dtype=np.int32)[:, None]
    if za.any():
        sums -= za[:, None] * (q2.sum(axis=0, dtype=np.int32) - np.int32(k) * zb)
    return sums


def multiplier(m: Any) -> tuple[np.ndarray, np.ndarray]:
    """Positive real factors as M0 2^-shift, M0 an integer of 31 bits: Jacob's equation 6, for any M.

    Parameters
    ----------
    m : array_like of positive floats

    Returns
    -------
    M0, shift : ndarray of int64

    Examples
    --------
    >>> multiplier([0.5, 0.1])
    (array([1073741824, 1717986918]), array([31, 34]))
    """
    mantissas, exponents = np.frexp(np.atleast_1d(np.asarray(m, np.float64)))
    m0, shift = np.rint(mantissas * 2.0**31).astype(np.int64), 31 - exponents.astype(np.int64)
    carried = m0 == 2**31
    return np.where(carried, 2**30, m0), np.where(carried, shift - 1, shift)


def requantize(sums: np.ndarray, m0: np.ndarray, shift: np.ndarray, zero: int, low: int, high: int) -> np.ndarray:
    """INT32 sums to INT8: Z + floor(sum M0 2^-shift + 1/2), saturated, with a factor for each row.

    Parameters
    ----------
    sums : ndarray of int32, shape (m, n)
    m0, shift : ndarray of int64, shape (m,)
    zero, low, high : int

    Returns
    -------
    ndarray of int8, shape (m, n)
    """
    out = np.empty(sums.shape, np.int8)
    _requantize(sums, np.ascontiguousarray(m0), np.clip(shift, 1, 63), zero, low, high, out)
    return out


def _scales_of(encoded: Encoded, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Scales as float64 and zero points as int64 of encoded numbers, by the form of their array."""
    if encoded.scales is None:
        raise ValueError(f"{name}: expected numbers encoded by an Int8, with their scales")
    rows = np.asarray(encoded.scales, np.float64)
    scales, zeros = (rows, np.zeros(len(rows))) if rows.ndim == 1 else rows
    return scales, zeros.astype(np.int64)


@njit(cache=True, nogil=True)
def _round(x, out, up, down, low, high, inner, first):
    """Channel by channel of a chunk that starts anywhere; `inner` numbers a channel."""
    nan, start = False, 0
    while start < x.size:
        c = (first + start) // inner
        stop = min(x.size, (c + 1) * inner - first)
        nan |= round_steps(x[start:stop], out[start:stop], up[c], down[c], low[c], high[c], 0, 0, 0)
        start = stop
    return nan


@njit(cache=True, nogil=True)
def _encode(x, codes, up, low, high, zeros, inner, first):
    nan, start = False, 0
    while start < x.size:
        c = (first + start) // inner
        stop = min(x.size, (c + 1) * inner - first)
        nan |= encode_steps(x[start:stop], codes[start:stop], up[c], low[c], high[c], 0xFF, zeros[c], 0, 0, 0)
        start = stop
    return nan


@njit(cache=True, nogil=True)
def _decode(q, out, scales, zeros, inner):
    for c in range(scales.size):
        for i in range(c * inner, (c + 1) * inner):
            out[i] = np.float32(np.int32(q[i]) - zeros[c]) * scales[c]


@njit(cache=True, nogil=True)
def _products(a, b, sums):
    for i in range(a.shape[0]):
        for p in range(a.shape[1]):
            factor = np.int32(a[i, p])
            for j in range(b.shape[1]):
                sums[i, j] += factor * np.int32(b[p, j])


@njit(cache=True, nogil=True)
def _requantize(sums, m0, shift, zero, low, high, out):
    for i in range(sums.shape[0]):
        half = np.int64(1) << (shift[i] - 1)
        for j in range(sums.shape[1]):
            scaled = (np.int64(sums[i, j]) * m0[i] + half) >> shift[i]
            out[i, j] = min(max(scaled + zero, low), high)
