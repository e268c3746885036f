"""Every rung of the ladder against numpy's float64 product, in every shape and memory order."""

from collections import OrderedDict
from dataclasses import replace
from itertools import product

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.implementation.loops import loop_tiling
from kernels.implementation.loops.loop_tiling import LoopTiling, error_bound, plain_matmul

LADDER = [
    LoopTiling(),
    LoopTiling(lanes=8),
    LoopTiling(mc=8, kc=16),
    LoopTiling(rung="tiled"),
    LoopTiling(rung="reordered"),
    LoopTiling(rung="naive"),
]
ladder = pytest.mark.parametrize("operator", LADDER, ids=str)
ORDERS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3],
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
}


def operands(m, k, n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)


def assert_within_bound(result, a, b):
    exact = a.astype(np.float64) @ b.astype(np.float64)
    assert result.shape == exact.shape and result.dtype == np.float32
    assert (np.abs(result - exact) <= error_bound(a, b)).all()


@ladder
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(*[st.one_of(st.integers(0, 4), st.integers(5, 90))] * 3),
    orders=st.tuples(*[st.sampled_from(list(ORDERS))] * 2),
    prepared=st.sampled_from(["neither", "left", "right", "both"]),
    seed=st.integers(0, 2**16),
)
def test_product(operator, sizes, orders, prepared, seed):
    a, b = operands(*sizes, seed)
    left, right = ORDERS[orders[0]](a), ORDERS[orders[1]](b)
    if prepared in ("left", "both"):
        left = operator.prepare(left, "left")
    if prepared in ("right", "both"):
        right = operator.prepare(right)
    assert_within_bound(operator.matmul(left, right), a, b)


@pytest.mark.parametrize("lanes", [0, 8])
@pytest.mark.parametrize("sizes", [(97, 1100, 33), (200, 513, 96), (1, 1100, 77), (77, 1100, 1)], ids=str)
def test_more_blocks_than_one(lanes, sizes):
    operator, (a, b) = LoopTiling(lanes=lanes), operands(*sizes)
    assert_within_bound(operator.matmul(a, b), a, b)
    assert_within_bound(operator.matmul(a, operator.prepare(b)), a, b)
    assert_within_bound(operator.matmul(operator.prepare(a, "left"), b), a, b)


def test_tiled_has_more_blocks_than_one():
    a, b = operands(3, 131, 1030)
    assert_within_bound(LoopTiling(rung="tiled").matmul(a, b), a, b)


def test_the_bound_is_tight_enough_to_see_a_lost_product():
    a, b = operands(8, 64, 8)
    wrong = plain_matmul(a[:, 1:], b[1:])
    assert (np.abs(wrong - a.astype(np.float64) @ b) > error_bound(a, b)).any()


@ladder
@pytest.mark.parametrize("row", [1, 9])
def test_nan_and_infinity_stay_where_numpy_has_them(operator, row):
    a, b = operands(row, 21, 18)
    a[0, 3], a[-1, 20], b[4, 5], b[20, 17] = np.nan, np.inf, -np.inf, 0
    with np.errstate(invalid="ignore"):
        expected = np.einsum("ip,pj->ij", a.astype(np.float64), b.astype(np.float64))
    for right in (b, operator.prepare(b)):
        result = operator.matmul(a, right)
        np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
        infinite = np.isinf(expected)
        np.testing.assert_array_equal(np.isinf(result), infinite)
        np.testing.assert_array_equal(result[infinite], expected[infinite])


@ladder
def test_zeros_subnormals_and_overflow(operator):
    tiny = np.full((2, 17), 2.0**-140, np.float32)
    np.testing.assert_array_equal(operator.matmul(tiny, np.ones((17, 3))), np.full((2, 3), 17 * 2.0**-140, np.float32))
    np.testing.assert_array_equal(
        operator.matmul(np.full((2, 1), 3e38), np.full((1, 2), 10.0)), np.full((2, 2), np.inf)
    )
    np.testing.assert_array_equal(operator.matmul(np.full((2, 2), -0.0), np.ones((2, 2))), np.zeros((2, 2)))


@ladder
@pytest.mark.parametrize("sizes", [(0, 3, 2), (3, 0, 2), (2, 3, 0), (0, 0, 0), (1, 0, 1), (1, 1, 1)], ids=str)
def test_empty_and_single(operator, sizes):
    a, b = operands(*sizes)
    np.testing.assert_array_equal(operator.matmul(a, b), plain_matmul(a, b))
    np.testing.assert_array_equal(operator.matmul(a, operator.prepare(b)), plain_matmul(a, b))


@pytest.mark.parametrize("sizes", [(1, 300, 70), (5, 300, 70), (70, 300, 1)], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_bfloat16_storage_is_the_product_with_rounded_weights(sizes, side):
    operator = LoopTiling(storage="bfloat16")
    a, b = operands(*sizes)
    if side == "left":
        rounded = a.astype(ml_dtypes.bfloat16).astype(np.float32)
        prepared = operator.prepare(a, "left")
        assert_within_bound(operator.matmul(prepared, b), rounded, b)
    else:
        rounded = b.astype(ml_dtypes.bfloat16).astype(np.float32)
        prepared = operator.prepare(b)
        assert_within_bound(operator.matmul(a, prepared), a, rounded)
    assert 2 * prepared.nbytes == replace(operator, storage="float32").prepare(a if side == "left" else b, side).nbytes


@ladder
def test_a_prepared_operand_is_a_copy(operator):
    a, b = operands(5, 6, 7)
    prepared, expected = operator.prepare(b), plain_matmul(a, b)
    b[:] = 0
    np.testing.assert_allclose(operator.matmul(a, prepared), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(AttributeError):
        prepared.shape = (1, 1)


@ladder
def test_torch_in_torch_out(operator):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(19, 13, bias=False), torch.randn(4, 19)
    for weight in (layer.weight.T, operator.prepare(layer.weight.T)):
        result = operator.matmul(x, weight)
        assert isinstance(result, torch.Tensor) and result.dtype == torch.float32
        torch.testing.assert_close(result, layer(x).detach())


def test_other_numbers_are_computed_as_float32():
    a = np.arange(6).reshape(2, 3)
    result = LoopTiling().matmul(a, a.T.astype(np.float64))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, a @ a.T)


def test_read_only_operands():
    a, b = operands(9, 20, 40)
    for x in (a, b):
        x.setflags(write=False)
    for operator in (LoopTiling(), LoopTiling(rung="naive")):
        assert_within_bound(operator.matmul(a, b), a, b)


def bytes_through_lru(trace, numbers):
    """Bytes that a cache of so many numbers exchanges with memory for (name, index, written) in order."""
    cache, seen, moved = OrderedDict(), set(), 0
    for name, index, written in trace:
        key = name, index
        dirty = cache.pop(key, None)
        if dirty is None:
            moved += not written or key in seen  # what is written first need not be read
        cache[key] = dirty or written
        seen.add(key)
        if len(cache) > numbers:
            moved += cache.popitem(last=False)[1]
    return 4 * (moved + sum(cache.values()))


def loops(rung, m, n, k):
    for i in range(m):
        for outer in range(n if rung == "naive" else k):
            for inner in range(k if rung == "naive" else n):
                j, p = (outer, inner) if rung == "naive" else (inner, outer)
                yield from (("a", (i, p), False), ("b", (p, j), False), ("c", (i, j), True))


def tiled_loops(m, n, k, deep, wide):
    for j0, p0 in product(range(0, n, wide), range(0, k, deep)):
        for i, p, j in product(range(m), range(p0, min(p0 + deep, k)), range(j0, min(j0 + wide, n))):
            yield from (("a", (i, p), False), ("b", (p, j), False), ("c", (i, j), True))


def packed_loops(m, n, k, mc, kc, rows, width):
    for i, p in product(range(m), range(k)):
        yield from (("a", (i, p), False), ("packed", (i, p), True))
    for p0, i0, j0 in product(range(0, k, kc), range(0, m, mc), range(0, n, width)):
        for i1 in range(i0, min(i0 + mc, m), rows):
            tile = [("c", (i, j), True) for i in range(i1, i1 + rows) for j in range(j0, j0 + width)]
            yield from tile
            for p in range(p0, min(p0 + kc, k)):
                yield from (("b", (p, j), False) for j in range(j0, j0 + width))
                yield from (("packed", (i, p), False) for i in range(i1, i1 + rows))
            yield from tile


@pytest.mark.parametrize("numbers", [300, 2000])
@pytest.mark.parametrize("rung", ["naive", "reordered"])
def test_modelled_bytes_of_plain_loops_are_those_of_a_cache(rung, numbers):
    m, n, k = 20, 36, 40
    modelled = LoopTiling(rung=rung).memory_access(m, n, k, 4 * numbers)
    assert modelled == pytest.approx(bytes_through_lru(loops(rung, m, n, k), numbers), rel=0.02)


@pytest.mark.parametrize("numbers", [200, 3000])
def test_modelled_bytes_of_tiled_loops_are_those_of_a_cache(numbers, monkeypatch):
    m, n, k = 40, 60, 36
    monkeypatch.setattr(loop_tiling, "TILE", (4, 30))
    modelled = LoopTiling(rung="tiled").memory_access(m, n, k, 4 * numbers)
    assert modelled == pytest.approx(bytes_through_lru(tiled_loops(m, n, k, 4, 30), numbers), rel=0.05)


@pytest.mark.parametrize(("m", "numbers"), [(96, 1200), (48, 10000), (8, 1200)])
def test_modelled_bytes_of_packed_loops_are_those_of_a_cache(m, numbers):
    n, k, operator = 96, 48, LoopTiling(mc=8, kc=16, lanes=8)
    trace = packed_loops(m, n, k, 8, 16, 4, 24)
    modelled = operator.memory_access(m, n, k, 4 * numbers)
    assert modelled == pytest.approx(bytes_through_lru(trace, numbers), rel=0.1)


def test_supports():
    linear, convolution = torch.nn.Linear(2, 2), torch.nn.Conv2d(1, 1, 1)
    assert LoopTiling().supports(linear) and LoopTiling().supports(linear, "fp32")
    assert not LoopTiling().supports(linear, "bfloat16") and not LoopTiling().supports(convolution, "fp32")
    assert LoopTiling(storage="bfloat16").supports(linear, "bfloat16")
    assert not LoopTiling(storage="bfloat16").supports(linear, "fp32")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda op: op.matmul(np.ones((2, 3)), np.ones((2, 3))), ValueError, r"b: expected 3 rows.*shape \(2, 3\)"),
        (lambda op: op.matmul(np.ones(3), np.ones((3, 2))), ValueError, r"a: expected an array of 2 dimensions"),
        (lambda op: op.matmul(np.ones((2, 3)), np.ones((3, 2), complex)), TypeError, "b: expected real numbers"),
        (lambda op: op.matmul(np.ones((2, 3)), "weights"), (TypeError, ValueError), "b: expected"),
        (
            lambda op: op.matmul(np.ones((2, 3)), op.prepare(np.ones((2, 3)))),
            ValueError,
            "b: expected 3 rows.*prepared",
        ),
        (lambda op: op.matmul(op.prepare(np.ones((3, 3))), np.ones((3, 2))), ValueError, r"a: .*prepare\(w, 'left'\)"),
        (lambda op: op.matmul(np.ones((2, 3)), LoopTiling(kc=32).prepare(np.ones((3, 3)))), ValueError, "b: .*kc=32"),
        (lambda op: op.prepare(np.ones(3)), ValueError, "w: expected an array of 2 dimensions"),
        (lambda op: op.prepare(np.ones((3, 3)), side="top"), ValueError, "side: expected 'left' or 'right', got 'top'"),
        (lambda op: LoopTiling(rung="fast"), ValueError, "rung: expected one of naive"),
        (lambda op: LoopTiling(mc=12), ValueError, "mc: expected a positive multiple of 8, got 12"),
        (lambda op: LoopTiling(kc=0), ValueError, "kc: expected a positive multiple of 16, got 0"),
        (lambda op: LoopTiling(lanes=5), ValueError, "lanes: expected"),
        (lambda op: LoopTiling(storage="fp8"), ValueError, "storage: expected"),
        (lambda op: LoopTiling(storage="bfloat16", rung="naive"), ValueError, "storage: only the packed rung"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call(LoopTiling())
