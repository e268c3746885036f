"""Vectors and tiles against numpy, at every width that a machine may have."""

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from numba import njit
from numba.core.codegen import get_host_cpu_features

from kernels.simd import (
    LANES,
    bit_plane,
    broadcast,
    counts_add,
    counts_double,
    counts_store,
    counts_zero,
    fma,
    load,
    store,
    tile_fma,
    tile_load,
    tile_store,
    tile_transpose,
    tile_zero,
    total,
    zero,
)


def test_host_width_is_a_vector_register():
    assert LANES in (4, 8, 16)


NARROW = """
import numpy as np
from kernels import simd
from kernels.arithmetic.approximate_arithmetic.bit_serial import BitSerial
from kernels.implementation.convolution.direct_convolution import DirectConvolution
from kernels.implementation.loops.loop_tiling import LoopTiling
from kernels.implementation.sparsity.csr import Csr
from numba import njit

@njit
def axpy(a, x, y):
    for i in range(x.size):
        y[i] += a * x[i]

axpy(np.float32(2), np.ones(99, np.float32), np.ones(99, np.float32))
(code,) = axpy.inspect_asm().values()
assert "zmm" not in code, "numba compiled for wider registers than it was asked to"
rng = np.random.default_rng(0)
a, b = rng.standard_normal((2, 70, 70)).astype(np.float32)
for operator, left in ((LoopTiling(), a), (Csr(), a * (np.abs(a) > 1))):
    assert np.allclose(operator.matmul(left, b), left.astype(float) @ b, atol=1e-4)
codes = rng.integers(-8, 8, (2, 70, 70))
assert np.array_equal(BitSerial(4, 4).multiply(*codes), codes[0] @ codes[1])
x, w = rng.standard_normal((1, 9, 20, 20)), rng.standard_normal((9, 1, 3, 3))
windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
expected = np.einsum("ncyxij,cij->ncyx", windows, w[:, 0])
assert np.allclose(DirectConvolution().conv2d(x, w, groups=9), expected, atol=1e-4)
print(simd.LANES)
"""


def test_kernels_are_as_wide_as_what_numba_compiles_for():
    """Results on a processor without AVX-512, and no vectors there that would be cut in two."""
    narrow = get_host_cpu_features().replace("+avx512", "-avx512")
    environment = {**os.environ, "NUMBA_CPU_FEATURES": narrow}
    run = subprocess.run([sys.executable, "-c", NARROW], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == (8 if "+avx2" in narrow.split(",") else 4)


@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors(lanes, dtype):
    @njit
    def weighted(w, x, y):
        store(fma(broadcast(w, lanes), load(x, 1, lanes), load(y, 2, lanes)), y, 2)
        return total(load(x, 1, lanes))

    x = np.arange(1, lanes + 4, dtype=dtype)
    y = np.linspace(0, 1, lanes + 4).astype(dtype)
    expected = y.copy()
    expected[2 : 2 + lanes] += dtype(3) * x[1 : 1 + lanes]
    assert weighted(dtype(3), x, y) == x[1 : 1 + lanes].sum()
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_fma_rounds_once():
    @njit
    def residual(a, b, c, out):
        store(fma(load(a, 0, 8), load(b, 0, 8), load(c, 0, 8)), out, 0)

    a = np.full(8, 1 + 2.0**-12, np.float32)
    out = np.empty(8, np.float32)
    residual(a, a, -(a * a), out)
    exact = a.astype(np.float64) ** 2 - (a * a).astype(np.float64)
    assert (exact != 0).all()
    np.testing.assert_array_equal(out, exact)


def test_bfloat16_codes_widen_exactly():
    codes = np.arange(2**16, dtype=np.uint16)

    @njit
    def widen(codes, out):
        for i in range(0, codes.size, 16):
            store(load(codes, i, 16), out, i)

    out = np.empty(2**16, np.float32)
    widen(codes, out)
    expected = codes.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(
        out.view(np.uint32)[~np.isnan(expected)], expected.view(np.uint32)[~np.isnan(expected)]
    )
    np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))


def test_bfloat16_codes_round_as_ml_dtypes():
    @njit
    def narrow(x, codes):
        for i in range(0, x.size, 16):
            store(load(x, i, 16), codes, i)

    rng = np.random.default_rng(0)
    halves = rng.integers(0, 2**16, 2**14, dtype=np.uint32) << 16
    ends = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    with np.errstate(all="ignore"):
        x = np.resize((halves[:, None] | ends).ravel(), 96 * 2**10).view(np.float32)
        expected = x.astype(ml_dtypes.bfloat16)
    codes = np.empty(x.shape, np.uint16)
    narrow(x, codes)
    nan = np.isnan(x)
    np.testing.assert_array_equal(codes[~nan], expected.view(np.uint16)[~nan])
    assert np.isnan(codes.view(ml_dtypes.bfloat16)[nan]).all()


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_transposed_tile(lanes):
    @njit
    def transpose(x, out):
        tile_store(tile_transpose(tile_load(x, 0, lanes, lanes, 1, lanes)), out, 0, lanes)

    x = np.arange(lanes**2, dtype=np.float32).reshape(lanes, lanes)
    out = np.empty_like(x)
    transpose(x, out)
    np.testing.assert_array_equal(out, x.T)


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("widened", [False, True])
def test_tile_is_a_sum_of_outer_products(lanes, widened):
    rows, columns, depth = 3, 2, 5
    width = columns * lanes

    @njit
    def product(a, b, c):
        tile = tile_load(c, 0, width, rows, columns, lanes)
        fresh = tile_zero(rows, columns, lanes)
        for p in range(depth):
            tile = tile_fma(tile, a, p, depth, b, p * width)
            fresh = tile_fma(fresh, a, p, depth, b, p * width)
        tile_store(tile, c, 0, width)
        tile_store(fresh, c, rows * width, width)
        store(zero(lanes), c, 2 * rows * width)

    rng = np.random.default_rng(0)
    a = rng.integers(-8, 8, (rows, depth)).astype(np.float32)
    b = rng.integers(-8, 8, (depth, width)).astype(np.float32)
    c = np.ones((2 * rows + 1, width), np.float32)
    product(a, b.astype(ml_dtypes.bfloat16).view(np.uint16) if widened else b, c)
    np.testing.assert_array_equal(c[:rows], 1 + a @ b)
    np.testing.assert_array_equal(c[rows : 2 * rows], a @ b)
    np.testing.assert_array_equal(c[-1], np.repeat([0, 1], [lanes, width - lanes]))


@pytest.mark.parametrize("bit", range(8))
def test_a_bit_plane_is_one_bit_of_64_bytes(bit):
    @njit
    def plane(codes, at, which):
        return bit_plane(codes, at, which)

    codes = np.random.default_rng(bit).integers(0, 256, 80).astype(np.uint8)
    for at in (0, 3, 16):
        expected = sum(int(code >> bit & 1) << t for t, code in enumerate(codes[at : at + 64].tolist()))
        assert plane(codes, at, bit) == expected


@pytest.mark.parametrize("lanes", [2, 4, 8])
@pytest.mark.parametrize("word", [np.int64, np.int32])
def test_counts_are_popcounts(lanes, word):
    @njit
    def counted(a, b, out):
        counts = counts_add(counts_zero(3, 2, lanes), a, 1, b, 2)
        counts_store(counts_add(counts_double(counts), a, 0, b, 0), out, 1)

    rng = np.random.default_rng(lanes)
    a, b = (rng.integers(0, 2**64, size, np.uint64, endpoint=False) for size in (4, 2 * lanes + 2))
    out = np.full(1 + 6 * lanes + 1, -1, word)
    counted(a, b, out)
    first = np.bitwise_count(a[1:4, None] & b[None, 2:]).astype(int)
    second = np.bitwise_count(a[0:3, None] & b[None, : 2 * lanes]).astype(int)
    assert np.array_equal(out[1:-1], (2 * first + second).ravel()) and out[0] == out[-1] == -1
