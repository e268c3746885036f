r"""Compressed networks on disk: every tensor in the form that its constraint keeps, restored bit for bit.

A file is one safetensors file with one tensor of bytes, and the sha256 of these in its metadata. In it stands, for each
parameter and buffer in the network's own order, a `Form`: unsigned *codes* and the *floats* that give them a meaning.
Names and shapes are the network's and are not repeated; a digest of them says whose file it is.

    form      codes                                 floats                  value
    Plain     none                                  all values              themselves
    Sparse    0 or 1: is there anything?            what differs from zero  the next of them, or zero
    Table     which entry, of a value or a vector   codebook(s)             codebook[code]
    ZeroTable the same, 0 for zero                  codebook(s)             codebook[code - 1], or zero
    Steps     how many steps                        scale(s), zero(s)       (code - zero) scale

Codes stand in whole bits, or the non-zero ones alone behind a bitmap or behind runs of zeros, whichever is shortest; or
those of all layers together in Huffman's code, so that its tables are paid once: the codes, or the runs of zeros and
the codes between them.

A constraint (see `kernels.model.transform.constrain`) joins by a method ``encoded(weight)`` that returns a form. What
has none is looked at: few different values make a `Table`, zeros a `Sparse` one; so baked networks and plain ones are
compressed, too, and a network whose constraint is unknown is never stored wrongly.

Source: the order of the stages and their symbols, Han et al., "Deep compression: compressing deep neural networks with
pruning, trained quantization and Huffman coding", ICLR 2016, arXiv 1510.00149, sections 2 to 4.

Examples
--------
>>> from kernels.model.pruning.magnitude_pruning import MagnitudePruning
>>> pruned = MagnitudePruning(density=0.1).apply(nn.Linear(100, 100))
>>> data = encode(pruned)
>>> len(data) < 6500, bool((decode(data, nn.Linear(100, 100)).weight == pruned.weight).all())
(True, True)
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kernels.model.transform import bake
from kernels.model.weight_sharing.huffman_coding import HuffmanCoding, pack_symbols, unpack_symbols

__all__ = [
    "Form",
    "Plain",
    "Scaled",
    "Sparse",
    "Steps",
    "Table",
    "ZeroTable",
    "decode",
    "encode",
    "load",
    "save",
    "smallest",
]

VERSION = 1
KEY = "network"
DENSE, BITMAP = 0, 1
RUNS = range(2, 9)
"""How codes are packed: in whole bits, behind a bitmap, or behind runs of zeros counted in so many bits."""
MOST_VALUES = 256
"""A table by looking at a tensor has at most so many entries."""
APART, CODED, CODED_GAPS = range(3)
"""Where the codes stand: tensor by tensor, all in one Huffman code, or their gaps and what lies between in two."""
SCALED = 128
DIGEST = 4
"""Bytes of the checksum of names, types and shapes."""


@dataclass(frozen=True, eq=False)
class Form:
    """How one float32 tensor is kept.

    A subclass with a `number` of its own, 16 to 127 for those outside this module, says in `values` what the codes
    mean. Files that hold it are read where the subclass has been imported.

    Parameters
    ----------
    codes : ndarray of unsigned integers, 1-d
    levels : int
        Codes are below it.
    floats : tuple of ndarray of float32, 1-d each
    """

    codes: np.ndarray
    levels: int
    floats: tuple[np.ndarray, ...]

    number: ClassVar[int] = -1
    known: ClassVar[dict[int, type[Form]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.number in Form.known:
            raise TypeError(f"{cls.__name__}: number {cls.number} is taken by {Form.known[cls.number].__name__}")
        Form.known[cls.number] = cls

    @property
    def mark(self) -> int:
        """What stands for the kind of form in a file."""
        return self.number

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor, float32, of this shape."""
        raise NotImplementedError

    @property
    def bits(self) -> int:
        """Of codes and floats, packed, without a codec."""
        return 8 * len(_pack(self.codes, self.levels)) + 32 * sum(part.size for part in self.floats)


class Plain(Form):
    """Every value as it is."""

    number = 0

    @classmethod
    def of(cls, x: np.ndarray) -> Plain:
        return cls(np.zeros(0, np.uint8), 1, (x.reshape(-1),))

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.floats[0].reshape(shape)


class Sparse(Form):
    """Where something differs from (positive) zero, and what it is.

    Examples
    --------
    >>> Sparse.of(np.array([0, 0, 3, 0], np.float32)).values((2, 2))
    array([[0., 0.],
           [3., 0.]], dtype=float32)
    """

    number = 1

    @classmethod
    def of(cls, x: np.ndarray) -> Sparse:
        there = _words(x) != 0
        return cls(there.astype(np.uint8), 2, (x.reshape(-1)[there],))

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        out = np.zeros(self.codes.size, np.float32)
        out[self.codes != 0] = self.floats[0]
        return out.reshape(shape)


class Table(Form):
    """Codes that refer to the entries of a codebook, which may be vectors; or each share of the codes to its own.

    Codes and codebooks divide the tensor in its own (row-major) order, so that nothing but their sizes has to be known.

    Examples
    --------
    >>> Table.of(np.array([1, 0]), np.array([[0.0, 1.0], [2.0, 3.0]])).values((4,))
    array([2., 3., 0., 1.], dtype=float32)
    """

    number = 2

    @staticmethod
    def of(codes: Any, table: Any) -> Table:
        """Of integers of any shape, and a table (entries,), (entries, d) or (parts, entries, d).

        Where entry 0 is zero it is not stored.

        Parameters
        ----------
        codes : array_like or Tensor of integers
            In the order of the tensor's values, or of its vectors of d neighbours.
        table : array_like or Tensor of floats
        """
        codes, table = np.asarray(codes), np.asarray(table, np.float32)
        levels = table.shape[0 if table.ndim < 3 else 1]
        entries = table.reshape(-1, levels, 1 if table.ndim < 2 else table.shape[-1])
        if levels > 1 and not _words(entries[:, 0]).any():
            return ZeroTable(_unsigned(codes, levels), levels, (entries[:, 1:].reshape(-1),))
        return Table(_unsigned(codes, levels), levels, (table.reshape(-1),))

    @staticmethod
    def by_looking(x: np.ndarray, parts: int = 1) -> Table | None:
        """Of a tensor that takes few values; zero is code 0, then the more frequent ones first; None where it is many.

        Parameters
        ----------
        x : ndarray of float32
        parts : int
            How many equal shares of it have a table of their own.
        """
        words = _words(x).reshape(parts, -1)
        zeros = int((words == 0).any())  # then each part's code 0, even where a part has none
        found = []
        for part in words:
            values, places, counts = np.unique(part, return_inverse=True, return_counts=True)
            order = np.lexsort((values, -counts))
            order = order[values[order] != 0]
            rank = np.zeros(len(values), np.int64)
            rank[order] = np.arange(zeros, zeros + len(order))
            found.append((values[order], rank[places]))
        levels = zeros + max(len(values) for values, _ in found)
        if levels > MOST_VALUES or parts * levels >= x.size:
            return None
        table = np.zeros((parts, levels), np.uint32)
        for row, (values, _) in zip(table, found, strict=True):
            row[zeros : zeros + len(values)] = values
        return Table.of([codes for _, codes in found], table.view(np.float32)[..., None])

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        if not math.prod(shape):
            return np.zeros(shape, np.float32)
        table = self._table(math.prod(shape) // max(self.codes.size, 1))
        codes = self.codes.reshape(len(table), -1)
        return np.take_along_axis(table, codes[..., None].astype(np.int64), 1).reshape(shape)

    def _table(self, d: int) -> np.ndarray:
        return self.floats[0].reshape(-1, self.levels, max(d, 1))


class ZeroTable(Table):
    """A table whose entry 0 is zero and is not stored.

    Examples
    --------
    >>> form = Table.of(np.array([1, 0, 2]), np.array([0.0, 5.0, 7.0]))
    >>> type(form).__name__, form.floats[0].size, form.values((3,))
    ('ZeroTable', 2, array([5., 0., 7.], dtype=float32))
    """

    number = 5

    def _table(self, d: int) -> np.ndarray:
        return np.pad(self.floats[0].reshape(-1, self.levels - 1, max(d, 1)), ((0, 0), (1, 0), (0, 0)))


class Steps(Form):
    """Evenly spaced values: (code - zero) scale, in float32; scales and zeros for equal shares of the codes.

    Examples
    --------
    >>> Steps.of(np.array([[3, 0], [1, 2]]), levels=4, scale=[0.5, 2.0], zero=1).values((2, 2))
    array([[ 1. , -0.5],
           [ 0. ,  2. ]], dtype=float32)
    """

    number = 3

    @classmethod
    def of(cls, codes: Any, levels: int, scale: Any, zero: Any = 0.0) -> Steps:
        """Of integers of any shape from 0 to below `levels`, and as many scales and zeros as there are shares."""
        floats = tuple(np.asarray(part, np.float32).reshape(-1) for part in (scale, zero))
        return cls(_unsigned(np.asarray(codes), levels), levels, floats)

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        scale, zero = self.floats
        codes = self.codes.astype(np.float32)
        shifted = codes.reshape(zero.size, -1) - zero[:, None]
        return (shifted.reshape(scale.size, -1) * scale[:, None]).reshape(shape)


@dataclass(frozen=True, eq=False)
class Scaled(Form):
    """Another form whose rows (first dimension) are multiplied by a scale each, as folding a batch norm does.

    Examples
    --------
    >>> Scaled.of(Table.of([1, 0, 1, 1], [0.0, 1.0]), [2.0, 3.0]).values((2, 2))
    array([[2., 0.],
           [3., 3.]], dtype=float32)
    """

    inner: type[Form] = Plain

    number = SCALED

    @classmethod
    def of(cls, inner: Form, scale: Any) -> Scaled:
        scale = np.asarray(scale, np.float32).reshape(-1)
        return cls(inner.codes, inner.levels, (*inner.floats, scale), type(inner))

    @property
    def mark(self) -> int:
        return self.number | self.inner.number

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        *floats, scale = self.floats
        inner = self.inner(self.codes, self.levels, tuple(floats)).values(shape)
        return inner * scale.reshape(-1, *[1] * (len(shape) - 1))


def _form(mark: int, codes: np.ndarray, levels: int, floats: tuple[np.ndarray, ...]) -> Form:
    """What `Form.mark` stands for."""
    kind = Form.known.get(mark & ~SCALED)
    if kind is None:
        raise ValueError(f"data: no form has number {mark & ~SCALED}; import what defines it")
    return Scaled(codes, levels, floats, kind) if mark & SCALED else kind(codes, levels, floats)


def smallest(x: np.ndarray, *others: Form) -> Form:
    """The form of fewest bits, of those that a look at a float32 tensor suggests and of others.

    Examples
    --------
    >>> x = np.repeat(np.array([0, 1, 2, 3], np.float32), 25)
    >>> form = smallest(x)
    >>> type(form).__name__, form.bits
    ('ZeroTable', 304)
    """
    forms: list[Form | None] = [*others, Plain.of(x), Sparse.of(x)]
    if x.size:
        forms.append(Table.by_looking(x))
        if x.ndim > 1:
            forms.append(Table.by_looking(x, len(x)))
    return min((form for form in forms if form is not None), key=lambda form: form.bits)


def _words(x: np.ndarray) -> np.ndarray:
    """float32 as bits: what compares equal is equal, NaN and both zeros too."""
    return np.ascontiguousarray(x).reshape(-1).view(np.uint32)


def _unsigned(codes: np.ndarray, levels: int) -> np.ndarray:
    if codes.size and (codes.min() < 0 or codes.max() >= levels):
        raise ValueError(f"codes: expected 0 to {levels - 1}, got {codes.min()} to {codes.max()}")
    if levels > 1 << 16:
        raise ValueError(f"levels: expected at most {1 << 16}, got {levels}")
    return codes.reshape(-1).astype(np.uint8 if levels <= 256 else np.uint16)


# --- what a network holds -------------------------------------------------------------------------------------------


def _tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and persistent buffers of a plain network, a shared one once."""
    kept = network.state_dict().keys()
    pairs = [*network.named_parameters(), *network.named_buffers()]
    return [(name, tensor.detach()) for name, tensor in pairs if name in kept]


def _suggested(network: nn.Module) -> dict[str, Form]:
    """What the last constraint of a weight keeps, by the weight's path."""
    found = {}
    for path, layer in network.named_modules():
        if parametrize.is_parametrized(layer):
            for name, constraints in layer.parametrizations.items():  # type: ignore[union-attr, operator]
                if hasattr(constraints[-1], "encoded"):
                    with torch.no_grad():
                        found[f"{path}.{name}" if path else name] = constraints[-1].encoded(getattr(layer, name))
    return found


def _rescaled(before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
    """One scale a row that turns `before` into `after` to the last bit, or None."""
    rows = [np.ascontiguousarray(x).reshape(len(x), -1) for x in (before, after)]
    scales = np.ones(len(before), np.float32)
    for i, (old, new) in enumerate(zip(*rows, strict=True)):
        at = np.abs(old).argmax()
        if old[at] == 0 or not np.isfinite(new[at]):
            candidates = [np.float32(1)]
        else:
            near = np.float32(np.float64(new[at]) / np.float64(old[at]))
            candidates = [near, *np.nextafter(near, np.array([-np.inf, np.inf], np.float32))]
        right = [s for s in candidates if np.array_equal(_words(old * s), _words(new))]
        if not right:
            return None
        scales[i] = right[0]
    return scales


def _forms(network: nn.Module, before: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Form | bytes]]:
    suggested = _suggested(network)
    for name, tensor in _tensors(bake(network)):
        if tensor.dtype != torch.float32:
            flat = tensor.cpu().contiguous().reshape(-1)
            yield name, flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
            continue
        x = tensor.cpu().numpy()
        others = [suggested[name]] if name in suggested else []
        for form in others:
            if not np.array_equal(_words(form.values(x.shape)), _words(x)):
                raise ValueError(f"{name}: what its constraint keeps, {type(form).__name__}, does not give the weight")
        old = before.get(name)
        if old is not None and old.shape == x.shape and x.ndim > 1:
            scales = _rescaled(old, x)
            if scales is not None:
                others.append(Scaled.of(smallest(old), scales))
        yield name, smallest(x, *others)


# --- bits and bytes --------------------------------------------------------------------------------------------------


def _bits(values: np.ndarray, width: int) -> bytes:
    """Unsigned integers in `width` bits each, lowest bit first."""
    places = np.arange(width, dtype=np.uint32)
    return np.packbits((values.astype(np.uint32)[:, None] >> places & 1).astype(np.uint8), bitorder="little").tobytes()


def _unbits(data: bytes, count: int, width: int) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * width, bitorder="little")
    return bits.reshape(count, width).astype(np.uint32) @ (1 << np.arange(width, dtype=np.uint32))


def _runs(codes: np.ndarray, width: int) -> np.ndarray:
    """Zeros before each non-zero code; the largest number stands for so many zeros and no code yet."""
    most = (1 << width) - 1
    gaps = np.diff(np.flatnonzero(codes), prepend=-1) - 1
    fillers = gaps // most
    out = np.full(int(fillers.sum()) + len(gaps), most, np.int64)
    out[np.cumsum(fillers + 1) - 1] = gaps % most
    return out


def _places(runs: np.ndarray, width: int, count: int) -> np.ndarray:
    """Where the codes stand that such runs lead to."""
    ends = runs != (1 << width) - 1
    places = np.cumsum(runs.astype(np.int64) + ends)[ends] - 1
    if places.size and places[-1] >= count:
        raise ValueError("data: runs of zeros lead beyond the codes")
    return places


def _pack(codes: np.ndarray, levels: int) -> bytes:
    """One byte for how, and the codes, in the shortest way; empty for no codes.

    Examples
    --------
    >>> len(_pack(np.arange(8, dtype=np.uint8), 8)), len(_pack(np.eye(32, dtype=np.uint8).reshape(-1), 2))
    (4, 26)
    """
    if not codes.size:
        return b""
    dense = bytes([DENSE]) + _bits(codes, (levels - 1).bit_length())
    if levels < 2:
        return dense
    rest = _bits(codes[codes != 0] - 1, (levels - 2).bit_length())
    sparse = [bytes([BITMAP]) + _bits(codes != 0, 1) + rest]
    for width in RUNS:
        runs = _runs(codes, width)
        sparse.append(bytes([width]) + _varint(len(runs)) + _bits(runs, width) + rest)
    return min([dense, *sparse], key=len)


def _unpack(source: _Reader, count: int, levels: int) -> np.ndarray:
    if not count:
        return np.zeros(0, np.uint8)
    (how,) = source.take(1)
    if how == DENSE:
        codes = source.bits(count, (levels - 1).bit_length())
    elif levels > 1 and (how == BITMAP or how in RUNS):
        if how == BITMAP:
            places = np.flatnonzero(source.bits(count, 1))
        else:
            places = _places(source.bits(source.varint(), how), how, count)
        codes = np.zeros(count, np.uint32)
        codes[places] = source.bits(len(places), (levels - 2).bit_length()) + 1
    else:
        raise ValueError(f"data: unknown packing {how} of codes")
    return _unsigned(codes, levels)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first.

    Examples
    --------
    >>> _varint(5), _varint(300)
    (b'\\x05', b'\\xac\\x02')
    """
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


class _Reader:
    """Bytes taken one after another; running out of them is an error."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise ValueError(f"data: {size} bytes expected at {self.at}, {len(self.data) - self.at} left")
        self.at += size
        return self.data[self.at - size : self.at]

    def floats(self, count: int) -> np.ndarray:
        return np.frombuffer(self.take(4 * count), "<f4").astype(np.float32)

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)

    def varint(self) -> int:
        number = 0
        for shift in range(0, 63, 7):
            (byte,) = self.take(1)
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise ValueError(f"data: no number ends at {self.at}")

    def bits(self, count: int, width: int) -> np.ndarray:
        return _unbits(self.take(-(-count * width // 8)), count, width)


# --- the file --------------------------------------------------------------------------------------------------------


def encode(network: nn.Module, codec: HuffmanCoding | None = None, before: nn.Module | None = None) -> bytes:
    """A network as the bytes of a safetensors file.

    Parameters
    ----------
    network : nn.Module
        Under its constraints, or baked, or plain; left as it is.
    codec : HuffmanCoding, optional
        Its longest codeword is that of Huffman's code, which is used where it makes the file shorter.
    before : nn.Module, optional
        The same network before batch norm was folded into its layers: a weight whose rows are those of that one times
        a scale is kept as that one and its scales.

    Returns
    -------
    bytes

    Raises
    ------
    ValueError
        If a constraint keeps what does not give its weight to the last bit; the message has the weight's path.
    """
    old = {}
    if before is not None:
        old = {name: tensor.cpu().numpy() for name, tensor in _tensors(bake(before)) if tensor.dtype == torch.float32}
    head, raw = bytearray(), bytearray()
    forms: list[Form] = []
    for _, form in _forms(network, old):
        if isinstance(form, bytes):
            raw += form
            continue
        forms.append(form)
        head += bytes([form.mark])
        if form.mark != Plain.number:
            head += bytes([len(form.floats)]) + _varint(form.levels) + _varint(form.codes.size)
            head += b"".join(_varint(part.size) for part in form.floats)
    codes = bytes([APART]) + b"".join(_pack(form.codes, form.levels) for form in forms)
    if codec is not None and all(form.levels <= 256 for form in forms):
        together = np.concatenate([np.zeros(0, np.uint8), *(form.codes for form in forms)])
        codes = min([codes, *_coded(together, codec.max_length)], key=len)
    floats = b"".join(part.astype("<f4").tobytes() for form in forms for part in form.floats)
    sections = (bytes(head), codes, floats, bytes(raw))
    return _wrapped(_digest(bake(network)), b"".join(_varint(len(part)) + part for part in sections))


def decode(data: bytes, network: nn.Module) -> nn.Module:
    """A copy of `network` with the weights of an encoded one, to the last bit.

    Parameters
    ----------
    data : bytes
    network : nn.Module
        Of the same architecture, constraints baked; left as it is.

    Raises
    ------
    ValueError
        If the data is no encoded network, is cut short, was changed, or is that of another architecture.
    """
    digest, body = _unwrapped(bytes(data))
    network = bake(network)
    if digest != _digest(network):
        raise ValueError(
            f"network: the file is that of another architecture; names, types or shapes of the {len(_tensors(network))}"
            f" tensors of this {type(network).__name__} differ from those that were stored"
        )
    try:
        values = _values(body, network)
    except (ArithmeticError, LookupError, MemoryError, TypeError) as error:
        raise ValueError(f"data: does not decode: {error!r}") from error
    with torch.no_grad():
        for (_, tensor), value in zip(_tensors(network), values, strict=True):
            tensor.copy_(value)
    return network


def save(
    network: nn.Module,
    path: str | os.PathLike[str],
    codec: HuffmanCoding | None = None,
    before: nn.Module | None = None,
) -> int:
    """Write `encode` to a file, all of it or nothing; returns its size in bytes."""
    data, path = encode(network, codec, before), Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return len(data)


def load(path: str | os.PathLike[str], network: nn.Module) -> nn.Module:
    """A copy of `network` with the weights that `save` wrote; raises as `decode`, with the path in the message."""
    try:
        return decode(Path(path).read_bytes(), network)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _values(body: bytes, network: nn.Module) -> list[Tensor]:
    source = _Reader(body)
    head, coded, numbers, raw = (_Reader(source.take(source.varint())) for _ in range(4))
    if source.at != len(body):
        raise ValueError(f"data: {len(body) - source.at} bytes too many")
    (how,) = coded.take(1)
    together = None if how == APART else _decoded(coded, how)
    at = 0
    out = []
    for _, tensor in _tensors(network):
        shape = tuple(tensor.shape)
        if tensor.dtype != torch.float32:
            data = bytearray(raw.take(tensor.numel() * tensor.element_size()))
            out.append(torch.frombuffer(data, dtype=tensor.dtype).reshape(shape) if data else tensor)
            continue
        (mark,) = head.take(1)
        if mark == Plain.number:
            out.append(torch.from_numpy(numbers.floats(tensor.numel()).reshape(shape)))
            continue
        (parts,) = head.take(1)
        levels, count = head.varint(), head.varint()
        floats = tuple(numbers.floats(head.varint()) for _ in range(parts))
        if together is None:
            codes = _unpack(coded, count, levels)
        else:
            codes = _unsigned(together[at : at + count], levels)
            at += count
        out.append(torch.from_numpy(np.array(_form(mark, codes, levels, floats).values(shape), np.float32)))
    if any(part.at != len(part.data) for part in (head, coded, numbers, raw)):
        raise ValueError("data: more than the network has tensors for")
    return out


def _coded(codes: np.ndarray, max_length: int) -> Iterator[bytes]:
    """All codes in one Huffman code, and the gaps between those that are not zero in one beside that of these."""
    intro = bytes([max_length]) + _varint(codes.size)
    yield bytes([CODED]) + intro + pack_symbols(codes, max_length)
    rest = codes[codes != 0]
    values = pack_symbols(rest - np.uint8(1), max_length)
    for width in RUNS:
        runs = _runs(codes, width).astype(np.uint8)
        gaps = pack_symbols(runs, max_length)
        sizes = _varint(len(runs)) + _varint(len(gaps)) + _varint(len(rest))
        yield bytes([CODED_GAPS]) + intro + bytes([width]) + sizes + gaps + values


def _decoded(source: _Reader, how: int) -> np.ndarray:
    (max_length,) = source.take(1)
    if how not in (CODED, CODED_GAPS) or not 1 <= max_length <= 15:
        raise ValueError(f"data: unknown coding {how} of codes, with codewords of {max_length} bits")
    count = source.varint()
    if how == CODED:
        return unpack_symbols(source.rest(), count, max_length)
    (width,) = source.take(1)
    runs, size, others = source.varint(), source.varint(), source.varint()
    places = _places(unpack_symbols(source.take(size), runs, max_length), width, count)
    codes = np.zeros(count, np.uint8)
    codes[places] = unpack_symbols(source.rest(), others, max_length) + np.uint8(1)
    return codes


def _digest(network: nn.Module) -> bytes:
    """Of names, types and shapes of what a plain network holds."""
    held = [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in _tensors(network)]
    return hashlib.sha256(json.dumps(held).encode()).digest()[:DIGEST]


def _wrapped(digest: bytes, body: bytes) -> bytes:
    """A safetensors file: the length of a JSON header, the header, the bytes. Always the same for the same bytes."""
    content = bytes([VERSION]) + digest + body
    header = {
        "__metadata__": {"sha256": hashlib.sha256(content).hexdigest()},
        KEY: {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content


def _unwrapped(data: bytes) -> tuple[bytes, bytes]:
    """Digest and body of a file, after the checks that it is whole and unchanged."""
    try:
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        header["__metadata__"]["sha256"], header[KEY]
    except (struct.error, ValueError, LookupError, TypeError, RecursionError):
        raise ValueError(f"data: these {len(data)} bytes are no compressed network, or its header is damaged") from None
    content = data[8 + size :]
    version, digest, body = content[:1], content[1 : 1 + DIGEST], content[1 + DIGEST :]
    if version != bytes([VERSION]) or data != _wrapped(digest, body):
        raise ValueError(
            f"data: the sha256 of these {len(data)} bytes does not match: cut short, changed, or of another version"
        )
    return digest, body
