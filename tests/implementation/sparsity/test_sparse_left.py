"""Every product of a constant sparse matrix against scipy's in float64, within the bound that they state."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.implementation.sparsity.bitmap_and_run_length import BitmapAndRunLength, decoded
from kernels.implementation.sparsity.block_sparse import BlockSparse, block_sums
from kernels.implementation.sparsity.csr import Csr
from kernels.implementation.sparsity.nonzero_balancing import NonzeroBalancing
from kernels.implementation.sparsity.sparse_left import SparseForm, panels
from kernels.implementation.sparsity.sparse_simd import SparseSimd, stepped_sums
from kernels.implementation.sparsity.two_four_sparse import TwoFourSparse, selected_sums
from kernels.implementation.sparsity.zero_skipping import ZeroSkipping, column_sums

UNIT = 2.0**-24
OPERATORS = [
    BlockSparse(), BlockSparse(16), BlockSparse(4, 4), BlockSparse(1, 3), TwoFourSparse(),
    BitmapAndRunLength(), BitmapAndRunLength("run-length"), BitmapAndRunLength("run-length", 1),
    ZeroSkipping(), ZeroSkipping("both"), SparseSimd(), SparseSimd(8), NonzeroBalancing(),
    NonzeroBalancing(3, "rows"), NonzeroBalancing(1),
]  # fmt: skip
PLAIN = {BlockSparse: block_sums, TwoFourSparse: selected_sums, SparseSimd: stepped_sums}


def random_sparse(rng, m, k, density):
    """Two non-zeros in four neighbours at most, so that every operator takes it."""
    a = (rng.standard_normal((m, k)) * (rng.random((m, k)) < density)).astype(np.float32)
    return two_of_four(a)


def two_of_four(a):
    m, k = a.shape
    groups = np.pad(a, ((0, 0), (0, -k % 4))).reshape(m, -(-k // 4), 4)
    groups[(groups != 0).cumsum(-1) > 2] = 0
    return np.ascontiguousarray(groups.reshape(m, -(-k // 4) * 4)[:, :k])


def assert_within_bound(y, a, b):
    """|y - A B| <= gamma_s |A| |B| with s terms in a row, the oracle being scipy in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    exact, size = (scipy.sparse.csr_array(f(a)) @ f(b) for f in (np.array, np.abs))
    terms = np.count_nonzero(a, axis=1).reshape(-1, *[1] * (b.ndim - 1)) * UNIT
    assert y.shape == exact.shape and y.dtype == np.float32
    assert np.all(np.abs(y - exact) <= terms / (1 - terms) * size)


@settings(max_examples=120)
@given(
    operator=st.sampled_from(OPERATORS), seed=st.integers(0, 2**32 - 1), m=st.integers(0, 40), k=st.integers(0, 90),
    columns=st.one_of(st.none(), st.sampled_from([0, 1, 3, 8, 65, 140])),
    density=st.sampled_from([0.0, 0.03, 0.2, 1.0]), order=st.sampled_from("CF"),
)  # fmt: skip
def test_product_is_within_the_stated_bound_and_the_form_is_the_matrix(operator, seed, m, k, columns, density, order):
    rng = np.random.default_rng(seed)
    a = random_sparse(rng, m, k, density)
    b = np.array(rng.standard_normal((k,) if columns is None else (k, columns)), np.float32, order=order)
    prepared = operator.prepare(a)
    assert np.array_equal(prepared.to_dense(), a) and prepared.to_dense().dtype == np.float32
    assert prepared.shape == (m, k)
    for y in (operator.matmul(prepared, b), operator.matmul(a, b)):
        assert_within_bound(y, a, b)


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_plain_statement_and_long_or_empty_rows(operator):
    rng = np.random.default_rng(0)
    a = random_sparse(rng, 50, 1501, 0.5)
    a[::3] = 0
    for n in (1, 3, 64):
        b = rng.standard_normal((1501, n)).astype(np.float32)
        prepared = operator.prepare(a)
        y = operator.matmul(prepared, b)
        assert_within_bound(y, a, b)
        assert not y[::3].any()
        plain = PLAIN.get(type(operator), lambda form, b: column_sums(form.to_dense(), b))(prepared, b)
        assert_within_bound(plain, a, b)
    if isinstance(operator, BitmapAndRunLength):
        assert np.array_equal(decoded(prepared), np.flatnonzero(a))


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("name", ["block_sparse", "two_four_sparse", "bitmap_and_run_length", "sparse_simd"])
def test_every_width_of_vectors(monkeypatch, name, lanes):
    module = importlib.import_module(f"kernels.implementation.sparsity.{name}")
    if lanes > module.LANES:
        pytest.skip("this machine has no vectors as wide")
    monkeypatch.setattr(module, "LANES", lanes)
    rng = np.random.default_rng(lanes)
    a = random_sparse(rng, 37, 101, 0.4)
    for operator in (operator for operator in OPERATORS if type(operator).__module__ == module.__name__):
        for n in (1, 7, 70):
            b = rng.standard_normal((101, n)).astype(np.float32)
            assert_within_bound(operator.matmul(a, b), a, b)


def test_a_machine_of_narrow_vectors_computes_the_same():
    code = (
        "import numpy as np\n"
        "from kernels.simd import LANES\n"
        "from kernels.implementation.sparsity.two_four_sparse import TwoFourSparse\n"
        "from kernels.implementation.sparsity.bitmap_and_run_length import BitmapAndRunLength\n"
        "a = np.arange(640.0).reshape(10, 64) % 7 * (np.arange(640).reshape(10, 64) % 2)\n"
        "b = np.arange(128.0).reshape(64, 2) % 5\n"
        "assert LANES == 4\n"
        "for op in (TwoFourSparse(), BitmapAndRunLength()):\n"
        "    for right in (b, b[:, 0]):\n"
        "        assert np.array_equal(op.matmul(a, right), a @ right)\n"
    )
    environment = {**os.environ, "NUMBA_CPU_NAME": "x86-64-v2", "NUMBA_CPU_FEATURES": "+sse2,+sse4.1,+ssse3"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_operands_of_every_kind_are_read_as_they_lie(operator):
    rng = np.random.default_rng(2)
    a, b = random_sparse(rng, 10, 16, 0.3), rng.standard_normal((32, 40)).astype(np.float32)
    y = operator.matmul(torch.from_numpy(a), torch.from_numpy(b)[::2, ::2])
    assert isinstance(y, torch.Tensor)
    assert_within_bound(y.numpy(), a, b[::2, ::2])
    backwards = b[::-2, ::-3]
    before = backwards.copy()
    for left in (a, scipy.sparse.csr_array(a), scipy.sparse.coo_array(a), Csr().prepare(a), operator.prepare(a)):
        assert_within_bound(operator.matmul(left, backwards), a, before)
    assert np.array_equal(backwards, before)
    assert_within_bound(operator.matmul(a, np.broadcast_to(np.float32(1), (16, 5))), a, np.ones((16, 5)))
    strided = np.zeros((20, 48), np.float32)
    strided[::2, ::3] = a
    assert_within_bound(operator.matmul(strided[::2, ::3], b[:16]), a, b[:16])
    assert np.array_equal(operator.matmul([[0, 2, 0, 0]], [[1], [2], [3], [4]]), [[4]])


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_linear_layer_is_torchs(operator):
    torch.manual_seed(0)
    layer = torch.nn.Linear(30, 20)
    with torch.no_grad():
        layer.weight[:] = torch.from_numpy(two_of_four(layer.weight.numpy()))
    w, bias = operator.prepare(layer.weight), layer.bias.detach()
    assert operator.supports(layer) and not operator.supports(layer, "int8")
    assert not operator.supports(torch.nn.Conv2d(1, 1, 1))
    for shape in ((30,), (1, 30), (2, 3, 30), (0, 30)):
        x = torch.randn(shape)
        y = operator.linear(x, w, bias)
        assert isinstance(y, torch.Tensor) and y.shape == (*shape[:-1], 20)
        torch.testing.assert_close(y, layer(x).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_wrong_operands_are_named(operator):
    a = operator.prepare(np.eye(4))
    with pytest.raises(ValueError, match=r"b: expected 4 rows, as a of shape \(4, 4\).*shape \(5, 2\)"):
        operator.matmul(a, np.zeros((5, 2)))
    with pytest.raises(ValueError, match="b: expected an array of 1 or 2 dimensions"):
        operator.matmul(a, np.zeros((4, 1, 1)))
    with pytest.raises(ValueError, match="a: expected an array of 2 dimensions"):
        operator.prepare(np.zeros(3))
    with pytest.raises(TypeError, match="b: expected a dense matrix"):
        operator.matmul(np.eye(4), a)
    with pytest.raises(TypeError, match="a: expected a dense tensor"):
        operator.prepare(torch.eye(3).to_sparse())
    with pytest.raises(TypeError, match="a: expected real numbers"):
        operator.prepare(np.eye(2) * 1j)
    with pytest.raises(ValueError, match="x: expected 4 features last"):
        operator.linear(np.zeros((2, 5)), a)
    with pytest.raises(ValueError, match="bias: expected 4 numbers"):
        operator.linear(np.zeros((2, 4)), a, bias=np.zeros(2))
    other = next(other for other in OPERATORS if other != operator)
    with pytest.raises(ValueError, match="it was prepared by"):
        other.matmul(a, np.zeros(4))


@pytest.mark.parametrize(
    "operator", [op for op in OPERATORS if not isinstance(op, (BlockSparse, TwoFourSparse))], ids=str
)
def test_zeros_that_are_not_stored_meet_neither_nan_nor_infinity(operator):
    a = np.array([[0, 1, 0, 0], [0, 0, 0, 0], [2, 0, np.nan, 0], [-np.inf, 0, 1, 0]], np.float32)
    if isinstance(operator, ZeroSkipping):  # it skips zeros of the inputs; those of the weights where it looks at both
        y = operator.matmul(a, np.array([0, 2, 0, 0]))
        assert np.array_equal(y, [2, 0, 0, 0])
        return
    assert np.array_equal(operator.prepare(a).to_dense(), a, equal_nan=True)
    for b in (np.array([np.nan, np.inf, 1, np.nan]), np.array([[np.nan] * 2, [np.inf] * 2, [1] * 2, [np.nan] * 2])):
        y = operator.matmul(a, b)
        assert np.array_equal(y if y.ndim == 1 else y[:, 1], [np.inf, 0, np.nan, np.nan], equal_nan=True)
    tiny = np.float32(1e-45)
    assert operator.matmul(np.array([[tiny, -0.0]]), np.array([1.0, 5.0])) == tiny


def test_bytes_are_those_of_the_arrays():
    form = BlockSparse().prepare(np.eye(8))
    assert isinstance(form, SparseForm)
    assert form.stored_bits() == 8 * form.nbytes == 8 * (form.values.nbytes + form.indices.nbytes + form.indptr.nbytes)


def test_panels_hold_all_columns_once():
    b = np.arange(12 * 70, dtype=np.float32).reshape(12, 70)
    parts, y = panels(b, (8, 32), height=3)
    found = np.concatenate([part.reshape(12, 32).copy() for part, _ in parts], axis=1)
    assert np.array_equal(found[:, :70], b) and not found[:, 70:].any() and y.shape == (3, 96)
