"""Against a Huffman tree grown with heapq, Kraft's sum and the entropy; round trips of every dtype; changed input."""

from __future__ import annotations

import heapq
import itertools
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernels.model.weight_sharing.huffman_coding import HuffmanCoding, canonical_codes, code_lengths, entropy

CODECS = [HuffmanCoding(symbol, limit) for symbol in ("byte-plane", "byte", "nonzero") for limit in (8, 12, 15)]
histograms = st.lists(st.integers(0, 10**6), min_size=2, max_size=256).filter(lambda c: sum(map(bool, c)) > 1)
numeric = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(),
    hnp.floating_dtypes(endianness="?"),
    hnp.complex_number_dtypes(),
)


def bits_of_a_tree(counts) -> int:
    """Total length of a text under Huffman's code: every merge adds one bit to all symbols below it."""
    heap = [int(c) for c in counts if c]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def best_limited(counts, limit) -> int:
    """The least total length with all lengths at most `limit`, by trying every complete choice of lengths."""
    counts = sorted((c for c in counts if c), reverse=True)

    def search(i, room, shortest):
        if i == len(counts):
            return 0 if room == 0 else float("inf")
        rest = len(counts) - i
        sizes = {length: 2 ** (limit - length) for length in range(shortest, limit + 1)}
        return min(
            (
                counts[i] * length + search(i + 1, room - size, length)
                for length, size in sizes.items()
                if size <= room <= rest * size
            ),
            default=float("inf"),
        )

    return search(0, 2**limit, 1)


@settings(max_examples=60, deadline=None)
@given(histograms)
def test_lengths_are_huffmans_where_the_limit_does_not_bind(counts):
    counts = np.array(counts)
    lengths = code_lengths(counts, 32)
    assert counts @ lengths.astype(np.int64) == bits_of_a_tree(counts)
    assert sum(2.0 ** -int(n) for n in lengths if n) == 1  # Kraft's sum of a complete code
    mean, bound = counts @ lengths.astype(np.int64) / counts.sum(), entropy(counts)
    assert bound - 1e-9 <= mean < bound + 1
    assert ((lengths > 0) == (counts > 0)).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=8), st.integers(3, 5))
def test_limited_lengths_are_the_best_of_all(counts, limit):
    lengths = code_lengths(np.array(counts), limit).astype(np.int64)
    assert lengths.max() <= limit and (2.0**-lengths).sum() == 1
    assert np.array(counts) @ lengths == best_limited(counts, limit)


def test_counts_of_fibonacci_need_the_limit():
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    assert code_lengths(np.array(fibonacci), 39).max() == 39
    for limit in (8, 12, 15):
        lengths = code_lengths(np.array(fibonacci), limit).astype(np.int64)
        assert lengths.max() == limit and (2.0**-lengths).sum() == 1
    with pytest.raises(ValueError, match="max_length: 40 symbols need more than 5 bits"):
        code_lengths(np.array(fibonacci), 5)


@settings(max_examples=50, deadline=None)
@given(histograms)
def test_canonical_codes_are_consecutive_and_prefix_free(counts):
    lengths = code_lengths(np.array(counts), 15)
    words = [f"{int(code):0{n}b}"[::-1] for code, n in zip(canonical_codes(lengths), lengths, strict=True) if n]
    ordered = sorted(words)
    assert not any(b.startswith(a) for a, b in itertools.pairwise(ordered))
    by_length = sorted(zip(map(len, words), range(len(words)), words, strict=True))
    assert [word for _, _, word in by_length] == ordered  # shorter codewords are the smaller numbers


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(CODECS))
def test_round_trip_of_every_dtype(data, codec):
    dtype = data.draw(numeric)
    x = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7)))
    back = HuffmanCoding().decode(codec.encode(x))
    assert back.dtype == x.dtype and back.shape == x.shape and back.tobytes() == x.tobytes()  # NaN payloads too


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 3000), skew=st.floats(0.01, 0.99), seed=st.integers(0, 99), codec=st.sampled_from(CODECS))
def test_round_trip_of_skewed_bytes(size, skew, seed, codec):
    x = np.random.default_rng(seed).geometric(skew, size).clip(0, 255).astype(np.uint8)
    data = codec.encode(x)
    assert np.array_equal(codec.decode(data), x)
    assert len(data) <= size * (2 if codec.symbol == "nonzero" else 1) + 64


@pytest.mark.parametrize("codec", CODECS)
def test_layouts(codec):
    x = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    for view in (x.T, x[::2, ::-3], x[:0], np.float64(3.5), np.zeros((3, 0, 2), np.int16), np.full(5000, 7, np.int64)):
        back = codec.decode(codec.encode(view))
        assert back.shape == view.shape and back.dtype == view.dtype and np.array_equal(back, view)
    assert np.array_equal(codec.decode(codec.encode(torch.from_numpy(x))), x)
    assert len(codec.encode(np.zeros(10**6, np.float32))) < 64


def test_size_is_the_entropy_and_little_more():
    rng = np.random.default_rng(0)
    for codec in map(HuffmanCoding, ("byte-plane", "byte")):
        for x in (rng.normal(0, 20, 100_000).astype(np.int8), rng.normal(0, 0.05, 100_000).astype(np.float32)):
            bits = 8 * len(codec.encode(x)) / x.size
            assert codec.bits_per_item(x) <= bits < codec.bits_per_item(x) + 0.15 * x.itemsize
    assert HuffmanCoding().bits_per_item(np.empty(0, np.int16)) == 0


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, 5000), density=st.floats(0, 0.05), seed=st.integers(0, 99))
def test_sparse_arrays_with_gaps_of_any_length(size, density, seed):
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(size) < density, rng.normal(size=size), 0).astype(np.float32)
    x[rng.random(size) < 0.001] = -0.0  # not a zero, bit for bit
    codec = HuffmanCoding("nonzero")
    assert codec.decode(codec.encode(x)).tobytes() == x.tobytes()


def test_gaps_beat_a_bit_a_zero():
    x = np.where(np.arange(50_000) % 10 == 0, np.random.default_rng(0).integers(1, 100, 50_000), 0).astype(np.int8)
    whole, gaps = HuffmanCoding(), HuffmanCoding("nonzero")
    assert 8 * len(whole.encode(x)) / x.size > 1 > 8 * len(gaps.encode(x)) / x.size > gaps.bits_per_item(x)


@pytest.fixture(scope="module")
def encoded():
    return HuffmanCoding().encode(np.random.default_rng(0).normal(0, 9, 500).astype(np.int8))


def test_every_truncation_and_every_changed_byte_is_refused(encoded):
    for size in range(len(encoded)):
        with pytest.raises(ValueError, match="data: "):
            HuffmanCoding().decode(encoded[:size])
    for i in range(len(encoded)):
        changed = bytearray(encoded)
        changed[i] ^= 1 << i % 8
        with pytest.raises(ValueError, match="data: "):
            HuffmanCoding().decode(bytes(changed))
    with pytest.raises(ValueError, match="data: "):
        HuffmanCoding().decode(encoded + b"\0")


@settings(max_examples=200, deadline=None)
@given(at=st.integers(4, 300), value=st.integers(0, 255), symbol=st.sampled_from(["byte", "nonzero"]))
def test_a_forged_checksum_never_reads_or_writes_astray(at, value, symbol):
    x = np.random.default_rng(0).normal(0, 9, 500).astype(np.int8)
    forged = bytearray(HuffmanCoding(symbol).encode(x)[:-4])
    forged[at % (len(forged) - 4) + 4] = value
    forged = bytes(forged)
    try:
        back = HuffmanCoding().decode(forged + struct.pack("<I", zlib.crc32(forged)))
    except (ValueError, MemoryError):
        return
    assert isinstance(back, np.ndarray)


@pytest.mark.parametrize(
    "x",
    [
        np.array(["a"]),
        np.array([None]),
        np.zeros(2, "M8[s]"),
        np.zeros(2, [("a", "f4")]),
        torch.zeros(2, dtype=torch.bfloat16),
    ],
)
def test_items_that_are_no_numbers(x):
    with pytest.raises(TypeError, match="x: "):
        HuffmanCoding().encode(x)


@pytest.mark.parametrize("parameters", [{"symbol": "bit"}, {"max_length": 16}, {"max_length": 7}, {"max_length": 12.0}])
def test_wrong_parameters(parameters):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        HuffmanCoding(**parameters)
