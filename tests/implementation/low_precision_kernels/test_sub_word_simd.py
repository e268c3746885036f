"""Integer products are exact at every width and instruction; convolutions of what codes stand for are PyTorch's."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kernels.arithmetic.approximate_arithmetic.codes import code_rows
from kernels.implementation.low_precision_kernels.byte_dots import (
    INSTRUCTIONS,
    best_instruction,
    byte_product,
    has_vnni,
    pack_bytes,
    plain_byte_product,
)
from kernels.implementation.low_precision_kernels.sub_word_simd import SubWordSIMD, code_bytes, plain_sub_word

WIDTHS = {"vnni": (8, 8), "avx2": (7, 8), "int16": (8, 8), "narrow": (4, 4)}
HERE = [name for name in INSTRUCTIONS if name != "vnni" or has_vnni()]
sizes = st.integers(0, 70)


def operands(m, n, k, a_bits, b_bits, seed, extreme=False):
    rng = np.random.default_rng(seed)
    low, high = -(2 ** (b_bits - 1)), 2 ** (b_bits - 1)
    if extreme:
        return np.full((m, k), 2**a_bits - 1, np.uint8), rng.choice([low, high - 1], (k, n)).astype(np.int8)
    return rng.integers(0, 2**a_bits, (m, k)).astype(np.uint8), rng.integers(low, high, (k, n)).astype(np.int8)


@pytest.mark.parametrize("instruction", HERE)
@settings(max_examples=40, deadline=None)
@given(sizes, sizes, sizes, st.integers(0, 99), st.booleans())
def test_every_instruction_is_exact(instruction, m, n, k, seed, extreme):
    a, b = operands(m, n, k, *WIDTHS[instruction], seed, extreme)
    found = byte_product(a, pack_bytes(b, instruction), np.empty((m, n), np.int32))
    assert np.array_equal(found, plain_byte_product(a, b))


@pytest.mark.parametrize("instruction", HERE)
def test_long_sums_of_the_largest_codes(instruction):
    a_bits, b_bits = WIDTHS[instruction]
    for low in (-(2 ** (b_bits - 1)), 2 ** (b_bits - 1) - 1):
        a, b = np.full((5, 5000), 2**a_bits - 1, np.uint8), np.full((5000, 3), low, np.int8)
        assert np.array_equal(
            byte_product(a, pack_bytes(b, instruction), np.empty((5, 3), np.int32)), plain_byte_product(a, b)
        )


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, st.integers(2, 8), st.integers(2, 8), st.booleans(), st.integers(0, 99))
def test_integers_of_every_width_signed_and_unsigned(m, n, k, weight_bits, input_bits, signed, seed):
    rng = np.random.default_rng(seed)
    low = -(2 ** (input_bits - 1)) if signed else 0
    a = rng.integers(low, low + 2**input_bits, (m, k))[::-1]
    b = rng.integers(-(2 ** (weight_bits - 1)), 2 ** (weight_bits - 1), (n, k)).T
    found = SubWordSIMD(weight_bits, input_bits).multiply(a, b)
    assert np.array_equal(found, a @ b)
    assert np.array_equal(plain_sub_word(a, b, 2 ** (input_bits - 1)), a @ b) or not signed


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.integers(0, 40), st.integers(2, 8), st.integers(0, 99))
def test_rounding_on_whole_vectors_is_that_of_the_shared_codes(m, k, bits, seed):
    x = np.random.default_rng(seed).standard_normal((m, k), np.float32)
    for matrix in (x, np.abs(x), np.zeros_like(x)):
        fast, plain = code_bytes(matrix, bits, "x"), code_rows(matrix, bits, "x")
        assert np.array_equal(fast.integers(), plain.integers()) and np.array_equal(fast.scales, plain.scales)


def test_real_products_round_once():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 96, 96), np.float32)
    a, b = code_rows(x, 8, "x"), code_rows(w.T, 8, "w", signed=True)
    exact = (a.integers() @ b.integers().T) * (a.scales[:, None].astype(np.float64) * b.scales)
    assert np.allclose(SubWordSIMD().matmul(x, w), exact, rtol=1e-6, atol=1e-6)
    assert isinstance(SubWordSIMD().matmul(torch.tensor(x), torch.tensor(w)), torch.Tensor)


@pytest.mark.parametrize("options", [
    {}, {"padding": 1}, {"stride": 2, "padding": (1, 2)}, {"dilation": 2, "padding": 2}, {"groups": 2, "padding": 1},
])  # fmt: skip
@pytest.mark.parametrize("bits", [(8, 8), (4, 4)])
def test_convolution_of_integers_is_pytorchs(options, bits):
    """Images and filters that the codes hold exactly: only the largest magnitude must be there to fix the scale."""
    rng = np.random.default_rng(1)
    groups, top = options.get("groups", 1), 2 ** (bits[0] - 1) - 1
    x = rng.integers(-top, top + 1, (2, 4, 9, 8)).astype(np.float32)
    w = rng.integers(-top, top + 1, (6, 4 // groups, 3, 3)).astype(np.float32)
    x[:, 0, 0, 0], w[:, 0, 0, 0] = top, top
    bias = rng.integers(-9, 9, 6).astype(np.float32)
    expected = F.conv2d(torch.tensor(x).double(), torch.tensor(w).double(), torch.tensor(bias).double(), **options)
    found = SubWordSIMD(*bits).conv2d(torch.tensor(x), w, bias, **options)
    assert torch.allclose(found.double(), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 33, 65), (3, 40, 64), (2, 100, 200)])
def test_weights_of_four_bits_beside_real_inputs(shape):
    m, n, k = shape
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    operator = SubWordSIMD(4, 32)
    prepared = operator.prepare(w)
    codes = np.concatenate([prepared.data & 15, prepared.data >> 4], 1).astype(np.int64) - 8
    scales = np.repeat(prepared.scales, 64, 0)[:k]
    stored = (codes * scales)[:, :n]
    assert np.abs(stored - w).max() <= prepared.scales.max() / 2 + 1e-6
    assert np.allclose(operator.matmul(x, prepared), x.astype(np.float64) @ stored, rtol=1e-4, atol=1e-4)
    image = rng.standard_normal((1, 2, 5, 5)).astype(np.float32)
    filters = rng.standard_normal((3, 2, 3, 3)).astype(np.float32)
    found, exact = (
        operator.conv2d(image, filters, padding=1),
        F.conv2d(torch.tensor(image), torch.tensor(filters), padding=1),
    )
    assert np.abs(found - exact.numpy()).max() < 0.2 * np.abs(exact.numpy()).max()


def test_another_machines_registers_give_the_same(tmp_path):
    """The same products where numba compiles for AVX2, and for no more than SSE."""
    program = (
        "import numpy as np; from kernels.implementation.low_precision_kernels.sub_word_simd import SubWordSIMD as S;"
        "from kernels.implementation.low_precision_kernels.shuffle_lookup import ShuffleLookup as L;"
        "from kernels.implementation.low_precision_kernels.byte_dots import best_instruction, has_vnni;"
        "r = np.random.default_rng(0); a = r.integers(-128, 128, (9, 70)); b = r.integers(-128, 128, (70, 37));"
        "assert not has_vnni();"
        "assert (S(8, 8).multiply(a, b) == a @ b).all(); assert (S(8, 7).multiply(a // 2, b) == a // 2 @ b).all();"
        "assert (S(4, 4).multiply(a // 16, b // 16) == (a // 16) @ (b // 16)).all();"
        "assert (L(2).multiply(a // 5, b // 64) == (a // 5) @ (b // 64)).all(); print(best_instruction(8, 8))"
    )
    for features in ("+avx2,+fma,+avx,+ssse3,+sse4.1,+sse2,-avx512f", "+ssse3,+sse4.1,+sse2,-avx,-avx2,-avx512f"):
        environment = {**os.environ, "NUMBA_CPU_NAME": "x86-64-v2", "NUMBA_CPU_FEATURES": features,
                       "NUMBA_CACHE_DIR": str(tmp_path / features[:5])}  # fmt: skip
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.strip() == "int16", done.stderr


def test_bad_input_is_named():
    for options in ({"weight_bits": 1}, {"input_bits": 9}, {"weight_bits": 9}):
        with pytest.raises(ValueError, match="weight_bits, input_bits: expected integers from 2 to 8"):
            SubWordSIMD(**options)
    with pytest.raises(ValueError, match="weights alone are narrow with 4 bits, not 8"):
        SubWordSIMD(8, 32)
    operator = SubWordSIMD()
    with pytest.raises(TypeError, match="a: expected integers"):
        operator.multiply(np.ones((2, 2)), np.ones((2, 2), int))
    with pytest.raises(ValueError, match="b: expected integers from -128 to 127"):
        operator.multiply(np.ones((2, 2), int), np.full((2, 2), 128))
    with pytest.raises(ValueError, match="b: expected 3 rows"):
        operator.multiply(np.ones((2, 3), int), np.ones((2, 2), int))
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        operator.matmul(np.full((1, 2), np.nan, np.float32), np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="x: expected 2 channels"):
        operator.conv2d(np.ones((1, 3, 4, 4), np.float32), np.ones((1, 2, 3, 3), np.float32))
    with pytest.raises(ValueError, match="groups: expected a divisor of the 3 filters"):
        operator.prepare(np.ones((3, 1, 1, 1), np.float32), groups=2)
    with pytest.raises(ValueError, match="instruction: expected one of vnni"):
        pack_bytes(np.ones((1, 1), np.int8), "mmx")
    assert best_instruction(8, 8) in INSTRUCTIONS
