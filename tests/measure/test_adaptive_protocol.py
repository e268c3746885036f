"""The adaptive protocol on a module that leaves at a known point: its figures are worked by hand."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from datasets import Data, Recipe, Split, Workload
from kernels.energy import mac_energy
from kernels.model.dynamic_inference.early_exit import EarlyExit
from taxonomy.measure.protocol import Case, Missing
from taxonomy.measure.protocols.adaptive import ITEMS, protocol


def blobs(n, seed):
    random = np.random.default_rng(seed)
    y = np.arange(n) % 3
    return Split(random.normal(size=(n, 6)) + 1.3 * np.eye(3).repeat(2, axis=1)[y], y)


def network():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 3))


WORKLOAD = Workload(
    "blobs", network, Data("blobs", blobs(150, 0), blobs(30, 1), blobs(99, 2), 3), Recipe(epochs=10, learning_rate=0.02)
)
FIRST, LAST = 6 * 8 + 8 * 3, 6 * 8 + 8 * 3 + 8 * 40 + 40 * 3


def case(subject, setting=None, seed=0, peers=(), **settings):
    variant = {"threshold": subject.threshold}
    return Case(SimpleNamespace(settings=settings, peers=peers), variant, subject, WORKLOAD, setting or {}, seed)


def test_figures_by_hand():
    values = protocol.quality(case(EarlyExit(threshold=0.3)))
    module = EarlyExit(threshold=0.3).apply(WORKLOAD.trained(), WORKLOAD.data())
    test = WORKLOAD.data().test
    with torch.no_grad():
        (early, late), entropies = module.exits(torch.tensor(test.x))
    leaves = (entropies[0] < 0.3).numpy()
    assert 0.1 < leaves.mean() < 0.9
    right = np.where(leaves, early.argmax(1), late.argmax(1)) == test.y
    own = values["self"]
    assert own["accuracy"] == pytest.approx(right.mean())
    assert own["macs"] == pytest.approx(leaves.mean() * FIRST + (1 - leaves.mean()) * LAST)
    assert own["energy"] == own["macs"] * mac_energy("fp32")
    assert own["parameters"] == values["baseline"]["parameters"] + 8 * 3 + 3 == 6 * 8 + 8 + 8 * 40 + 40 + 123 + 27
    assert values["baseline"]["macs"] == LAST - 8 * 3
    chance = [float((logits.argmax(1).numpy() == test.y).mean()) for logits in (early, late)]
    assert values["random"]["accuracy"] == pytest.approx(leaves.mean() * chance[0] + (1 - leaves.mean()) * chance[1])
    assert values["random"]["macs"] == own["macs"]


def test_nobody_leaves_at_zero():
    values = protocol.quality(case(EarlyExit(threshold=0.0)))
    assert values["self"]["accuracy"] == values["baseline"]["accuracy"] == values["random"]["accuracy"]
    assert values["self"]["macs"] == LAST


def test_a_module_without_exits_has_no_random_contestant():
    class Half:
        threshold = 0.5

        def apply(self, network, data):
            class Module(nn.Module):
                def forward(self, x):
                    return network(x), torch.full((len(x),), 7.0)

            return Module()

    values = protocol.quality(case(Half()))
    assert values.keys() == {"self", "baseline"} and values["self"]["macs"] == 7


def test_variants_that_are_not_timed_say_why():
    technique = {"timed": [{"threshold": 0.1}], "untimed": "because"}
    assert protocol.quality(case(EarlyExit(threshold=0.3), **technique))["self"]["latency"] == Missing("because")
    node = SimpleNamespace(settings=technique)
    timed = protocol.trials(node, {"threshold": 0.1}, WORKLOAD)
    assert [t.setting["batch"] for t in timed if t.timing] == [1] * 5 + [64] * 5
    assert len(protocol.trials(node, {"threshold": 0.3}, WORKLOAD)) == 1


class Whole(nn.Module):
    """The network, which also says under what it was made."""

    def __init__(self, network, first, seed, threshold):
        super().__init__()
        self.network, self.first, self.seed, self.threshold = network, first, seed, threshold

    def forward(self, x):
        return self.network(x), torch.full((len(x),), 1000 * self.threshold + self.seed)


@dataclass(frozen=True)
class Ordered:
    """Learns in the order of the training items."""

    threshold: float = 0.5
    taught: ClassVar[list] = []

    def apply(self, network, data):
        self.taught.append(data.train.x[0])
        assert sorted(map(tuple, data.train.x)) == sorted(map(tuple, WORKLOAD.data().train.x))
        return Whole(network, data.train.x[0], 0, self.threshold)


@dataclass(frozen=True)
class Seeded(Ordered):
    seed: int = 0
    taught: ClassVar[list] = []

    def apply(self, network, data):
        assert (data.train.x == WORKLOAD.data().train.x).all()
        self.taught.append(self.seed)
        return Whole(network, None, self.seed, self.threshold)

    def fixed(self):
        return Seeded(self.threshold + 1, self.seed)


def test_each_order_is_a_record_and_the_first_is_that_of_the_data():
    trials = protocol.trials(SimpleNamespace(settings={"orders": 5, "timed": []}), {"threshold": 0.5}, WORKLOAD)
    assert [(trial.seed, trial.timing) for trial in trials] == [(seed, False) for seed in range(5)]
    for seed in range(3):
        protocol.quality(case(Ordered(), seed=seed))
    first, *others = Ordered.taught
    assert (first == WORKLOAD.data().train.x[0]).all()
    assert not any((first == other).all() for other in others) and not (others[0] == others[1]).all()


def test_a_slow_workload_may_be_given_the_first_variant_alone():
    settings = {"orders": 2, "timed": [], "first_only": ["blobs"]}
    node = SimpleNamespace(settings=settings, variants=[{"threshold": 0.5}, {"threshold": 0.3}])
    assert [len(protocol.trials(node, variant, WORKLOAD)) for variant in node.variants] == [2, 0]


def test_a_technique_with_a_seed_gets_it_and_so_do_its_peers():
    values = protocol.quality(case(Seeded(), seed=3, peers=("random", "fixed")))
    assert values.keys() == {"self", "baseline", "fixed"}
    assert values["self"]["macs"] == 503 and values["fixed"]["macs"] == 1503


def test_a_dial_is_turned_on_one_network():
    before = len(Seeded.taught)
    found = [protocol.quality(case(Seeded(t), seed=9, dial="threshold"))["self"]["macs"] for t in (0.25, 0.5, 0.75)]
    assert found == [259, 509, 759] and Seeded.taught[before:] == [9]


@pytest.mark.parametrize("batch", [1, 64])
def test_both_run_the_same_items(batch):
    contest = protocol.contest(case(EarlyExit(), {"batch": batch}))
    assert contest.work == ITEMS and contest.contestants.keys() == {"self", "baseline"}
    for call in contest.contestants.values():
        call()
