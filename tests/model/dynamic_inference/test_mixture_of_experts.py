"""A mixture is the gated sum over all experts with the others' gates at zero; balance is worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import datasets
from datasets.workloads.transformer import Transformer
from kernels.counting import macs, macs_by_layer, parameters
from kernels.model.dynamic_inference.mixture_of_experts import (
    FeedforwardSpec,
    MixtureOfExperts,
    balance_loss,
    expert_loads,
    perplexity_of,
    top_gates,
)

WORKLOAD = datasets.workload("shakespeare-transformer")
SPEC = FeedforwardSpec(6, 8)


@pytest.mark.parametrize(("experts", "chosen"), [(4, 1), (4, 2), (3, 3)])
def test_it_is_the_gated_sum_over_all_experts(experts, chosen):
    torch.manual_seed(0)
    mixture, x = MixtureOfExperts(experts, chosen).build(SPEC), torch.randn(2, 5, 6)
    gates = top_gates(mixture.gate(x), chosen)
    every = torch.stack([expert(x) for expert in mixture.experts], -1)
    assert torch.allclose(mixture(x), (every * gates[..., None, :]).sum(-1), atol=1e-6)
    assert ((gates > 0).sum(-1) == chosen).all() and torch.allclose(gates.sum(-1), torch.ones(2, 5))


def test_with_every_expert_chosen_gates_are_the_softmax():
    scores = torch.randn(7, 5)
    assert torch.allclose(top_gates(scores, 5), scores.softmax(-1))


def test_balance_by_hand_and_its_extremes():
    scores = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]]).log_softmax(-1)
    gates = top_gates(scores, 1)
    p = scores.softmax(-1).mean(0)
    assert float(balance_loss(scores, gates)) == pytest.approx(2 * float(2 / 3 * p[0] + 1 / 3 * p[1]))
    same = torch.tensor([[50.0, 0.0, 0.0]]).repeat(4, 1)
    assert float(balance_loss(same, top_gates(same, 1))) == pytest.approx(3.0)


def test_the_balance_loss_joins_the_gradient_and_nothing_else():
    """The gate's gradient is that of loss + weight x balance, by autograd on the sum."""
    torch.manual_seed(0)
    mixture, x = MixtureOfExperts(4, 2, balance=0.3).build(SPEC).train(), torch.randn(9, 6)
    mixture(x).square().sum().backward()
    joined = mixture.gate.weight.grad.clone()
    mixture.zero_grad()
    plain = mixture.eval()(x)
    scores = mixture.gate(x)
    (plain.square().sum() + 0.3 * balance_loss(scores, top_gates(scores, 2))).backward()
    assert torch.allclose(joined, mixture.gate.weight.grad, atol=1e-5)
    mixture.zero_grad()
    mixture(x).square().sum().backward()
    assert not torch.allclose(joined, mixture.gate.weight.grad, atol=1e-4)
    assert torch.equal(mixture.train()(x), plain)


@pytest.mark.parametrize(("experts", "chosen"), [(4, 1), (8, 2)])
def test_products_are_those_of_the_chosen_and_parameters_those_of_all(experts, chosen):
    mixture, x = MixtureOfExperts(experts, chosen, hidden=8).build(SPEC), torch.randn(1, 10, 6)
    assert macs(mixture, x) == 10 * (6 * experts + chosen * 2 * 6 * 8)
    assert parameters(mixture) == 6 * experts + experts * (2 * 6 * 8 + 8 + 6)
    assert macs_by_layer(mixture, x)["gate"] == 10 * 6 * experts


def test_at_equal_width_the_products_of_the_network_stay():
    network, x = WORKLOAD.network(), torch.zeros(1, 64)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for chosen in (1, 2):
        mixed = MixtureOfExperts(4, chosen).within(network)
        assert macs(mixed, x) - macs(network, x) == 2 * 64 * 64 * 4
        assert parameters(mixed) > 1.5 * parameters(network)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_balance_spreads_the_load_and_the_network_learns():
    data = WORKLOAD.data()
    few, some = replace(data, train=data.train[:480]), data.validation[:64]
    recipe, spread, losses = replace(WORKLOAD.recipe, epochs=1), {}, {}
    for balance in (0.0, 0.1):
        torch.manual_seed(0)
        network = MixtureOfExperts(4, 1, balance=balance).within(WORKLOAD.network(0))
        trace = recipe.train(network, few, seed=0)
        losses[balance] = trace[-1]["loss"] / trace[0]["loss"]
        spread[balance] = sum(perplexity_of(load) for load in expert_loads(network, torch.tensor(some.x)))
    assert spread[0.1] > spread[0.0] and max(losses.values()) < 0.9


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="chosen: expected 1 to 4, the experts, got 5"):
        MixtureOfExperts(4, 5)
    with pytest.raises(ValueError, match="hidden, balance: expected none or positive"):
        MixtureOfExperts(balance=-1)
    with pytest.raises(ValueError, match="Linear has none"):
        MixtureOfExperts().within(nn.Linear(2, 2))
    once = MixtureOfExperts().within(Transformer(classes=7, width=12, layers=1, heads=3, hidden=8))
    with pytest.raises(ValueError, match=r"layers\.0\.feedforward: expected linear, activation, linear, got SparseMix"):
        MixtureOfExperts().within(once)
