"""SWALP against torch's AveragedModel and SGD, its format in exact rationals, one update by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from fractions import Fraction
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

import datasets
from kernels.arithmetic.mixed_precision.averaged_low_precision_sgd import (
    AveragedLowPrecisionSGD,
    LowPrecisionSGD,
    SharedExponent,
    refresh_batch_norm,
    running_mean,
)
from kernels.arithmetic.mixed_precision.low_precision import Precision

RECIPE = datasets.Recipe(epochs=3, batch=32)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12), st.integers(2, 8), st.integers(0, 99))
def test_every_number_goes_to_one_of_its_two_neighbours_on_the_blocks_grid(numbers, bits, seed):
    x = torch.tensor(numbers)
    rounded = SharedExponent(bits, seed).round(x)
    largest = max(abs(Fraction(v)) for v in x.tolist())
    if largest < Fraction(1, 2**100):
        return
    exponent = math.frexp(float(largest))[1] - 1
    delta = Fraction(2) ** (exponent - bits + 2)
    for v, q in zip(x.tolist(), rounded.tolist(), strict=True):
        code, place = Fraction(q) / delta, Fraction(v) / delta
        assert code.denominator == 1 and -(2 ** (bits - 1)) <= code <= 2 ** (bits - 1) - 1
        # up to one step, for the largest that was cut off; float32 noise may carry a number that is on the grid up
        assert abs(code - place) <= 1


def test_rounding_is_right_on_average_and_another_for_another_seed():
    x = torch.full((1, 50000), 0.3)
    x[0, 0] = 1.0
    first, second = (SharedExponent(4, seed).round(x) for seed in (1, 2))
    assert float(first[0, 1:].mean()) == pytest.approx(0.3, abs=0.003)
    assert not torch.equal(first, second) and torch.equal(first, SharedExponent(4, 1).round(x))
    assert first[0, 1:].unique().tolist() == [0.25, 0.5]


def test_blocks_are_what_shares_the_first_index():
    x = torch.stack([torch.full((3, 3), 2.0**k) for k in (-20, 0, 20)])
    assert torch.equal(SharedExponent(3).round(x), x)
    together = SharedExponent(3).round(torch.tensor([2.0**20, 2.0**-20]))
    assert together[0] == 2.0**20 and together[1] in (0, 2.0**19)


def test_no_draw_moves_what_is_on_the_grid():
    """A million draws: one of them is so near to one that its sum with a hundred rounds to the next integer."""
    x = torch.full((2**20,), 100.0)
    assert torch.equal(SharedExponent(8).round(x), x)


def test_zeros_subnormals_scalars_and_what_is_not_finite():
    form = SharedExponent(8)
    assert form.round(torch.zeros(2, 3)).tolist() == [[0, 0, 0]] * 2
    assert form.round(torch.tensor(5.0)).item() == 5 and form.round(torch.zeros(0, 3)).shape == (0, 3)
    assert form.round(torch.tensor([1e-45, -0.0])).abs().max() <= 2.0**-126
    rounded = form.round(torch.tensor([[math.nan, 1.0], [1.0, 1.0]]))
    assert rounded[0, 0].isnan() and rounded[1].tolist() == [1, 1]
    strided = torch.randn(6, 4).t()
    assert form.round(strided).shape == (4, 6)


def test_one_update_by_hand():
    w = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = LowPrecisionSGD([w], lr=0.5, momentum=0.5, weight_decay=0.25)
    for _ in range(2):
        w.grad = torch.tensor([1.0, 0.0])
        optimizer.step()
    v = [1.25, -0.5]
    after = [1 - 0.5 * v[0], -2 - 0.5 * v[1]]
    v = [0.5 * v[0] + 1 + 0.25 * after[0], 0.5 * v[1] + 0.25 * after[1]]
    torch.testing.assert_close(w.detach(), torch.tensor([after[0] - 0.5 * v[0], after[1] - 0.5 * v[1]]))


def test_without_rounding_the_optimizer_is_torchs_sgd():
    torch.manual_seed(0)
    own, other = (nn.Linear(7, 5) for _ in range(2))
    other.load_state_dict(own.state_dict())
    ours = LowPrecisionSGD(own.parameters(), lr=0.1, weight_decay=0.01)
    theirs = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(10):
        x = torch.randn(4, 7)
        for network, optimizer in ((own, ours), (other, theirs)):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(own.weight, other.weight, rtol=1e-5, atol=1e-6)


def test_momentum_is_kept_in_few_bits():
    w = nn.Parameter(torch.randn(50))
    optimizer = LowPrecisionSGD([w], lr=0.1, format=SharedExponent(4))
    for _ in range(5):
        w.grad = torch.randn(50)
        optimizer.step()
    assert len(optimizer.state[w]["v"].abs().unique()) <= 9


@pytest.mark.parametrize(("start", "cycle"), [(0.5, 1), (0.0, 3), (0.9, 2)])
@pytest.mark.parametrize("name", ["digits-mlp", "noisy-digits-cnn"])
def test_with_rounding_off_it_is_torchs_averaged_model_of_the_same_run(name, start, cycle):
    workload = datasets.workload(name)
    sgd = partial(torch.optim.SGD, momentum=0.9)
    recipe = replace(RECIPE, learning_rate=0.05, weight_decay=0.0, schedule="constant", optimizer=sgd)
    technique = AveragedLowPrecisionSGD(32, 32, rate=0.05, settled=1.0, start=start, cycle=cycle)
    own, trace = technique.train(workload.network(), workload.data(), RECIPE, seed=4)
    averaged, steps = None, len(trace)

    def look(step, network):
        nonlocal averaged
        if step >= int(start * steps) and (step - int(start * steps)) % cycle == 0:
            averaged = averaged or AveragedModel(network)
            averaged.update_parameters(network)

    plain = workload.network()
    other = recipe.train(plain, workload.data(), seed=4, on_step=look)
    assert [t["loss"] for t in trace] == pytest.approx([t["loss"] for t in other], rel=1e-3)
    assert trace[-1]["averaged"] == int(averaged.n_averaged)
    x = torch.tensor(workload.data().train.x)
    update_bn(x.split(256), averaged)
    averaged.eval()
    for a, b in zip(own.state_dict().values(), averaged.module.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert not torch.equal(next(own.parameters()), next(plain.parameters()))


def test_the_running_mean_is_the_mean():
    values, mean = [torch.tensor(float(v)) for v in (3, -1, 4, 1, -5)], torch.tensor(0.0)
    for count, value in enumerate(values):
        mean = running_mean(mean, value, count)
    assert float(mean) == pytest.approx(sum(map(float, values)) / 5)


def test_the_mean_of_low_precision_iterates_comes_closer_than_any_of_them():
    """The paper's theorem on a quadratic: the iterates stay a grid step away from the optimum, their mean does not."""
    optimum, form = torch.tensor([0.303, -0.777, 0.514]), SharedExponent(4)
    w, mean, count, distances = torch.zeros(3), torch.zeros(3), 0, []
    for step in range(4000):
        w = replace(form, seed=step).round(w - 0.1 * (w - optimum))
        if step >= 200:
            mean, count = running_mean(mean, w, count), count + 1
            distances.append(float((w - optimum).norm()))
    assert float((mean - optimum).norm()) < 0.1 * sum(distances) / len(distances)


def test_training_leaves_its_arguments_and_repeats_itself():
    workload, technique = datasets.workload("noisy-digits-cnn"), AveragedLowPrecisionSGD()
    network = workload.network()
    before = copy.deepcopy(network.state_dict())
    first, trace = technique.train(network, workload.data(), RECIPE, seed=2)
    second, same = technique.train(network, workload.data(), RECIPE, seed=2)
    assert trace == same and not first.training
    for states in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(*states)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert datasets.accuracy(first, workload.data().test) > 0.6


def test_without_the_mean_the_last_iterate_is_on_the_grid():
    workload = datasets.workload("digits-mlp")
    plain = AveragedLowPrecisionSGD(4, 4).without()
    network, trace = plain.train(workload.network(), workload.data(), RECIPE)
    row = network[1].weight[0].detach()
    step = 2.0 ** (math.frexp(float(row.abs().max()))[1] - 1 - 4 + 2)
    assert torch.equal(row / step, (row / step).round()) and trace[-1]["averaged"] == 0
    assert plain.cost_bits()["state"] == 2 and AveragedLowPrecisionSGD(4).cost_bits()["state"] == 18
    assert AveragedLowPrecisionSGD().mac_format == "int8"
    narrow = AveragedLowPrecisionSGD(weights=4)
    assert narrow.mac_format == "int4 by int8" and narrow.cost_bits()["stored"] == 4
    assert narrow.precision == Precision(SharedExponent(4), SharedExponent(8), SharedExponent(8), SharedExponent(4))


def test_the_rate_settles_when_averaging_begins():
    w, rates = nn.Parameter(torch.zeros(1)), []
    optimizer = LowPrecisionSGD([w], lr=1.0, momentum=0.0, settled=lambda update: 1.0 if update < 2 else 0.25)
    for _ in range(4):
        before = float(w.detach())
        w.grad = torch.ones(1)
        optimizer.step()
        rates.append(before - float(w.detach()))
    assert rates == [1, 1, 0.25, 0.25]


def test_refreshed_statistics_are_those_of_torch():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    other, x = copy.deepcopy(network), torch.randn(100, 1, 6, 6)
    refresh_batch_norm(network, x, batch=32)
    update_bn(x.split(32), other)
    torch.testing.assert_close(network[1].running_var, other[1].running_var)
    assert network[1].momentum == 0.1 and not network.training
    plain = nn.Sequential(nn.Linear(2, 2)).train()
    refresh_batch_norm(plain, torch.zeros(2, 2))
    assert not plain.training


def test_bad_input():
    for options, message in (
        ({"bits": 1}, "bits: expected 2 to 32, got 1"),
        ({"weights": 33}, "weights: expected 2 to 32, got 33"),
        ({"settled": 0.0}, "settled: expected a share above 0 up to 1, got 0.0"),
        ({"rate": 0.0}, "rate: expected a positive number, got 0.0"),
        ({"start": 1.0}, "start: expected a share from 0 to below 1, got 1.0"),
        ({"cycle": 0}, "cycle: expected a positive integer, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            AveragedLowPrecisionSGD(**options)
