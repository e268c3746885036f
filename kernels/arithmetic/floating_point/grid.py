r"""Rounding float32 to any narrower float, without a branch: what all formats of the family are made of.

Seen as an integer, the pattern of a positive float32 less that of 2^-bias is the narrower format's code, followed by
the bits that the code has no room for. So rounding is integer arithmetic: add half of what is dropped (for stochastic
rounding a random part of it), and cut; the carry raises the exponent, as it should. Below the smallest normal number
the grid is even, and adding a number so large that its last bit is worth one step of the grid, then subtracting it
again, rounds to that step. What exceeds the largest number and what is no number is replaced at the end.

A `FloatGrid` holds the constants; the functions take the pattern of a float32 and a grid, give a pattern or a code, and
are meant to be called in compiled loops:

    @njit
    def to_fp8(patterns, out, grid):              # patterns, out: int32 views of float32 arrays
        for i in range(patterns.size):
            out[i] = nearest(patterns[i], grid)

Examples
--------
>>> grid = float_grid(exponent_bits=4, mantissa_bits=3, specials="nan")        # FP8 E4M3 of the OCP
>>> x = np.float32([0.3, 1000, -0.001])
>>> round_all(x, x, grid, "nearest-even", first=0, seed=0)
>>> x
array([ 0.3125    ,        nan, -0.00195312], dtype=float32)
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from functools import lru_cache
from math import frexp
from typing import Any, NamedTuple, Self

import numpy as np
from numba import njit

from kernels.arithmetic.bits import as_float, as_pattern, shift_left, shift_right
from kernels.arithmetic.number_format import NumberFormat, _floats
from kernels.arithmetic.rounding import NEXT_PLACE, random_state, scrambled

__all__ = [
    "SPECIALS",
    "FloatFormat",
    "FloatGrid",
    "biases",
    "check_float",
    "code_of",
    "decode_all",
    "encode_all",
    "float_grid",
    "largest_exponent",
    "largest_magnitude",
    "nearest",
    "radix4_grid",
    "round_all",
    "stochastic",
    "toward_zero",
    "value_of",
]

SPECIALS = ("ieee", "nan", "none")
INFINITY = 0x7F800000
NAN = 0x7FC00000


class FloatGrid(NamedTuple):
    """What the loops need to know of a format; patterns are those of float32.

    Integers are np.int32 and floats np.float32, or loops would compute in 64 bits.
    """

    shift: np.int32  # pattern bits below the last one of a code
    base: np.int32  # pattern of the number whose code would be 0, were the exponent field 0 nothing special
    half: np.int32  # what is added before bits are cut: half a step, or a little less where ties go to even codes
    odd: np.int32  # 1 where an odd code adds that little, 0 where ties go away from zero
    least: np.int32  # from here on the grid is one of patterns; below it is even
    keep: np.int32  # -1 where there are numbers between 0 and `least`, the subnormals, else 0
    tiny: np.int32  # `least` where there are none, else 0
    middle: np.int32  # half of `least`
    step: np.float32  # distance of two numbers below `least`
    magic: np.float32  # 2^23 steps: its last bit is worth one
    largest: np.int32  # the largest number
    infinite: np.int32  # what is beyond becomes, and an infinity
    nan: np.int32  # what a NaN becomes
    sign: np.int32  # bits of a code below its sign
    code_infinity: np.int32  # -1 where the format has none
    code_nan: np.int32
    first_special: np.int32  # the first code that is no number


def largest_exponent(exponent_bits: int, mantissa_bits: int, bias: int, specials: str) -> int:
    """The largest e of a number 2^e (1 + f)."""
    top = 2**exponent_bits - 1
    return top - bias - (specials == "ieee" or (specials == "nan" and mantissa_bits == 0))


def largest_magnitude(x: np.ndarray) -> float:
    """The largest finite magnitude in `x`, 0 where there is none."""
    if x.dtype == np.float32 and (x.flags.c_contiguous or x.flags.f_contiguous):
        return float(np.int32(_largest(x.ravel("K").view(np.int32))).view(np.float32))
    return float(np.abs(x[np.isfinite(x)]).max(initial=0.0))


@njit(cache=True, nogil=True)
def _largest(patterns):
    """The pattern of the largest finite magnitude."""
    largest = np.int32(0)
    for i in range(patterns.size):
        magnitude = np.int32(patterns[i] & np.int32(0x7FFFFFFF))
        magnitude = magnitude if magnitude < np.int32(INFINITY) else np.int32(0)
        largest = max(largest, magnitude)
    return largest


def check_float(exponent_bits: int, mantissa_bits: int, bias: int, subnormals: bool, specials: str) -> None:
    """Refuse what float32 does not hold with the bit to spare that rounding float64 once needs.

    Raises
    ------
    ValueError
        If a width, the bias or the specials are out of range, by name.
    """
    if exponent_bits not in range(1, 9):
        raise ValueError(f"exponent_bits: expected an integer from 1 to 8, got {exponent_bits!r}")
    if mantissa_bits not in range(22):
        raise ValueError(f"mantissa_bits: expected an integer from 0 to 21, got {mantissa_bits!r}")
    if specials not in SPECIALS:
        raise ValueError(f"specials: expected {', '.join(SPECIALS)}, got {specials!r}")
    if specials == "ieee" and (mantissa_bits == 0 or exponent_bits == 1):
        raise ValueError(
            "specials: 'ieee' needs a mantissa bit and two exponent bits, got "
            f"mantissa_bits={mantissa_bits}, exponent_bits={exponent_bits}"
        )
    low, high = biases(exponent_bits, mantissa_bits, subnormals, specials)
    if low > high:
        raise ValueError(f"bias: float32 holds no such grid of {exponent_bits} exponent bits, whatever the bias")
    if not (isinstance(bias, int | np.integer) and low <= bias <= high):
        raise ValueError(f"bias: expected an integer from {low} to {high}, for float32 to hold the grid, got {bias!r}")


def biases(exponent_bits: int, mantissa_bits: int, subnormals: bool, specials: str) -> tuple[int, int]:
    """The smallest and the largest bias with which float32 holds the grid."""
    low = largest_exponent(exponent_bits, mantissa_bits, 0, specials) - 127
    if not subnormals:
        return low, 124
    if exponent_bits == 8:
        return low, 127  # float32's own exponents: the grid is one of patterns down to zero
    return max(low, -103 - mantissa_bits), 126 - mantissa_bits


@lru_cache
def float_grid(
    exponent_bits: int,
    mantissa_bits: int,
    bias: int | None = None,
    subnormals: bool = True,
    specials: str = "ieee",
    saturate: bool = False,
    ties: str = "even",
) -> FloatGrid:
    """The constants of a format with a sign, an exponent field and a mantissa field.

    Parameters
    ----------
    exponent_bits, mantissa_bits : int
        1 to 8 and 0 to 21.
    bias : int, optional
        What is subtracted from the exponent field; 2^(exponent_bits - 1) - 1 if not given.
    subnormals : bool
        Whether a field of zero means numbers 2^(1 - bias) f / 2^m. If not, it means 2^-bias (1 + f / 2^m) as any other
        field would, except that f = 0 is zero.
    specials : {"ieee", "nan", "none"}
        Whether the last exponent field is kept for infinity and NaN, or only the last code for NaN, or nothing.
    saturate : bool
        Whether what is too large, infinities included, becomes the largest number, rather than infinite or NaN.
        Without specials it always does, and NaN becomes zero.
    ties : {"even", "away"}
        Where `nearest` sends what lies halfway: to the even code or away from zero.

    Returns
    -------
    FloatGrid

    Raises
    ------
    ValueError
        If float32 does not hold the grid, or ties away from zero are asked of one with subnormals of its own.
    """
    bias = 2 ** (exponent_bits - 1) - 1 if bias is None else bias
    check_float(exponent_bits, mantissa_bits, bias, subnormals, specials)
    own = subnormals and bias < 127  # else float32's subnormals serve, which continue its grid of patterns
    if ties not in ("even", "away") or (ties == "away" and own):
        raise ValueError(f"ties: expected even, or away in a grid without subnormals of its own, got {ties!r}")
    shift, base = 23 - mantissa_bits, (127 - bias) << 23
    top = 2 ** (exponent_bits + mantissa_bits) - 1
    first_special = {"ieee": (2**exponent_bits - 1) << mantissa_bits, "nan": top, "none": top + 1}[specials]
    largest = base + ((first_special - 1) << shift)
    normal = base + (1 << 23) if own else 0
    least = normal if subnormals else base + (1 << shift)
    return _grid(
        shift=shift,
        base=base,
        half=(1 << (shift - 1)) - (ties == "even"),
        odd=int(ties == "even"),
        least=least,
        step=2.0 ** (1 - bias - mantissa_bits) if own else None,
        largest=largest,
        infinite=largest if saturate or specials == "none" else INFINITY if specials == "ieee" else NAN,
        nan=0 if specials == "none" else NAN,
        sign=exponent_bits + mantissa_bits,
        code_infinity=first_special if specials == "ieee" else -1,
        code_nan={"ieee": first_special | (1 << mantissa_bits >> 1), "nan": top, "none": 0}[specials],
        first_special=first_special,
    )


@lru_cache
def radix4_grid(exponent_bits: int, bias: int, exponent: int = 0) -> FloatGrid:
    """The grid of 0 and 2^exponent 4^(code - bias), code from 1 to 2^exponent_bits - 1, to be rounded to nearest.

    Between 4^k and 4^(k + 1) lies the middle at 2.5 4^k, which is no middle of patterns; `half` makes up for it. No
    infinity and no NaN: what is too large becomes the largest number, NaN becomes zero.
    """
    base = (127 - 2 * bias + exponent) << 23
    top = 2**exponent_bits - 1
    largest = base + (top << 24)
    return _grid(
        shift=24,
        base=base,
        half=0x600000 - 1,
        odd=1,
        least=base + (1 << 24),
        step=None,
        largest=largest,
        infinite=largest,
        nan=0,
        sign=exponent_bits,
        code_infinity=-1,
        code_nan=0,
        first_special=top + 1,
    )


def _grid(*, least: int, step: float | None, **integers: int) -> FloatGrid:
    """The rest follows from these; no step: there are no numbers between 0 and `least`."""
    smallest = float(np.int32(least).view(np.float32))
    integers |= {
        "least": least,
        "keep": 0 if step is None else -1,
        "tiny": least if step is None else 0,
        "middle": int(np.float32(smallest / 2).view(np.int32)),
    }
    return FloatGrid(
        **{name: np.int32(value) for name, value in integers.items()},
        step=np.float32(smallest if step is None else step),
        magic=np.float32(1.0 if step is None else step * 2.0**23),
    )


@njit(cache=True, nogil=True, inline="always")
def _signed(pattern, magnitude, rounded, beyond, grid):
    """The pattern with its sign again; what is too large or no number replaced."""
    bounded = beyond if rounded > grid.largest else rounded
    number = grid.nan if magnitude > np.int32(INFINITY) else bounded
    return np.int32(number | np.int32(pattern & np.int32(-0x80000000)))


@njit(cache=True, nogil=True, inline="always")
def nearest(pattern, grid):
    """The pattern of the number of the grid nearest to a float32, ties to the even code or as the grid says.

    Parameters
    ----------
    pattern : int32
    grid : FloatGrid

    Returns
    -------
    int32
    """
    magnitude = np.int32(pattern & np.int32(0x7FFFFFFF))
    place = np.int32(magnitude - grid.base)
    odd = np.int32(shift_right(place, grid.shift) & grid.odd)
    cut = shift_right(np.int32(np.int32(place + grid.half) + odd), grid.shift)
    above = np.int32(shift_left(cut, grid.shift) + grid.base)
    even = as_pattern(np.float32(as_float(magnitude) + grid.magic) - grid.magic)
    alone = grid.tiny if magnitude > grid.middle else np.int32(0)
    below = np.int32(np.int32(even & grid.keep) | alone)
    return _signed(pattern, magnitude, above if magnitude >= grid.least else below, grid.infinite, grid)


@njit(cache=True, nogil=True, inline="always")
def _floor(number, grid):
    """A positive float to a multiple of the step that is not above it."""
    even = np.float32(np.float32(number + grid.magic) - grid.magic)
    lower = np.float32(even - (grid.step if even > number else np.float32(0)))
    return as_float(np.int32(as_pattern(lower) & grid.keep))


@njit(cache=True, nogil=True, inline="always")
def toward_zero(pattern, grid):
    """The pattern of the largest number of the grid that is not beyond a float32, as `nearest` otherwise.

    A finite number stays finite: it becomes the largest where it is beyond.
    """
    magnitude = np.int32(pattern & np.int32(0x7FFFFFFF))
    cut = shift_right(np.int32(magnitude - grid.base), grid.shift)
    above = np.int32(shift_left(cut, grid.shift) + grid.base)
    below = as_pattern(_floor(as_float(magnitude), grid))
    beyond = grid.infinite if magnitude == np.int32(INFINITY) else grid.largest
    return _signed(pattern, magnitude, above if magnitude >= grid.least else below, beyond, grid)


@njit(cache=True, nogil=True, inline="always")
def stochastic(pattern, bits, grid):
    """The pattern of one of the two neighbours of a float32, as likely as it is near; 32 random bits decide.

    In the normal range the probability is exact, below it to 2^-24. What is beyond the largest number is rounded as if
    there were a next one, which stands for all that is too large.
    """
    magnitude = np.int32(pattern & np.int32(0x7FFFFFFF))
    place = np.int32(magnitude - grid.base)
    part = np.int32(np.int32(bits) & np.int32(~shift_left(np.int32(-1), grid.shift)))
    cut = shift_right(np.int32(place + part), grid.shift)
    above = np.int32(shift_left(cut, grid.shift) + grid.base)
    number = as_float(magnitude)
    lower = _floor(number, grid)
    chance = np.float32(np.int32(np.int32(bits) & np.int32(0xFFFFFF)) | np.int32(1))
    up = np.float32(number - lower) > np.float32(chance * np.float32(grid.step * np.float32(2.0**-24)))
    below = as_pattern(np.float32(lower + (grid.step if up else np.float32(0))))
    return _signed(pattern, magnitude, above if magnitude >= grid.least else below, grid.infinite, grid)


@njit(cache=True, nogil=True, inline="always")
def code_of(rounded, grid):
    """The code of a number of the grid, given its pattern."""
    magnitude = np.int32(rounded & np.int32(0x7FFFFFFF))
    above = shift_right(np.int32(magnitude - grid.base), grid.shift)
    below = np.int32(as_pattern(np.float32(as_float(magnitude) + grid.magic)) - as_pattern(grid.magic))
    code = above if magnitude >= grid.least else np.int32(below & grid.keep)
    code = grid.code_infinity if magnitude == np.int32(INFINITY) else code
    code = grid.code_nan if magnitude > np.int32(INFINITY) else code
    return np.int32(code | np.int32(shift_right(rounded, 31) & shift_left(np.int32(1), grid.sign)))


@njit(cache=True, nogil=True, inline="always")
def value_of(code, grid):
    """The pattern of the number that a code stands for."""
    magnitude = np.int32(code & np.int32(~shift_left(np.int32(-1), grid.sign)))
    place = np.int32(shift_left(magnitude, grid.shift) + grid.base)
    below = as_pattern(np.float32(as_float(np.int32(magnitude + as_pattern(grid.magic))) - grid.magic))
    number = place if place >= grid.least else np.int32(below & grid.keep)
    special = np.int32(INFINITY) if magnitude == grid.code_infinity else np.int32(NAN)
    number = special if magnitude >= grid.first_special else number
    return np.int32(number | shift_left(shift_right(np.int32(code), grid.sign), 31))


@njit(cache=True, nogil=True)
def _nearest_all(patterns, out, grid):
    for i in range(patterns.size):
        out[i] = nearest(patterns[i], grid)


@njit(cache=True, nogil=True)
def _toward_zero_all(patterns, out, grid):
    for i in range(patterns.size):
        out[i] = toward_zero(patterns[i], grid)


@njit(cache=True, nogil=True)
def _stochastic_all(patterns, out, grid, first, seed):
    state = random_state(first, seed)
    for i in range(patterns.size):
        out[i] = stochastic(patterns[i], scrambled(state), grid)
        state = np.uint32(state + np.uint32(NEXT_PLACE))


@njit(cache=True, nogil=True)
def _encode_nearest(patterns, codes, grid):
    for i in range(patterns.size):
        codes[i] = code_of(nearest(patterns[i], grid), grid)


@njit(cache=True, nogil=True)
def _encode_toward_zero(patterns, codes, grid):
    for i in range(patterns.size):
        codes[i] = code_of(toward_zero(patterns[i], grid), grid)


@njit(cache=True, nogil=True)
def _encode_stochastic(patterns, codes, grid, first, seed):
    state = random_state(first, seed)
    for i in range(patterns.size):
        codes[i] = code_of(stochastic(patterns[i], scrambled(state), grid), grid)
        state = np.uint32(state + np.uint32(NEXT_PLACE))


@njit(cache=True, nogil=True)
def _decode(codes, out, grid):
    for i in range(codes.size):
        out[i] = value_of(np.int32(codes[i]), grid)


class FloatFormat(NumberFormat):
    """A format that is a `FloatGrid`; a base of dataclasses, which say the grid, the bits and how to round.

    A grid may be stretched by a power of two, its scale, which only shifts exponents: no digit is lost by it. Unless a
    format says otherwise, `fit` chooses it so that the largest number of the grid shares its exponent with the largest
    magnitude given, as the shared exponents of the OCP's microscaling formats and the bias of AdaptivFloat do.
    """

    rounding: str
    seed: int
    scale: float | None
    SCALE_BITS = 8
    """A power of two within float32's range is an exponent of eight bits."""

    @abstractmethod
    def _grid_at(self, exponent: int) -> FloatGrid:
        """The grid, stretched by 2^exponent."""

    def _exponents(self) -> tuple[int, int, int]:
        """The exponent of the largest number at scale one, and those of the smallest and the largest scale."""
        raise ValueError(f"scale: {self} has none")

    @property
    def _scales_itself(self) -> bool:
        """Whether each array gets a scale of its own."""
        return False

    def _check_scale(self) -> None:
        if self.scale is not None:
            _, low, high = self._exponents()
            valid = isinstance(self.scale, int | float | np.floating) and self.scale > 0 and frexp(self.scale)[0] == 0.5
            if not valid or not low <= frexp(self.scale)[1] - 1 <= high:
                raise ValueError(f"scale: expected a power of two from 2^{low} to 2^{high}, got {self.scale!r}")

    @property
    def grid(self) -> FloatGrid:
        """What compiled loops need to know of the format."""
        return self._grid_at(0 if self.scale is None else frexp(self.scale)[1] - 1)

    def fit(self, x: Any) -> Self:
        """The format with the scale that suits the largest magnitude in `x`; itself where it has no scale to fit."""
        array = _floats(x)
        if not self._scales_itself:
            return self
        _, low, high = self._exponents()
        largest = largest_magnitude(array)
        exponent = self._exponent_for(largest) if largest else 0
        return replace(self, scale=2.0 ** min(max(exponent, low), high))  # type: ignore[type-var]

    def _exponent_for(self, largest: float) -> int:
        """The exponent of the scale that suits numbers up to this one."""
        return frexp(largest)[1] - 1 - self._exponents()[0]

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Bits of the codes, and of the scale's exponent where the array has one of its own."""
        return super().stored_bits(shape) + (self.SCALE_BITS if self._scales_itself else 0)

    def _fitted(self, x: np.ndarray) -> NumberFormat:
        return self.fit(x) if self._scales_itself and self.scale is None else self

    def _scales(self) -> np.ndarray | None:
        return np.array([self.scale], np.float32) if self._scales_itself else None

    def _scaled(self, scales: np.ndarray) -> NumberFormat:
        if not self._scales_itself:
            return super()._scaled(scales)
        return replace(self, scale=float(np.asarray(scales).reshape(())))  # type: ignore[type-var]

    def _round(self, numbers: np.ndarray, out: np.ndarray, first: int) -> None:
        round_all(numbers, out, self.grid, self.rounding, first, self.seed)

    def _encode(self, numbers: np.ndarray, codes: np.ndarray, first: int) -> None:
        encode_all(numbers, codes, self.grid, self.rounding, first, self.seed)

    def _decode(self, codes: np.ndarray, out: np.ndarray) -> None:
        decode_all(codes, out, self.grid)


def round_all(numbers: np.ndarray, out: np.ndarray, grid: FloatGrid, rounding: str, first: int, seed: int) -> None:
    """Round a contiguous float32 array into another, which may be the same.

    Parameters
    ----------
    numbers, out : ndarray of float32, contiguous, one shape
    grid : FloatGrid
    rounding : {"nearest-even", "toward-zero", "stochastic"}
        What is not one of the last two rounds to nearest, ties as the grid says.
    first, seed : int
        The place of the first number, and the seed, on which stochastic rounding depends.
    """
    patterns, target = numbers.view(np.int32), out.view(np.int32)
    if rounding == "stochastic":
        _stochastic_all(patterns, target, grid, first, seed)
    else:
        (_toward_zero_all if rounding == "toward-zero" else _nearest_all)(patterns, target, grid)


def encode_all(numbers: np.ndarray, codes: np.ndarray, grid: FloatGrid, rounding: str, first: int, seed: int) -> None:
    """Encode a contiguous float32 array into one of unsigned integers; arguments as for `round_all`."""
    patterns = numbers.view(np.int32)
    if rounding == "stochastic":
        _encode_stochastic(patterns, codes, grid, first, seed)
    else:
        (_encode_toward_zero if rounding == "toward-zero" else _encode_nearest)(patterns, codes, grid)


def decode_all(codes: np.ndarray, out: np.ndarray, grid: FloatGrid) -> None:
    """Decode a contiguous array of codes into one of float32."""
    _decode(codes, out.view(np.int32), grid)
