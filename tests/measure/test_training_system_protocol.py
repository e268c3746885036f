"""The training-system protocol: it sees what a system saves, and would see what it got wrong."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from datasets import Data, Recipe, Split, Workload, accuracy
from kernels.implementation.distributed.data_parallel import DataParallel
from kernels.implementation.distributed.pipeline_parallel import PipelineParallel
from kernels.implementation.training_memory.gradient_checkpointing import GradientCheckpointing
from taxonomy.measure.protocol import Case, Missing
from taxonomy.measure.protocols.training_system import DEEP, ITEMS, OneBatch, chain, protocol


def blobs(n, seed):
    random = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return Split(random.normal(size=(n, 1, 4, 4)) + 2 * y[:, None, None, None] - 1, y)


def network():
    hidden = (module for _ in range(8) for module in (nn.Linear(16, 16), nn.Sigmoid()))
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(16, 2))


WORKLOAD = Workload(
    "blobs", network, Data("blobs", blobs(96, 0), blobs(16, 1), blobs(50, 2), 2), Recipe(epochs=8, batch=32)
)


class Plain:
    def run(self, recipe, network, data):
        network = copy.deepcopy(network)
        return network, recipe.train(network, data)


class Doubling(Plain):
    """Gets every gradient wrong, by a factor of two."""

    def run(self, recipe, network, data):
        network = copy.deepcopy(network)
        for parameter in network.parameters():
            parameter.register_hook(lambda gradient: 2 * gradient)
        return network, recipe.train(network, data)


def quality(subject, setting=None, seed=0):
    return protocol.quality(Case(SimpleNamespace(settings={}), {}, subject, WORKLOAD, setting or {"epochs": 2}, seed))


def test_the_plain_recipe_is_its_own_baseline():
    values = quality(Plain())
    own, plain = values["self"], values["baseline"]
    assert own.pop("bytes_sent") == Missing("one process: nothing is sent")
    assert own == plain and own["gradient_error"] == 0
    numbers = 8 * (16 * 16 + 16) + 2 * 16 + 2
    assert own["memory_footprint"] - own["training_peak_bytes"] == 4 * 4 * numbers
    assert own["training_peak_bytes"] >= 4 * 32 * 16 * 8  # what eight sigmoids keep
    trained = WORKLOAD.network(seed=0)
    replace(WORKLOAD.recipe, epochs=2).train(trained, WORKLOAD.data())
    assert own["accuracy"] == accuracy(trained, WORKLOAD.data().test)


def test_a_wrong_gradient_is_seen():
    assert quality(Doubling())["self"]["gradient_error"] == pytest.approx(1)


def test_checkpointing_saves_memory_and_changes_nothing():
    for setting in ({"epochs": 2}, DEEP):
        values = quality(GradientCheckpointing(4), setting, seed=1)
        assert values["self"]["gradient_error"] == 0
        assert values["self"]["training_peak_bytes"] < 0.8 * values["baseline"]["training_peak_bytes"]
        assert values["self"].get("accuracy") == values["baseline"].get("accuracy")


def test_one_batch_updates_nothing():
    net, recipe = network(), OneBatch(batch=32)
    before = copy.deepcopy(net.state_dict())
    assert recipe.train(net, WORKLOAD.data()) == []
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert recipe.gradient.numel() == sum(p.numel() for p in net.parameters()) and recipe.network is net


def test_a_timed_step_starts_from_no_gradient():
    contest = protocol.contest(
        Case(SimpleNamespace(settings={}), {}, GradientCheckpointing(2), WORKLOAD, {"batch": 32}, 0)
    )
    assert contest.contestants.keys() == {"self", "baseline"} and contest.work == 32
    recipe = OneBatch(batch=32)
    recipe.train(network(), WORKLOAD.data())
    step, once = recipe.step(), recipe.gradient
    step(), step()
    again = torch.cat([p.grad.flatten().double() for p in recipe.network.parameters()])
    torch.testing.assert_close(again, once)


def test_the_chain_is_as_deep_as_it_says():
    net = chain((3, 8, 8), classes=5, depth=4)
    assert sum(isinstance(m, nn.Conv2d) for m in net) == 4 and net(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


def test_trials_train_a_quarter_of_the_recipe():
    trials = protocol.trials(None, {}, WORKLOAD)
    assert [t.setting for t in trials if not t.timing] == [{"epochs": 2}] * 5 + [DEEP]
    assert [t.setting for t in trials if t.timing] == [{"batch": 32}] * 5 + [DEEP] * 5


def test_a_system_says_what_it_keeps_and_its_own_update_is_timed():
    class Frugal(Plain):
        used: list = []  # noqa: RUF012

        def resident_bytes(self, network):
            return 1000

        def optimizer(self, parameters, **options):
            self.used.append(options)
            return torch.optim.SGD(parameters, **options)

    own = quality(Frugal())["self"]
    assert own["memory_footprint"] == 1000 + own["training_peak_bytes"]
    case = Case(SimpleNamespace(settings={}), {}, Frugal(), WORKLOAD, {"batch": 8}, 0)
    contest = protocol.contest(case)
    assert Frugal.used == [{"lr": WORKLOAD.recipe.learning_rate}]
    for call in contest.contestants.values():
        call()


def test_several_processes_are_measured_where_they_run():
    numbers = sum(p.numel() for p in network().parameters())
    values = quality(DataParallel(2), {"epochs": 2, "items": 64})
    own, plain = values["self"], values["baseline"]
    assert own["gradient_error"] < 1e-5 and own["bytes_sent"] == 4 * numbers
    assert own["memory_footprint"] - own["training_peak_bytes"] == 4 * 4 * numbers
    assert own["training_peak_bytes"] < plain["training_peak_bytes"] and "core_utilization" not in own
    assert own["accuracy"] == pytest.approx(plain["accuracy"], abs=0.05)
    deep = quality(PipelineParallel(2), DEEP)["self"]
    assert 0 < deep["core_utilization"] < 1 and "accuracy" not in deep


def test_several_processes_are_timed_with_their_update_and_train_on_fewer_items():
    case = Case(SimpleNamespace(settings={}), {}, DataParallel(2), WORKLOAD, {"batch": 32}, 0)
    contest = protocol.contest(case)
    before = contest.contestants["self"].look().gradient
    for call in contest.contestants.values():
        call()
    assert contest.work == 32 and not torch.equal(contest.contestants["self"].look().gradient, before)
    contest.contestants["self"].team.close()
    technique = SimpleNamespace(reference=DataParallel)
    trials = protocol.trials(technique, {"workers": 2}, WORKLOAD)
    assert [t.setting for t in trials if not t.timing] == [{"epochs": 2, "items": ITEMS}] * 5 + [DEEP]
