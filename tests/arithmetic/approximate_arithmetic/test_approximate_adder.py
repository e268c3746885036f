"""Adders over all pairs of bytes, against their definition on Python's integers and closed forms of their errors."""

import numpy as np
import pytest
import torch

from kernels.arithmetic.approximate_arithmetic.approximate_adder import ApproximateAdder, plain_add
from kernels.arithmetic.approximate_arithmetic.codes import plain_code_rows

EVERY = np.arange(256)
EXACT = np.add.outer(EVERY, EVERY)
RNG = np.random.default_rng(0)
DESIGNS = [(design, bits) for design in ("lower-or", "carry-cut", "carry-ahead", "exact") for bits in (2, 4, 8)]


@pytest.mark.parametrize(("design", "bits"), DESIGNS)
def test_every_pair_of_bytes_is_the_definitions(design, bits):
    sums = ApproximateAdder(design, bits).add(EVERY[:, None], EVERY[None, :])
    assert all(sums[x, y] == plain_add(x, y, design, bits, 8) for x in range(256) for y in range(256))


@pytest.mark.parametrize(("design", "bits"), DESIGNS)
@pytest.mark.parametrize("width", [16, 24])
def test_wider_adders_are_the_definitions(design, bits, width):
    pairs = RNG.integers(0, 2**width, (2, 500))
    pairs[:, :100] |= 0x00FFF0  # long chains of carries
    expected = [plain_add(x, y, design, bits, width) for x, y in pairs.T.tolist()]
    assert np.array_equal(ApproximateAdder(design, bits).add(*pairs, width=width), expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lower_part_or_errs_as_its_law_says(bits):
    errors = ApproximateAdder("lower-or", bits).errors()
    assert errors["error_rate"] == 1 - 0.75**bits  # right where no pair of lower bits is 1, 1
    assert errors["error_bias"] == 0.25
    assert errors["worst_absolute_error"] == 2 ** (bits - 1)


@pytest.mark.parametrize(("bits", "rate"), [(4, 120 / 256), (8, 0.0)])
def test_a_cut_loses_the_carry_of_the_lower_block(bits, rate):
    errors = ApproximateAdder("carry-cut", bits).errors()
    assert errors["error_rate"] == rate  # 15 * 16 / 2 of 256 pairs of four bits have a sum above 15
    assert errors["error_bias"] == -(2**bits) * rate == -errors["mean_absolute_error"]


def test_looking_back_one_block_is_exact_for_two():
    assert not any(ApproximateAdder("carry-ahead", 4).errors().values())
    # of four blocks of two bits a carry is lost where a block of threes, from two bits alone, meets one from below
    sums = ApproximateAdder("carry-ahead", 2).add(EVERY[:, None], EVERY[None, :])
    assert (sums <= EXACT).all() and 0 < np.mean(sums < EXACT) < 0.25


def summed(row, column, design, bits):
    """A dot product, added up on Python's integers in a register of 32 bits."""
    apart = [0, 0]
    for x, y in zip(row, column, strict=True):
        for side, product in enumerate((max(x * y, 0), max(-x * y, 0))):
            apart[side] = plain_add(apart[side], product, design, bits, 32) % 2**32
    return apart[0] - apart[1]


@pytest.mark.parametrize(("design", "bits"), DESIGNS)
def test_a_product_adds_up_with_the_adder(design, bits):
    x, w = RNG.standard_normal((3, 40), np.float32), RNG.standard_normal((40, 4), np.float32)
    (a, sa), (b, sb) = plain_code_rows(x, 8), plain_code_rows(w.T, 8)
    sums = [[summed(row, column, design, bits) for column in b.astype(int).tolist()] for row in a.astype(int).tolist()]
    expected = np.array(sums) * np.multiply.outer(sa.astype(float), sb.astype(float))
    adder = ApproximateAdder(design, bits)
    np.testing.assert_allclose(adder.matmul(x, w), expected, rtol=1e-6, atol=1e-9)
    y = adder.matmul(torch.from_numpy(x), adder.prepare(w))
    assert isinstance(y, torch.Tensor) and np.array_equal(y.numpy(), adder.matmul(x, w))


def test_signs_together_run_every_carry_through_the_register():
    x, w = np.float32([[1.0, 1.0]]), np.float32([[1.0], [-1.0]])
    for design in ("lower-or", "carry-cut"):
        assert ApproximateAdder(design, 4).matmul(x, w)[0, 0] == 0
    assert ApproximateAdder("exact", 4, "together").matmul(x, w)[0, 0] == 0
    assert abs(ApproximateAdder("carry-cut", 4, "together").matmul(x, w)[0, 0]) > 0


def test_empty_and_broadcast():
    adder = ApproximateAdder()
    assert adder.add(np.empty((0, 3), int), 1).shape == (0, 3) and adder.add(3, 4) == 7
    assert adder.matmul(np.empty((0, 3)), np.ones((3, 2))).shape == (0, 2)
    assert np.array_equal(adder.matmul(np.empty((2, 0)), np.empty((0, 1))), np.zeros((2, 1)))
    strided = EVERY[::5]
    assert np.array_equal(adder.add(strided, strided), adder.add(strided.copy(), strided.copy()))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda op: ApproximateAdder("ripple"), ValueError, "design: expected one of lower-or"),
        (lambda op: ApproximateAdder(bits=3), ValueError, "bits: expected 2, 4 or 8, got 3"),
        (lambda op: ApproximateAdder(signs="both"), ValueError, "signs: expected 'apart' or 'together'"),
        (lambda op: op.add([0.5], [1]), TypeError, "x: expected integers"),
        (lambda op: op.add([1], [256]), ValueError, "y: expected integers from 0 to 255"),
        (lambda op: op.add([-1], [2]), ValueError, "x: expected integers from 0 to 255, got -1"),
        (lambda op: op.add([1], [1], width=10), ValueError, "width: expected a multiple of 4 below 32, got 10"),
        (lambda op: op.matmul(np.ones((2, 3)), np.ones((2, 3))), ValueError, "x: expected 2 columns"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call(ApproximateAdder())


def test_sums_that_might_leave_the_register_are_refused():
    for signs, most in (("apart", 2**16), ("together", 2**15)):
        adder, x = ApproximateAdder("exact", 8, signs), np.ones((1, most + 1), np.float32)
        assert adder.matmul(x[:, 1:], x[:, 1:].T)[0, 0] == pytest.approx(most, rel=1e-5)
        with pytest.raises(ValueError, match=f"x: expected at most {most} columns, so that sums stay in 32 bits"):
            adder.matmul(x, x.T)
