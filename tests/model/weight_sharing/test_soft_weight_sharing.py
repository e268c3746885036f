"""Soft weight sharing: the mixture and its gradients against scipy and closed forms; the plain recipe without it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import nn

import datasets
from kernels.model.compressed_file import decode, encode
from kernels.model.transform import bake
from kernels.model.weight_sharing.soft_weight_sharing import Mixture, SoftWeightSharing, share

digits = datasets.workload("digits-mlp")
short, longer = datasets.Recipe(epochs=3), datasets.Recipe(epochs=15, batch=32)


def mixture(seed=0):
    torch.manual_seed(seed)
    w = torch.randn(50).double()
    found = Mixture(w, components=3, zero=0.4, deviation=0.3).double()
    with torch.no_grad():
        found.free.copy_(torch.tensor([-1.0, 0.3, 1.2]))
        found.logits.copy_(torch.tensor([0.1, -0.5, 0.4]))
        found.precisions.copy_(torch.tensor([2.0, 1.0, 3.0, 2.5]))
    return w, found


def by_scipy(found):
    """Shares, means, deviations."""
    shares = np.concatenate([[0.4], 0.6 * special.softmax(found.logits.detach().numpy())])
    means = np.concatenate([[0.0], found.free.detach().numpy()])
    return shares, means, np.exp(-found.precisions.detach().numpy() / 2)


def test_the_length_is_that_of_scipys_densities():
    w, found = mixture()
    shares, means, deviations = by_scipy(found)
    density = (shares * stats.norm.pdf(w.numpy()[:, None], means, deviations)).sum(1)
    shape, rate = found.counts + 1, found.counts * 0.3**2
    prior = stats.gamma.logpdf(deviations**-2.0, shape, scale=1 / rate)
    constant = 4 * (shape * np.log(rate) - special.gammaln(shape))
    assert float(found.length(w).detach()) == pytest.approx(-np.log(density).sum() - prior.sum() + constant)


def test_the_gradients_are_the_closed_forms():
    w, found = mixture()
    w.requires_grad_()
    found.length(w).backward()
    shares, means, deviations = by_scipy(found)
    x = w.detach().numpy()[:, None]
    joint = shares * stats.norm.pdf(x, means, deviations)
    taken = joint / joint.sum(1, keepdims=True)
    pull = taken * (x - means) / deviations**2
    np.testing.assert_allclose(w.grad.numpy(), pull.sum(1))
    np.testing.assert_allclose(found.free.grad.numpy(), -pull.sum(0)[1:])
    assert found.nearest(w).tolist() == taken.argmax(1).tolist()


def test_the_prior_alone_holds_deviations_where_they_began():
    w = torch.zeros(0)
    found = Mixture(torch.linspace(-1, 1, 100), 2, 0.5, 0.07)
    found.length(w).backward()
    assert found.precisions.grad.abs().max() < 1e-5
    assert found.shares().sum() == 1 and torch.allclose((-found.precisions / 2).exp(), torch.tensor(0.07))


def test_without_strength_it_is_the_plain_recipe_bit_for_bit():
    plain = digits.network(seed=1)
    short.train(plain, digits.data(), seed=1)
    network, trace = SoftWeightSharing(strength=0.0).train(digits.network(seed=1), digits.data(), short, seed=1)
    assert all(map(torch.equal, network.state_dict().values(), plain.state_dict().values()))
    assert len(trace) == short.steps(digits.data())


def test_the_first_half_is_the_plain_recipe_and_then_the_loss_has_a_term_more():
    _, plain = SoftWeightSharing(strength=0.0).train(digits.network(), digits.data(), short)
    _, trace = SoftWeightSharing().train(digits.network(), digits.data(), short)
    half = len(trace) // 2
    assert [step["loss"] for step in trace[:half]] == [step["loss"] for step in plain[:half]]
    assert all(a["loss"] != b["loss"] for a, b in zip(trace[half:], plain[half:], strict=True))


@pytest.fixture(scope="module")
def soft():
    return SoftWeightSharing(components=4).train(digits.network(), digits.data(), longer)[0]


def test_weights_end_as_few_means_and_the_prior_has_brought_them_near(soft):
    hard, _ = SoftWeightSharing(components=4).afterwards().train(digits.network(), digits.data(), longer)
    accuracies = [datasets.accuracy(bake(network), digits.data().validation) for network in (soft, hard)]
    assert accuracies[0] > accuracies[1] + 0.02
    values = torch.cat([layer.weight.flatten() for layer in bake(soft)[1::2]]).unique()
    assert len(values) <= 5 and 0 in values
    assert torch.equal(decode(encode(soft), digits.network())[1].weight, soft[1].weight)
    assert len(encode(soft)) < len(encode(digits.network())) / 8


def test_a_heavier_zero_makes_more_zeros(soft):
    light, _ = SoftWeightSharing(components=4, zero=0.2).train(digits.network(), digits.data(), longer)
    few, many = (sum(int((layer.weight == 0).sum()) for layer in network[1::2]) for network in (light, soft))
    assert many > 1.05 * few


def test_sharing_worked_by_hand():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[0.01, 0.9], [-1.0, 1.1]])
    found = Mixture(torch.tensor([-1.0, 1.0]), 2, 0.5, 0.1)
    assert share(layer, found).weight.tolist() == [[0, 1], [-1, 1]]


def test_the_input_is_untouched_and_the_same_seed_gives_the_same_network():
    network = digits.network()
    before = copy.deepcopy(network.state_dict())
    recipe = datasets.Recipe(epochs=2)
    first, again = (bake(SoftWeightSharing().train(network, digits.data(), recipe, seed=3)[0]) for _ in range(2))
    assert all(map(torch.equal, network.state_dict().values(), before.values()))
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize(
    ("name", "value"), [("strength", -1), ("components", 0), ("zero", 1), ("zero", 0), ("deviation", 0), ("rate", 0)]
)
def test_wrong_parameters_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        SoftWeightSharing(**{name: value})


def test_a_network_without_weights_is_named():
    with pytest.raises(ValueError, match="network: expected convolution, linear or recurrent layers; ReLU has none"):
        SoftWeightSharing().train(nn.ReLU(), digits.data(), short)
