r"""FP32: the single precision of IEEE 754, with eight exponent bits and twenty-three of fraction.

    x = (-1)^s 2^(e - 127) (1 + f / 2^23)       0 < e < 255
    x = (-1)^s 2^-126 f / 2^23                  e = 0: zeros and subnormals
    infinities where f = 0, else NaN            e = 255

A float32 is left as it is, NaN with their payload; a float64 is rounded to the nearest, ties to the even fraction, and
what rounds beyond the largest number becomes infinite.

Source: IEEE 754-2008, binary32.

Examples
--------
>>> import numpy as np
>>> FP32().round(np.array([0.1, 1e-50, 1e50]))
array([0.1, 0. , inf], dtype=float32)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kernels.arithmetic.number_format import NumberFormat

__all__ = ["FP32", "fp32_round"]


def fp32_round(x: np.ndarray) -> np.ndarray:
    """The plain statement: x to a multiple of the spacing of FP32 numbers around it.

    Parameters
    ----------
    x : ndarray of floats

    Returns
    -------
    ndarray of float64
    """
    x = np.asarray(x, np.float64)
    exponent = np.frexp(x)[1] - 1  # 2^exponent <= |x| < 2^(exponent + 1)
    spacing = np.exp2(np.maximum(exponent, -126) - 23.0)
    y = np.rint(x / spacing) * spacing
    return np.where(np.abs(y) > 2.0**128 - 2.0**104, np.copysign(np.inf, x), y)


@dataclass(frozen=True)
class FP32(NumberFormat):
    """IEEE 754 binary32, x = (-1)^s 2^(e - 127) (1 + f / 2^23); a code is the pattern of the float.

    Notes
    -----
    Source: IEEE 754-2008, binary32.

    Examples
    --------
    >>> import numpy as np
    >>> [f"{code:032b}" for code in FP32().encode(np.float32([1, -0.1])).codes]
    ['00111111100000000000000000000000', '10111101110011001100110011001101']
    """

    bits = 32  # without annotation: a constant, not a field

    def _round(self, numbers: np.ndarray, out: np.ndarray, first: int) -> None:
        np.copyto(out, numbers)

    def _encode(self, numbers: np.ndarray, codes: np.ndarray, first: int) -> None:
        np.copyto(codes, numbers.view(np.uint32))

    def _decode(self, codes: np.ndarray, out: np.ndarray) -> None:
        np.copyto(out.view(np.uint32), codes)

    def _chunks(self, source: np.ndarray, target: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As for all formats, but float64 is rounded here, to the nearest, not to odd for a rounding that follows."""
        if source.dtype != np.float64:
            yield from super()._chunks(source, target)
            return
        for numbers, out in _wide_chunks(source, target):
            with np.errstate(over="ignore", invalid="ignore"):
                narrow = numbers.astype(np.float32)
            yield narrow, out


def _wide_chunks(source: np.ndarray, target: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Chunks of float64 that are small enough to stay in the cache."""
    each = ["aligned", "contig"]
    chunks = np.nditer(  # type: ignore[call-overload]
        [source, target],
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_flags=[["readonly", *each], ["writeonly", *each]],
        op_dtypes=[np.float64, target.dtype],
        order="K",
        casting="safe",
    )
    with chunks:
        yield from chunks
