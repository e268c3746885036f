"""The search table is what training gives, and its optimum is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from statistics import mean

import pytest
import torch

import datasets
from datasets.workloads import digits_search
from kernels.counting import macs, parameters


@pytest.fixture(scope="module")
def search():
    return datasets.workload("digits-search")


def test_every_architecture_is_in_the_table(search):
    architectures = [dict(zip(search.space, values, strict=True)) for values in product(*search.space.values())]
    assert len(architectures) == len(search.entries) == 384
    for architecture in architectures:
        entry = search.entry(architecture)
        assert all(0.05 < accuracy < 1 for accuracy in entry.validation + entry.test)
        assert search.regret(architecture) >= 0
    assert search.regret(search.best) == 0
    assert sum(search.regret(architecture) == 0 for architecture in architectures) == 1


@pytest.mark.parametrize(
    "first, third, width, norm", [("separable", "residual", 8, True), ("identity", "identity", 4, False)]
)
def test_counts_are_those_of_the_network(search, first, third, width, norm):
    architecture = {"first": first, "second": "convolution", "third": third, "width": width, "norm": norm}
    network, entry = digits_search.network(architecture), search.entry(architecture)
    assert parameters(network) == entry.parameters
    assert macs(network, torch.zeros(1, 1, 8, 8)) == entry.macs


def test_training_one_again_gives_its_row(search, monkeypatch):
    """Other processors round otherwise, so by a margin."""
    architecture = {"first": "identity", "second": "convolution", "third": "identity", "width": 8, "norm": True}
    monkeypatch.setattr(digits_search, "SPACE", {choice: (value,) for choice, value in architecture.items()})
    (row,) = digits_search.table()
    entry = search.entry(architecture)
    for seed in digits_search.SEEDS:
        assert row[f"validation_{seed}"] == pytest.approx(entry.validation[seed], abs=0.05)
    assert (row["parameters"], row["macs"], row["epochs"]) == (entry.parameters, entry.macs, entry.epochs)


def test_a_task_shows_one_seed(search):
    shown = {search.task(seed).evaluate(search.best) for seed in range(6)}
    assert shown == set(search.entry(search.best).validation)
    assert mean(shown) == pytest.approx(mean(search.entry(search.best).validation))
    assert search.task(1).cost(search.best) == 12


def test_what_is_not_of_the_space_is_refused(search):
    for wrong in ({}, {**search.best, "width": 5}, {**search.best, "depth": 3}):
        with pytest.raises(ValueError, match="architecture: expected one value for each choice"):
            search.entry(wrong)


def test_a_readers_own_table():
    entry = digits_search.Entry((0.5, 0.7), (0.6, 0.6), 10, 20, 3)
    own = digits_search.SearchWorkload("own", {"x": (1, 2)}, {(1,): entry, (2,): replace(entry, validation=(0.4, 0.9))})
    assert own.best == {"x": 2} and own.regret({"x": 1}) == pytest.approx(0.05) and own.task(3).seed == 1
    assert own.regret({"x": 1}, seed=0) == pytest.approx(0.2) and own.regret({"x": 1}, seed=3) == 0
    with pytest.raises(ValueError, match="does not show"):
        own.unseen((0.5,), seed=0)
