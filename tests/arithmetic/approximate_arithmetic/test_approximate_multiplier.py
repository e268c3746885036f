"""Circuits over all 65536 pairs, against the papers' formulas in exact rationals and closed forms of their errors."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from kernels.arithmetic.approximate_arithmetic.approximate_multiplier import ApproximateMultiplier, drum, mitchell
from kernels.arithmetic.approximate_arithmetic.codes import plain_code_rows
from kernels.arithmetic.approximate_arithmetic.table_product import plain_table_product, signed_table, table_product

EVERY = np.arange(256)
EXACT = np.multiply.outer(EVERY, EVERY)
RNG = np.random.default_rng(0)


def mitchell_in_rationals(x, y):
    """log2(2^k (1 + f)) ~ k + f, added, and back: 2^(whole part) (1 + fraction)."""
    if not x or not y:
        return 0
    total = sum(n.bit_length() - 1 + Fraction(n, 1 << (n.bit_length() - 1)) - 1 for n in (x, y))
    whole = total.numerator // total.denominator
    return 2**whole * (1 + total - whole)


def test_mitchell_is_the_papers_formula_for_every_pair():
    table = ApproximateMultiplier().table()
    assert all(table[x, y] == mitchell_in_rationals(x, y) for x in range(256) for y in range(256))


def test_mitchell_errs_by_a_ninth_at_most_and_to_one_side():
    table = ApproximateMultiplier().table()
    share = (EXACT - table)[1:, 1:] / EXACT[1:, 1:]
    assert share.min() == 0 and share.max() == 1 / 9 == (9 - table[3, 3]) / 9
    wide = RNG.integers(1, 2**15, (2, 20000))
    assert ((wide[0] * wide[1] - mitchell(*wide)) * 9 <= wide[0] * wide[1]).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_drum_stays_within_its_bound_and_is_a_product_of_short_numbers(bits):
    table = ApproximateMultiplier("drum", bits).table()
    bound = (1 + Fraction(1, 2 ** (bits - 1))) ** 2 - 1
    assert (np.abs(table - EXACT)[1:, 1:] <= float(bound) * EXACT[1:, 1:]).all()
    one = table[:, 1]  # one is taken as it is, so this is what becomes of the other operand
    assert np.array_equal(table, np.multiply.outer(one, one))
    for n in range(1, 256):
        cut = max(n.bit_length() - bits, 0)
        assert one[n] == (((n >> cut) | 1) << cut if cut else n)
        assert (int(one[n]) >> cut).bit_length() <= bits


@pytest.mark.parametrize("bits", range(2, 8))
def test_drums_bias_is_half_a_unit_an_operand(bits):
    # of the numbers that are cut the kept ones are the middle, rounded up by half
    mean = 127.5 + 0.5 * (256 - 2**bits) / 256
    assert ApproximateMultiplier("drum", bits).errors()["error_bias"] == pytest.approx(mean**2 - 127.5**2)


@pytest.mark.parametrize("bits", range(1, 9))
def test_truncation_leaves_out_what_its_columns_hold(bits):
    errors = ApproximateMultiplier("truncated", bits).errors()
    held = (bits - 1) * 2**bits + 1  # column c holds c + 1 partial products of weight 2^c
    assert errors["worst_absolute_error"] == held
    assert errors["mean_absolute_error"] == held / 4 == -errors["error_bias"]  # each is one for a quarter of all pairs
    table = ApproximateMultiplier("truncated", bits).table()
    for x, y in RNG.integers(0, 256, (300, 2)).tolist():
        kept = ((x >> i & 1) * (y >> j & 1) << i + j for i in range(8) for j in range(8) if i + j >= bits)
        assert table[x, y] == sum(kept)


def test_exact_is_exact():
    assert np.array_equal(ApproximateMultiplier("exact").table(), EXACT)
    assert not any(ApproximateMultiplier("exact").errors().values())


def test_the_figures_are_those_of_the_table():
    table = ApproximateMultiplier("drum", 3).table()
    off, errors = (table - EXACT).ravel().tolist(), ApproximateMultiplier("drum", 3).errors()
    assert errors["error_rate"] == sum(e != 0 for e in off) / 65536
    assert errors["mean_absolute_error"] == pytest.approx(sum(map(abs, off)) / 65536)
    assert errors["worst_absolute_error"] == max(map(abs, off))
    relative = [abs(e) / p for e, p in zip(off, EXACT.ravel().tolist(), strict=True) if p]
    assert errors["mean_relative_error"] == pytest.approx(sum(relative) / len(relative))


def test_signs_go_round_the_circuit():
    circuit = ApproximateMultiplier("drum", 3)
    x, y = RNG.integers(-255, 256, (2, 50))
    assert np.array_equal(circuit.multiply(x, y), np.sign(x) * np.sign(y) * circuit.multiply(np.abs(x), np.abs(y)))
    assert drum(np.array([0]), np.array([200]), 3)[0] == 0 == mitchell(np.array([0]), np.array([9]))[0]
    assert circuit.multiply(3, np.ones((2, 1), int)).shape == (2, 1) and circuit.multiply(3, 4).shape == ()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 4097, 3), (0, 3, 2), (2, 0, 2)])
def test_any_table_runs_in_a_product(shape):
    m, k, n = shape
    table = RNG.integers(-(2**16), 2**16, (256, 256)).astype(np.int32)
    a, b = RNG.integers(0, 256, (m, k)).astype(np.uint8), RNG.integers(0, 256, (k, n)).astype(np.uint8)
    assert np.array_equal(table_product(a, b, table), plain_table_product(a, b, table))
    assert np.array_equal(table_product(a[::-1], b[:, ::-1], table), plain_table_product(a[::-1], b[:, ::-1], table))


def test_an_exact_table_is_numpys_product():
    a, b = RNG.integers(0, 256, (9, 33)).astype(np.uint8), RNG.integers(0, 256, (33, 8)).astype(np.uint8)
    expected = (a.astype(int) - 128) @ b.astype(int)
    assert np.array_equal(table_product(a, b, signed_table(EXACT, 128, 0)), expected)


@pytest.mark.parametrize(("design", "bits"), [("mitchell", 0), ("drum", 4), ("truncated", 7), ("exact", 0)])
def test_a_product_of_real_numbers_sums_the_circuits_products(design, bits):
    circuit = ApproximateMultiplier(design, bits)
    x, w = RNG.standard_normal((4, 12), np.float32), RNG.standard_normal((12, 5), np.float32)
    for inputs, signed in ((x, True), (np.abs(x), False)):
        (a, sa), (b, sb) = plain_code_rows(inputs, 8, signed), plain_code_rows(w.T, 8)
        products = circuit.multiply(a.astype(int)[:, None, :], b.astype(int)[None, :, :]).sum(2)
        expected = products * np.multiply.outer(sa.astype(float), sb.astype(float))
        np.testing.assert_allclose(circuit.matmul(inputs, w), expected, rtol=1e-6)
    y = circuit.matmul(torch.from_numpy(x), circuit.prepare(w))
    assert isinstance(y, torch.Tensor) and np.array_equal(y.numpy(), circuit.matmul(x, w))


def test_the_energy_of_the_circuit_is_not_known():
    with pytest.raises(KeyError, match="no cited energy for a multiplier that leaves bits out"):
        ApproximateMultiplier().energy(1, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda op: ApproximateMultiplier("wallace"), ValueError, "design: expected one of mitchell"),
        (lambda op: ApproximateMultiplier("drum", 1), ValueError, "bits: expected an integer from 2 to 8 for drum"),
        (lambda op: ApproximateMultiplier("drum"), ValueError, "bits: .*for drum, got 0"),
        (lambda op: ApproximateMultiplier("truncated", 16), ValueError, "bits: .*from 1 to 15 for truncated"),
        (lambda op: ApproximateMultiplier("mitchell", 4), ValueError, "bits: .*from 0 to 0 for mitchell"),
        (lambda op: op.multiply([0.5], [1]), TypeError, "x: expected integers"),
        (lambda op: op.multiply([1], [256]), ValueError, "y: expected magnitudes below 256, got 256"),
        (lambda op: op.matmul(np.ones((2, 3)), np.ones((2, 3))), ValueError, "x: expected 2 columns"),
        (lambda op: op.matmul([[np.inf]], [[1.0]]), ValueError, "x: expected finite numbers"),
        (lambda op: table_product(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8), EXACT), ValueError, "table:"),
        (
            lambda op: table_product(np.zeros((1, 2), np.uint8), np.zeros((1, 1), np.uint8), EXACT.astype(np.int32)),
            ValueError,
            "a, b: expected uint8",
        ),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call(ApproximateMultiplier())
