"""Codes against numpy's own packing, grids against PyTorch's fake quantization, and where quantizers go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import datasets
from kernels.model.quantization.quantizers import (
    AffineInputs,
    AffineWeights,
    RoundedAfterwards,
    affine_grid,
    calibrate,
    levels_of,
    pack,
    passed_through,
    quantize_network,
    symmetric_codes,
    unpack,
)
from kernels.model.transform import bake


@given(st.integers(1, 8), st.lists(st.integers(0, 255), max_size=40))
def test_codes_come_back_and_take_their_bits(bits, values):
    codes = np.array(values, np.int64) % 2**bits
    packed = pack(codes, bits)
    assert len(packed) == -(-bits * len(codes) // 8)
    assert np.array_equal(unpack(packed, bits, len(codes)), codes)
    whole = sum(int(code) << (bits * place) for place, code in enumerate(codes))
    assert int.from_bytes(packed.tobytes(), "little") == whole


def test_codes_that_do_not_fit_are_refused():
    for codes in ([4], [-1]):
        with pytest.raises(ValueError, match="codes: expected integers from 0 to 3"):
            pack(np.array(codes), 2)


@pytest.mark.parametrize("bits", range(1, 5))
def test_symmetric_codes_are_the_nearest(bits):
    odd = np.arange(1 - 2**bits, 2**bits, 2)
    w = np.random.default_rng(bits).uniform(-1, 1, 500)
    found = symmetric_codes(torch.tensor(w), bits).numpy()
    distance = np.abs(w[:, None] - odd / (2**bits - 1))
    assert set(found) <= set(odd)
    assert np.allclose(np.abs(w - found / (2**bits - 1)), distance.min(1))


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("low", [-1.3, 0.2])
def test_grid_of_inputs_is_that_of_torch_gradient_included(bits, low):
    quantizer = AffineInputs(bits)
    x = torch.tensor(np.random.default_rng(bits).uniform(low, 2.1, (50, 7)), dtype=torch.float32)
    quantizer(x)
    scale, zero = affine_grid(quantizer.low, quantizer.high, bits)
    mine, theirs = ((3 * x - 1).requires_grad_() for _ in range(2))  # some of it beyond the range
    y = quantizer.eval()(mine)
    expected = torch.fake_quantize_per_tensor_affine(theirs, float(scale), int(zero), 0, 2**bits - 1)
    assert torch.allclose(y, expected, atol=1e-6)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    for value in (y, expected):
        (value * weights).sum().backward()
    assert torch.equal(mine.grad, theirs.grad) and 0 < int((mine.grad == 0).sum()) < mine.numel()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_grid_of_filters_is_that_of_torch(bits):
    w = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(bits))
    constraint = AffineWeights(bits, "filter")
    scale, zero = constraint.grid(w)
    expected = torch.fake_quantize_per_channel_affine(w, scale.flatten(), zero.flatten().int(), 0, 0, 2**bits - 1)
    assert torch.allclose(constraint(w), expected, atol=1e-6)
    integers, scale = constraint.integers(w)
    assert torch.equal(constraint(w), integers * scale) and torch.equal(integers, integers.round())


def test_zero_has_a_code_of_its_own():
    for low, high in ((-1.7, 0.3), (0.4, 2.0), (-3.0, -1.0), (0.0, 0.0)):
        scale, zero = affine_grid(torch.tensor(low), torch.tensor(high), 3)
        assert zero == zero.round() and 0 <= zero <= 7 and scale > 0
    assert AffineWeights(3)(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    "constraint", [AffineWeights(2), AffineWeights(5), AffineWeights(8)], ids=lambda c: str(c.bits)
)
def test_a_weight_is_its_codes_to_the_last_bit(constraint):
    w = torch.randn(20, 15, generator=torch.Generator().manual_seed(2))
    codes, integers, scale = levels_of(constraint, w)
    packed = pack(codes, constraint.bits)
    read = integers[unpack(packed, constraint.bits, w.numel())].astype(np.float32).reshape(w.shape) * scale
    assert np.array_equal(read, constraint(w).numpy())
    assert 8 * len(packed) == constraint.stored_bits(w) - 32 - constraint.bits + (-constraint.bits * w.numel() % 8)


def test_ranges_are_an_average_of_batches():
    quantizer = AffineInputs(4, momentum=0.75)
    quantizer(torch.tensor([-1.0, 2.0]))
    quantizer(torch.tensor([-2.0, 6.0]))
    assert (float(quantizer.low), float(quantizer.high)) == (-1.25, 3.0)
    quantizer.eval()(torch.tensor([-9.0, 9.0]))
    assert float(quantizer.high) == 3.0
    assert AffineInputs(4).eval()(torch.tensor(0.123)) == torch.tensor(0.123), "nothing seen, nothing rounded"


def test_ends_keep_their_bits_and_inputs_are_rounded_once():
    workload = datasets.workload("noisy-digits-cnn")
    network = quantize_network(
        workload.trained(), lambda layer: AffineWeights(2), lambda layer: AffineInputs(3), ends=8
    )
    bits = [(network[i].parametrizations.weight[0].bits, network[i].input_quantizer.bits) for i in (0, 3, 7, 12)]
    assert bits == [(8, 8), (2, 3), (2, 3), (8, 8)]
    calibrate(network, workload.data())
    given = []
    network[7].input_quantizer.register_forward_hook(lambda module, args, out: given.append(out))
    network(torch.tensor(workload.data().validation.x[:64]))
    assert len(given) == 1 and len(given[0].unique()) <= 8
    assert not network.training
    x = torch.tensor(workload.data().validation.x[:64])
    assert torch.equal(bake(network)(x), network(x))


def test_layers_that_cannot_be_quantized_are_named():
    with pytest.raises(ValueError, match=r"^1: expected no recurrent layer"):
        quantize_network(nn.Sequential(nn.Linear(2, 2), nn.GRU(2, 3)), None, None)
    with pytest.raises(ValueError, match=r"layers; ReLU has none$"):
        quantize_network(nn.ReLU(), None, None)
    with pytest.raises(ValueError, match=r"expected layers between the first and the last, .* it has 0 and 2$"):
        quantize_network(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), None, None, ends=8)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="w: expected finite weights"):
            AffineWeights(4)(torch.tensor([1.0, bad]))


def test_straight_through_is_exact_forward():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e4
    assert torch.equal(passed_through(x.round(), x), x.round())


def test_rounded_afterwards_is_the_plain_recipe_to_the_last_bit():
    class Halves:
        def constrain(self, network):
            return quantize_network(network, lambda layer: AffineWeights(2), lambda layer: AffineInputs(2))

    digits, recipe = datasets.workload("digits-mlp"), datasets.Recipe(epochs=1)
    plain = digits.network()
    trace = recipe.train(plain, digits.data(), seed=5)
    after, same = RoundedAfterwards(Halves()).train(digits.network(), digits.data(), recipe, seed=5)
    assert trace == same and torch.equal(after[1].weight, AffineWeights(2)(plain[1].weight))
    assert bool(after[3].input_quantizer.seen) and not after.training
