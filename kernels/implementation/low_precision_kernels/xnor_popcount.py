"""XNOR and popcount: 64 products of signs in a word, and their sum by counting ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from kernels.arithmetic.approximate_arithmetic.bit_planes import Planes, pack_planes, planes_product, tile_shape
from kernels.arithmetic.approximate_arithmetic.codes import Coded, InCodes, code_rows
from kernels.arrays import as_array, describe
from kernels.implementation.low_precision_kernels.code_convolution import CodedConvolution
from kernels.simd import LANES

__all__ = ["XnorPopcount", "plain_xnor", "ternary_rows"]


def plain_xnor(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The definition, for matrices of -1 and 1: twice the places where signs agree, less the length.

    Examples
    --------
    >>> plain_xnor(np.array([[1, -1, 1]]), np.array([[1], [1], [-1]]))
    array([[-1]])
    """
    agree = ~((a > 0)[:, :, None] ^ (b > 0)[None, :, :])
    return 2 * agree.sum(1, dtype=np.int64) - a.shape[1]


def ternary_rows(x: np.ndarray, name: str) -> Coded:
    """Rows of -1, 0 and 1: zero below 0.7 of the mean magnitude, the scale the mean of what is above.

    Source: Li et al., "Ternary Weight Networks", arXiv 1605.04711, equations 5 and 6.

    Examples
    --------
    >>> rows = ternary_rows(np.float32([[0.1, -2.0, 1.0, 0.0]]), "w")
    >>> rows.integers(), rows.scales
    (array([[ 0, -1,  1,  0]]), array([1.5], dtype=float32))
    """
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: expected finite numbers, which have signs; it holds infinity or NaN")
    size = np.abs(x)
    kept = size > 0.7 * size.mean(1, keepdims=True, dtype=np.float64) if x.shape[1] else size > 0
    count = kept.sum(1)
    scales = np.where(kept, size, 0).sum(1, dtype=np.float64) / np.maximum(count, 1)
    codes = np.zeros((len(x), -(-x.shape[1] // 64) * 64), np.uint8)
    codes[:, : x.shape[1]] = np.where(kept, np.sign(x), 0) + 1
    return Coded(codes, scales.astype(np.float32), codes.sum(1, dtype=np.int64), x.shape[1], 2, 1, 1)


@dataclass(frozen=True)
class XnorPopcount(CodedConvolution):
    r"""Products of matrices of signs, and of signs by -1, 0 and 1.

    .. math:: \sum_t a_t b_t = 2\,\mathrm{popcount}(\mathrm{xnor}(a, b)) - k
              = 4\,\mathrm{popcount}(a \wedge b) - 2\,\mathrm{popcount}(a) - 2\,\mathrm{popcount}(b) + k

    with the sign of a number in one bit. The right-hand form, an *and* in place of an *xnor*, leaves the counts of each
    operand alone to be taken once, and lets places that pad a word be zeros. Ternary weights have two bits, whose
    planes are counted one after the other. Packing the inputs into words is part of every call; the weights are
    packed once.

    Real matrices are rounded to signs first, with the mean magnitude of a row of inputs, an image, or a column of
    weights as its scale.

    Parameters
    ----------
    weights : {"binary", "ternary"}
    lanes : {0, 2, 4, 8}
        Words of 64 bits in a vector register; 0 is this machine's own width.

    Source: Rastegari et al., "XNOR-Net", 2016, section 3; Umuroglu et al., "FINN", 2017, for the popcount and
    thresholds.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> a, b = (rng.choice([-1, 1], shape) for shape in ((3, 100), (100, 4)))
    >>> np.array_equal(XnorPopcount().multiply(a, b), a @ b)
    True
    """

    weights: str = "binary"
    lanes: int = 0

    arithmetic: ClassVar[str] = "an AND of two words and a count of its ones"
    input_bits: ClassVar[int] = 1  # type: ignore[misc]
    signed_inputs: ClassVar[bool | None] = True

    def __post_init__(self) -> None:
        if self.weights not in ("binary", "ternary"):
            raise ValueError(f"weights: expected binary or ternary, got {self.weights!r}")
        if self.lanes not in (0, 2, 4, 8):
            raise ValueError(f"lanes: expected 0, 2, 4 or 8, got {self.lanes!r}")

    @property
    def weight_bits(self) -> int:  # type: ignore[override]
        """Bits of a weight as it is stored."""
        return 1 if self.weights == "binary" else 2

    def multiply(self, a: Any, b: Any) -> np.ndarray:
        """The exact product of a matrix of -1 and 1 by one of -1 and 1, or of -1, 0 and 1.

        Parameters
        ----------
        a : array_like of integers, shape (m, k)
        b : array_like of integers, shape (k, n)

        Returns
        -------
        ndarray of int64, shape (m, n)

        Raises
        ------
        ValueError
            If an operand holds anything else, or shapes do not fit.
        """
        left, right = as_array(a, "a", ndim=2), as_array(b, "b", ndim=2)
        allowed = (-1, 1) if self.weights == "binary" else (-1, 0, 1)
        for x, name, values in ((left, "a", (-1, 1)), (right, "b", allowed)):
            if not np.isin(x, values).all():
                raise ValueError(f"{name}: expected {', '.join(map(str, values))} alone, got {describe(x)}")
        if left.shape[1] != right.shape[0]:
            raise ValueError(f"b: expected {left.shape[1]} rows, as many as a has columns, got {describe(right)}")
        own = code_rows(left.astype(np.float32), 1, "a", signed=True)
        coded = self._coded(np.ascontiguousarray(right.T, np.float32))
        return self._product(own, coded, self._form(coded), np.empty((len(left), right.shape[1]), np.int64))

    def _matrix(self, w: Any) -> InCodes:
        matrix = as_array(w, "w", ndim=2, dtype=np.float32)
        coded = self._coded(np.ascontiguousarray(matrix.T))
        return InCodes(self, (matrix.shape[0], matrix.shape[1]), coded, self._form(coded))

    def _coded(self, rows: np.ndarray) -> Coded:
        return code_rows(rows, 1, "w", signed=True) if self.weights == "binary" else ternary_rows(rows, "w")

    @property
    def _words(self) -> int:
        return self.lanes or LANES // 2

    def _form(self, coded: Coded) -> Planes:
        return pack_planes(coded.codes, coded.bits, tile_shape(self._words)[1] * self._words)

    def _multiplied(self, a: Coded, w: InCodes) -> np.ndarray:
        return self._product(a, w.coded, w.form, np.empty((len(a.codes), w.shape[1]), np.float32))

    def _product(self, a: Coded, w: Coded, planes: Planes, out: np.ndarray) -> np.ndarray:
        # (2 u - 1)(s v - 1), summed: 2 s uv - 2 u - s v + k
        rows = a.depth - a.step * w.zero * a.sums
        columns = -w.step * a.zero * w.sums
        own = pack_planes(a.codes, a.bits, tile_shape(self._words)[0])
        scales = (a.scales, w.scales) if out.dtype == np.float32 else (None, None)
        return planes_product(own, planes, self._words, out, a.step * w.step // 2, rows, columns, *scales)
