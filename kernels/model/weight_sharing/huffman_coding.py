"""Huffman coding: frequent symbols get short codewords, rare ones long ones; lossless.

For symbols with probabilities p_s, a prefix code of lengths l_s exists if and only if Kraft's sum is at most one, and
the best one comes within a bit of the entropy:

    sum_s 2^-l_s <= 1        H(p) <= sum_s p_s l_s < H(p) + 1,        H(p) = - sum_s p_s log2 p_s

Lengths are kept to at most `max_length` bits, so that a decoder finds symbol and length in one table of 2^max_length
entries; the best such lengths come from packages (Larmore and Hirschberg, 1990). The code is *canonical*: codewords of
one length are consecutive numbers, so the lengths alone tell the code.

A weight is no symbol itself: of floats hardly two are equal. Its bytes are: in plane j stand the j-th bytes of all
weights, and the plane of the exponents of a trained network holds few values. A plane that would not shrink is stored
as it is. Of a pruned network, where no codeword for the zeros could be shorter than a bit, the symbols are the gaps
between non-zero weights and the bytes of these.

Source: Han et al., "Deep compression: compressing deep neural networks with pruning, trained quantization and Huffman
coding", ICLR 2016, arXiv 1510.00149, section 4, which codes quantized weights and the gaps between them; byte planes
carry the same idea to any array.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from kernels.arrays import describe, is_tensor

__all__ = ["HuffmanCoding", "canonical_codes", "code_lengths", "entropy", "pack_symbols", "unpack_symbols"]

MAGIC = b"HUF1"
KINDS = tuple("biufc")
RAW, CONSTANT, CODED = range(3)
SYMBOLS = ("byte-plane", "byte", "nonzero")
STREAMS = 4
"""Places of one bit string at which the decoder starts, to keep four look-ups in flight."""


def entropy(counts: np.ndarray) -> float:
    """Bits a symbol that no code without memory can go below.

    Parameters
    ----------
    counts : array of int
        How often each symbol occurs.

    Examples
    --------
    >>> entropy(np.array([2, 1, 1]))
    1.5
    """
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum()) + 0.0


def code_lengths(counts: np.ndarray, max_length: int) -> np.ndarray:
    """The lengths of a best prefix code in which none exceeds `max_length`, by packages.

    A symbol of length l is worth l coins, of denominations 1/2, 1/4, ..., 2^-l; buying n - 1 units as cheaply as
    possible, a coin costing its symbol's count, gives the best lengths. Coins of one denomination are paired into
    packages and offered beside those of the next.

    Parameters
    ----------
    counts : array of int, shape (symbols,)
    max_length : int

    Returns
    -------
    array of uint8, shape (symbols,)
        0 where a symbol does not occur. A symbol that occurs alone gets 1.

    Raises
    ------
    ValueError
        If so many symbols cannot be told apart in `max_length` bits.

    Examples
    --------
    >>> code_lengths(np.array([8, 4, 2, 1, 1]), 15), code_lengths(np.array([8, 4, 2, 1, 1]), 3)
    (array([1, 2, 3, 4, 4], dtype=uint8), array([1, 3, 3, 3, 3], dtype=uint8))
    """
    counts = np.asarray(counts)
    used = np.flatnonzero(counts)
    lengths = np.zeros(len(counts), np.uint8)
    if len(used) > 1 << max_length:
        raise ValueError(f"max_length: {len(used)} symbols need more than {max_length} bits")
    if len(used) < 2:
        lengths[used] = 1
        return lengths
    by_count = used[np.argsort(counts[used], kind="stable")]
    lengths[by_count] = _packaged(counts[by_count].astype(np.int64), max_length)
    return lengths


@njit(cache=True)
def _packaged(counts, max_length):
    """Lengths of the code for counts in rising order."""
    n = counts.size
    cost = np.empty((max_length, 2 * n), np.int64)
    leaf = np.zeros((max_length, 2 * n), np.bool_)
    size, packages = 0, 0
    for level in range(max_length):  # merge the symbols' own coins with the packages of the level before
        i, package = 0, 0
        size = n + packages
        for j in range(size):
            value = cost[level - 1, 2 * package] + cost[level - 1, 2 * package + 1] if package < packages else 0
            leaf[level, j] = package == packages or (i < n and counts[i] <= value)
            if leaf[level, j]:
                cost[level, j] = counts[i]
                i += 1
            else:
                cost[level, j] = value
                package += 1
        packages = size // 2
    lengths = np.zeros(n, np.uint8)
    taken = 2 * n - 2
    for level in range(max_length - 1, -1, -1):
        leaves = leaf[level, :taken].sum()
        lengths[:leaves] += np.uint8(1)  # the cheapest coins are those of the rarest symbols
        taken = 2 * (taken - leaves)
    return lengths


def canonical_codes(lengths: np.ndarray) -> np.ndarray:
    """Codewords of the canonical code, first bit lowest: shorter ones first, equal ones by symbol.

    Examples
    --------
    >>> [f"{c:0{l}b}"[::-1] for c, l in zip(canonical_codes(np.array([2, 1, 3, 3])), [2, 1, 3, 3])]
    ['10', '0', '110', '111']
    """
    return _canonical(np.asarray(lengths, np.uint8))


@njit(cache=True)
def _canonical(lengths):
    codes = np.zeros(lengths.size, np.uint64)
    code = 0
    for length in range(1, 16):
        code <<= 1
        for symbol in range(lengths.size):
            if lengths[symbol] == length:
                backwards = 0
                for bit in range(length):
                    backwards |= (code >> bit & 1) << (length - 1 - bit)
                codes[symbol] = backwards
                code += 1
    return codes


@dataclass(frozen=True)
class HuffmanCoding:
    """A lossless codec for arrays.

    Parameters
    ----------
    symbol : {"byte-plane", "byte", "nonzero"}
        One code for each byte position of an item; one for all bytes; or one for the gaps between items other than
        zero, and one for each of their byte positions.
    max_length : int
        Of a codeword, 8 to 15 bits. Longer ones compress skewed counts a little better and decode slower.

    Raises
    ------
    ValueError
        If the kind of symbol is unknown or the length out of range.

    Source: Han et al., arXiv 1510.00149, section 4.

    Examples
    --------
    >>> weights = np.random.default_rng(0).normal(0, 0.05, 10000).astype(np.float32)
    >>> codec = HuffmanCoding()
    >>> data = codec.encode(weights)
    >>> len(data) < 0.9 * weights.nbytes, np.array_equal(codec.decode(data), weights)
    (True, True)
    """

    symbol: str = "byte-plane"
    max_length: int = 12

    def __post_init__(self) -> None:
        if self.symbol not in SYMBOLS:
            raise ValueError(f"symbol: expected one of {', '.join(SYMBOLS)}, got {self.symbol!r}")
        if not isinstance(self.max_length, int) or not 8 <= self.max_length <= 15:
            raise ValueError(f"max_length: expected 8 to 15 bits, got {self.max_length!r}")

    def encode(self, x: Any) -> bytes:
        """The array as bytes, with what is needed to restore it, and a checksum.

        Parameters
        ----------
        x : ndarray or torch.Tensor of any shape; booleans, integers, floats or complex numbers

        Raises
        ------
        TypeError
            If its items are of another kind.
        """
        if str(getattr(x, "dtype", "")) == "torch.bfloat16":
            raise TypeError("x: numpy has no bfloat16; view the tensor as torch.int16 first")
        array = np.asarray(x.detach() if is_tensor(x) else x)
        if array.dtype.kind not in KINDS:
            raise TypeError(f"x: expected booleans, integers, floats or complex numbers, got {describe(x)}")
        x = np.ascontiguousarray(array).reshape(array.shape)  # the former makes 0-d arrays 1-d
        dtype = x.dtype.str.encode()
        planes = self._symbols(x)
        header = struct.pack(
            f"<4sBBB{len(dtype)}sB{x.ndim}Q",
            MAGIC,
            self.max_length,
            SYMBOLS.index(self.symbol),
            len(dtype),
            dtype,
            x.ndim,
            *x.shape,
        )
        if self.symbol == "nonzero":
            header += struct.pack("<QQ", len(planes[0]), len(planes[1]))
        body = header + b"".join(_encode_plane(plane, self.max_length) for plane in planes)
        return body + struct.pack("<I", zlib.crc32(body))

    def decode(self, data: bytes) -> np.ndarray:
        """The array that was encoded, whatever the parameters it was encoded with.

        Raises
        ------
        ValueError
            If the data is no encoded array, is cut short or was changed.
        """
        data = bytes(data)
        if data[:4] != MAGIC:
            raise ValueError(f"data: expected to start with {MAGIC!r}, got {data[:4]!r}")
        if len(data) < 8 or zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
            raise ValueError(f"data: the checksum of these {len(data)} bytes does not match: cut short or changed")
        source = _Reader(data[:-4], 4)
        max_length, symbol, letters = source.unpack("<BBB")
        if not 8 <= max_length <= 15 or symbol >= len(SYMBOLS):
            raise ValueError(f"data: written by another version: codewords of {max_length} bits, symbols {symbol}")
        dtype = _dtype(source.take(letters))
        shape = source.unpack(f"<{source.unpack('<B')[0]}Q")
        read = {"byte-plane": _read_items, "byte": _read_bytes, "nonzero": _read_nonzero}[SYMBOLS[symbol]]
        out = read(source, math.prod(shape), dtype.itemsize, max_length)
        if source.at != len(source.data):
            raise ValueError(f"data: {len(source.data) - source.at} bytes too many")
        return out.reshape(-1).view(dtype).reshape(shape)

    def bits_per_item(self, x: np.ndarray) -> float:
        """The entropy of the symbols that stand for one item: what no code of this alphabet can go below.

        Examples
        --------
        >>> HuffmanCoding().bits_per_item(np.array([0, 0, 1, 1], np.int16))
        1.0
        """
        planes = self._symbols(np.ascontiguousarray(x))
        return sum(entropy(np.bincount(plane)) * plane.size for plane in planes if plane.size) / max(x.size, 1)

    def _symbols(self, x: np.ndarray) -> list[np.ndarray]:
        """Arrays of bytes, each of which gets a code of its own."""
        raw = x.reshape(-1).view(np.uint8)
        items = raw.reshape(x.size, x.dtype.itemsize)
        if self.symbol == "byte":
            return [raw]
        if self.symbol == "byte-plane":
            return list(items.T)
        nonzero = items.any(axis=1)
        return [_gaps(np.flatnonzero(nonzero)), *items[nonzero].T]


def pack_symbols(symbols: np.ndarray, max_length: int) -> bytes:
    """One stream of codewords behind the lengths of its code, for those who keep a header of their own.

    Parameters
    ----------
    symbols : ndarray of uint8, shape (n,)
    max_length : int
        Of a codeword, up to 15 bits.

    Returns
    -------
    bytes
        The largest symbol, the lengths up to it in four bits each, the codewords. Empty for no symbols.

    Examples
    --------
    >>> data = pack_symbols(np.array([0, 0, 2, 1, 0], np.uint8), 12)
    >>> len(data), unpack_symbols(data, 5, 12)
    (4, array([0, 0, 2, 1, 0], dtype=uint8))
    """
    if not symbols.size:
        return b""
    counts = np.bincount(symbols)
    lengths = code_lengths(counts, max_length)
    words, widths = canonical_codes(lengths)[symbols], lengths[symbols].astype(np.int64)
    place = np.arange(widths.sum()) - np.repeat(np.cumsum(widths) - widths, widths)  # of a bit in its codeword
    bits = np.repeat(words, widths) >> place.astype(np.uint64) & np.uint64(1)
    packed = np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()
    return bytes([len(counts) - 1]) + _nibbles(lengths) + packed


def unpack_symbols(data: bytes, count: int, max_length: int) -> np.ndarray:
    """The symbols, so many of them, that `pack_symbols` packed.

    Raises
    ------
    ValueError
        If the bytes hold no code, or end before or behind the last codeword.
    """
    if not count and not data:
        return np.zeros(0, np.uint8)
    source = _Reader(bytes(data), 0)
    most = source.unpack("<B")[0]
    lengths = _from_nibbles(source.take(most // 2 + 1))[: most + 1]
    packed = np.frombuffer(source.take(len(source.data) - source.at), np.uint8)
    words = np.zeros(packed.size // 8 + 3, np.uint64)  # the decoder looks ahead
    words.view(np.uint8)[: packed.size] = packed
    out = np.empty(count, np.uint8)
    if (lengths > 0).sum() == 1:  # one symbol alone: its codeword is a single bit, which is no complete code
        out[:] = np.flatnonzero(lengths)[0]
        end = count
    else:
        last = np.uint64(8 * packed.size)
        table, mask = _table(lengths, max_length), np.uint64((1 << max_length) - 1)
        end = int(_unpack_rest(words, np.uint64(0), table, mask, out, 0, count, last))
    if -(-end // 8) != packed.size:
        raise ValueError("data: the codewords end elsewhere than the bytes")
    return out


def _gaps(positions: np.ndarray) -> np.ndarray:
    """Zeros before each position, as bytes; 255 stands for so many zeros and no item yet."""
    gaps = np.diff(positions, prepend=-1) - 1
    escapes = gaps // 255
    out = np.full(int(escapes.sum()) + len(gaps), 255, np.uint8)
    out[np.cumsum(escapes + 1) - 1] = gaps % 255
    return out


def _read_items(source: _Reader, size: int, itemsize: int, max_length: int) -> np.ndarray:
    items = np.empty((size, itemsize), np.uint8)
    for plane in items.T:
        _decode_plane(source, plane, max_length)
    return items


def _read_bytes(source: _Reader, size: int, itemsize: int, max_length: int) -> np.ndarray:
    return _read_items(source, size * itemsize, 1, max_length)


def _read_nonzero(source: _Reader, size: int, itemsize: int, max_length: int) -> np.ndarray:
    symbols, nonzero = source.unpack("<QQ")
    gaps = _read_items(source, symbols, 1, max_length)[:, 0]
    items = np.zeros((size, itemsize), np.uint8)
    ends = gaps != 255
    positions = np.cumsum(gaps.astype(np.int64) + ends)[ends] - 1
    if len(positions) != nonzero or (nonzero and positions[-1] >= size):
        raise ValueError("data: the gaps do not lead to as many items as were encoded")
    items[positions] = _read_items(source, nonzero, itemsize, max_length)
    return items


def _dtype(name: bytes) -> np.dtype:
    try:
        dtype = np.dtype(name.decode("ascii"))
    except (TypeError, UnicodeDecodeError, SyntaxError):
        dtype = np.dtype(object)
    if dtype.kind not in KINDS:
        raise ValueError(f"data: expected the name of a numeric dtype, got {name!r}")
    return dtype


class _Reader:
    """Bytes taken one after another; running out of them is an error."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise ValueError(f"data: {size} bytes expected at {self.at}, {len(self.data) - self.at} left")
        self.at += size
        return self.data[self.at - size : self.at]

    def unpack(self, format: str) -> tuple:
        return struct.unpack(format, self.take(struct.calcsize(format)))


def _encode_plane(plane: np.ndarray, max_length: int) -> bytes:
    """One byte for the mode, then the constant, the plane itself, or lengths, bit positions and the bit string.

    Lengths are stored as a bitmap of the symbols that occur and four bits for each of them.
    """
    counts = np.bincount(plane, minlength=256)
    used = np.flatnonzero(counts)
    if len(used) == 1:
        return struct.pack("<BB", CONSTANT, used[0])
    lengths = code_lengths(counts, max_length)
    bits = int(counts @ lengths)
    table = np.packbits(counts > 0).tobytes() + _nibbles(lengths[used])
    if not plane.size or 8 * STREAMS + len(table) + -(-bits // 8) >= plane.size:
        return struct.pack("<B", RAW) + plane.tobytes()
    words = np.zeros(bits // 64 + 1, np.uint64)
    starts = np.zeros(STREAMS, np.int64)
    _pack(plane, canonical_codes(lengths), lengths.astype(np.uint64), words, starts)
    return struct.pack(f"<B{STREAMS}Q", CODED, *starts[1:], bits) + table + words.tobytes()[: -(-bits // 8)]


def _decode_plane(source: _Reader, out: np.ndarray, max_length: int) -> None:
    (mode,) = source.unpack("<B")
    if mode == RAW:
        out[:] = np.frombuffer(source.take(out.size), np.uint8)
    elif mode == CONSTANT:
        out[:] = source.unpack("<B")[0]
    elif mode == CODED:
        *starts, bits = source.unpack(f"<{STREAMS}Q")
        lengths = np.unpackbits(np.frombuffer(source.take(32), np.uint8))
        used = np.flatnonzero(lengths)
        lengths[used] = _from_nibbles(source.take(-(-len(used) // 2)))[: len(used)]
        packed = np.frombuffer(source.take(-(-bits // 8)), np.uint8)
        words = np.zeros(bits // 64 + 2, np.uint64)  # one more than the bits fill: the decoder looks ahead
        words.view(np.uint8)[: packed.size] = packed
        ends = np.array([*starts, bits], np.uint64)
        if not _unpack(words, ends, _table(lengths, max_length), max_length, out):
            raise ValueError("data: the bit string does not decode to as many symbols as were encoded")
    else:
        raise ValueError(f"data: unknown mode {mode} of a plane")


def _nibbles(values: np.ndarray) -> bytes:
    padded = np.append(values, np.uint8(0)) if len(values) % 2 else values
    return (padded[::2] | padded[1::2] << np.uint8(4)).tobytes()


def _from_nibbles(data: bytes) -> np.ndarray:
    packed = np.frombuffer(data, np.uint8)
    return np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=1).reshape(-1)


def _table(lengths: np.ndarray, max_length: int) -> np.ndarray:
    """For every string of `max_length` bits, symbol + 256 length of the codeword that it starts with.

    Raises
    ------
    ValueError
        If the lengths are no complete prefix code, so that some strings start with none.
    """
    used = np.flatnonzero(lengths)
    if (1 << max_length >> lengths[used].astype(np.int64)).sum() != 1 << max_length or lengths.max() > max_length:
        raise ValueError("data: the code lengths are no complete prefix code")
    return _filled(lengths, canonical_codes(lengths), max_length)


@njit(cache=True)
def _filled(lengths, codes, max_length):
    table = np.empty(1 << max_length, np.uint16)
    for symbol in range(lengths.size):
        if lengths[symbol]:
            table[codes[symbol] :: 1 << np.int64(lengths[symbol])] = symbol | np.int64(lengths[symbol]) << 8
    return table


@njit(cache=True)
def _pack(plane, codes, lengths, words, starts):
    """Codewords one after another into 64-bit words, lowest bit first; notes where each stream starts."""
    quarter = plane.size // 4
    pending, filled, at = np.uint64(0), np.uint64(0), 0
    for i in range(plane.size):
        if i == quarter or i == 2 * quarter or i == 3 * quarter:
            starts[i // quarter] = at * 64 + np.int64(filled)
        symbol = plane[i]
        pending |= codes[symbol] << filled
        filled += lengths[symbol]
        if filled >= np.uint64(64):
            words[at] = pending
            at += 1
            filled -= np.uint64(64)
            pending = codes[symbol] >> (lengths[symbol] - filled)  # what did not fit
    if filled > 0:
        words[at] = pending


@njit(cache=True, inline="always")
def _window(words, position):
    """The 64 bits from a position on."""
    i, shift = position >> np.uint64(6), position & np.uint64(63)
    return words[i] >> shift | words[i + np.uint64(1)] << np.uint64(1) << (np.uint64(63) - shift)


@njit(cache=True)
def _unpack(words, ends, table, max_length, out):
    """Decode four stretches of the bit string at once; whether each ended where the next one starts."""
    mask = np.uint64((1 << max_length) - 1)
    quarter = out.size // 4
    a, b, c, d, last = np.uint64(0), ends[0], ends[1], ends[2], ends[3]
    if not (b <= c and c <= d and d <= last):
        return False
    byte, eight = np.uint64(255), np.uint64(8)
    i = 0
    while i + 4 <= quarter:
        if a > last or b > last or c > last or d > last:
            return False
        u, v, w, x = _window(words, a), _window(words, b), _window(words, c), _window(words, d)
        for j in range(i, i + 4):  # four codewords have at most 60 bits
            e, f, g, h = (
                np.uint64(table[u & mask]),
                np.uint64(table[v & mask]),
                np.uint64(table[w & mask]),
                np.uint64(table[x & mask]),
            )
            out[j], out[j + quarter] = e & byte, f & byte
            out[j + 2 * quarter], out[j + 3 * quarter] = g & byte, h & byte
            e, f, g, h = e >> eight, f >> eight, g >> eight, h >> eight
            u, v, w, x = u >> e, v >> f, w >> g, x >> h
            a, b, c, d = a + e, b + f, c + g, d + h
        i += 4
    a = _unpack_rest(words, a, table, mask, out, i, quarter, last)
    b = _unpack_rest(words, b, table, mask, out, quarter + i, 2 * quarter, last)
    c = _unpack_rest(words, c, table, mask, out, 2 * quarter + i, 3 * quarter, last)
    d = _unpack_rest(words, d, table, mask, out, 3 * quarter + i, out.size, last)
    return a == ends[0] and b == ends[1] and c == ends[2] and d == last


@njit(cache=True)
def _unpack_rest(words, position, table, mask, out, start, stop, last):
    """Decode one by one; the position after the last codeword."""
    for j in range(start, stop):
        if position > last:
            return position
        entry = np.uint64(table[_window(words, position) & mask])
        out[j] = entry & np.uint64(255)
        position += entry >> np.uint64(8)
    return position
