"""Zero-space error correction: the check bits of a Hamming code live in bits that weights do not need.

The extended Hamming code of length n = 2^j has j + 1 check bits, corrects every single flipped bit of a codeword and
detects every double one. Give each stored bit an address a in 0 .. n-1; a codeword x satisfies H x = 0 (mod 2), the
column of H for address a being the bits of a with a one above them:

    H = [ 1  1  1  1  ...  1 ]      syndrome 0: clean; ones on top and the bits of a below: the bit at a has flipped;
        [ binary digits of a  ]     zero on top and something below: two bits have flipped.

The bits at addresses 0, 1, 2, 4, ..., n/2 are free to make H x = 0. What makes the space zero is which bits those are:

    format     codeword             free bits                                 what making room costs
    float32    1 value,   32 bits   6: the lowest mantissa bits               rounding to 17 mantissa bits
    int8       8 values,  64 bits   7: bit 6 of the first seven, which        clipping those seven to -64 .. 63, or half
                                    repeats the sign of a small code          the resolution, whichever errs less
    bfloat16   8 values, 128 bits   8: the top exponent bit of each value,    nothing; larger weights are scaled down
                                    which is 0 for |w| < 2                    by a power of two first

A 32-bit word has exactly the 6 bits that its code needs, a 64-bit block 7 and a 128-bit block 8.

What it spares is the space that memory with correction spends: a byte of check bits beside every eight bytes, the code
of length 128 shortened to 72. That is here too, as the code ``"secded"``.

Source: Guan et al., "In-place zero-space memory protection for CNN", NeurIPS 2019, arXiv 1910.14479, for the INT8 block
of 64 bits, which they train to fit and this makes fit; the other two layouts apply the same idea to floating point.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from kernels.arrays import as_array, describe

__all__ = ["Health", "Protected", "ZeroSpaceEcc"]


class Layout(NamedTuple):
    """How one format fills a codeword."""

    dtype: type[np.unsignedinteger]
    values: int
    free: tuple[int, ...]
    """Positions of the check bits in the codeword, bit b of value v being v * bits + b."""


LAYOUTS = {
    "float32": Layout(np.uint32, 1, tuple(range(6))),
    "int8": Layout(np.uint8, 8, tuple(8 * v + 6 for v in range(7))),
    "bfloat16": Layout(np.uint16, 8, tuple(16 * v + 14 for v in range(8))),
}
SECDED = Layout(np.uint8, 9, tuple(range(64, 72)))
"""Eight bytes of weights and one of check bits, whatever the format."""


@dataclass(frozen=True, eq=False)
class Protected:
    """Weights as they lie in memory.

    Parameters
    ----------
    words : ndarray of shape (codewords, values)
        The stored bits, as unsigned integers; the last codeword is filled up with zeros.
    shape : tuple of int
        Of the weights.
    scale : float
        What stored values are multiplied by; kept apart from the weights and never corrupted.
    """

    words: np.ndarray
    shape: tuple[int, ...]
    scale: float = 1.0


class Health(NamedTuple):
    """Codewords by what their syndrome says, and the bits that were flipped back."""

    clean: int
    corrected: int
    detected: int


@dataclass(frozen=True)
class ZeroSpaceEcc:
    """Store weights with error correction in place, flip bits, and read them back.

    Parameters
    ----------
    format : {"float32", "int8", "bfloat16"}
        How weights are stored. INT8 codes are symmetric with one scale a tensor: its largest magnitude over 127, or
        over 63 where clipping to make room would err more (squared) than the coarser grid.
    code : {"extended-hamming", "none", "secded"}
        With ``"none"`` the same format is stored without check bits and without what makes room for them, with
        ``"secded"`` the same with eight check bits beside every 64.

    Raises
    ------
    ValueError
        If the format or the code is unknown.

    Source: Guan et al., arXiv 1910.14479.

    Examples
    --------
    >>> w = np.array([0.5, -0.25, 0.1], np.float32)
    >>> ecc = ZeroSpaceEcc("bfloat16")
    >>> stored = ecc.protect(w)
    >>> stored.words[0, 0] ^= 1 << 13                          # an exponent bit flips: 0.5 would read 2e-20
    >>> ecc.recover(stored), ecc.health(stored).corrected
    (array([ 0.5       , -0.25      ,  0.10009766], dtype=float32), 1)
    """

    format: str = "float32"
    code: str = "extended-hamming"

    def __post_init__(self) -> None:
        if self.format not in LAYOUTS:
            raise ValueError(f"format: expected one of {', '.join(LAYOUTS)}, got {self.format!r}")
        if self.code not in ("extended-hamming", "none", "secded"):
            raise ValueError(f"code: expected 'extended-hamming', 'none' or 'secded', got {self.code!r}")

    @property
    def layout(self) -> Layout:
        """The codeword; without a code, one value by itself."""
        layout = LAYOUTS[self.format]
        if self.code == "none":
            return layout._replace(values=1, free=())
        return SECDED if self.code == "secded" else layout

    @property
    def weights_in_codeword(self) -> int:
        """How many weights share a codeword."""
        return 8 // np.dtype(LAYOUTS[self.format].dtype).itemsize if self.code == "secded" else self.layout.values

    def unprotected(self) -> ZeroSpaceEcc:
        """The same format without check bits: what protection is compared with."""
        return replace(self, code="none")

    def others(self) -> dict[str, ZeroSpaceEcc]:
        """What else protects the same format, by name."""
        return {"secded": replace(self, code="secded")}

    def protect(self, weights: Any) -> Protected:
        """Weights in the stored format, check bits in place.

        Parameters
        ----------
        weights : array_like of any shape, float32

        Raises
        ------
        ValueError
            If a weight is not finite, or too large for bfloat16.
        """
        weights = as_array(weights, "weights", dtype=np.float32)
        if not np.isfinite(weights).all():
            raise ValueError(f"weights: expected finite numbers, got NaN or infinity in a {describe(weights)}")
        values = self.weights_in_codeword
        padded = np.zeros((-(-weights.size // values), values), np.float32)
        padded.reshape(-1)[: weights.size] = weights.ravel()
        words, scale = getattr(self, f"_store_{self.format}")(padded)
        if self.code == "secded":
            words = np.pad(words.view(np.uint8), ((0, 0), (0, 1)))
        if self.code != "none":
            words = self._with_check_bits(words)
        return Protected(words.astype(self.layout.dtype, copy=False), weights.shape, scale)

    def corrupt(
        self, protected: Protected, rate: float, seed: int | Sequence[int], positions: Iterable[int] | None = None
    ) -> Protected:
        """A copy in which every stored bit has flipped with probability `rate`, independently.

        Parameters
        ----------
        protected : Protected
        rate : float in [0, 1]
            The bit-error rate.
        seed : int or sequence of int
            The same seed flips the same bits of equally wide values, whatever protects them.
        positions : iterable of int, optional
            The bits of a stored word that may flip, 0 the lowest; all of them by default. A word is a value, or with
            ``"secded"`` a byte.

        Raises
        ------
        ValueError
            If the rate or a position is out of range.
        """
        words = protected.words.copy()
        bits = 8 * words.itemsize
        allowed = np.unique(np.fromiter(range(bits) if positions is None else positions, np.int64))
        if not 0 <= rate <= 1:
            raise ValueError(f"rate: expected a probability, got {rate!r}")
        if allowed.size and not 0 <= allowed[0] <= allowed[-1] < bits:
            raise ValueError(f"positions: expected bits 0 to {bits - 1}, got {allowed.tolist()}")
        value, bit = np.divmod(_flips(words.size * allowed.size, rate, seed), max(allowed.size, 1))
        np.bitwise_xor.at(words.reshape(-1), value, np.left_shift(1, allowed[bit]).astype(words.dtype))
        return replace(protected, words=words)

    def recover(self, protected: Protected) -> np.ndarray:
        """The weights as read: one flipped bit in a codeword is corrected, two are left as they are.

        Three or more may pass as fewer and are then corrected wrongly, as in any code of distance four. Check bits that
        lie among the weights are restored to what they were before, whatever has flipped.

        Returns
        -------
        ndarray of the weights' shape, float32
            Not necessarily finite where flips remain.
        """
        words = protected.words
        if self.code != "none":
            words = self._corrected(words)
        if self.code == "secded":
            words = np.ascontiguousarray(words[:, :8]).view(LAYOUTS[self.format].dtype)
        read = getattr(self, f"_load_{self.format}")(words).reshape(-1)[: int(np.prod(protected.shape))]
        with np.errstate(over="ignore", invalid="ignore"):  # flips that remain may overflow, or signal
            return (read.astype(np.float64) * protected.scale).astype(np.float32).reshape(protected.shape)

    def health(self, protected: Protected) -> Health:
        """How many codewords read clean, with one corrected bit, with an error that is only detected."""
        if self.code == "none":
            return Health(len(protected.words), 0, 0)
        syndrome = self._syndrome(protected.words)
        clean, corrected = int((syndrome == 0).sum()), int((self._flipped(syndrome) >= 0).sum())
        return Health(clean, corrected, len(syndrome) - clean - corrected)

    def stored_bits(self, shape: Sequence[int]) -> int:
        """Bits in memory for weights of this shape, the last codeword filled up, with INT8's 32-bit scale."""
        dtype, values, _ = self.layout
        codewords = -(-int(np.prod(shape)) // self.weights_in_codeword)
        return codewords * values * np.dtype(dtype).itemsize * 8 + (32 if self.format == "int8" else 0)

    def parity_check(self) -> np.ndarray:
        """The matrix H: a column for each bit of the codeword in the order it is stored, a row for each check.

        Examples
        --------
        >>> ZeroSpaceEcc("int8").parity_check().shape
        (7, 64)
        """
        return (self._columns[None, :] >> np.arange(len(self.layout.free))[:, None] & 1).astype(np.uint8)

    @cached_property
    def _columns(self) -> np.ndarray:
        """Columns of H as integers: the address below a one, the free bits at 0, 1, 2, 4, ..."""
        dtype, values, free = self.layout
        n = values * np.dtype(dtype).itemsize * 8
        of_free = [0, *(1 << i for i in range(len(free) - 1))]
        top = 1 << len(free) - 1  # the code's own length; a shorter codeword leaves the highest addresses out
        addresses = np.empty(n, np.int64)
        addresses[list(free)] = of_free
        addresses[np.setdiff1d(np.arange(n), free)] = np.setdiff1d(np.arange(top), of_free)[: n - len(free)]
        return addresses + top

    @cached_property
    def _of_byte(self) -> np.ndarray:
        """Sum (xor) of the columns at the ones of a byte, for each byte of the codeword and each of its 256 values."""
        ones = np.arange(256)[None, :, None] >> np.arange(8) & 1
        return np.bitwise_xor.reduce(np.where(ones, self._columns.reshape(-1, 1, 8), 0), axis=2)

    def _syndrome(self, words: np.ndarray) -> np.ndarray:
        """H x for every codeword, as an integer."""
        read = np.ascontiguousarray(words).view(np.uint8)
        return np.bitwise_xor.reduce(self._of_byte[np.arange(read.shape[1]), read], axis=1)

    def _flipped(self, syndrome: np.ndarray) -> np.ndarray:
        """The position of the one flipped bit that explains a syndrome; -1 where there is none such."""
        position = np.full(1 << len(self.layout.free), -1)
        position[self._columns] = np.arange(len(self._columns))
        return position[syndrome]

    def _flip(self, words: np.ndarray, rows: np.ndarray, positions: np.ndarray) -> None:
        value, bit = np.divmod(positions, 8 * words.itemsize)
        words[rows, value] ^= np.left_shift(1, bit).astype(words.dtype)

    def _with_check_bits(self, words: np.ndarray) -> np.ndarray:
        """The free bits, which are zero in `words`, set so that the syndrome vanishes."""
        syndrome = self._syndrome(words)
        overall, *checks = self.layout.free
        for i, position in enumerate(checks):
            self._flip(words, np.flatnonzero(syndrome >> i & 1), np.array(position))
        self._flip(words, np.flatnonzero(self._syndrome(words)), np.array(overall))
        return words

    def _corrected(self, words: np.ndarray) -> np.ndarray:
        """The flipped bit of every codeword with a single one flipped back, and the free bits cleared."""
        words = words.copy()
        flipped = self._flipped(self._syndrome(words))
        rows = np.flatnonzero(flipped >= 0)
        self._flip(words, rows, flipped[rows])
        bits = 8 * words.itemsize
        for position in self.layout.free:
            words[:, position // bits] &= words.dtype.type(~(1 << position % bits) & (1 << bits) - 1)
        return words

    def _store_float32(self, weights: np.ndarray) -> tuple[np.ndarray, float]:
        bits = weights.view(np.uint32)
        if self.code != "extended-hamming":
            return bits.copy(), 1.0
        rounded = bits + np.uint32(31) + (bits >> np.uint32(6) & np.uint32(1))  # to nearest, ties to even
        overflow = rounded & np.uint32(0x7F800000) == 0x7F800000
        return np.where(overflow, bits, rounded) & np.uint32(0xFFFFFFC0), 1.0

    def _load_float32(self, words: np.ndarray) -> np.ndarray:
        return words.view(np.float32)

    def _store_bfloat16(self, weights: np.ndarray) -> tuple[np.ndarray, float]:
        largest = np.abs(weights).max(initial=0)
        if _to_bfloat16(largest[None])[0] > 0x7F7F:
            raise ValueError(f"weights: expected magnitudes that bfloat16 holds, got {largest}")
        exponent = 0
        if self.code == "extended-hamming":
            while _to_bfloat16(np.ldexp(largest, -exponent)[None])[0] >> 14:  # the top exponent bit is in use
                exponent = max(exponent + 1, int(np.frexp(largest)[1]) - 1)
        return _to_bfloat16(np.ldexp(weights, -exponent)), 2.0**exponent

    def _load_bfloat16(self, words: np.ndarray) -> np.ndarray:
        return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)

    def _store_int8(self, weights: np.ndarray) -> tuple[np.ndarray, float]:
        weights = weights.astype(np.float64)  # a subnormal scale vanishes in float32
        largest = float(np.abs(weights).max(initial=0))
        full = largest / 127 or 1.0
        codes = np.rint(weights / full).astype(np.int8)
        if self.code != "extended-hamming":
            return codes.view(np.uint8), full
        half = largest / 63 or 1.0
        codes[:, :7] = codes[:, :7].clip(-64, 63)
        coarse = np.rint(weights / half).astype(np.int8)
        clipping, rounding = (np.square(weights - c * s).sum() for c, s in ((codes, full), (coarse, half)))
        codes, scale = (codes, full) if clipping <= rounding else (coarse, half)
        words = codes.view(np.uint8)
        words[:, :7] &= np.uint8(0xBF)
        return words, scale

    def _load_int8(self, words: np.ndarray) -> np.ndarray:
        if self.code != "extended-hamming":
            return words.view(np.int8).astype(np.float32)
        words = words.copy()
        words[:, :7] |= words[:, :7] >> np.uint8(1) & np.uint8(0x40)  # bit 6 repeats the sign
        return words.view(np.int8).astype(np.float32)


def _to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Codes of finite float32 numbers, rounded to nearest, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def _flips(bits: int, rate: float, seed: int | Sequence[int]) -> np.ndarray:
    """Indices below `bits`, each drawn with probability `rate`: the gaps between them are geometric."""
    if rate == 0 or bits == 0:
        return np.empty(0, np.int64)
    rng = np.random.default_rng(seed)
    parts, last = [], -1
    while last < bits:
        gaps = np.minimum(rng.geometric(rate, 1024), bits + 1)  # a tiny rate must not overflow the sum
        parts.append(last + np.cumsum(gaps))
        last = int(parts[-1][-1])
    flips = np.concatenate(parts)
    return flips[flips < bits]
