"""Levels against a search of the whole set; what is fixed stays fixed; budget and bits counted."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import datasets
from kernels.model.quantization.incremental_quantization import (
    IncrementalQuantization,
    PowerWeights,
    highest_exponent,
    nearest_power,
)
from kernels.model.quantization.quantizers import levels_of, pack, unpack
from kernels.model.transform import bake
from tests.model.quantization.few_bits import batch, chain


@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_every_weight_goes_to_the_nearest_level(bits):
    w = np.random.default_rng(bits).normal(0, 0.2, 3000)
    s = np.abs(w).max()
    n1 = int(np.floor(np.log2(4 * s / 3)))
    powers = 2.0 ** np.arange(n1 + 1 - 2 ** (bits - 1) // 2, n1 + 1)
    levels = np.array([0, *powers, *-powers])
    assert len(levels) == 2 ** (bits - 1) + 1 <= 2**bits
    found = nearest_power(torch.tensor(w), highest_exponent(torch.tensor(w)), bits).numpy()
    assert set(found) <= set(levels)
    assert np.allclose(np.abs(w - found), np.abs(w[:, None] - levels).min(1), atol=1e-15)


def test_borders_are_those_of_the_paper():
    """From the mean of two levels on it is the larger one, up to three halves of it."""
    w = torch.tensor([0.75, 0.7499999, 0.0625, 0.0624999, 1.49, 9.0, -0.75, 0.0, -0.0], dtype=torch.float64)
    assert nearest_power(w, 0, 4).tolist() == [1.0, 0.5, 0.125, 0.0, 1.0, 1.0, -1.0, 0.0, 0.0]
    assert highest_exponent(torch.zeros(3)) == 0 and nearest_power(torch.zeros(3), 0, 5).tolist() == [0.0] * 3


def test_the_largest_go_first_and_what_is_fixed_stays():
    w = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
    constraint = PowerWeights(5, w)
    constraint.fix(w, 0.5)
    assert int(constraint.fixed.sum()) == 50
    assert w.abs()[constraint.fixed].min() >= w.abs()[~constraint.fixed].max()
    before, moved = constraint.values.clone(), w * 3 + 1
    constraint.fix(moved, 0.75)
    first = before != 0
    assert int(constraint.fixed.sum()) == 75 and torch.equal(constraint.values[first], before[first])
    given = moved.clone().requires_grad_()
    constraint(given).sum().backward()
    assert torch.equal(given.grad, (~constraint.fixed).float()), "fixed weights get no gradient"
    assert torch.equal(constraint(moved)[~constraint.fixed], moved[~constraint.fixed])


def test_a_random_partition_is_not_that_of_magnitude():
    w = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    chosen = []
    for generator in (None, torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)):
        constraint = PowerWeights(5, w)
        constraint.fix(w, 0.5, generator)
        chosen.append(constraint.fixed)
        assert int(constraint.fixed.sum()) == 200
    assert torch.equal(chosen[1], chosen[2]) and 60 < int((chosen[0] & chosen[1]).sum()) < 140


@pytest.mark.parametrize(
    "technique", [IncrementalQuantization(bits=4), IncrementalQuantization(3, 3, "random")], ids=str
)
def test_the_budget_is_the_recipes_and_all_is_fixed(technique):
    data, recipe = batch()
    recipe = datasets.Recipe(epochs=9, batch=4, learning_rate=0.05)
    network = chain()
    start = copy.deepcopy(network)
    trained, trace = technique.train(network, data, recipe, seed=1)
    again, same = technique.train(network, data, recipe, seed=1)
    assert trace == same and all(map(torch.equal, trained.state_dict().values(), again.state_dict().values()))
    assert all(map(torch.equal, network.parameters(), start.parameters()))
    assert len(trace) == recipe.steps(data) == 18 and [update["step"] for update in trace] == list(range(18))
    shares = [update["fixed"] for update in trace]
    expected = [0.0, 0.5, 0.75, 0.875][: technique.steps]
    assert sorted(set(shares)) == expected and shares == sorted(shares)
    assert [update["epoch"] for update in trace] == [step // 2 for step in range(18)]
    for layer in (trained[0], trained[2], trained[4]):
        assert bool(layer.parametrizations.weight[0].fixed.all()) and not trained.training
        powers = layer.weight[layer.weight != 0].abs().log2()
        assert torch.equal(powers, powers.round())


def test_epochs_are_spread_and_none_is_lost():
    for steps in (1, 2, 4, 6):
        for epochs in range(12):
            phases = IncrementalQuantization(steps=steps).phases(epochs)
            assert sum(phases) == epochs and len(phases) == steps and phases[0] >= epochs / 2
            assert max(phases[1:], default=0) - min(phases[1:], default=0) <= 1
    data, _ = batch()
    trained, trace = IncrementalQuantization().train(chain(), data, datasets.Recipe(epochs=2, batch=8))
    assert [update["fixed"] for update in trace] == [0.0, 0.5]
    assert bool(trained[2].parametrizations.weight[0].fixed.all())


def test_in_one_step_it_is_the_plain_recipe_rounded():
    data, recipe = batch()
    plain = chain()
    trace = recipe.train(plain, data, seed=3)
    trained, same = IncrementalQuantization(steps=1).train(chain(), data, recipe, seed=3)
    after, _ = IncrementalQuantization().afterwards().train(chain(), data, recipe, seed=3)
    assert [u["loss"] for u in trace] == [u["loss"] for u in same]
    assert torch.equal(trained[2].weight, after[2].weight)
    assert torch.equal(trained[2].weight, nearest_power(plain[2].weight, highest_exponent(plain[2].weight), 5))


@pytest.mark.parametrize("bits", [3, 5])
def test_a_weight_is_its_codes_to_the_last_bit(bits):
    network = IncrementalQuantization(bits).constrain(datasets.workload("noisy-digits-cnn").trained())
    for place in (0, 3, 7, 12):
        constraint, w = network[place].parametrizations.weight[0], network[place].parametrizations.weight.original
        codes, integers, scale = levels_of(constraint, w)
        packed = pack(codes, bits)
        read = integers[unpack(packed, bits, w.numel())].astype(np.float32).reshape(w.shape) * scale
        assert np.array_equal(read, bake(network)[place].weight.detach().numpy())
        assert bits * w.numel() + 8 == constraint.stored_bits(w)


def test_half_fixed_is_half_stored():
    w = torch.randn(8, 8)
    constraint = PowerWeights(5, w)
    assert constraint.stored_bits(w) == 32 * 64 + 8
    constraint.fix(w, 0.5)
    assert constraint.stored_bits(w) == 32 * 5 + 32 * 32 + 64 + 8


def test_training_between_steps_repairs_what_rounding_harms():
    workload, recipe = datasets.workload("noisy-digits-cnn"), datasets.Recipe(epochs=8, batch=32)
    found = {}
    for steps in (4, 1):
        network, _ = IncrementalQuantization(3, steps).train(workload.network(), workload.data(), recipe)
        found[steps] = datasets.accuracy(bake(network), workload.data().validation)
    assert found[4] > found[1] + 0.01


def test_wrong_input_is_named():
    for options, word in (
        ({"bits": 2}, "bits: expected an integer from 3 to 6, got 2"),
        ({"bits": 7}, "bits: expected"),
        ({"steps": 0}, "steps: expected an integer of at least 1"),
        ({"partition": "first"}, "partition: expected magnitude or random"),
    ):
        with pytest.raises(ValueError, match=word):
            IncrementalQuantization(**options)
    with pytest.raises(ValueError, match=r"layers; ReLU has none$"):
        IncrementalQuantization().constrain(nn.ReLU())
