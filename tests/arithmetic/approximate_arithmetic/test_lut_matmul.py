"""Lookup products: prototypes against scikit-learn's ridge regression, trees against exhaustive search."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels.arithmetic.approximate_arithmetic.lut_matmul import (
    LEAVES,
    HashTrees,
    LutMatmul,
    _split,
    encode,
    learn_trees,
    plain_encode,
    plain_prototypes,
)

RNG = np.random.default_rng(0)


def alike(rows, k, freedom=3):
    return (RNG.standard_normal((rows, freedom)) @ RNG.standard_normal((freedom, k))).astype(np.float32)


@pytest.mark.parametrize("ridge", [0.5, 1.0, 20.0])
def test_prototypes_are_scikit_learns_ridge_regression(ridge):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x = alike(600, 24)
    trees = learn_trees(x, 8, ridge)
    codes = plain_encode(x, trees.columns, trees.thresholds)
    hot = (codes[:, :, None] == np.arange(LEAVES)).reshape(len(x), -1).astype(float)
    theirs = linear_model.Ridge(alpha=ridge, fit_intercept=False, solver="cholesky").fit(hot, x.astype(float)).coef_.T
    np.testing.assert_allclose(trees.prototypes, theirs, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(plain_prototypes(x, codes, ridge), theirs, rtol=1e-6, atol=1e-8)


def test_a_split_is_the_best_of_all():
    for _ in range(20):
        x = RNG.integers(0, 6, (12, 3)).astype(float)
        found, threshold = _split(x, 1)

        def rest(limit, x=x):
            sides = x[x[:, 1] <= limit], x[x[:, 1] > limit]
            return sum(((side - side.mean(0)) ** 2).sum() for side in sides if len(side))

        best = min(rest(limit) for limit in [*np.unique(x[:, 1]), np.inf])
        assert found == pytest.approx(best) and rest(threshold) == pytest.approx(best)


def test_a_level_asks_for_the_best_entry():
    x = RNG.standard_normal((64, 4), np.float32)
    x[:, 2] = np.where(RNG.random(64) < 0.5, -9, 9)  # one entry decides most
    trees = learn_trees(x, 4, 1.0)
    assert trees.columns[0, 0] == 2
    assert np.array_equal(encode(x, trees)[:, 0] >= LEAVES // 2, x[:, 2] > 0)


@pytest.mark.parametrize(("rows", "k", "subspace"), [(1, 1, 1), (7, 10, 4), (8, 16, 8), (19, 33, 16), (0, 5, 2)])
def test_codes_are_those_of_the_definition(rows, k, subspace):
    trees = learn_trees(RNG.standard_normal((200, k), np.float32), subspace, 1.0)
    x = RNG.standard_normal((rows, k), np.float32)
    assert np.array_equal(encode(x, trees), plain_encode(x, trees.columns, trees.thresholds))


@pytest.mark.parametrize(
    ("m", "k", "n", "subspace"), [(5, 24, 7, 8), (9, 50, 300, 8), (3, 260, 5, 1), (2, 520, 257, 1)]
)
def test_a_product_is_the_sum_of_table_entries(m, k, n, subspace):
    x, w, count = RNG.standard_normal((m, k), np.float32), RNG.standard_normal((k, n), np.float32), -(-k // subspace)
    operator = replace(
        LutMatmul(subspace),
        _trees=HashTrees(
            RNG.integers(0, k, (count, 4)), RNG.standard_normal((count, LEAVES), np.float32),
            RNG.standard_normal((count * LEAVES, k)),
        ),
    )  # fmt: skip
    tables = operator.prepare(w)
    codes = plain_encode(x, tables.trees.columns, tables.trees.thresholds)
    entries = tables.tables.reshape(-1, LEAVES, n)[np.arange(codes.shape[1]), codes].sum(1, dtype=np.int64)
    expected = entries * tables.scales.astype(float) + tables.offsets
    np.testing.assert_allclose(operator.matmul(x, tables), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_tables_hold_the_prototypes_products_to_half_a_step():
    w = RNG.standard_normal((32, 6), np.float32)
    operator = LutMatmul().fit(w, alike(300, 32))
    tables = operator.prepare(w)
    products = (tables.trees.prototypes @ w).reshape(-1, LEAVES, 6)
    kept = tables.tables.reshape(-1, LEAVES, 6) * tables.scales + products.min(1)[:, None]
    assert np.abs(kept - products).max() <= tables.scales.max() * 0.5001
    assert tables.tables.min() == 0 and tables.tables.max() == 255


def test_rows_of_sixteen_kinds_are_multiplied_nearly_exactly():
    w = RNG.standard_normal((16, 40), np.float32)
    kinds = np.array(list(itertools.product([-1, 1], repeat=4))) @ RNG.standard_normal((4, 16))
    operator = LutMatmul(ridge=1e-6).fit(w, np.repeat(kinds, 20, axis=0))
    exact = kinds @ w
    assert np.abs(operator.matmul(kinds, w) - exact).max() < 0.01 * np.abs(exact).max()


def test_what_was_learned_serves_rows_that_are_alike_and_no_others():
    w, rows = RNG.standard_normal((48, 10), np.float32), alike(3000, 48)
    operator = LutMatmul(4).fit(w, rows[:2000])

    def off(x):
        return np.linalg.norm(operator.matmul(x, w) - x @ w) / np.linalg.norm(x @ w)

    assert off(rows[2000:]) < 0.25 < 0.7 < off(RNG.standard_normal((1000, 48), np.float32))


def test_unfitted_it_learns_from_normal_rows_of_its_seed():
    w, x = RNG.standard_normal((16, 5), np.float32), RNG.standard_normal((6, 16), np.float32)
    one, same, other = (LutMatmul(seed=seed).matmul(x, w) for seed in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_tensors_strides_empty_and_special_values():
    w, rows = RNG.standard_normal((16, 5), np.float32), alike(200, 16)
    operator = LutMatmul().fit(torch.from_numpy(w), torch.from_numpy(rows))
    tables = operator.prepare(w)
    x = rows[:12]
    y = operator.matmul(torch.from_numpy(x), tables)
    assert isinstance(y, torch.Tensor) and np.array_equal(y.numpy(), operator.matmul(x, tables))
    assert np.array_equal(operator.matmul(x[::-2], tables), operator.matmul(x[::-2].copy(), tables))
    assert np.array_equal(operator.matmul(x.astype(float), tables), operator.matmul(x, tables))
    assert operator.matmul(np.empty((0, 16)), tables).shape == (0, 5)
    special = np.full((3, 16), np.nan, np.float32)
    special[1], special[2] = -np.inf, np.inf
    y = operator.matmul(special, tables)
    assert np.isfinite(y).all() and np.array_equal(y[0], y[1])  # NaN is not above any threshold
    assert not operator.supports(torch.nn.Linear(2, 2))
    assert tables.nbytes == 2 * 16 * 5 + tables.trees.columns.nbytes + tables.trees.thresholds.nbytes + 2 * 4 * 5
    with pytest.raises(KeyError, match="no cited energy"):
        operator.energy(1, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LutMatmul(0), ValueError, "subspace: expected a positive integer, got 0"),
        (lambda: LutMatmul(ridge=-1), ValueError, "ridge: expected a number of at least 0, got -1"),
        (lambda: LutMatmul().fit(np.ones((3, 2)), np.ones((5, 4))), ValueError, "x: expected rows of 3 entries"),
        (lambda: LutMatmul().fit(np.ones((3, 2)), np.ones((0, 3))), ValueError, "x: expected rows of 3 entries"),
        (lambda: LutMatmul().fit(np.ones((1, 2)), [[np.nan]]), ValueError, "x: expected finite numbers to learn from"),
        (lambda: LutMatmul().prepare([["a"]]), TypeError, "w: expected real numbers"),
        (
            lambda: LutMatmul().fit(np.ones((3, 2)), np.eye(3)).prepare(np.ones((4, 2))),
            ValueError,
            "w: expected 3 rows, as fitted",
        ),
        (lambda: LutMatmul().matmul(np.ones((2, 3)), np.ones((2, 3))), ValueError, "x: expected 2 columns"),
        (
            lambda: LutMatmul().matmul(np.ones((2, 3)), LutMatmul(4).prepare(np.ones((3, 2)))),
            ValueError,
            "w: it was prepared by",
        ),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()
