"""How workers in one process, and clients that average weights, are measured; and who speaks of which weights."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import datasets
from kernels.implementation.distributed.exchange import Exchange
from kernels.implementation.distributed.federated_averaging import FederatedAveraging
from kernels.implementation.distributed.split_inference import SplitInference
from kernels.model.pruning.magnitude_pruning import MagnitudePruning
from kernels.model.transform import bake
from taxonomy.measure.influences.magnitude_pruning__gradient_sparsification import Masked
from taxonomy.measure.protocol import Case, Missing
from taxonomy.measure.protocols import search
from taxonomy.measure.protocols.training_system import AVERAGED, SIMULATED, protocol

MLP = datasets.workload("digits-mlp")
NUMBERS = sum(p.numel() for p in MLP.network().parameters())


def technique(subject):
    return SimpleNamespace(settings={}, reference=lambda **_: subject)


def case(subject, setting, seed=0):
    return Case(technique(subject), {}, subject, MLP, setting, seed)


def test_workers_that_send_all_are_their_own_baseline():
    values = protocol.quality(case(Exchange(), {"epochs": 1}))
    own, plain = values["self"], values["baseline"]
    assert own["bytes_sent"] == plain["bytes_sent"] == 4 * NUMBERS and own["gradient_error"] < 1e-6
    assert own["accuracy"] == pytest.approx(plain["accuracy"], abs=0.02)
    assert own["training_peak_bytes"] == own["memory_footprint"] == Missing(SIMULATED)


def test_clients_send_once_a_round_what_gradients_send_at_every_step():
    clients = FederatedAveraging(clients=2, local_epochs=1, concentration=None)
    trials = protocol.trials(technique(clients), {}, MLP)
    assert [(t.setting, t.timing) for t in trials] == [({"epochs": MLP.recipe.epochs}, False)] * 5
    values = protocol.quality(case(clients, {"epochs": 2}))
    steps = -(-(len(MLP.data().train) // 2) // MLP.recipe.batch)
    assert values["self"]["bytes_sent"] == pytest.approx(4 * NUMBERS / steps, rel=0.05)
    assert values["baseline"]["bytes_sent"] == 4 * NUMBERS
    assert values["self"]["gradient_error"] == values["self"]["latency"] == Missing(AVERAGED)


def test_what_a_problem_cannot_say_has_its_reason():
    setting = {"network": "mnist-cnn", "mbit": 100, "budget": 1}
    values = search.protocol.quality(Case(technique(None), {}, SplitInference(), SimpleNamespace(), setting, 0))
    assert values["self"]["regret"] == 0 < values["baseline"]["regret"] and values["self"]["search_cost"] == 1
    assert "radio" in values["self"]["energy"].reason and "no network" in values["self"]["accuracy"].reason


def test_pruned_workers_speak_of_what_is_left_and_zeros_stay_zeros():
    network = bake(MagnitudePruning(0.2).apply(MLP.network(0)))
    masks = {name: p.detach() != 0 for name, p in network.named_parameters() if p.ndim > 1}
    left = sum(int(mask.sum()) for mask in masks.values())
    shared = Masked(network, Exchange(), masks)
    x, y = torch.tensor(MLP.data().train.x[:32]), torch.tensor(MLP.data().train.y[:32])
    nn.functional.cross_entropy(shared.train()(x), y).backward()
    biases = sum(p.numel() for p in network.parameters() if p.ndim == 1)
    assert shared.bytes_sent == 4 * (left + biases)
    found = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    nn.functional.cross_entropy(network(x), y).backward()
    for name, p in network.named_parameters():
        mask = masks.get(name, torch.ones_like(p, dtype=torch.bool))
        assert torch.allclose(found[name][mask], p.grad[mask], atol=1e-6) and (found[name][~mask] == 0).all()
    replace(MLP.recipe, epochs=1).train(shared, MLP.data())
    assert all((p[~masks[name]] == 0).all() for name, p in network.named_parameters() if name in masks)
