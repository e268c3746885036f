"""Streams against their definition, and their errors against the binomial law."""

import numpy as np
import pytest
import torch
from scipy import stats

from kernels.arithmetic.approximate_arithmetic.codes import plain_code_rows
from kernels.arithmetic.approximate_arithmetic.stochastic_computing import (
    StochasticComputing,
    _generate,
    plain_streams,
    random_bytes,
)

RNG = np.random.default_rng(0)
KINDS = [("unipolar", "apc"), ("bipolar", "apc"), ("bipolar", "mux")]


def words_of(bits):
    return np.packbits(bits, axis=-1, bitorder="little").view(np.uint64)


def test_every_threshold_makes_the_stream_of_the_definition():
    numbers = random_bytes(3, 192, "hash", 1)
    thresholds = np.repeat(np.arange(256), 3).reshape(256, 3).astype(np.uint8)
    expected = words_of(plain_streams(thresholds, numbers)).reshape(256, -1)
    assert np.array_equal(_generate(thresholds, numbers), expected)


@pytest.mark.parametrize("generator", ["hash", "lfsr"])
def test_random_bytes_are_uniform_and_their_own(generator):
    numbers = random_bytes(64, 4096, generator, 5)
    assert stats.chisquare(np.bincount(numbers.ravel(), minlength=256)).pvalue > 1e-3
    assert np.array_equal(numbers, random_bytes(64, 4096, generator, 5))
    assert np.mean(numbers == random_bytes(64, 4096, generator, 6)) < 0.01
    assert abs(np.corrcoef(numbers[:32].ravel(), numbers[32:].ravel())[0, 1]) < 0.02


def test_the_shift_register_runs_through_all_its_states():
    state, seen = 1, set()
    while state not in seen:
        seen.add(state)
        bit = (state ^ (state >> 1) ^ (state >> 3) ^ (state >> 12)) & 1
        state = state >> 1 | bit << 15
    assert len(seen) == 2**16 - 1


def by_hand(x, w, operator):
    """The product on boolean streams, gate by gate."""
    (a, sa), (b, sb) = plain_code_rows(x, 8), plain_code_rows(w.T, 8)
    m, k, n = len(a), a.shape[1], len(b)
    seed, length = 3 * operator.seed, operator.length
    left, right = (random_bytes(k, length, operator.generator, seed + side) for side in (0, 1))
    total = np.zeros((m, n))
    for i in range(m):
        for j in range(n):
            for p in range(k):
                if operator.coding == "bipolar":
                    same = plain_streams(a[i, p] + 128, left[p]) == plain_streams(b[j, p] + 128, right[p])
                    total[i, j] += 2 * same.mean() - 1
                else:
                    both = plain_streams(2 * abs(a[i, p]), left[p]) & plain_streams(2 * abs(b[j, p]), right[p])
                    total[i, j] += np.sign(a[i, p]) * np.sign(b[j, p]) * both.mean()
    return total * 128**2 * np.multiply.outer(sa.astype(float), sb.astype(float))


@pytest.mark.parametrize("generator", ["hash", "lfsr"])
@pytest.mark.parametrize("coding", ["unipolar", "bipolar"])
def test_a_product_is_gates_and_counters(coding, generator):
    x, w = RNG.standard_normal((3, 5), np.float32), RNG.standard_normal((5, 4), np.float32)
    for length in (64, 192):
        operator = StochasticComputing(length, coding, generator=generator, seed=7)
        np.testing.assert_allclose(operator.matmul(x, w), by_hand(x, w, operator), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("coding", "adder"), KINDS)
@pytest.mark.parametrize("length", [64, 1024])
def test_errors_follow_the_binomial_law(coding, adder, length):
    x, w = RNG.standard_normal((8, 12), np.float32), RNG.standard_normal((12, 8), np.float32)
    (a, sa), (b, sb) = plain_code_rows(x, 8), plain_code_rows(w.T, 8)
    v, u = a / 128, b.T / 128
    off = []
    for seed in range(300):
        operator = StochasticComputing(length, coding, adder, seed=seed)
        y = operator.matmul(x, w) / np.multiply.outer(sa, sb) / 128**2
        off.append((y - v @ u) / np.sqrt(operator.variance(v, u)))
    deviations = np.array(off)
    # 300 seeds: the mean of one entry has standard error 0.058, its variance one of 0.08 or so
    assert np.abs(deviations.mean(0)).max() < 0.3
    assert abs(np.mean(deviations**2) - 1) < 0.1
    expected = {
        "unipolar": sum(abs(v[0, p] * u[p, 0]) * (1 - abs(v[0, p] * u[p, 0])) for p in range(12)) / length,
        "bipolar": sum(1 - (v[0, p] * u[p, 0]) ** 2 for p in range(12)) / length,
    }[coding]
    if adder == "mux":
        expected = (12**2 - float(v[0] @ u[:, 0]) ** 2) / length
    assert operator.variance(v, u)[0, 0] == pytest.approx(expected, rel=1e-5)


def test_four_times_the_length_halves_the_error():
    x, w = RNG.standard_normal((2, 64, 64), np.float32)
    errors = [np.linalg.norm(StochasticComputing(length).matmul(x, w) - x @ w) for length in (64, 256, 1024)]
    assert 1.6 < errors[0] / errors[1] < 2.4 and 1.6 < errors[1] / errors[2] < 2.4


@pytest.mark.parametrize(("coding", "adder"), KINDS)
def test_chunks_rows_and_tensors_change_nothing(coding, adder, monkeypatch):
    operator = StochasticComputing(64, coding, adder, seed=3)
    x, w = RNG.standard_normal((9, 20), np.float32), RNG.standard_normal((20, 5), np.float32)
    weights = operator.prepare(w)
    whole = operator.matmul(x, weights)
    assert np.array_equal(operator.matmul(x[4:5], weights), whole[4:5])
    assert np.array_equal(operator.matmul(torch.from_numpy(x), weights).numpy(), whole)
    monkeypatch.setattr("kernels.arithmetic.approximate_arithmetic.stochastic_computing.CHUNK", 64)
    assert np.array_equal(operator.matmul(x, weights), whole)
    assert operator.matmul(np.empty((0, 20)), weights).shape == (0, 5)
    assert np.array_equal(operator.matmul(np.empty((2, 0)), np.empty((0, 3))), np.zeros((2, 3)))
    assert weights.nbytes == 20 * 5 + 4 * 5 and operator.operand_bits == 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StochasticComputing(100), "length: expected a positive multiple of 64, got 100"),
        (lambda: StochasticComputing(coding="ternary"), "coding: expected unipolar or bipolar"),
        (lambda: StochasticComputing(adder="or"), "adder: expected apc or mux"),
        (lambda: StochasticComputing(generator="sobol"), "generator: expected hash or lfsr"),
        (lambda: StochasticComputing(adder="mux"), "adder: a multiplexer takes bipolar streams"),
        (lambda: StochasticComputing().matmul([[np.nan]], [[1.0]]), "x: expected finite numbers"),
        (lambda: StochasticComputing().matmul(np.ones((1, 2)), np.ones((3, 1))), "x: expected 3 columns"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
