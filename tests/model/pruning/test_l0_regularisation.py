"""Hard concrete gates against their distribution in closed form, and against many draws."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from scipy.stats import kstest
from torch import nn
from torch.nn import functional

import datasets
from datasets import Data, Recipe, Split
from kernels.model.pruning.l0_regularisation import HardConcrete, L0Regularisation
from kernels.model.transform import bake, layer_weights

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1


def gates(log_alpha, count=20_000):
    gate = HardConcrete(torch.ones(count))
    with torch.no_grad():
        gate.log_alpha.fill_(log_alpha)
    return gate


def below(z, log_alpha):
    """The stretched variable's distribution function: P(s̄ <= z) = σ(β logit((z - γ) / (ζ - γ)) - log α)."""
    return expit(BETA * logit(np.clip((z - GAMMA) / (ZETA - GAMMA), 1e-12, 1 - 1e-12)) - log_alpha)


@pytest.mark.parametrize("log_alpha", [-2.0, -0.3, 0.0, 1.5])
def test_gates_are_drawn_from_their_distribution(log_alpha):
    """Masses at 0 and 1 within four deviations, and what lies between by Kolmogorov and Smirnov's test."""
    torch.manual_seed(0)
    gate = gates(log_alpha)
    z = gate(torch.ones(20_000)).detach().double().numpy()
    closed, opened = below(0.0, log_alpha), 1 - below(1.0, log_alpha)
    for share, mass in (((z == 0).mean(), closed), ((z == 1).mean(), opened)):
        assert abs(share - mass) < 4 * math.sqrt(mass * (1 - mass) / len(z))
    inner = z[(z > 0) & (z < 1)]
    found = kstest(inner, lambda x: (below(x, log_alpha) - closed) / (1 - opened - closed))
    assert found.pvalue > 1e-3
    assert gate.expected().item() / len(z) == pytest.approx(1 - closed, rel=1e-5)


def test_nothing_is_drawn_once_trained():
    for log_alpha in (-4.0, -1.0, 0.7, 4.0):
        gate = gates(log_alpha, 3).eval()
        expected = min(1.0, max(0.0, expit(log_alpha) * 1.2 - 0.1))
        assert torch.allclose(gate(torch.tensor([1.0, -2.0, 0.0])), expected * torch.tensor([1.0, -2.0, 0.0]))


def test_the_gradient_of_the_expected_count_is_the_closed_form():
    gate = HardConcrete(torch.ones(4))
    with torch.no_grad():
        gate.log_alpha.copy_(torch.tensor([-1.0, 0.0, 1.0, 5.0]))
    gate.expected().backward()
    p = expit(gate.log_alpha.detach().numpy() - BETA * math.log(0.1 / 1.1))
    assert np.allclose(gate.log_alpha.grad.numpy(), p * (1 - p), rtol=1e-5)


def sgd(parameters, lr, weight_decay):
    return torch.optim.SGD(parameters, lr=lr)


def test_one_update_is_that_of_the_equation_with_the_draw_repeated():
    torch.manual_seed(0)
    split = Split(torch.randn(6, 5).numpy(), torch.randint(0, 3, (6,)).numpy())
    start = nn.Linear(5, 3)
    recipe = Recipe(epochs=1, batch=6, schedule="constant", learning_rate=0.1, weight_decay=0.0, optimizer=sgd)
    technique = L0Regularisation(penalty=2.0, open=0.6, pace=4.0)
    trained, trace = technique.train(start, Data("hand", split, split, split, 3), recipe, seed=7)

    torch.manual_seed(7)
    items = torch.randperm(6)
    u = torch.rand(3, 5)
    w = start.weight.detach().clone().requires_grad_()
    a = torch.full((3, 5), math.log(0.6 / 0.4)).requires_grad_()
    s = torch.sigmoid((torch.log(u) - torch.log(1 - u) + a) / BETA)
    z = (s * 1.2 - 0.1).clamp(0, 1)
    x, y = torch.tensor(split.x)[items], torch.tensor(split.y)[items]
    share = torch.sigmoid(a - BETA * math.log(0.1 / 1.1)).mean()
    loss = functional.cross_entropy(x @ (w * z).T + start.bias.detach(), y) + 2.0 * share
    loss.backward()
    assert trace[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert trace[0]["density"] == pytest.approx(share.item(), rel=1e-5)
    chain = trained.parametrizations.weight
    assert torch.allclose(chain.original, w - 0.1 * w.grad, atol=1e-6)
    assert torch.allclose(chain[0].log_alpha, a - 0.4 * a.grad, atol=1e-6)


def test_with_gates_that_stay_open_it_is_the_plain_recipe():
    digits, recipe = datasets.workload("digits-mlp"), Recipe(epochs=1)
    plain = digits.network()
    trace = recipe.train(plain, digits.data(), seed=5)
    network, same = L0Regularisation(0.0, open=1 - 1e-12).train(digits.network(), digits.data(), recipe, seed=5)
    assert [u["loss"] for u in same] == [u["loss"] for u in trace]
    assert torch.equal(bake(network)[1].weight, plain[1].weight)


def test_a_higher_price_leaves_fewer_weights_and_the_network_still_knows_its_digits():
    digits, recipe = datasets.workload("digits-mlp"), Recipe(epochs=10, batch=32)
    start, data, left = digits.network(), digits.data(), []
    before = copy.deepcopy(start.state_dict())
    for penalty in (0.0, 3.0, 10.0):
        network, trace = L0Regularisation(penalty).train(start, data, recipe, seed=1)
        weights = [getattr(*place) for place in layer_weights(bake(network))]
        left.append(sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights))
        assert datasets.accuracy(bake(network), data.validation) > 0.8
        assert left[-1] == pytest.approx(trace[-1]["density"], abs=0.1)
    assert left[0] > 2 * left[1] > 2 * left[2]
    _, same = L0Regularisation(10.0).train(start, data, recipe, seed=1)
    assert trace == same and all(torch.equal(start.state_dict()[key], value) for key, value in before.items())


def test_the_contestant_has_its_density_and_no_watcher_counts_the_question():
    digits, recipe = datasets.workload("digits-mlp"), Recipe(epochs=4)
    start, data, calls = digits.network(), digits.data(), []
    technique = L0Regularisation(5.0)
    start.register_forward_hook(lambda *_: calls.append(1))
    found = bake(technique.train(digits.network(), data, recipe, seed=2)[0])
    rival, trace = technique.magnitude().train(start, data, recipe, seed=2)
    counts = [sum(int(getattr(*place).count_nonzero()) for place in layer_weights(n)) for n in (found, rival)]
    blind, _ = technique.random().train(digits.network(), data, recipe, seed=2)
    assert sum(int(getattr(*place).count_nonzero()) for place in layer_weights(blind)) == counts[0]
    assert counts[0] == counts[1] and len(calls) == len(trace) == recipe.steps(data)
    assert len(start._forward_hooks) == 1


def test_wrong_input_is_named():
    for options, word in (
        ({"penalty": -1.0}, "penalty: expected a number of at least 0"),
        ({"open": 1.0}, "open: expected 0 < open < 1"),
        ({"pace": 0.0}, "pace: expected a positive number"),
    ):
        with pytest.raises(ValueError, match=word):
            L0Regularisation(**options)
    with pytest.raises(ValueError, match="layers; ReLU has none"):
        L0Regularisation().train(nn.ReLU(), datasets.load("digits"), Recipe(epochs=1))
