"""Every bit position, against H written out in numpy, ml_dtypes for bfloat16, and the binomial law for the flips."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernels.implementation.memory.zero_space_ecc import LAYOUTS, ZeroSpaceEcc

FORMATS = list(LAYOUTS)
PROTECTED = [ZeroSpaceEcc(format, code) for code in ("extended-hamming", "secded") for format in FORMATS]
each_protected = pytest.mark.parametrize("ecc", PROTECTED, ids=lambda ecc: f"{ecc.format}, {ecc.code}")
NORMAL = np.random.default_rng(0).normal(0, 0.3, 200).astype(np.float32)
finite = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def bits_of(words):
    """The codewords as rows of bits, the lowest bit of the first value first."""
    width = 8 * words.itemsize
    return (words[:, :, None].astype(np.int64) >> np.arange(width) & 1).reshape(len(words), -1)


def flip(protected, row, position):
    width = 8 * protected.words.itemsize
    protected.words[row, position // width] ^= protected.words.dtype.type(1 << position % width)


@each_protected
def test_the_code_is_the_extended_hamming_code(ecc):
    h = ecc.parity_check().astype(np.int64)
    checks, n = h.shape
    assert (n, checks) == ((72, 8) if ecc.code == "secded" else (2 ** (checks - 1), checks))
    assert len({tuple(column) for column in h.T}) == n and h[-1].all()  # distance 4: columns distinct, of odd weight
    free = h[:, list(ecc.layout.free)]
    assert round(abs(np.linalg.det(free))) % 2 == 1  # the free bits can solve every syndrome
    stored = ecc.protect(NORMAL)
    assert not (h @ bits_of(stored.words).T % 2).any()


@each_protected
def test_every_single_flip_is_corrected(ecc):
    n = ecc.parity_check().shape[1]
    stored = ecc.protect(np.resize(NORMAL, n * ecc.weights_in_codeword))  # codeword i gets its bit i flipped
    clean = ecc.recover(stored)
    for position in range(n):
        flip(stored, position, position)
    assert np.array_equal(ecc.recover(stored), clean)
    assert ecc.health(stored) == (0, n, 0)


@each_protected
def test_every_double_flip_is_detected_and_left(ecc):
    n, values = ecc.parity_check().shape[1], ecc.weights_in_codeword
    pairs = list(itertools.combinations(range(n), 2))
    stored = ecc.protect(np.resize(NORMAL[:values], len(pairs) * values))
    clean = ecc.recover(stored).reshape(len(pairs), values)
    for row, pair in enumerate(pairs):
        for position in pair:
            flip(stored, row, position)
    assert ecc.health(stored) == (0, 0, len(pairs))
    read = ecc.recover(stored).reshape(len(pairs), values)
    free, width = set(ecc.layout.free), 64 // values if ecc.code == "secded" else n // values
    for row, pair in enumerate(pairs[:: max(1, len(pairs) // 500)]):
        row *= max(1, len(pairs) // 500)
        hit = {position // width for position in set(pair) - free}
        same = read[row].view(np.uint32) == clean[row].view(np.uint32)
        assert all(same[v] for v in range(values) if v not in hit)


def test_bits_beside_the_weights_leave_them_as_they_are_and_take_an_eighth():
    for format in FORMATS:
        beside, plain = ZeroSpaceEcc(format, "secded"), ZeroSpaceEcc(format, "none")
        assert np.array_equal(beside.recover(beside.protect(NORMAL)), plain.recover(plain.protect(NORMAL)))
        scale = 32 if format == "int8" else 0
        assert (beside.stored_bits((64,)) - scale) * 8 == (plain.stored_bits((64,)) - scale) * 9
        assert 8 * beside.protect(NORMAL[:37]).words.nbytes == beside.stored_bits((37,)) - scale
        assert ZeroSpaceEcc(format).others() == {"secded": beside}


def test_three_flips_pass_as_one():
    ecc = ZeroSpaceEcc("float32")
    stored = ecc.protect(np.ones(1, np.float32))
    for position in (8, 9, 10):
        flip(stored, 0, position)
    assert ecc.health(stored) == (0, 1, 0)


@settings(max_examples=150, deadline=None)
@given(finite)
def test_clean_bfloat16_is_ml_dtypes_rounding(w):
    stored = ZeroSpaceEcc("bfloat16").protect(w)
    exact = w / np.float32(stored.scale)
    expected = exact.astype(ml_dtypes.bfloat16).astype(np.float32) * np.float32(stored.scale)
    read = ZeroSpaceEcc("bfloat16").recover(stored)
    assert read.shape == w.shape and read.dtype == np.float32
    assert np.array_equal(read.view(np.uint32), expected.view(np.uint32))  # the sign of zero too
    if np.abs(w).max(initial=0) < 1.99:
        assert stored.scale == 1
    plain = ZeroSpaceEcc("bfloat16", code="none")
    assert np.array_equal(plain.recover(plain.protect(w)), w.astype(ml_dtypes.bfloat16).astype(np.float32))


@settings(max_examples=150, deadline=None)
@given(finite)
def test_clean_float32_keeps_17_mantissa_bits(w):
    ecc = ZeroSpaceEcc()
    read = ecc.recover(ecc.protect(w))
    spacing = np.maximum(np.spacing(np.abs(w)), np.float32(2.0**-149)).astype(np.float64)
    assert (np.abs(read.astype(np.float64) - w) <= 32 * spacing).all()
    assert not (read.view(np.uint32) & np.uint32(63)).any()
    assert np.array_equal(ecc.recover(ecc.protect(read)), read)
    plain = ecc.unprotected()
    assert np.array_equal(plain.recover(plain.protect(w)).view(np.uint32), w.view(np.uint32))


@settings(max_examples=150, deadline=None)
@given(finite)
def test_clean_int8_clips_seven_of_eight_or_halves_the_resolution(w):
    ecc = ZeroSpaceEcc("int8")
    flat, largest = w.astype(np.float64).ravel(), float(np.abs(w).max(initial=0))
    full, half = largest / 127 or 1.0, largest / 63 or 1.0
    codes = np.rint(flat / full)
    plain = ecc.unprotected()
    assert np.array_equal(plain.recover(plain.protect(w)).ravel(), (codes * full).astype(np.float32))
    clipped = np.where(np.arange(codes.size) % 8 == 7, codes, codes.clip(-64, 63)) * full
    coarse = np.rint(flat / half) * half
    read = ecc.recover(ecc.protect(w)).ravel()
    error = [np.square(x - flat).sum() for x in (clipped, coarse)]
    allowed = [x for x, e in zip((clipped, coarse), error, strict=True) if e <= min(error) * (1 + 1e-9)]
    assert any(np.array_equal(read, x.astype(np.float32)) for x in allowed)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("code", ["extended-hamming", "none", "secded"])
def test_edges(format, code):
    ecc = ZeroSpaceEcc(format, code)
    for w in (np.zeros((0, 3), np.float32), np.float32(0.5), NORMAL.reshape(10, 20).T[::2], [0.25, -0.5]):
        read = ecc.recover(ecc.corrupt(ecc.protect(w), 0.0, 0))
        assert read.shape == np.shape(w)
        assert np.allclose(read, w, atol=0.01)
    tiny = np.array([1e-45, -1e-45, 0.0, -0.0], np.float32)
    assert np.isfinite(ecc.recover(ecc.protect(tiny))).all()
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="weights: expected finite"):
            ecc.protect(np.array([1, bad], np.float32))


def test_extremes_of_float32():
    largest = np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max], np.float32)
    assert np.isfinite(ZeroSpaceEcc().recover(ZeroSpaceEcc().protect(largest))).all()
    with pytest.raises(ValueError, match="bfloat16"):
        ZeroSpaceEcc("bfloat16").protect(largest)
    limit = np.array([ml_dtypes.finfo(ml_dtypes.bfloat16).max], np.float32)
    assert ZeroSpaceEcc("bfloat16").recover(ZeroSpaceEcc("bfloat16").protect(limit)) == limit


def test_zero_space():
    for format, bits in (("float32", 32), ("bfloat16", 16)):
        assert ZeroSpaceEcc(format).stored_bits((8, 3)) == ZeroSpaceEcc(format, "none").stored_bits((8, 3)) == 24 * bits
    assert ZeroSpaceEcc("int8").stored_bits((9,)) == 16 * 8 + 32
    assert ZeroSpaceEcc("int8", "none").stored_bits((9,)) == 9 * 8 + 32
    for format in FORMATS:
        stored = ZeroSpaceEcc(format).protect(NORMAL[:37])
        assert 8 * stored.words.nbytes == ZeroSpaceEcc(format).stored_bits((37,)) - 32 * (format == "int8")


def test_flips_follow_the_binomial_law():
    ecc = ZeroSpaceEcc("float32", "none")
    stored = ecc.protect(np.zeros(20000, np.float32))
    for rate in (1e-4, 1e-2, 0.5):
        flips = [int(bits_of(ecc.corrupt(stored, rate, seed).words).sum()) for seed in range(5)]
        n = 5 * 640000
        assert abs(sum(flips) - n * rate) < 5 * np.sqrt(n * rate * (1 - rate))
    everywhere = bits_of(ecc.corrupt(stored, 0.5, 0).words)
    assert np.abs(everywhere.mean(axis=0) - 0.5).max() < 0.02  # no bit is favoured
    assert bits_of(ecc.corrupt(stored, 1.0, 0).words).all()


def test_the_same_seed_flips_the_same_bits_whatever_protects():
    plain, ecc = ZeroSpaceEcc("bfloat16", "none"), ZeroSpaceEcc("bfloat16")
    w = NORMAL[:37]
    a, b = plain.protect(w), ecc.protect(w)
    flips_a = plain.corrupt(a, 0.01, 3).words.ravel() ^ a.words.ravel()
    flips_b = ecc.corrupt(b, 0.01, 3).words.ravel()[:37] ^ b.words.ravel()[:37]
    assert flips_a.any() and np.array_equal(flips_a, flips_b)
    assert not np.array_equal(ecc.corrupt(b, 0.01, 4).words, ecc.corrupt(b, 0.01, 3).words)
    assert np.array_equal(ecc.protect(w).words, b.words)  # corrupt left its argument alone


def test_positions_confine_the_flips():
    plain = ZeroSpaceEcc("bfloat16", "none")
    stored = plain.protect(np.zeros(1000, np.float32))
    corrupted = plain.corrupt(stored, 0.3, 0, positions=[14, 3])
    assert set(np.unique(corrupted.words)) == {0, 1 << 3, 1 << 14, 1 << 14 | 1 << 3}
    assert np.array_equal(plain.corrupt(stored, 1.0, 0, positions=[]).words, stored.words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": -0.1}, "rate"),
        ({"rate": np.nan}, "rate"),
        ({"rate": 0.1, "positions": [16]}, "positions: expected bits 0 to 15"),
    ],
)
def test_wrong_input(arguments, message):
    ecc = ZeroSpaceEcc("bfloat16")
    with pytest.raises(ValueError, match=message):
        ecc.corrupt(ecc.protect(NORMAL), seed=0, **arguments)
    with pytest.raises(ValueError, match="format: expected one of float32, int8, bfloat16, got 'fp8'"):
        ZeroSpaceEcc("fp8")
    with pytest.raises(ValueError, match="code"):
        ZeroSpaceEcc(code="hamming")


def test_few_errors_pass_where_codewords_seldom_hold_two():
    w = np.resize(NORMAL, 200000)
    for format in FORMATS:
        ecc = ZeroSpaceEcc(format)
        wrong = [
            (e.recover(e.corrupt(e.protect(w), 1e-4, 0)) != e.recover(e.protect(w))).sum()
            for e in (ecc, ecc.unprotected())
        ]
        assert wrong[0] < wrong[1] / 10
