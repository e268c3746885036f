"""The scaling table is what training gives, whole up to its limit, and counted."""

from __future__ import annotations

from itertools import product
from statistics import mean

import pytest
import torch

import datasets
from datasets.workloads import mnist_scaling
from datasets.workloads.recipe import accuracy
from kernels.counting import macs, parameters


@pytest.fixture(scope="module")
def table():
    return datasets.workload("mnist-scaling")


def every(table):
    return [dict(zip(table.space, values, strict=True)) for values in table.entries]


def test_every_network_up_to_the_limit_is_in_the_table_and_no_other(table):
    combinations = [dict(zip(table.space, values, strict=True)) for values in product(*table.space.values())]
    within = [one for one in combinations if mnist_scaling.macs(one) <= mnist_scaling.LIMIT]
    assert every(table) == within == list(mnist_scaling.architectures())
    with pytest.raises(ValueError, match="architecture: expected one value for each choice"):
        table.entry({choice: values[-1] for choice, values in table.space.items()})


def test_counts_are_those_of_the_networks(table):
    """MACs by the closed form, for all; by the counter, for one in ten."""
    for place, architecture in enumerate(every(table)):
        entry, network = table.entry(architecture), mnist_scaling.network(architecture)
        assert (parameters(network), mnist_scaling.macs(architecture)) == (entry.parameters, entry.macs)
        if place % 10 == 0:
            assert macs(network.eval(), torch.zeros(1, 1, 28, 28)) == entry.macs


@pytest.mark.parametrize("depth, width, resolution, seed", [(3, 8, 7, 0), (3, 9, 8, 1)])
def test_training_one_again_gives_its_row(table, depth, width, resolution, seed):
    """The two smallest; other processors round otherwise, so by a margin."""
    architecture = {"depth": depth, "width": width, "resolution": resolution}
    network = mnist_scaling.trained(architecture, seed)
    data, entry = mnist_scaling.data(), table.entry(architecture)
    assert accuracy(network, data.validation) == pytest.approx(entry.validation[seed], abs=0.05)
    assert accuracy(network, data.test) == pytest.approx(entry.test[seed], abs=0.05)


def test_the_setting_is_hard_enough_to_tell_networks_apart(table):
    means = [mean(entry.validation) for entry in table.entries.values()]
    assert max(means) < 0.97 and max(means) - min(means) > 0.05
    assert len(mnist_scaling.data().train) == 1000 and len(mnist_scaling.data().validation) == 1500


def test_a_record_shows_one_training_and_the_next_another(table):
    shown = [table.task(seed).evaluate(table.best) for seed in (0, 40, 80)]
    assert tuple(shown) == table.entry(table.best).validation and len(set(shown)) > 1
    assert [table.shown(seed) for seed in (0, 39, 40, 80, 120, 160)] == [0, 0, 1, 2, 0, 1]
    assert table.unseen((0.1, 0.2, 0.6), 40) == pytest.approx(0.35)
    assert table.unseen((0.1, 0.2, 0.6)) == pytest.approx(0.3)


def test_training_costs_by_work(table):
    task, twice = table.task(0), {**table.smallest, "depth": 6}
    assert task.cost(table.smallest) == 5
    assert task.cost(twice) == pytest.approx(5 * table.entry(twice).macs / table.entry(table.smallest).macs)
    assert 9 < task.cost(twice) < 10
