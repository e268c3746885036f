"""Crossbars beside integer products, and the converter's resolution beside every sum that there is."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import log2

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.implementation.dataflow.layer import Layer
from kernels.implementation.memory.processing_in_memory import ProcessingInMemory, plain_product, resolution

sizes = st.integers(0, 9)


@pytest.mark.parametrize(("rows", "v", "w"), list(product([1, 2, 3, 4], [1, 2], [1, 2])))
def test_resolution_tells_every_sum_there_is(rows, v, w):
    one = {a * b for a in range(2**v) for b in range(2**w)}
    sums = {0}
    for _ in range(rows):
        sums = {a + b for a in sums for b in one}
    assert 2 ** (resolution(rows, v, w) - 1) < max(sums) + 1 <= 2 ** resolution(rows, v, w)


@pytest.mark.parametrize(("rows", "v", "w"), list(product([2, 8, 64, 128, 512], [1, 2, 3], [1, 2, 4])))
def test_resolution_in_powers_of_two(rows, v, w):
    assert resolution(rows, v, w) == log2(rows) + v + w - (v == 1 or w == 1)
    assert resolution(rows, v, w, flip=True) == resolution(rows, v, w) - 1


@pytest.mark.parametrize(("rows", "cell_bits", "flip"), list(product([4, 5, 16, 128], [1, 2, 3, 4], [False, True])))
def test_the_first_exact_converter_is_the_one_of_the_rule(rows, cell_bits, flip):
    rng = np.random.default_rng(0)
    model = ProcessingInMemory(cell_bits=cell_bits, rows=rows, flip=flip)
    # every column sum that can be: rows of all ones under cells that reach from nothing to the largest sum
    weights = np.concatenate([
        rng.integers(-128, 128, (rows, 60)), np.full((rows, 1), 127), np.full((rows, 1), -128),
        np.where(np.arange(rows)[:, None] < np.arange(rows), 127, -128),
    ], axis=1)  # fmt: skip
    inputs = np.concatenate([rng.integers(-128, 128, (20, rows)), np.full((1, rows), -1), np.full((1, rows), 127)])
    exact = [
        bits
        for bits in range(1, 14)
        if np.array_equal(plain_product(inputs, weights, replace(model, adc_bits=bits)), inputs @ weights)
    ]
    assert exact[0] == model.needed_bits and exact == list(range(exact[0], 14))


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(0, 40), sizes, st.integers(1, 4), st.integers(1, 17), st.booleans(), st.integers(0, 2**31))
def test_with_bits_enough_the_product_is_exact(m, k, n, cell_bits, rows, flip, seed):
    rng = np.random.default_rng(seed)
    x, w = rng.integers(-127, 128, (m, k)), rng.integers(-127, 128, (k, n))
    if w.size:
        w[0, 0] = 127  # the scale of the weights is then one
    model = ProcessingInMemory(cell_bits=cell_bits, rows=rows, columns=8, flip=flip)
    model = replace(model, adc_bits=model.needed_bits)
    assert np.array_equal(plain_product(x, w, model), x @ w)
    assert np.array_equal(model.product(x, model.prepare(w).cells, n), x @ w)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 9), st.integers(1, 8), st.integers(1, 4), st.booleans())
def test_the_error_is_half_a_step_of_each_conversion_at_most(m, k, n, adc_bits, cell_bits, flip):
    rng = np.random.default_rng(k)
    x, w = rng.integers(-127, 128, (m, k)), rng.integers(-127, 128, (k, n))
    w[0, 0] = 127
    model = ProcessingInMemory(adc_bits, cell_bits=cell_bits, rows=16, flip=flip)
    largest = 16 * (2**cell_bits - 1) // (2 if flip else 1)
    step = max(1.0, largest / (2**adc_bits - 1))
    weights = sum(2.0 ** (b + cell_bits * s) for b in range(8) for s in range(-(-8 // cell_bits)))
    bound = -(-k // 16) * weights * step / 2 if adc_bits < model.needed_bits else 0
    plain = plain_product(x, w, model)
    assert np.abs(plain - x @ w).max() <= bound * (1 + 1e-9)
    assert np.allclose(model.product(x, model.prepare(w).cells, n), plain, rtol=0, atol=1e-6 * max(bound, 1))


def test_the_fast_product_is_the_plain_one_on_cells_that_vary():
    rng = np.random.default_rng(3)
    x, w = rng.integers(-127, 128, (30, 150)), rng.integers(-127, 128, (150, 7))
    w[0, 0] = 127
    for model in (ProcessingInMemory(8, 0.1), ProcessingInMemory(6, 0.3, rows=64), ProcessingInMemory(10, 0.2, 3)):
        fast, plain = model.product(x, model.prepare(w).cells, 7), plain_product(x, w, model)
        # sums are float32 here and float64 there: now and then a conversion falls on the other side of a tie
        assert np.mean(np.isclose(fast, plain)) > 0.8
        assert np.abs(fast - plain).max() < 0.05 * np.abs(fast - x @ w).max()


def test_cells_vary_as_said():
    w = np.full((4000, 1), 127.0)
    model = ProcessingInMemory(variation=0.25, rows=4000, weight_bits=2, flip=False, seed=5)
    ((cells, _),) = model.prepare(w).cells
    factors = cells[:, 0] / 3
    assert np.log(factors).std() == pytest.approx(0.25, rel=0.05) and factors.mean() == pytest.approx(1, abs=0.02)
    assert np.array_equal(model.prepare(w).cells[0][0], cells)  # programmed once
    assert not np.array_equal(replace(model, seed=6).prepare(w).cells[0][0], cells)
    assert model.random and not ProcessingInMemory().random
    errors = []
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((50, 100)), rng.standard_normal((100, 20))
    for variation in (0.0, 0.05, 0.1, 0.2):
        errors.append(np.std(ProcessingInMemory(variation=variation).matmul(x, w) - x @ w))
    assert errors == sorted(errors) and errors[3] > 2 * errors[1] > 4 * errors[0]


def test_real_operands_tensors_and_a_fitted_scale():
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((40, 300)).astype(np.float32), rng.standard_normal((300, 11)).astype(np.float32)
    model = ProcessingInMemory().fit(w, x[:20])
    assert model.scale == pytest.approx(np.abs(x[:20]).max() / 127)
    grid = np.clip(np.rint(x / model.scale), -127, 127) * model.scale
    scale = np.abs(w).max() / 127
    expected = grid @ (np.rint(w / scale) * scale)
    assert np.allclose(model.matmul(x, w), expected, atol=1e-3)
    assert np.allclose(model.matmul(x[:, ::2], w[::2]), grid[:, ::2] @ (np.rint(w[::2] / scale) * scale), atol=0.05)
    tensor = model.matmul(torch.from_numpy(x), model.prepare(w))
    assert isinstance(tensor, np.ndarray) or tensor.dtype == torch.float32
    assert torch.allclose(torch.as_tensor(tensor), torch.from_numpy(model.matmul(x, w)))
    assert ProcessingInMemory().matmul(np.zeros((2, 3)), np.zeros((3, 4))).tolist() == [[0.0] * 4] * 2
    assert ProcessingInMemory().matmul(np.zeros((0, 3)), np.zeros((3, 0))).shape == (0, 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 6), st.integers(1, 4))
def test_conversions_are_those_that_the_plain_product_makes(m, k, n, cell_bits):
    model, seen = ProcessingInMemory(cell_bits=cell_bits, rows=16, columns=8), []

    class Counting(ProcessingInMemory):
        def _converted(self, sums):
            seen.append(sums.size)
            return super()._converted(sums)

    counting = Counting(cell_bits=cell_bits, rows=16, columns=8)
    plain_product(np.ones((m, k), int), np.ones((k, n), int), counting)
    counts = model.cost_gemm(m, n, k)
    assert counts.conversions == sum(seen)
    assert counts.cell_reads == m * 8 * k * n * model.slices == counts.used
    assert counts.cycles == 8 * m and counts.macs == m * n * k
    assert counts.dram.filter == 0 and counts.dram.total == m * k + m * n
    assert counts.slots == counts.cycles * model.crossbars(Layer.gemm(m, n, k)) * 16 * 8
    assert 0 < counts.utilization <= 1 and counts.energy is None


def test_groups_have_crossbars_of_their_own_and_weights_never_cross():
    layer = Layer(16, 16, 9, 9, kernel=3, padding=1, groups=16)
    model = ProcessingInMemory()
    assert model.crossbars(layer) == 16 and model.cost(layer).utilization == 9 * 4 / 128**2
    counts, ideal = model.cost(layer), model.ideal().cost(layer)
    assert ideal.dram.total - counts.dram.total == 16 * 9  # the weights
    assert model.cost([layer, layer]).conversions == 2 * counts.conversions
    assert model.cost([]).figures()["conversions"] == 0


def test_bad_input_is_named():
    for name, value, message in (
        ("adc_bits", 0, "adc_bits: expected an integer of at least 1, got 0"),
        ("weight_bits", 1, "weight_bits: expected an integer of at least 2, got 1"),
        ("input_bits", 17, "input_bits: expected at most 16, got 17"),
        ("cell_bits", 9, "cell_bits: expected at most weight_bits, 8, got 9"),
        ("variation", -0.1, "variation: expected a finite number of at least 0, got -0.1"),
        ("variation", float("nan"), "variation: expected a finite number of at least 0, got nan"),
        ("rows", 2**23, r"rows: expected columns that sum to less than 2\^24, got 8388608 of 3"),
    ):
        with pytest.raises(ValueError, match=message):
            ProcessingInMemory(**{name: value})
    model = ProcessingInMemory()
    with pytest.raises(ValueError, match="w: expected finite numbers"):
        model.prepare(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        model.matmul(np.array([[np.inf]]), np.ones((1, 1)))
    with pytest.raises(ValueError, match="x: expected 3 columns"):
        model.matmul(np.ones((2, 2)), np.ones((3, 1)))
    with pytest.raises(ValueError, match="w: it was prepared by"):
        model.matmul(np.ones((2, 3)), ProcessingInMemory(6).prepare(np.ones((3, 1))))
