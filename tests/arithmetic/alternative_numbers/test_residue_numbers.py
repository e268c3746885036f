"""Residue numbers against Python's integers: every number of small ranges, and products of any size."""

from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.arithmetic.alternative_numbers.residue_numbers import ResidueNumbers, plain_matmul

SETS = ["3 4 5", "7 8 9", "15 16 17", "5 7 8 9", "2 3 5 7", "16 15"]
sets = pytest.mark.parametrize("moduli", SETS)


def all_of(operator):
    low, high = operator.range
    return np.arange(low, high + 1)


def small(moduli):
    return ResidueNumbers(moduli, bits=2)


@sets
def test_every_number_of_the_range_goes_there_and_back(moduli):
    operator = small(moduli)
    numbers, parts = all_of(operator), [int(m) for m in moduli.split()]
    assert len(numbers) == prod(parts)
    residues = operator.to_residues(numbers)
    assert residues.tolist() == [[int(x) % m for x in numbers] for m in parts]
    assert len({tuple(r) for r in residues.T.tolist()}) == len(numbers)
    np.testing.assert_array_equal(operator.from_residues(residues), numbers)


@sets
def test_digits_are_those_of_a_mixed_radix(moduli):
    operator = small(moduli)
    numbers = all_of(operator)
    digits = operator.mixed_radix(operator.to_residues(numbers))
    left = [int(x) % prod(map(int, moduli.split())) for x in numbers]
    for digit, m in zip(digits, map(int, moduli.split()), strict=True):
        assert digit.tolist() == [x % m for x in left]
        left = [x // m for x in left]
    assert not any(left)


@sets
def test_sign_relu_comparison_and_scaling_of_every_number(moduli):
    operator = small(moduli)
    numbers = all_of(operator)
    residues = operator.to_residues(numbers)
    np.testing.assert_array_equal(operator.negative(residues), numbers < 0)
    np.testing.assert_array_equal(operator.relu(residues), operator.to_residues(np.maximum(numbers, 0)))
    scaled = operator.scale(residues)
    np.testing.assert_array_equal(scaled, operator.to_residues(numbers // int(moduli.split()[0])))
    inner = numbers[np.abs(numbers) <= (-operator.range[0]) // 2]
    a, b = np.array(list(product(inner[::3], inner[::7]))).T
    np.testing.assert_array_equal(operator.less(operator.to_residues(a), operator.to_residues(b)), a < b)


@pytest.mark.parametrize(
    "moduli, bits", [("255 256 257", 8), ("13 16 17 19 23 29", 8), ("15 16 17", 4), ("32749 32719", 15)]
)
@pytest.mark.parametrize("shape", [(5, 700, 3), (40, 33, 7), (1, 1, 1)])
def test_products_are_exact_for_any_length(moduli, bits, shape):
    m, k, n = shape
    rng, top = np.random.default_rng(0), 2 ** (bits - 1) - 1
    operator = ResidueNumbers(moduli, bits)
    a, b = rng.integers(-top, top + 1, (m, k)), rng.integers(-top, top + 1, (k, n))
    for left, right in ((a, b), (np.full_like(a, top), np.full_like(b, -top))):
        np.testing.assert_array_equal(operator.multiply(left, right), left @ right)
    terms = -operator.range[0] // top**2
    short = plain_matmul(a[:, :terms], b[:terms], tuple(map(int, moduli.split())))
    np.testing.assert_array_equal(short.astype(np.int64), a[:, :terms] @ b[:terms])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-60, 60), st.integers(-60, 60)), min_size=1, max_size=60))
def test_a_sum_of_products_by_hand(pairs):
    a, b = np.array(pairs).T
    assert ResidueNumbers("63 64 65").multiply(a[None], b[:, None]) == sum(x * y for x, y in pairs)


def test_sums_are_reduced_before_32_bits_run_over():
    operator = ResidueNumbers("32768 32767 32765", 16)  # of -1 the residues are the largest there are
    a, b = np.full((2, 50), -1), np.full((50, 2), -1)
    np.testing.assert_array_equal(operator.multiply(a, b), a @ b)


def test_floats_are_the_product_of_their_integers():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((20, 300), np.float32), rng.standard_normal((300, 6), np.float32)
    scales = [np.abs(x).max() / 127 for x in (a, b)]
    integers = [np.rint(x / s).astype(int) for x, s in zip((a, b), scales, strict=True)]
    expected = (integers[0] @ integers[1]) * scales[0] * scales[1]
    results = [
        ResidueNumbers(moduli).matmul(a, b) for moduli in ("255 256 257", "13 16 17 19 23 29", "127 128 129 131")
    ]
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=1e-5)
        np.testing.assert_array_equal(result, results[0])  # the moduli do not matter
    operator = ResidueNumbers()
    np.testing.assert_array_equal(operator.matmul(a, operator.prepare(b)), results[0])
    assert np.abs(results[0] - a @ b).max() / np.abs(a @ b).max() < 0.02


def test_layouts_types_and_sizes():
    operator = ResidueNumbers()
    a, b = (np.random.default_rng(s).standard_normal((8, 8), np.float32) for s in (0, 1))
    expected = operator.matmul(a, b)
    fixed = a.copy()
    fixed.flags.writeable = False
    for other in (a.astype(np.float64), np.asfortranarray(a), fixed, np.repeat(a, 2, 1)[:, ::2]):
        np.testing.assert_array_equal(operator.matmul(other, b), expected)
    assert torch.equal(operator.matmul(torch.tensor(a), torch.tensor(b)), torch.tensor(expected))
    assert operator.matmul(np.ones((0, 3)), np.ones((3, 2))).shape == (0, 2)
    np.testing.assert_array_equal(operator.matmul(np.ones((2, 0)), np.ones((0, 3))), np.zeros((2, 3)))
    np.testing.assert_array_equal(operator.matmul(np.zeros((2, 3)), b[:3]), np.zeros((2, 8)))
    assert operator.from_residues(operator.to_residues(np.int8(-7))) == -7
    assert operator.prepare(b).nbytes == 64 and ResidueNumbers("15 16 17", 4).prepare(b).nbytes == 32
    assert not operator.supports(torch.nn.Linear(2, 2))


def test_numbers_that_float32_hardly_holds():
    x = np.float32([[1e-44, 0.0, -1e-38]])
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(ResidueNumbers().matmul(x, np.ones((3, 1))), [[-1e-38]], rtol=0.02)
    large = np.array([2**64 - 5], np.uint64)
    assert ResidueNumbers().to_residues(large).ravel().tolist() == [int(large[0]) % m for m in (255, 256, 257)]


def test_what_a_result_costs_is_counted():
    costs = ResidueNumbers("7 8 9 11", bits=4).operations(50)
    assert costs["product"] == {"multiplications": 200, "additions": 200, "depth": 100}
    assert costs["relu"]["multiplications"] == 6
    with pytest.raises(KeyError, match="no cited energy"):
        ResidueNumbers().energy(1, 1)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ResidueNumbers("6 9"), "moduli: expected no common divisors, got 6 and 9"),
        (lambda: ResidueNumbers("255"), "moduli: expected two or more integers"),
        (lambda: ResidueNumbers("255 x"), "moduli: expected two or more integers from 2 to 32768, got '255 x'"),
        (lambda: ResidueNumbers(bits=1), "bits: expected an integer from 2 to 16, got 1"),
        (lambda: ResidueNumbers("3 4 5"), "moduli: the product of two 8-bit integers leaves the range"),
        (lambda: ResidueNumbers().multiply(np.ones((2, 3), int), np.ones((4, 2), int)), "b: expected 3 rows"),
        (lambda: ResidueNumbers().matmul(np.ones((2, 3)), np.ones((4, 2))), "x: expected 4 columns"),
        (lambda: ResidueNumbers().multiply([[5000]], [[1]]), "a, b: products up to 5000² leave the range"),
        (
            lambda: ResidueNumbers("32749 32719 32717 32713").multiply(
                np.full((1, 64), 2**29), np.full((64, 1), 2**29)
            ),
            "a, b: sums of 64 products up to 536870912² leave 64 bits",
        ),
        (lambda: ResidueNumbers().matmul([[np.nan]], [[1]]), "x: expected finite numbers"),
        (lambda: ResidueNumbers().prepare([[np.inf]]), "w: expected finite numbers"),
        (lambda: ResidueNumbers().relu(np.ones((2, 3), int)), "residues: expected 3 channels"),
        (lambda: ResidueNumbers(bits=7).matmul([[1.0]], ResidueNumbers().prepare([[1.0]])), "w: it was prepared by"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_floats_have_no_residues():
    with pytest.raises(TypeError, match="x: expected integers, got ndarray of shape"):
        ResidueNumbers().to_residues(np.ones(3))
