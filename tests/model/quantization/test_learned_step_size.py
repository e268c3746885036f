"""The step's gradient against the paper's cases, number by number; one update of step and weights by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import datasets
from kernels.model.quantization.learned_step_size import (
    LearnedStepSize,
    SteppedInputs,
    SteppedWeights,
    first_step,
    stepped,
)
from kernels.model.quantization.quantizers import levels_of, pack, unpack
from kernels.model.transform import bake
from tests.model.quantization.few_bits import RATE, adam, batch, chain, trained_leaves_alone


def by_cases(v, s, low, high):
    """Value, gradient in v and gradient in s, of one number: the paper's cases."""
    ratio = v / s
    if ratio <= low:
        return low * s, 0.0, float(low)
    if ratio >= high:
        return high * s, 0.0, float(high)
    return np.rint(ratio) * s, 1.0, -ratio + np.rint(ratio)


@pytest.mark.parametrize(("low", "high"), [(-2, 1), (0, 3), (-8, 7), (0, 15)])
@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_value_and_gradients_are_the_cases_of_the_paper(low, high, scale):
    s = 0.37
    edges = [s * n for n in range(low - 1, high + 2)]
    values = np.array([*np.random.default_rng(high).normal(0, 2 * s * high, 60), *edges, 0.0])
    v, step = torch.tensor(values, requires_grad=True), torch.tensor(s, dtype=torch.float64, requires_grad=True)
    for place, number in enumerate(values):
        y = stepped(v, step, low, high, scale)[place]
        of_v, of_s = torch.autograd.grad(y, (v, step))
        expected = by_cases(number, s, low, high)
        assert y.item() == pytest.approx(expected[0], abs=1e-12)
        assert (of_v[place].item(), of_s.item()) == pytest.approx((expected[1], scale * expected[2]), abs=1e-9)


def test_one_update_of_steps_and_weights():
    """The layer in the middle of a chain: gradients from the paper's cases, by the chain rule in numpy."""
    data, recipe = batch()
    method = LearnedStepSize(2, 2)
    start = method.constrain(chain())
    middle, given, sent = start[2], [], []
    middle.register_forward_pre_hook(lambda layer, args: given.append(args[0].detach()), prepend=True)
    middle.register_full_backward_hook(lambda layer, into, out: sent.append(out[0]))
    start.train()
    nn.functional.cross_entropy(start(torch.tensor(data.train.x)), torch.tensor(data.train.y)).backward()
    x, w = given[0].double().numpy(), middle.parametrizations.weight.original.detach().double().numpy()
    s_x, s_w = 2 * np.abs(x).mean() / 3**0.5, 2 * np.abs(w).mean()
    cases_x = np.vectorize(lambda v: by_cases(v, s_x, 0, 3))(x)
    cases_w = np.vectorize(lambda v: by_cases(v, s_w, -2, 1))(w)
    out = sent[0].double().numpy()
    of_w, of_x = out.T @ cases_x[0], out @ cases_w[0]
    step_w = (of_w * cases_w[2]).sum() / (w.size * 1) ** 0.5
    step_x = (of_x * cases_x[2]).sum() / (x[0].size * 3) ** 0.5
    grid_w, grid_x = middle.parametrizations.weight[0].grid, middle.input_quantizer.grid
    assert grid_w.step.grad.item() == pytest.approx(step_w, rel=1e-4)
    assert grid_x.step.grad.item() == pytest.approx(step_x, rel=1e-4)
    assert np.allclose(middle.parametrizations.weight.original.grad.numpy(), of_w * cases_w[1], atol=1e-7)
    trained, _ = method.train(chain(), data, recipe)
    for mine, begin, gradient in (
        (trained[2].parametrizations.weight[0].grid.step, s_w, step_w),
        (trained[2].input_quantizer.grid.step, s_x, step_x),
    ):
        assert mine.item() == pytest.approx(adam(begin, gradient), abs=1e-6)
    assert RATE > 0 and first_step(torch.tensor(w), 1).item() == pytest.approx(s_w)


def test_without_the_scale_the_gradient_is_the_plain_sum():
    w = torch.randn(30, 10, generator=torch.Generator().manual_seed(0))
    found = {}
    for scaled in (True, False):
        constraint = SteppedWeights(3, w, scaled)
        (constraint(w) * w).sum().backward()
        found[scaled] = constraint.grid.step.grad.item()
    assert found[True] == pytest.approx(found[False] / (300 * 3) ** 0.5, rel=1e-5)


def test_inputs_with_a_sign_get_levels_with_a_sign():
    for x, low, high in ((torch.tensor([0.0, 1.0]), 0, 3), (torch.tensor([-1.0, 1.0]), -2, 1)):
        quantizer = SteppedInputs(2)
        quantizer(x)
        assert (quantizer.grid.low, quantizer.grid.high) == (low, high)


def test_a_step_never_vanishes():
    w = torch.ones(2, 2)
    constraint = SteppedWeights(2, w)
    with torch.no_grad():
        constraint.grid.step.fill_(-0.3)
    assert constraint(w).isfinite().all() and (constraint(w) > 0).all()
    constraint(w).sum().backward()
    assert constraint.grid.step.grad.item() > 0, "it can come back"


def test_a_weight_is_its_codes_to_the_last_bit():
    network, _ = trained_leaves_alone(LearnedStepSize(3, 3))
    constraint, w = network[2].parametrizations.weight[0], network[2].parametrizations.weight.original
    codes, integers, scale = levels_of(constraint, w)
    packed = pack(codes, 3)
    read = integers[unpack(packed, 3, w.numel())].astype(np.float32).reshape(w.shape) * scale
    assert np.array_equal(read, bake(network)[2].weight.detach().numpy())
    assert set(integers) <= set(range(-4, 4)) and constraint.stored_bits(w) == 3 * w.numel() + 32


def test_two_bits_learn_what_the_plain_recipe_learns():
    workload, recipe = datasets.workload("noisy-digits-cnn"), datasets.Recipe(epochs=8, batch=32)
    network, _ = LearnedStepSize().train(workload.network(), workload.data(), recipe)
    plain = workload.network()
    recipe.train(plain, workload.data())
    split = workload.data().validation
    assert datasets.accuracy(bake(network), split) > datasets.accuracy(plain, split) - 0.04
    assert len(bake(network)[7].weight.unique()) <= 4


def test_wrong_input_is_named():
    for options, word in (
        ({"weight_bits": 1}, "weight_bits: expected an integer from 2 to 8, got 1"),
        ({"input_bits": 0}, "input_bits: expected"),
        ({"ends": 16}, "ends: expected"),
        ({"scaled": None}, "scaled: expected True or False"),
    ):
        with pytest.raises(ValueError, match=word):
            LearnedStepSize(**options)
    with pytest.raises(ValueError, match="expected layers between the first and the last"):
        LearnedStepSize().constrain(nn.Linear(2, 2))
