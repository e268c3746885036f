r"""Microscaling (MX): blocks of 32 narrow floats or integers, each block with a power of two as its scale.

With elements P_i of a narrow format whose largest exponent is e_max, and the block's scale X in E8M0, eight bits that
are an exponent and nothing else,

    x_i = X P_i,       X = 2^(floor(log2 max |x|) - e_max),       P_i = round(x_i / X)

Elements are rounded to the nearest, ties to even, and saturate: the scale puts the largest number of the block between
2^e_max and 2^(e_max + 1), and the largest element may lie below it (448 of 512 in E4M3, 6 of 8 in E2M1). Elements keep
their subnormals.

    element     largest  e_max   smallest   name in the standard
    fp8-e4m3    448      8       2^-9       MXFP8
    fp8-e5m2    57344    15      2^-16      MXFP8
    fp6-e2m3    7.5      2       2^-3       MXFP6
    fp6-e3m2    28       4       2^-4       MXFP6
    fp4-e2m1    6        2       2^-1       MXFP4
    int8        127/64   0       1/64       MXINT8: block floating point with mantissas of eight bits

A scale lies between 2^-127 and 2^127, or is NaN (0xFF), and then all numbers of the block are NaN. The standard leaves
to implementations what becomes of a block with a NaN or an infinity; here its scale is NaN. An int8 of -128 is read
as -2, and never written, so that the grid is symmetric.

Source: Open Compute Project, "OCP Microscaling Formats (MX) Specification", version 1.0, 2023, sections 5 and 6;
B. Darvish Rouhani et al., "Microscaling Data Formats for Deep Learning", 2023, algorithm 1.

Examples
--------
>>> form = Microscaling("fp4-e2m1")
>>> form.element_values()[7:]
array([0. , 0.5, 1. , 1.5, 2. , 3. , 4. , 6. ])
>>> form.round(np.float32([100, 30, 5, -3, 0.1]))                       # scale 2^(6 - 2): steps of 8 and more
array([96., 32.,  8., -0.,  0.], dtype=float32)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numba import njit

from kernels.arithmetic.bits import as_float, as_pattern
from kernels.arithmetic.block_format import (
    BlockFormat,
    decode_by_table,
    in_blocks,
    largest_exponents,
    power_of_two_scales,
    same_order,
)
from kernels.arithmetic.block_formats.block_floating_point import (
    block_floating_point_round,
    decode_integers,
    encode_integers,
    round_integers,
)

__all__ = ["ELEMENTS", "Microscaling", "element_value", "microscaling_round"]

ELEMENTS = {"fp8-e4m3": (4, 3), "fp8-e5m2": (5, 2), "fp6-e2m3": (2, 3), "fp6-e3m2": (3, 2), "fp4-e2m1": (2, 1)}
"""Exponent and mantissa bits of the elements that are floats; "int8" is the other one."""
BLOCK = 32
"""Numbers that share a scale, in all formats of the standard."""


def element_value(code: int, element: str) -> float:
    """What the standard says that one code of an element stands for, at scale one.

    Parameters
    ----------
    code : int
        From 0 to 2^bits - 1.
    element : str
        A key of `ELEMENTS`, or "int8".

    Returns
    -------
    float
        Exact; E5M2 has infinities, both FP8 have NaN, the others have neither.

    Examples
    --------
    >>> [element_value(code, "fp4-e2m1") for code in range(8)], element_value(0x7F, "fp8-e4m3")
    ([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], nan)
    """
    if element == "int8":
        return (code - 256 if code >= 128 else code) / 64
    e, m = ELEMENTS[element]
    bias = 2 ** (e - 1) - 1
    sign = -1.0 if code >> (e + m) else 1.0
    exponent, fraction = (code >> m) & (2**e - 1), code & (2**m - 1)
    if element == "fp8-e5m2" and exponent == 31:
        return np.nan if fraction else sign * np.inf
    if element == "fp8-e4m3" and exponent == 15 and fraction == 7:
        return np.nan
    if exponent == 0:
        return sign * 2.0 ** (1 - bias - m) * fraction
    return sign * 2.0 ** (exponent - bias) * (1 + fraction / 2**m)


def microscaling_round(x: np.ndarray, element: str) -> np.ndarray:
    """The plain statement: x over its block's scale to the nearest element, ties to even, times the scale.

    Parameters
    ----------
    x : ndarray of floats, any shape
    element : str

    Returns
    -------
    ndarray of float64
    """
    if element == "int8":
        return block_floating_point_round(x, 8, BLOCK)
    _, m = ELEMENTS[element]
    own = _constants(element)
    blocks = in_blocks(x, BLOCK)
    scale = np.exp2(np.clip(largest_exponents(blocks) - own.reach, -127, 127))
    with np.errstate(invalid="ignore"):
        y = blocks / scale
        exponent = np.maximum(np.frexp(y)[1] - 1, own.smallest_exponent)
        spacing = np.exp2(exponent - float(m))
        return same_order(np.clip(np.rint(y / spacing) * spacing, -own.most, own.most) * scale, np.shape(x))


@dataclass(frozen=True)
class _Constants:
    bits: int
    reach: int  # the exponent of the largest element
    smallest_exponent: int  # of a normal element
    most: float
    table: np.ndarray  # value of each code, float32


@lru_cache(maxsize=8)
def _constants(element: str) -> _Constants:
    bits = 8 if element == "int8" else 1 + sum(ELEMENTS[element])
    table = np.array([element_value(code, element) for code in range(2**bits)])
    table.setflags(write=False)
    if element == "int8":
        return _Constants(bits, 0, 0, 127 / 64, table.astype(np.float32))
    most = float(table[np.isfinite(table)].max())
    smallest = 2 - 2 ** (ELEMENTS[element][0] - 1)
    return _Constants(bits, int(np.floor(np.log2(most))), smallest, most, table.astype(np.float32))


@dataclass(frozen=True)
class Microscaling(BlockFormat):
    """The MX formats of the OCP, x_i = X P_i; a code is an element P_i, a scale is X = 2^(floor(log2 max |x|) - e_max).

    Parameters
    ----------
    element : {"fp8-e4m3", "fp8-e5m2", "fp6-e2m3", "fp6-e3m2", "fp4-e2m1", "int8"}
        The format of the elements.

    Notes
    -----
    Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5 and 6; Darvish Rouhani et al. 2023, algorithm 1.

    Examples
    --------
    >>> form = Microscaling("fp4-e2m1")
    >>> encoded = form.encode(np.float32([100, 30, 5, -3, 0.1]))
    >>> [f"{code:04b}" for code in encoded.codes], encoded.scales
    (['0111', '0100', '0001', '1000', '0000'], array([16.], dtype=float32))
    >>> form.stored_bits((32,))                                             # 4.25 bits a number
    136
    """

    element: str = "fp8-e4m3"
    block = BLOCK
    scale_bits = 8

    def __post_init__(self) -> None:
        if self.element not in (*ELEMENTS, "int8"):
            raise ValueError(f"element: expected {', '.join(ELEMENTS)} or int8, got {self.element!r}")

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Bits of one element; the scales are counted by `stored_bits`."""
        return _constants(self.element).bits

    def element_values(self) -> np.ndarray:
        """The finite values of the elements, ascending: the grid of a block whose scale is one."""
        table = _constants(self.element).table.astype(np.float64)
        values = np.unique(table[np.isfinite(table)]) + 0.0
        return values[1:] if self.element == "int8" else values  # -128 is never written

    def _settle(self, largest: np.ndarray, scales: np.ndarray) -> None:
        power_of_two_scales(largest, scales, _constants(self.element).reach)

    def _round_blocks(self, numbers, out, row, block, largest, scales) -> None:
        if self.element == "int8":
            round_integers(numbers, out, row, block, scales, 8)
        else:
            _round(numbers, out, row, block, scales, *self._layout_of_floats())

    def _encode_blocks(self, numbers, codes, row, block, largest, scales) -> None:
        if self.element == "int8":
            encode_integers(numbers, codes, row, block, scales, 8)
        else:
            _encode(numbers, codes, row, block, scales, *self._layout_of_floats(), self.bits - 1)

    def _decode_blocks(self, codes, out, row, block, scales) -> None:
        if self.element == "int8":
            decode_integers(codes, out, row, block, scales, 8)
        else:
            decode_by_table(codes, out, row, block, scales, _constants(self.element).table)

    def _layout_of_floats(self) -> tuple[int, int, np.float32]:
        """Mantissa bits, smallest exponent of a normal element and largest element."""
        own = _constants(self.element)
        return ELEMENTS[self.element][1], own.smallest_exponent, np.float32(own.most)


# A number over its scale, y, lies in [2^e, 2^(e + 1)). Adding 2^(e + 23 - m) leaves no bit below 2^(e - m), so that the
# addition rounds to the spacing of elements there; below the smallest normal element e stops falling. The constant is
# y's own exponent field, raised: no table and no branch.


@njit(cache=True, nogil=True, inline="always")
def _element(x, inverse, low, up, most):
    """The magnitude of the nearest element to a number over its scale."""
    y = abs(np.float32(x * inverse))
    field = np.int32(as_pattern(y) & np.int32(0x7F800000))
    magic = as_float(np.int32(np.int32(max(field, low)) + up))
    rounded = np.float32(np.float32(y + magic) - magic)
    return rounded if rounded < most else most  # `most` for what is NaN, whose scale is NaN as well


@njit(cache=True, nogil=True)
def _round(x, out, row, block, scales, mantissa_bits, smallest, most):
    low, up = np.int32((smallest + 127) << 23), np.int32((23 - mantissa_bits) << 23)
    at = 0
    for start in range(0, x.size, row):
        end = min(start + row, x.size)
        for first in range(start, end, block):
            stop = min(first + block, end)
            numbers, rounded = x[first:stop], out[first:stop]
            scale = scales[at]
            inverse = np.float32(1) / scale
            at += 1
            for i in range(numbers.size):
                magnitude = as_pattern(np.float32(_element(numbers[i], inverse, low, up, most) * scale))
                sign = np.int32(as_pattern(numbers[i]) & np.int32(-0x80000000))
                rounded[i] = as_float(np.int32(magnitude | sign))


@njit(cache=True, nogil=True)
def _encode(x, codes, row, block, scales, mantissa_bits, smallest, most, sign_place):
    low, up = np.int32((smallest + 127) << 23), np.int32((23 - mantissa_bits) << 23)
    shift = np.int32(23 - mantissa_bits)
    base = np.int32((smallest + 126) << 23)  # the pattern whose exponent field would be 0
    least = np.float32(2.0**smallest)
    steps = np.float32(2.0 ** (mantissa_bits - smallest))  # elements below `least` are counted in steps
    at = 0
    for start in range(0, x.size, row):
        end = min(start + row, x.size)
        for first in range(start, end, block):
            stop = min(first + block, end)
            numbers, own = x[first:stop], codes[first:stop]
            inverse = np.float32(1) / scales[at]
            keep = np.int32(-1) if scales[at] == scales[at] else np.int32(0)
            at += 1
            for i in range(numbers.size):
                element = _element(numbers[i], inverse, low, up, most)
                normal = np.int32(np.int32(as_pattern(element) - base) >> shift)
                code = normal if element >= least else np.int32(np.float32(element * steps))
                sign = np.int32(np.int32(np.int32(as_pattern(numbers[i]) >> np.int32(31)) & np.int32(1)) << sign_place)
                own[i] = np.int32(np.int32(code | sign) & keep)
