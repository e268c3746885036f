"""Compensated sums against math.fsum and exact rationals; in 16 bits against numpy's and ml_dtypes' own operations."""

from fractions import Fraction
from math import fsum

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.arithmetic.mixed_precision.error_compensation import METHODS, ErrorCompensation, plain_sum, two_sum

DTYPES = {"fp32": np.float32, "fp16": np.float16, "bfloat16": ml_dtypes.bfloat16}
EPSILON = 2.0**-24


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@given(st.floats(-(2.0**99), 2.0**99, width=32), st.floats(-(2.0**99), 2.0**99, width=32))
def test_sum_and_error_are_exactly_both_numbers(a, b):
    total, error = two_sum(np.float32(a), np.float32(b))
    assert Fraction(float(total)) + Fraction(float(error)) == Fraction(a) + Fraction(b)
    assert total == np.float32(a) + np.float32(b)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("method", ["kahan", "neumaier", "plain"])
def test_every_step_is_that_of_the_format_itself(method, name):
    a, b = (normal(*shape, seed=s).astype(DTYPES[name]) for s, shape in enumerate([(3, 333), (333, 5)]))
    terms = np.stack([np.multiply.outer(a[:, p], b[p]) for p in range(a.shape[1])])
    assert terms.dtype == DTYPES[name]
    expected = plain_sum(terms, method).astype(np.float32)
    operator = ErrorCompensation(method, name)
    a, b = a.astype(np.float32), b.astype(np.float32)
    np.testing.assert_array_equal(operator.matmul(a, b), expected)
    np.testing.assert_array_equal(operator.matmul(a, operator.prepare(b)), expected)
    np.testing.assert_array_equal(operator.matmul(b.T, a.T), expected.T)


@pytest.mark.parametrize("name", ["fp16", "bfloat16"])
def test_dot2_step_by_step_with_exact_errors_of_products(name):
    dtype = DTYPES[name]
    a, b = normal(200), normal(200, seed=1)
    s = c = dtype(0)
    for x, y in zip(a.astype(dtype), b.astype(dtype), strict=True):
        term = dtype(x * y)
        lost = dtype(float(Fraction(float(x)) * Fraction(float(y)) - Fraction(float(term))))
        s, error = two_sum(s, term)
        c = dtype(c + dtype(error + lost))
    assert ErrorCompensation("dot2", name).dot(a, b) == np.float32(s + c)


numbers = st.floats(-(2.0**13), 2.0**13, width=32).filter(lambda x: x == 0 or abs(x) > 1e-4)


@settings(deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=40))
def test_dot2_is_as_good_as_twice_the_precision(pairs):
    a, b = np.float32(pairs).T
    exact = sum(Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True))
    size = sum(abs(Fraction(float(x)) * Fraction(float(y))) for x, y in zip(a, b, strict=True))
    n = len(pairs)
    gamma = n * EPSILON / (1 - n * EPSILON)
    bound = EPSILON * abs(exact) + Fraction(gamma) ** 2 * size + Fraction(1e-40)  # proposition 5.5
    assert abs(Fraction(float(ErrorCompensation("dot2").dot(a, b))) - exact) <= bound


@settings(deadline=None)
@given(st.lists(numbers, min_size=1, max_size=200))
def test_kahan_errs_by_two_roundings_however_long_the_sum(x):
    x = np.float32(x)
    bound = (2 * EPSILON + len(x) * 8 * EPSILON**2) * fsum(map(abs, x.tolist()))
    for method in ("kahan", "neumaier"):
        assert abs(float(ErrorCompensation(method).sum(x)) - fsum(x.tolist())) <= bound


def test_a_long_sum_against_fsum():
    x = np.random.default_rng(0).random(10**5, np.float32) / 10
    exact = fsum(x.tolist())
    errors = {method: abs(float(ErrorCompensation(method).sum(x)) - exact) / exact for method in METHODS}
    assert errors["plain"] > 1e-6
    assert max(errors[method] for method in METHODS if method != "plain") <= EPSILON


def test_what_cancels():
    a = [1e20, 1.0, -1e20]
    assert ErrorCompensation("neumaier").sum(a) == ErrorCompensation("dot2").sum(a) == 1
    assert ErrorCompensation("kahan").sum(a) == ErrorCompensation("plain").sum(a) == 0
    third = np.float32(1 / 3)
    exact = Fraction(float(third)) ** 2 - Fraction(float(third * third))
    pair = ([third, np.float32(1)], [third, -third * third])
    assert ErrorCompensation("dot2").dot(*pair) == float(exact) != 0
    assert ErrorCompensation("neumaier").dot(*pair) == 0  # it does not look into products


def test_an_update_below_half_a_step_counts_in_the_end():
    steps = 400
    w, c, plain = np.float32([1.0, -2.0]), np.zeros(2, np.float32), np.float32([1.0, -2.0])
    change = np.float32([2.0**-10, 2.0**-11])
    kahan = ErrorCompensation("kahan", "bfloat16")
    for _ in range(steps):
        w, c = kahan.update(w, c, change)
        plain, zero = ErrorCompensation("plain", "bfloat16").update(plain, np.zeros(2), change)
    np.testing.assert_array_equal(plain, [1, -2])
    np.testing.assert_array_equal(zero, [0, 0])
    assert w == pytest.approx([1 + steps * 2.0**-10, -2 + steps * 2.0**-11], abs=2.0**-7)
    np.testing.assert_allclose(w - c, [1 + steps * 2.0**-10, -2 + steps * 2.0**-11], rtol=2.0**-14)  # both together
    np.testing.assert_array_equal(w, w.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_one_update_is_the_papers():
    w, c, change = (normal(1000, seed=s).astype(ml_dtypes.bfloat16) for s in range(3))
    y = change - c
    s = w + y
    expected = s, (s - w) - y
    tensors = [torch.tensor(x.astype(np.float32)) for x in (w, c, change)]
    result = ErrorCompensation("kahan", "bfloat16").update(*tensors)
    assert all(isinstance(part, torch.Tensor) for part in result)
    for part, other in zip(result, expected, strict=True):
        np.testing.assert_array_equal(part.numpy(), other.astype(np.float32))


@pytest.mark.parametrize("method", METHODS)
def test_layouts_types_and_sizes(method):
    operator = ErrorCompensation(method)
    a, b = normal(7, 50), normal(50, 1030, seed=1)
    expected = operator.matmul(a, b)
    np.testing.assert_allclose(expected, a.astype(float) @ b, rtol=1e-4, atol=1e-5)
    fixed = b.copy()
    fixed.flags.writeable = False
    for other in (b.astype(np.float64), np.asfortranarray(b), fixed, np.repeat(b, 2, 1)[:, ::2], operator.prepare(b)):
        np.testing.assert_array_equal(operator.matmul(a, other), expected)
    for k in (0, 1, 2, 3, 5):
        np.testing.assert_allclose(
            operator.matmul(a[:, :k], b[:k]), a[:, :k].astype(float) @ b[:k], rtol=1e-5, atol=1e-6
        )
    assert isinstance(operator.matmul(torch.tensor(a), torch.tensor(b)), torch.Tensor)
    assert operator.matmul(np.ones((0, 3)), np.ones((3, 2))).shape == (0, 2)
    assert operator.sum([]) == 0
    tiny = np.float32([2.0**-149, 2.0**-149])
    assert operator.sum(tiny) == 2.0**-148
    assert np.isnan(operator.sum([np.nan, 1])) and not np.isfinite(operator.sum([np.inf, 1]))
    assert operator.sum([-0.0]) == 0


def test_storage_energy_and_layers():
    w = normal(10, 7)
    assert [ErrorCompensation("kahan", name).prepare(w).nbytes for name in ("fp32", "fp16")] == [280, 140]
    with pytest.raises(KeyError, match="no cited energy"):
        ErrorCompensation().energy(1, 1)
    layer = torch.nn.Linear(2, 2)
    assert ErrorCompensation().supports(layer) and not ErrorCompensation().supports(layer, "bfloat16")
    assert not ErrorCompensation(format="bfloat16").supports(layer)
    assert not ErrorCompensation().supports(torch.nn.ReLU())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ErrorCompensation("pairwise"), "method: expected dot2, kahan, neumaier, plain, got 'pairwise'"),
        (lambda: ErrorCompensation(format="fp8"), "format: expected fp32, fp16, bfloat16, got 'fp8'"),
        (lambda: ErrorCompensation().matmul(np.ones((2, 3)), np.ones((4, 2))), r"x: expected 4 columns.*\(2, 3\)"),
        (lambda: ErrorCompensation().sum(np.ones((2, 2))), "x: expected an array of 1 dimensions"),
        (lambda: ErrorCompensation().update([1.0], [0.0], [1.0]), "method: an update is compensated by 'kahan'"),
        (lambda: ErrorCompensation("kahan").update([1.0], [0.0, 0.0], [1.0]), r"compensation: expected the shape"),
        (
            lambda: ErrorCompensation("kahan").matmul(np.ones((2, 3)), ErrorCompensation().prepare(np.ones((3, 2)))),
            "w: it was prepared by ErrorCompensation",
        ),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
