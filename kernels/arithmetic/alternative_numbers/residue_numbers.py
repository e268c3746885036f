r"""Residue numbers: an integer as its remainders by several moduli, which add and multiply independently.

For moduli m_1, ..., m_L without common divisors and M their product, the remainders r_i = x mod m_i belong to exactly
one x of M consecutive integers (the Chinese remainder theorem). Sums and products work channel by channel,

    (x + y) mod m_i = (r_i + s_i) mod m_i,        (x y) mod m_i = (r_i s_i) mod m_i,

so a product of matrices becomes L products of small numbers that know nothing of each other. The way back is

    x = (sum over i of M_i ((r_i M_i^-1) mod m_i)) mod M,  M_i = M / m_i,  less M where x is above (M - 1) / 2.

What looks at a whole number (its sign, a comparison, ReLU, a division) has no channel: its remainders must first be
brought into *mixed radix*, x = d_1 + d_2 m_1 + d_3 m_1 m_2 + ..., in L (L - 1) / 2 steps, whose digits compare from
the last one down.

Source: S. Salamat et al., "RNSnet", ICRC 2018, and N. Samimi et al., "Res-DNN", IEEE TCAS-I 67(2), 2020, for networks
in residues; the number system, its conversions and digits are those of any textbook of computer arithmetic.

Examples
--------
>>> operator = ResidueNumbers()
>>> residues = operator.to_residues(np.array([-3, 40000]))
>>> residues.tolist(), operator.from_residues(residues).tolist()
([[252, 220], [253, 64], [254, 165]], [-3, 40000])
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np
from numba import njit

from kernels.arithmetic.prepared_product import Prepared, PreparedProduct
from kernels.arrays import as_array, describe

__all__ = ["InResidues", "ResidueNumbers", "plain_matmul"]


SMALLEST = float(np.finfo(np.float32).tiny)
"""Of scales by which float32 divides without loss."""


def plain_matmul(a: np.ndarray, b: np.ndarray, moduli: tuple[int, ...]) -> np.ndarray:
    """The equations, in Python's integers of any size.

    Parameters
    ----------
    a, b : ndarray of integers, (m, k) and (k, n)
    moduli : tuple of int

    Returns
    -------
    ndarray of object (m, n)
        The product, wherever it is within the range of the moduli.
    """
    whole = prod(moduli)
    total = np.zeros((len(a), b.shape[1]), object)
    for modulus in moduli:
        channel = (a.astype(object) % modulus) @ (b.astype(object) % modulus) % modulus
        others = whole // modulus
        total += others * (channel * pow(others, -1, modulus) % modulus)
    total %= whole
    return np.where(total > (whole - 1) // 2, total - whole, total)


@dataclass(frozen=True, eq=False)
class InResidues(Prepared):
    """A right operand as residues of its quantized numbers, and their scale.

    Attributes
    ----------
    residues : ndarray of int32, (channels, k, n)
    scale : float
        What an integer is worth.
    bits : int
        Of one number as stored, before it is converted: its integer's.
    """

    residues: np.ndarray
    scale: float
    bits: int

    @property
    def nbytes(self) -> int:
        """As stored: integers; residues are made of them on the way in, as in Res-DNN."""
        return -(-self.residues[0].size * self.bits // 8)


@dataclass(frozen=True)
class ResidueNumbers(PreparedProduct):
    """Exact products of integer matrices in residues; floats are rounded to integers first, with one scale a matrix.

    Parameters
    ----------
    moduli : str
        Two or more integers without common divisors, separated by spaces: "255 256 257" is (2^8 - 1, 2^8, 2^8 + 1).
        At most 2^15 each, their product below 2^62.
    bits : int
        Of the integers that floats are rounded to, 2 to 16.

    Notes
    -----
    Emulated: the result is that of a machine with one short multiplier a channel. A sum that could leave the range is
    cut, and the parts are added after conversion, so the product is exact for any length.

    Source: Salamat et al. 2018; Samimi et al. 2020.

    Examples
    --------
    >>> operator = ResidueNumbers("7 8 9", bits=4)
    >>> operator.range, operator.relu(operator.to_residues(np.array([-5, 5]))).tolist()
    ((-251, 252), [[0, 5], [0, 5], [0, 5]])
    >>> operator.multiply(np.array([[12, -3]]), np.array([[4], [5]]))
    array([[33]])
    """

    moduli: str = "255 256 257"
    bits: int = 8

    def __post_init__(self) -> None:
        try:
            moduli = self._moduli
        except (ValueError, AttributeError):
            moduli = ()
        if len(moduli) < 2 or not all(2 <= m <= 2**15 for m in moduli) or prod(moduli) >= 2**62:
            raise ValueError(f"moduli: expected two or more integers from 2 to 32768, got {self.moduli!r}")
        for i, m in enumerate(moduli):
            for other in moduli[:i]:
                if gcd(m, other) != 1:
                    raise ValueError(f"moduli: expected no common divisors, got {other} and {m}")
        if self.bits not in range(2, 17):
            raise ValueError(f"bits: expected an integer from 2 to 16, got {self.bits!r}")
        if self._terms < 1:
            raise ValueError(f"moduli: the product of two {self.bits}-bit integers leaves the range {self.range}")

    @property
    def _moduli(self) -> tuple[int, ...]:
        return tuple(int(word) for word in self.moduli.split())

    @property
    def range(self) -> tuple[int, int]:
        """The smallest and the largest integer that the residues tell apart."""
        whole = prod(self._moduli)
        return -((whole - 1) // 2), whole // 2

    @property
    def _largest(self) -> int:
        return 2 ** (self.bits - 1) - 1

    @property
    def _terms(self) -> int:
        """How many products of two quantized numbers stay within the range, whatever they are."""
        return -self.range[0] // self._largest**2

    @property
    def operand_bits(self) -> int:
        """Bits of an operand as stored."""
        return self.bits

    def energy(self, macs: int, moved: int) -> float:
        """None is modelled: the table has whole multipliers, none that reduces by a modulus."""
        raise KeyError("no cited energy for a modular multiplication")

    def operations(self, k: int) -> dict[str, dict[str, int]]:
        """What each thing costs for one result of k products, in short modular operations.

        Parameters
        ----------
        k : int
            Terms of the sum.

        Returns
        -------
        dict
            Of "product", "to residues" (of 2 k operands), "relu", "scale" (division by the first modulus) and "from
            residues": "multiplications", "additions" (and subtractions) and "depth", the longest chain of dependent
            ones.

        Examples
        --------
        >>> ResidueNumbers().operations(100)["relu"]
        {'multiplications': 3, 'additions': 3, 'depth': 4}
        """
        channels = len(self._moduli)
        pairs = channels * (channels - 1) // 2
        return {
            "product": {"multiplications": channels * k, "additions": channels * k, "depth": 2 * k},
            "to residues": {"multiplications": 0, "additions": 2 * k * channels, "depth": 1},
            "relu": {"multiplications": pairs, "additions": pairs, "depth": 2 * (channels - 1)},
            "scale": {
                "multiplications": channels - 1 + pairs,
                "additions": channels - 1 + pairs,
                "depth": 2 * channels,
            },
            "from residues": {"multiplications": 2 * channels, "additions": channels, "depth": channels + 2},
        }

    # --- integers ---------------------------------------------------------------------------------------------------

    def to_residues(self, x: Any) -> np.ndarray:
        """The residues of integers, of either sign.

        Parameters
        ----------
        x : array_like of integers, any shape

        Returns
        -------
        ndarray of int32, (channels, *shape)

        Raises
        ------
        TypeError
            If they are no integers.
        """
        x = as_array(x, "x")
        if not np.issubdtype(x.dtype, np.integer):
            raise TypeError(f"x: expected integers, got {describe(x)}")
        wide = x if x.dtype == np.uint64 else x.astype(np.int64)
        return np.stack([np.remainder(wide, m).astype(np.int32) for m in self._moduli])

    def from_residues(self, residues: Any) -> np.ndarray:
        """The integers of residues, by the Chinese remainder theorem.

        Returns
        -------
        ndarray of int64
            Within `range`.

        Raises
        ------
        ValueError
            If there are not as many channels as moduli.
        """
        digits = self.mixed_radix(residues)
        whole, weight = prod(self._moduli), 1
        total = np.zeros(digits.shape[1:], np.int64)
        for digit, modulus in zip(digits, self._moduli, strict=True):
            total += digit * np.int64(weight)
            weight *= modulus
        return np.where(total > self.range[1], total - whole, total)

    def mixed_radix(self, residues: Any) -> np.ndarray:
        """Digits d with x = d_1 + d_2 m_1 + d_3 m_1 m_2 + ..., 0 <= d_i < m_i, x from 0 to M - 1.

        Each step takes a known digit off all later channels and divides by its modulus, both inside the channel.

        Returns
        -------
        ndarray of int64, the shape of `residues`
        """
        left = self._channels(residues).astype(np.int64)
        for i, modulus in enumerate(self._moduli):
            for j in range(i + 1, len(self._moduli)):
                other = self._moduli[j]
                left[j] = (left[j] - left[i]) * pow(modulus, -1, other) % other
        return left

    def negative(self, residues: Any) -> np.ndarray:
        """Where the number is below zero: its digits are compared with those of the range's upper end, last one first.

        Returns
        -------
        ndarray of bool
        """
        digits = self.mixed_radix(residues)
        limit, bounds = self.range[1], []
        for modulus in self._moduli:
            limit, digit = divmod(limit, modulus)
            bounds.append(digit)
        above = np.zeros(digits.shape[1:], bool)
        for digit, bound in zip(digits, bounds, strict=True):  # what a later digit says outweighs an earlier one
            above = (digit > bound) | ((digit == bound) & above)
        return above

    def less(self, a: Any, b: Any) -> np.ndarray:
        """Where a < b; their difference must be within the range.

        Returns
        -------
        ndarray of bool
        """
        return self.negative(self._reduced(self._channels(a).astype(np.int64) - self._channels(b)))

    def relu(self, residues: Any) -> np.ndarray:
        """The residues of max(x, 0)."""
        residues = self._channels(residues)
        return np.where(self.negative(residues), 0, residues)

    def scale(self, residues: Any) -> np.ndarray:
        """The residues of floor(x / m_1): a shorter number, as after a layer, without leaving the residues.

        The remainder by m_1 is a channel already; it is taken off, the others are divided by m_1, and the first channel
        is found again from the digits of the others (base extension).
        """
        residues = self._channels(residues).astype(np.int64)
        first, rest = self._moduli[0], self._moduli[1:]
        below = self.negative(residues)
        divided = np.stack([
            (channel - residues[0]) * pow(first, -1, m) % m for channel, m in zip(residues[1:], rest, strict=True)
        ])  # fmt: skip
        digits, weight, extended = divided.copy(), 1, np.zeros_like(residues[0])
        for i, m in enumerate(rest):
            for j in range(i + 1, len(rest)):
                digits[j] = (digits[j] - digits[i]) * pow(m, -1, rest[j]) % rest[j]
            extended = (extended + digits[i] * weight) % first
            weight = weight * m % first
        # a negative x stands for x + M, and its quotient for that of x and M / m_1, which only the first channel sees
        extended = np.where(below, extended - prod(rest), extended) % first
        return np.concatenate([extended[None], divided]).astype(np.int32)

    def multiply(self, a: Any, b: Any) -> np.ndarray:
        """The exact product of two matrices of integers.

        Parameters
        ----------
        a, b : array_like of integers, (m, k) and (k, n)

        Returns
        -------
        ndarray of int64, (m, n)

        Raises
        ------
        ValueError
            If the shapes do not fit, one product alone may leave the range, or their sum 64 bits.
        """
        a, b = (as_array(x, name, ndim=2) for x, name in ((a, "a"), (b, "b")))
        if a.shape[1] != b.shape[0]:
            raise ValueError(f"b: expected {a.shape[1]} rows, as a has columns, got {describe(b)}")
        largest = max(1, *(int(np.abs(x.astype(object)).max(initial=0)) for x in (a, b)))
        terms = -self.range[0] // largest**2
        if terms < 1:
            raise ValueError(f"a, b: products up to {largest}² leave the range {self.range} of the moduli")
        if a.shape[1] * largest**2 >= 2**63:
            raise ValueError(f"a, b: sums of {a.shape[1]} products up to {largest}² leave 64 bits")
        return self._product(self.to_residues(a), self.to_residues(b), terms)

    # --- floats -----------------------------------------------------------------------------------------------------

    def prepare(self, w: Any) -> InResidues:
        """Round the right operand, of shape (k, n), to integers, and convert them once.

        Raises
        ------
        TypeError, ValueError
            If it is not finite real numbers in two dimensions.
        """
        integers, scale = self._quantized(as_array(w, "w", ndim=2, dtype=np.float32), "w")
        return InResidues(self, integers.shape, self.to_residues(integers), scale, self.bits)

    def _times(self, x: np.ndarray, w: InResidues) -> np.ndarray:
        left, scale = self._quantized(x.astype(np.float32, copy=False), "x")
        product = self._product(self.to_residues(left), w.residues, self._terms)
        return (product * (scale * w.scale)).astype(np.float32)

    def _quantized(self, x: np.ndarray, name: str) -> tuple[np.ndarray, float]:
        if not np.isfinite(x).all():
            raise ValueError(f"{name}: expected finite numbers; residues have neither NaN nor infinity")
        scale = float(np.abs(x).max(initial=0)) / self._largest or 1.0
        own = np.float32 if scale >= SMALLEST else np.float64
        return np.rint(x / own(scale)).clip(-self._largest, self._largest).astype(np.int32), scale

    def _product(self, a: np.ndarray, b: np.ndarray, terms: int) -> np.ndarray:
        """Exact products of residues: in as many parts as the range asks for."""
        (_, m, k), n = a.shape, b.shape[2]
        total = np.zeros((m, n), np.int64)
        turned = m > n  # vectors lie along the longer side
        for start in range(0, k, terms):
            channels = np.empty((len(self._moduli), n if turned else m, m if turned else n), np.int32)
            for left, right, out, modulus in zip(a, b, channels, self._moduli, strict=True):
                left, right = left[:, start : start + terms], right[start : start + terms]
                if turned:
                    left, right = right.T, left.T
                _channel(np.ascontiguousarray(left), np.ascontiguousarray(right), out, modulus)
            part = self.from_residues(channels)
            total += part.T if turned else part
        return total

    def _channels(self, residues: Any) -> np.ndarray:
        residues = np.asarray(residues)
        if residues.ndim < 1 or len(residues) != len(self._moduli):
            raise ValueError(f"residues: expected {len(self._moduli)} channels, got {describe(residues)}")
        return residues

    def _reduced(self, channels: np.ndarray) -> np.ndarray:
        return np.stack([c % m for c, m in zip(channels, self._moduli, strict=True)])


@njit(cache=True, nogil=True)
def _channel(a, b, c, modulus):
    """One channel's product. Sums are reduced only as often as 32 bits without a sign ask for."""
    (m, k), n = a.shape, b.shape[1]
    often = max((2**32 - 1 - modulus) // (modulus - 1) ** 2, 1)
    sums = np.empty(n, np.uint32)
    for i in range(m):
        sums[:] = 0
        for start in range(0, k, often):
            for p in range(start, min(start + often, k)):
                x, row = np.uint32(a[i, p]), b[p]
                for j in range(n):
                    sums[j] += np.uint32(x * np.uint32(row[j]))
            for j in range(n):
                sums[j] = sums[j] % np.uint32(modulus)
        for j in range(n):
            c[i, j] = sums[j]
