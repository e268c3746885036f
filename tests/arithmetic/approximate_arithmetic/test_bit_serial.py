"""Bit-serial products against numpy's integers: every width, every remainder of the tiles, both widths of vectors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.arithmetic.approximate_arithmetic.bit_planes import (
    pack_planes,
    pack_words,
    plain_planes_product,
    planes_product,
    tile_shape,
)
from kernels.arithmetic.approximate_arithmetic.bit_serial import BitSerial, plain_bit_serial
from kernels.arithmetic.approximate_arithmetic.codes import plain_code_rows

RNG = np.random.default_rng(0)
LANES = (2, 4, 8)


def integers(shape, bits, signed=True, rng=RNG):
    if bits == 1 and signed:
        return rng.choice([-1, 1], shape)
    low = -(2 ** (bits - 1)) if signed else 0
    return rng.integers(low, low + 2**bits, shape)


@pytest.mark.parametrize("weight_bits", range(1, 9))
@pytest.mark.parametrize("input_bits", range(1, 9))
def test_every_pair_of_widths_is_exact(input_bits, weight_bits):
    for signed in (True, False):
        a, b = integers((5, 70), input_bits, signed), integers((70, 19), weight_bits)
        assert np.array_equal(BitSerial(weight_bits, input_bits).multiply(a, b), a @ b)


@pytest.mark.parametrize("lanes", LANES)
def test_every_remainder_of_the_tiles(lanes):
    rows, vectors = tile_shape(lanes)
    for m in range(1, rows + 2):
        for n in (1, vectors * lanes - 1, vectors * lanes, vectors * lanes + 1):
            for k in (1, 63, 64, 65):
                a, b = integers((m, k), 3), integers((k, n), 2)
                assert np.array_equal(BitSerial(2, 3, lanes).multiply(a, b), a @ b)


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 8), st.sampled_from(LANES))
@settings(max_examples=30, deadline=None)
def test_the_extremes_and_all_between_are_exact(seed, input_bits, weight_bits, lanes):
    rng = np.random.default_rng(seed)
    m, k, n = rng.integers(1, 40, 3)
    a, b = integers((m, k), input_bits, True, rng), integers((k, n), weight_bits, True, rng)
    a[0], b[:, 0] = a.min(), b.min()
    assert np.array_equal(BitSerial(weight_bits, input_bits, lanes).multiply(a, b), a @ b)


def test_the_plain_statements_are_exact():
    a, b = integers((4, 9), 5), integers((9, 6), 3)
    assert np.array_equal(plain_bit_serial(a, b, 5, 3), a @ b)
    u, v = RNG.integers(0, 32, (4, 9)), RNG.integers(0, 8, (6, 9))
    assert np.array_equal(plain_planes_product(u, v, 5, 3), u @ v.T)


def test_planes_lie_where_they_are_said_to():
    codes, width = RNG.integers(0, 8, (5, 128)).astype(np.uint8), 4
    planes = pack_planes(codes, 3, width)
    for i in range(5):
        for bit in range(3):
            for w in range(2):
                at = ((i // width * 3 + bit) * 2 + w) * width + i % width
                word = sum(int(codes[i, 64 * w + t] >> bit & 1) << t for t in range(64))
                assert planes.data[at] == word
    words = RNG.integers(0, 2**63, (5, 3)).astype(np.uint64)
    alone = pack_words(words, width)
    assert alone.data[(0 * 3 + 2) * width + 1] == words[1, 2] and alone.data[(1 * 3 + 1) * width] == words[4, 1]


def test_long_sums_leave_32_bits_and_stay_exact():
    k = 40_000
    a, b = np.full((1, k), 255), np.full((k, 1), -128)
    assert BitSerial(8, 8).multiply(a, b)[0, 0] == -255 * 128 * k
    x, w = np.full((2, k), 3.0, np.float32), np.full((k, 3), -2.0, np.float32)
    np.testing.assert_allclose(BitSerial(8, 8).matmul(x, w), np.full((2, 3), -6.0 * k), rtol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_real_products_are_those_of_the_integers(bits):
    x, w = RNG.standard_normal((7, 50), np.float32), RNG.standard_normal((50, 21), np.float32)
    (a, sa), (b, sb) = plain_code_rows(x, bits), plain_code_rows(w.T, bits)
    exact = (a.astype(np.float64) @ b.T.astype(np.float64)) * np.multiply.outer(sa.astype(float), sb.astype(float))
    operator = BitSerial(bits, bits)
    for lanes in LANES:
        np.testing.assert_allclose(BitSerial(bits, bits, lanes).matmul(x, w), exact, rtol=1e-6, atol=1e-6)
    weights = operator.prepare(w)
    assert np.array_equal(operator.matmul(x, weights), operator.matmul(x, w))
    y = operator.matmul(torch.from_numpy(x), weights)
    assert isinstance(y, torch.Tensor) and np.array_equal(y.numpy(), operator.matmul(x, w))


def test_a_binary_product_is_torchs_of_signs():
    x, w = RNG.standard_normal((6, 200), np.float32), RNG.standard_normal((200, 5), np.float32)
    signs = torch.sign(torch.from_numpy(x)) @ torch.sign(torch.from_numpy(w))
    expected = signs * torch.from_numpy(x).abs().mean(1)[:, None] * torch.from_numpy(w).abs().mean(0)
    np.testing.assert_allclose(BitSerial(1, 1).matmul(x, w), expected.numpy(), rtol=1e-5)


def test_bytes_fall_with_the_bits():
    w = RNG.standard_normal((256, 64), np.float32)
    sizes = [BitSerial(bits, 8).prepare(w).nbytes for bits in (1, 2, 4, 8)]
    assert sizes == [64 * 256 * bits // 8 + 4 * 64 for bits in (1, 2, 4, 8)]
    assert BitSerial(3, 8).prepare(w).stored_bits() == 3 * 256 * 64 + 32 * 64
    assert BitSerial(3, 5).operand_bits == 5


def test_empty_strided_read_only_and_other_types():
    operator = BitSerial(4, 4)
    assert operator.matmul(np.empty((0, 3)), np.ones((3, 2))).shape == (0, 2)
    assert np.array_equal(operator.matmul(np.empty((2, 0)), np.empty((0, 3))), np.zeros((2, 3)))
    x, w = RNG.standard_normal((12, 30)), RNG.standard_normal((30, 8))
    for array in (x, w):
        array.setflags(write=False)
    assert np.array_equal(operator.matmul(x[::3], w[:, ::2]), operator.matmul(x[::3].copy(), w[:, ::2].copy()))
    assert operator.matmul([[1, 2]], [[3], [4]]).dtype == np.float32
    assert not operator.supports(torch.nn.Linear(2, 2))


def test_words_are_multiplied_as_they_are():
    words = RNG.integers(0, 2**63, (3, 4)).astype(np.uint64)
    rows, vectors = tile_shape(4)
    a, b = pack_words(words, rows), pack_words(words, vectors * 4)
    exact = [[sum((int(x) & int(y)).bit_count() for x, y in zip(r, c, strict=True)) for c in words] for r in words]
    assert np.array_equal(planes_product(a, b, 4, np.empty((3, 3), np.int64)), exact)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda op: BitSerial(0, 4), ValueError, "weight_bits: expected an integer from 1 to 8, got 0"),
        (lambda op: BitSerial(4, 9), ValueError, "input_bits: expected an integer from 1 to 8, got 9"),
        (lambda op: BitSerial(4, True), ValueError, "input_bits"),
        (lambda op: BitSerial(lanes=3), ValueError, "lanes: expected 0, 2, 4 or 8, got 3"),
        (lambda op: op.multiply([[1.0]], [[1]]), TypeError, "a: expected integers"),
        (lambda op: op.multiply([[16]], [[1]]), ValueError, "a: expected integers of 4 bits.*from 16 to 16"),
        (lambda op: op.multiply([[-1, 8]], [[1], [1]]), ValueError, "a: expected integers of 4 bits.*from -1 to 8"),
        (lambda op: op.multiply([[1]], [[1], [2]]), ValueError, "b: expected 1 rows"),
        (lambda op: BitSerial(1, 1).multiply([[-1, 0]], [[1], [1]]), ValueError, "a: expected integers of 1 bits"),
        (lambda op: op.matmul(np.ones((2, 3)), np.ones((2, 3))), ValueError, r"x: expected 2 columns.*shape \(2, 3\)"),
        (lambda op: op.matmul(np.ones(3), np.ones((3, 2))), ValueError, "x: expected an array of 2 dimensions"),
        (lambda op: op.matmul(np.ones((2, 3)), BitSerial(2, 4).prepare(np.ones((3, 2)))), ValueError, "w: it was prep"),
        (lambda op: op.prepare(np.array([["a"]])), TypeError, "w: expected real numbers"),
        (lambda op: op.prepare([[np.nan]]), ValueError, "w: expected finite numbers"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call(BitSerial(4, 4))
