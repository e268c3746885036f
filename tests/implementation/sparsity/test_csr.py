"""The sparse product against scipy's in float64, within the bound that it states."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.implementation.sparsity.csr import Csr, CsrMatrix, row_sums

UNIT = 2.0**-24


def random_sparse(rng, m, k, density):
    return (rng.standard_normal((m, k)) * (rng.random((m, k)) < density)).astype(np.float32)


def assert_within_bound(y, a, b):
    """|y - A B| <= gamma_s |A| |B| with s terms in a row, the oracle being scipy in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    exact, size = (scipy.sparse.csr_array(f(a)) @ f(b) for f in (np.array, np.abs))
    terms = np.count_nonzero(a, axis=1).reshape(-1, *[1] * (b.ndim - 1)) * UNIT
    assert y.shape == exact.shape and y.dtype == np.float32
    assert np.all(np.abs(y - exact) <= terms / (1 - terms) * size)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), m=st.integers(0, 40), k=st.integers(0, 90), bits=st.sampled_from([16, 32]),
    columns=st.one_of(st.none(), st.integers(0, 140)), density=st.sampled_from([0.0, 0.03, 0.2, 1.0]),
    order=st.sampled_from("CF"),
)  # fmt: skip
def test_product_is_within_the_stated_bound(seed, m, k, bits, columns, density, order):
    rng = np.random.default_rng(seed)
    a = random_sparse(rng, m, k, density)
    b = np.array(rng.standard_normal((k,) if columns is None else (k, columns)), np.float32, order=order)
    op = Csr(index_bits=bits)
    prepared = op.prepare(a)
    for y in (op.matmul(prepared, b), op.matmul(a, b), row_sums(prepared, b)):
        assert_within_bound(y, a, b)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), m=st.integers(0, 30), k=st.integers(0, 30), bits=st.sampled_from([16, 32]))
def test_matrix_is_what_scipy_makes_of_it_and_comes_back(seed, m, k, bits):
    a = random_sparse(np.random.default_rng(seed), m, k, 0.3)
    ours, theirs = Csr(bits).prepare(a), scipy.sparse.csr_array(a)
    for name, dtype in (("data", np.float32), ("indices", f"uint{bits}"), ("indptr", np.int32)):
        mine = getattr(ours, "values" if name == "data" else name)
        assert np.array_equal(mine, getattr(theirs, name)) and mine.dtype == dtype
    assert np.array_equal(ours.to_dense(), a)
    assert ours.stored_bits() == theirs.nnz * (32 + bits) + 32 * (m + 1)
    assert np.array_equal(Csr(48 - bits).prepare(ours).to_dense(), a)


def test_long_rows_and_rows_without_entries():
    rng = np.random.default_rng(0)
    a = random_sparse(rng, 50, 3000, 0.5)
    a[::3] = 0
    for columns in ((), (3,), (64,)):
        b = rng.standard_normal((3000, *columns)).astype(np.float32)
        y = Csr().matmul(a, b)
        assert_within_bound(y, a, b)
        assert not y[::3].any()


def test_scipy_matrices_of_any_format_are_taken_and_left_alone():
    a = random_sparse(np.random.default_rng(1), 12, 9, 0.4)
    b = np.ones((9, 2), np.float32)
    for form in ("csr", "csc", "coo", "lil", "dok", "bsr", "dia"):
        assert np.array_equal(Csr().matmul(scipy.sparse.csr_array(a).asformat(form), b), Csr().matmul(a, b))
    twice = scipy.sparse.csr_array((np.array([1.0, 2.0, 5.0]), np.array([1, 1, 0]), np.array([0, 3])), shape=(1, 2))
    assert np.array_equal(Csr().prepare(twice).to_dense(), [[5.0, 3.0]])
    assert twice.nnz == 3


def test_linear_layer_is_torchs():
    torch.manual_seed(0)
    layer = torch.nn.Linear(30, 20)
    with torch.no_grad():
        layer.weight[layer.weight.abs() < 0.1] = 0
    op = Csr()
    w, bias = op.prepare(layer.weight), layer.bias.detach()
    for shape in ((30,), (1, 30), (7, 30), (2, 3, 30), (0, 30)):
        x = torch.randn(shape)
        y = op.linear(x, w, bias)
        assert isinstance(y, torch.Tensor) and y.shape == (*shape[:-1], 20)
        torch.testing.assert_close(y, layer(x).detach(), atol=1e-5, rtol=1e-5)
    chained = op.linear(op.linear(torch.randn(5, 30), w), np.eye(20))
    assert chained.T.is_contiguous()


def test_tensors_share_and_return_tensors_and_strided_operands_are_read_as_they_lie():
    rng = np.random.default_rng(2)
    a, b = random_sparse(rng, 10, 16, 0.3), rng.standard_normal((32, 40)).astype(np.float32)
    y = Csr().matmul(torch.from_numpy(a), torch.from_numpy(b)[::2, ::2])
    assert isinstance(y, torch.Tensor)
    assert_within_bound(y.numpy(), a, b[::2, ::2])
    backwards = b[::-2, ::-3]
    assert_within_bound(Csr().matmul(a, backwards), a, np.ascontiguousarray(backwards))
    frozen = np.broadcast_to(np.float32(1), (16, 5))
    assert_within_bound(Csr().matmul(a, frozen), a, frozen)


def test_zeros_that_are_not_stored_meet_neither_nan_nor_infinity():
    a = np.array([[0, 1, 0], [0, 0, 0], [2, 0, np.nan], [-np.inf, 0, 1]], np.float32)
    prepared = Csr().prepare(a)
    assert np.array_equal(prepared.to_dense(), a, equal_nan=True)
    expected = [np.inf, 0, np.nan, np.nan]
    for b in (np.array([np.nan, np.inf, 1]), np.array([[np.nan, np.nan], [np.inf, np.inf], [1, 1]])):
        with np.errstate(invalid="ignore"):
            plain = row_sums(prepared, b.astype(np.float32))
        for y in (Csr().matmul(prepared, b), plain):
            assert np.array_equal(y if y.ndim == 1 else y[:, 1], expected, equal_nan=True)
    tiny = np.float32(1e-45)
    assert Csr().matmul(np.array([[tiny, -0.0]]), np.array([1.0, 5.0])) == tiny
    assert Csr().prepare([[-0.0, 0.0]]).values.size == 0


def test_wrong_operands_are_named():
    op = Csr()
    a = op.prepare(np.eye(3))
    with pytest.raises(ValueError, match=r"b: expected 3 rows, as a of shape \(3, 3\).*shape \(4, 2\)"):
        op.matmul(a, np.zeros((4, 2)))
    with pytest.raises(ValueError, match="b: expected an array of 1 or 2 dimensions"):
        op.matmul(a, np.zeros((3, 1, 1)))
    with pytest.raises(ValueError, match="a: expected an array of 2 dimensions"):
        op.prepare(np.zeros(3))
    with pytest.raises(TypeError, match="b: expected a dense matrix"):
        op.matmul(np.eye(3), a)
    with pytest.raises(TypeError, match="a: expected a dense tensor"):
        op.prepare(torch.eye(3).to_sparse())
    with pytest.raises(TypeError, match="a: expected real numbers"):
        op.prepare(np.eye(2) * 1j)
    with pytest.raises(ValueError, match="x: expected 3 features last"):
        op.linear(np.zeros((2, 4)), a)
    with pytest.raises(ValueError, match="x: expected 3 features last"):
        op.linear(np.float32(1), a)
    with pytest.raises(ValueError, match="bias: expected 3 numbers"):
        op.linear(np.zeros((2, 3)), a, bias=np.zeros(2))
    with pytest.raises(ValueError, match="index_bits: expected 16 or 32, got 8"):
        Csr(index_bits=8)
    with pytest.raises(ValueError, match=r"at most 65536 columns for indices of 16 bits, got shape \(1, 65537\)"):
        Csr(16).prepare(scipy.sparse.csr_array((1, 65537)))
    assert Csr(16).prepare(np.pad([[1.0]], ((0, 0), (65535, 0)))).indices == [65535]


@pytest.mark.parametrize(
    ("columns", "starts", "message"),
    [([0, 3], [0, 1, 2], "indices"), ([1, 0], [0, 2, 2], "indices"), ([1, 1], [0, 2, 2], "indices"),
     ([0, 1], [0, 3, 2], "indptr"), ([0, 1], [0, 2], "indptr"), ([0, 1], [1, 1, 2], "indptr"),
     ([0], [0, 1, 2], "indices")],
)  # fmt: skip
def test_arrays_that_are_no_matrix_are_refused(columns, starts, message):
    with pytest.raises(ValueError, match=message):
        CsrMatrix(np.ones(2, np.float32), np.array(columns, np.uint32), np.array(starts, np.int32), (2, 3))


def test_prepared_matrix_is_immutable():
    a = Csr().prepare(np.eye(3))
    for array in (a.values, a.indices, a.indptr):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_supports_linear_layers_in_fp32():
    op = Csr()
    assert op.supports(torch.nn.Linear(2, 2)) and op.supports(torch.nn.Linear(2, 2), "fp32")
    assert not op.supports(torch.nn.Linear(2, 2), "bfloat16") and not op.supports(torch.nn.Conv2d(1, 1, 1))
