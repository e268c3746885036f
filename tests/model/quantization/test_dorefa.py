"""Each of the three quantizers against the paper's equation in numpy; gradients right on average; an update by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import datasets
from kernels.model.quantization.dorefa import Dorefa, TanhWeights, UnitInputs, narrow_gradient
from kernels.model.quantization.quantizers import levels_of, pack, unpack
from kernels.model.transform import bake
from tests.model.quantization.few_bits import adam, batch, chain, trained_leaves_alone


def q(x, k):
    return np.rint((2**k - 1) * x) / (2**k - 1)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_weights_are_the_equation(bits):
    w = np.random.default_rng(bits).standard_t(4, (6, 5, 3, 3))
    expected = 2 * q(np.tanh(w) / (2 * np.abs(np.tanh(w)).max()) + 0.5, bits) - 1
    if bits == 1:
        expected = np.sign(w) * np.abs(w).mean()
    assert np.allclose(TanhWeights(bits)(torch.tensor(w)).numpy(), expected, atol=1e-7)


def test_gradient_of_weights_goes_through_the_tangent():
    """Straight through the rounding; the largest weight, which all are divided by, gathers the others' share."""
    w = np.array([0.3, -0.8, 1.4, 0.05])
    given = torch.tensor(w, requires_grad=True)
    out = np.array([1.0, 2.0, -1.0, 0.5])
    (TanhWeights(2)(given) * torch.tensor(out)).sum().backward()
    t, m = np.tanh(w), np.tanh(1.4)
    expected = out / m * (1 - t**2)
    expected[2] = (out[2] / m - (out * t).sum() / m**2) * (1 - m**2)
    assert np.allclose(given.grad.numpy(), expected, atol=1e-12)


def test_gradient_of_one_bit_is_passed_as_it_is():
    w = torch.tensor([0.3, -2.0], requires_grad=True)
    (TanhWeights(1)(w) * torch.tensor([3.0, 4.0])).sum().backward()
    assert w.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_inputs_are_clipped_and_rounded(bits):
    x = torch.linspace(-1, 2, 91, dtype=torch.float64, requires_grad=True)
    y = UnitInputs(bits)(x)
    assert np.allclose(y.detach().numpy(), q(np.clip(x.detach().numpy(), 0, 1), bits), atol=1e-12)
    y.sum().backward()
    inside = (x.detach() >= 0) & (x.detach() <= 1)
    assert torch.equal(x.grad, inside.double())


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_gradients_are_right_on_average(bits):
    generator = torch.Generator().manual_seed(bits)
    g = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    draws = torch.stack([narrow_gradient(g, bits, torch.rand(g.shape, generator=generator) - 0.5) for _ in range(4000)])
    largest = g.abs().amax(1, keepdim=True)
    step = 2 * largest / (2**bits - 1)
    assert ((draws.mean(0) - g).abs() < 5 * step / (12 * 4000) ** 0.5 * 3).all()
    assert ((draws - g).abs() <= step * (1 + 1e-9)).all(), "never off by more than a step"
    assert all(len(draws[:, i].unique()) <= 2**bits for i in range(3)), "each item has its own levels"


def test_no_gradient_stays_none():
    assert narrow_gradient(torch.zeros(2, 3), 2, torch.full((2, 3), 0.4)).tolist() == [[0.0] * 3] * 2


def test_one_update_with_gradients_as_they_are():
    data, recipe = batch()
    method = Dorefa(2, 2, gradient_bits=32)
    start = method.constrain(chain())
    middle, given, sent = start[2], [], []
    middle.register_forward_pre_hook(lambda layer, args: given.append(args[0].detach()), prepend=True)
    middle.register_full_backward_hook(lambda layer, into, out: sent.append(out[0]))
    start.train()
    nn.functional.cross_entropy(start(torch.tensor(data.train.x)), torch.tensor(data.train.y)).backward()
    w = middle.parametrizations.weight.original.detach().double().numpy()
    of_w = sent[0].double().numpy().T @ q(np.clip(given[0].double().numpy(), 0, 1), 2)
    t = np.tanh(w)
    m, where = np.abs(t).max(), np.unravel_index(np.abs(t).argmax(), t.shape)
    gradient = of_w / m * (1 - t**2)
    gradient[where] -= (of_w * t).sum() / m**2 * np.sign(t[where]) * (1 - t[where] ** 2)
    trained, _ = method.train(chain(), data, recipe)
    found = trained[2].parametrizations.weight.original.detach().numpy()
    sure = np.abs(gradient) > 1e-7  # a gradient of rounding errors has no sign
    assert sure.sum() > 10 and np.allclose(found[sure], adam(w, gradient)[sure], atol=2e-6)


def test_gradients_of_a_layer_have_few_bits():
    network = Dorefa(2, 2, gradient_bits=2).constrain(chain()).train()
    sums, found = [], []
    for narrow in (True, False):
        torch.manual_seed(0)
        x = torch.rand(8, 5)
        x.requires_grad_()
        layer = network[2]
        y = layer(x) if narrow else nn.functional.linear(layer.input_quantizer(x), layer.weight, layer.bias)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        (bias,) = torch.autograd.grad((y * weights).sum(), layer.bias)
        found.append(bias)
        sums.append(weights)
    largest = sums[0].abs().amax(1)
    steps = found[0]  # of each output, the sum over items of whole thirds of their largest
    assert not torch.allclose(found[0], found[1]) and torch.allclose(found[1], sums[1].sum(0))
    reachable = np.array([[(2 * c / 3 - 1) * m.item() for c in range(4)] for m in largest])
    total = {0.0}
    for item in reachable:
        total = {round(a + b, 4) for a in total for b in item}
    assert all(min(abs(value - s.item()) for value in total) < 1e-3 for s in steps)


def test_a_weight_is_its_codes_and_the_seed_decides():
    network, _ = trained_leaves_alone(Dorefa(2, 2, 4))
    constraint, w = network[2].parametrizations.weight[0], network[2].parametrizations.weight.original
    codes, integers, scale = levels_of(constraint, w)
    read = integers[unpack(pack(codes, 2), 2, w.numel())].astype(np.float32).reshape(w.shape) * scale
    assert np.array_equal(read, bake(network)[2].weight.detach().numpy()) and set(integers) <= {-3, -1, 1, 3}
    data, recipe = batch()
    other, _ = Dorefa(2, 2, 4).train(chain(), data, recipe, seed=2)
    assert not torch.equal(other[2].parametrizations.weight.original, w), "another seed rounds gradients otherwise"


def test_it_learns():
    workload = datasets.workload("noisy-digits-cnn")
    network, _ = Dorefa().train(workload.network(), workload.data(), datasets.Recipe(epochs=8, batch=32))
    assert datasets.accuracy(bake(network), workload.data().validation) > 0.7
    assert len(bake(network)[7].weight.unique()) == 2


def test_wrong_input_is_named():
    for options, word in (
        ({"weight_bits": 0}, "weight_bits: expected an integer from 1 to 8, got 0"),
        ({"input_bits": 9}, "input_bits: expected"),
        ({"gradient_bits": 16}, "gradient_bits: expected an integer from 1 to 8, got 16"),
        ({"ends": 1}, "ends: expected an integer from 2 to 8, got 1"),
    ):
        with pytest.raises(ValueError, match=word):
            Dorefa(**options)
    with pytest.raises(ValueError, match="w: expected finite weights"):
        TanhWeights(2)(torch.tensor([1.0, float("inf")]))
