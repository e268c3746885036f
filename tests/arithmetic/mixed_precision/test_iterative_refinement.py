"""Refinement against scipy's and numpy's solvers, exact rationals, numpy's float16, and the bound on the condition."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.arithmetic.mixed_precision.iterative_refinement import (
    IterativeRefinement,
    _blocked_lu,
    _chopped,
    _gmres,
    _narrow_residual,
    lu,
    refined,
)

OPERATORS = [
    IterativeRefinement(),
    IterativeRefinement("tensor-core"),
    IterativeRefinement("tensor-core", "gmres"),
    IterativeRefinement("tensor-core", residual="dynamic"),
    IterativeRefinement("fp16"),
    IterativeRefinement("bfloat16", "gmres", "dynamic"),
]


def system(n, condition, seed=0):
    """A random matrix whose singular values fall geometrically from one to 1 / condition, and a right-hand side."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    return (left * np.logspace(0, -np.log10(condition), n)) @ right, rng.standard_normal(n)


def exact(a, b):
    """Gauss-Jordan in rationals."""
    rows = [[Fraction(float(v)) for v in (*row, right)] for row, right in zip(a, b, strict=True)]
    for k in range(len(rows)):
        pivot = next(i for i in range(k, len(rows)) if rows[i][k])
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [v / rows[k][k] for v in rows[k]]
        rows = [row if i == k else [v - row[k] * u for v, u in zip(row, rows[k], strict=True)]
                for i, row in enumerate(rows)]  # fmt: skip
    return [row[-1] for row in rows]


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 31, 32, 33, 65, 100])
def test_scipy_and_numpy_agree(operator, n):
    a, b = system(n, 50, seed=n)
    solution = operator.refine(a, b)
    assert solution.converged
    for other in (scipy.linalg.solve(a, b), np.linalg.solve(a, b), torch.linalg.solve(*map(torch.tensor, (a, b)))):
        np.testing.assert_allclose(solution.x, other, rtol=0, atol=1e-12 * np.abs(solution.x).max())
    assert solution.backward_error <= np.sqrt(n) * 2.0**-52


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_the_error_is_that_of_an_fp64_solver_and_not_of_the_factors(operator):
    a, b = system(12, 30)
    truth = exact(a, b)
    largest = max(abs(v) for v in truth)

    def error(x):
        return float(max(abs(Fraction(float(v)) - t) for v, t in zip(x, truth, strict=True)) / largest)

    assert error(operator.solve(a, b)) < 30 * 12 * 2.0**-52
    single = scipy.linalg.solve(a.astype(np.float32), b.astype(np.float32))
    assert error(single) > 1e-8 > 1e4 * error(operator.solve(a, b))


def test_it_converges_where_condition_times_roundoff_is_below_one_and_says_so_beyond():
    """Carson and Higham: κ u < 1. FP32 has u = 2^-24, about 1e7; FP16 2^-11, about 1e3."""
    limits = {"fp32": (1e6, 1e9), "tensor-core": (1e3, 1e6), "fp16": (1e2, 1e5), "bfloat16": (1e1, 1e5)}
    for factor, (good, bad) in limits.items():
        operator = IterativeRefinement(factor)
        assert operator.refine(*system(64, good)).converged, factor
        a, b = system(64, bad)
        solution = operator.refine(a, b)
        assert not solution.converged and len(solution.widths) <= 3, factor  # it stalled, and was not tried for long
        np.testing.assert_allclose(solution.x, np.linalg.solve(a, b), rtol=1e-12)  # FP64 factors did it
        assert solution.macs[64] >= 64**3 // 3


def test_the_contraction_is_the_bound():
    """Each step takes the error by at most a small multiple of κ u."""
    for condition in (10, 1e3, 1e5):
        a, b = system(64, condition)
        truth = np.linalg.solve(a, b)
        errors = [np.abs(refined(a, b, np.float32, steps) - truth).max() / np.abs(truth).max() for steps in (0, 1)]
        assert errors[0] < 8 * condition * 2.0**-24
        assert errors[1] < max(8 * condition * 2.0**-24 * errors[0], condition * 2.0**-48)


def test_gmres_bears_a_larger_condition():
    a, b = system(64, 1e5)
    assert not IterativeRefinement("tensor-core").refine(a, b).converged
    assert IterativeRefinement("tensor-core", "gmres").refine(a, b).converged


def test_gmres_is_scipys():
    a, b = system(40, 100)
    x, steps = _gmres(lambda v: a @ v, b, 1e-8, 40)
    other, info = scipy.sparse.linalg.gmres(a, b, rtol=1e-8, atol=0, restart=40)
    assert info == 0 and steps <= 40
    np.testing.assert_allclose(x, other, atol=1e-5 * np.abs(other).max())
    np.testing.assert_allclose(_gmres(lambda v: 2 * v, b, 1e-8, 40)[0], b / 2)
    assert _gmres(lambda v: a @ v, np.zeros(40), 1e-8, 40)[1] == 0


def test_fp16_factors_by_hand():
    """[[3, 4], [1, 2]] after the exchange: l = fl16(1/3), u = fl16(2 - fl16(l 4))."""
    factors, pivots = lu(np.array([[1.0, 2.0], [3.0, 4.0]]), np.float16)
    third = np.float16(1) / np.float16(3)
    assert list(pivots) == [1, 1]
    assert factors[1, 0] == third and factors[1, 1] == np.float16(np.float16(2) - np.float16(third * np.float16(4)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_plain_factors_are_lapacks(dtype):
    a, _ = system(50, 100)
    factors, pivots = lu(a, dtype)
    other, other_pivots = scipy.linalg.lu_factor(a.astype(dtype))
    assert np.array_equal(pivots, other_pivots)
    np.testing.assert_allclose(factors, other, rtol=0, atol=300 * np.finfo(dtype).eps)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 97])
def test_blocked_factors_multiply_to_the_matrix_within_fp16(n):
    a, _ = system(n, 20, seed=n)
    factors, pivots = _blocked_lu(a.astype(np.float32))
    lower, upper = np.tril(factors, -1) + np.eye(n), np.triu(factors)
    rows = a.copy()
    for i, pivot in enumerate(pivots):
        rows[[i, pivot]] = rows[[pivot, i]]
    bound = 2 * n * 2.0**-11 * np.abs(lower) @ np.abs(upper)
    assert np.all(np.abs(lower @ upper - rows) <= bound)
    if n > 32:
        assert np.abs(lower @ upper - rows).max() > 2.0**-20  # FP16 was really there


def test_what_a_block_leaves_behind_is_updated_by_fp16_operands_and_fp32_sums():
    n, k = 64, 32
    a, _ = system(n, 20)
    factors, pivots = _blocked_lu(a.astype(np.float32))
    rows = a.astype(np.float32)
    for i, pivot in enumerate(pivots):
        rows[[i, pivot]] = rows[[pivot, i]]
    low, right = (part.astype(np.float16).astype(np.float64) for part in (factors[k:, :k], factors[:k, k:]))
    left = rows[k:, k:] - low @ right
    lower, upper = np.tril(factors[k:, k:], -1) + np.eye(n - k), np.triu(factors[k:, k:])
    np.testing.assert_allclose(lower @ upper, left, rtol=0, atol=2e-6)


def test_plain_and_fast_agree():
    a, b = system(64, 10)
    for factor, dtype in (("fp32", np.float32), ("fp16", np.float16)):
        solution = IterativeRefinement(factor).refine(a, b)
        plain = refined(a, b, dtype, solution.iterations)
        np.testing.assert_allclose(solution.x, plain, rtol=0, atol=1e-13 * np.abs(plain).max())


@given(st.floats(-1e100, 1e100), st.integers(2, 53))
def test_chopping_is_rounding_to_p_bits(x, p):
    y = float(_chopped(x, 2.0 ** (53 - p) + 1.0))
    assert abs(Fraction(y) - Fraction(x)) <= abs(Fraction(x)) * Fraction(1, 2**p) or abs(x) < 1e-290
    if x and abs(x) > 1e-290:
        significand = abs(Fraction(y)) / Fraction(2) ** (int(np.frexp(y)[1]) - p)
        assert significand.denominator == 1


@settings(deadline=None)
@given(st.integers(8, 53), st.integers(0, 99))
def test_a_narrow_residual_errs_by_its_width(bits, seed):
    rng = np.random.default_rng(seed)
    a, x, b = rng.standard_normal((9, 7)), rng.standard_normal(7), rng.standard_normal(9)
    r = np.empty(9)
    _narrow_residual(a, x, b, bits, r)
    bound = (np.abs(a) @ np.abs(x) + np.abs(b)) * 12 * 2.0**-bits
    assert np.all(np.abs(r - (b - a @ x)) <= bound)


def test_widths_grow_from_step_to_step_and_end_at_fp64():
    a, b = system(96, 100)
    wide, narrow = (IterativeRefinement("tensor-core", residual=r).refine(a, b) for r in ("fp64", "dynamic"))
    assert set(wide.widths) == {53}
    assert narrow.widths[0] == 19 and narrow.widths[-1] == 53 and list(narrow.widths) == sorted(narrow.widths)
    assert narrow.converged and narrow.bit_operations < wide.bit_operations


def test_operations_are_counted():
    n = 96
    a, b = system(n, 10)
    solution = IterativeRefinement().refine(a, b)
    steps, residuals = solution.iterations, len(solution.widths)
    assert solution.macs == {32: n**3 // 3 + n * n * (steps + 1), 64: n * n * residuals}
    assert solution.bit_operations == solution.macs[32] * 1024 + solution.macs[64] * 4096
    updates = sum((n - k) ** 2 * 32 for k in (32, 64))
    assert IterativeRefinement("tensor-core").refine(a, b).macs[16] == updates


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_several_right_hand_sides_and_prepared_factors(operator):
    a, _ = system(40, 20)
    b = np.random.default_rng(3).standard_normal((40, 3))
    prepared = operator.prepare(a)
    together = operator.solve(prepared, b)
    np.testing.assert_allclose(together, np.linalg.solve(a, b), atol=1e-11)
    np.testing.assert_allclose(operator.solve(prepared, b[:, 1]), together[:, 1], atol=1e-12)
    assert prepared.shape == (40, 40) and prepared.nbytes == 40 * 40 * 12 + 40 * 4


def test_any_scale_of_the_operands():
    a, b = system(20, 20)
    for scale in (2.0**-700, 2.0**-140, 2.0**140, 2.0**700):
        for factor in ("fp32", "fp16", "tensor-core"):
            solution = IterativeRefinement(factor).refine(a * scale, b)
            assert solution.converged, (factor, scale)
            np.testing.assert_allclose(solution.x * scale, np.linalg.solve(a, b), rtol=1e-10)
    assert not IterativeRefinement().solve(a, np.zeros(20)).any()


def test_layouts_and_types():
    a, b = system(24, 20)
    expected = IterativeRefinement().solve(a, b)
    wide = np.zeros((48, 48))
    wide[::2, ::2] = a
    read_only = a.copy()
    read_only.flags.writeable = False
    for matrix in (np.asfortranarray(a), wide[::2, ::2], read_only):
        before = matrix.copy()
        np.testing.assert_allclose(IterativeRefinement().solve(matrix, b), expected, rtol=1e-12)
        assert np.array_equal(before, matrix)
    result = IterativeRefinement().solve(torch.tensor(a), torch.tensor(b))
    assert isinstance(result, torch.Tensor) and result.dtype == torch.float64
    np.testing.assert_array_equal(IterativeRefinement().solve([[2, 0], [0, 4]], [2, 2]), [1, 0.5])
    assert IterativeRefinement().solve(np.zeros((0, 0)), np.zeros(0)).shape == (0,)
    assert IterativeRefinement().solve(a, np.zeros((24, 0))).shape == (24, 0)


def test_bad_input():
    a, b = system(4, 2)
    operator = IterativeRefinement()
    with pytest.raises(ValueError, match=r"a: expected a square matrix, got ndarray of shape \(4, 3\)"):
        operator.solve(a[:, :3], b)
    with pytest.raises(ValueError, match="a: expected an array of 2 dimensions"):
        operator.solve(b, b)
    with pytest.raises(ValueError, match=r"b: expected 4 rows, as many as a of shape \(4, 4\) has, got .*\(3,\)"):
        operator.solve(a, b[:3])
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="a: expected finite numbers"):
            operator.solve(a + bad, b)
        with pytest.raises(ValueError, match="b: expected finite numbers"):
            operator.solve(a, b + bad)
    for factor in ("fp32", "fp16", "tensor-core"):
        with pytest.raises(np.linalg.LinAlgError, match=r"[Ss]ingular"):
            IterativeRefinement(factor).solve(np.zeros((3, 3)), np.ones(3))
    with pytest.raises(ValueError, match="was prepared by"):
        operator.solve(IterativeRefinement("fp16").prepare(a), b)
    with pytest.raises(TypeError, match="a: expected real numbers"):
        operator.solve([["x"]], [1.0])
    for name in ("factor", "correction", "residual"):
        with pytest.raises(ValueError, match=f"{name}: expected .* got 'fp12'"):
            IterativeRefinement(**{name: "fp12"})
    assert not operator.supports(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
@pytest.mark.parametrize(("a_size", "b_size"), [(1023, 1023), (1023, 0), (-1000, -1010), (1020, 980), (0, -1060)])
def test_systems_at_the_ends_of_fp64_are_solved_as_those_around_one(operator, a_size, b_size):
    """Norms and products of such numbers overflow, or vanish; powers of two change no digit of the solution."""
    a, b = np.array([[1.0, 0.5], [0.25, -1.0]]), np.array([0.75, 0.5])
    truth = exact(a, b)
    solution = operator.refine(np.ldexp(a, a_size), np.ldexp(b, b_size))
    assert solution.converged and solution.backward_error < 2.0**-52
    for x, true in zip(solution.x.tolist(), truth, strict=True):
        error = abs(Fraction(x) - true * Fraction(2) ** (b_size - a_size))
        assert error <= abs(true) * Fraction(2) ** (b_size - a_size - 50) + Fraction(2) ** -1074
