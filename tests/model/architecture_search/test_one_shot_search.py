"""A supernet is each of its networks, weight by weight; what is ranked, trained and paid is what the search says."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

import datasets
from datasets.workloads import Recipe
from datasets.workloads.digits_search import SPACE, network
from kernels.model.architecture_search.one_shot_search import OneShotSearch
from kernels.model.architecture_search.supernet import (
    Paths,
    Residual,
    Supernet,
    architectures,
    inherited_scores,
    plain,
    recalibrated,
    share_right,
    uniform,
)

SMALL = {
    **SPACE,
    "first": ("identity",),
    "second": ("convolution",),
    "third": ("identity", "separable"),
    "norm": (True,),
}


@pytest.fixture(scope="module")
def table():
    return datasets.workload("digits-search")


@pytest.fixture(scope="module")
def data():
    return datasets.load("noisy-digits")


@pytest.fixture()
def supernet():
    torch.manual_seed(0)
    drawn = Supernet(SPACE)
    with torch.no_grad():
        for name, parameter in drawn.named_parameters():
            if "norm" in name:  # ones and zeros would hide a slice that is off
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    return drawn


def test_every_network_of_the_space_computes_what_the_supernet_does_for_it(supernet):
    x = torch.randn(6, 1, 8, 8)
    for architecture in architectures(SPACE):
        alone = supernet.child(architecture).train()  # norms by the batch, as in the supernet
        torch.testing.assert_close(alone(x), supernet(x, architecture), rtol=1e-4, atol=1e-5)


def test_a_network_by_itself_is_that_of_the_space():
    """The same layers in the same order, and with the same weights the same answers."""
    x = torch.randn(3, 1, 8, 8)
    for architecture in architectures(SPACE):
        mine, theirs = plain(architecture), network(architecture)
        theirs.load_state_dict(mine.state_dict())
        assert repr(mine) == repr(theirs) and torch.equal(mine(x), theirs(x))


def test_share_of_right_answers_is_the_houses_accuracy(data):
    one = plain({"first": "residual", "second": "identity", "third": "separable", "width": 8, "norm": True})
    assert share_right(one, data.validation) == datasets.workloads.accuracy(one, data.validation)


def test_an_update_of_a_path_moves_the_weights_on_it_and_no_other(supernet, data):
    path = {"first": "residual", "second": "identity", "third": "separable", "width": 8, "norm": False}
    before = copy.deepcopy(supernet.state_dict())
    Paths(lambda: path).train(supernet, data, Recipe(batch=400, schedule="constant", weight_decay=0.0), 1, 0)
    moved = {name for name, value in supernet.state_dict().items() if not torch.equal(value, before[name])}
    parts = ("stem", "places.first.residual.convolution", "places.third.separable.convolution",
             "places.third.separable.pointwise", "classifier")  # fmt: skip
    assert moved == {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    for name in ("stem.weight", "places.first.residual.convolution.weight"):
        assert torch.equal(supernet.state_dict()[name][8:], before[name][8:])
    assert torch.equal(supernet.state_dict()["classifier.weight"][:, 32:], before["classifier.weight"][:, 32:])


def test_a_path_is_trained_as_the_network_alone_would_be(supernet, data):
    """The same batches, loss and optimizer; at the full width nothing is left out."""
    path = {"first": "convolution", "second": "separable", "third": "residual", "width": 16, "norm": True}
    alone, recipe = supernet.child(path), Recipe(batch=100)
    from dataclasses import replace

    Paths(lambda: path).train(supernet, data, recipe, 2, 3)
    replace(recipe, epochs=2).train(alone, data, seed=3)
    for mine, theirs in zip(supernet.child(path).parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_norms_are_recalibrated_to_the_training_items(supernet, data):
    one = {"first": "convolution", "second": "identity", "third": "identity", "width": 4, "norm": True}
    alone = supernet.child(one)
    weights = [p.detach().clone() for p in alone.parameters()]
    recalibrated(alone, data)
    with torch.no_grad():
        seen = alone[:3](torch.tensor(data.train.x))
    torch.testing.assert_close(alone[3].running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(alone[3].running_var, seen.var((0, 2, 3)))
    assert all(torch.equal(a, b) for a, b in zip(weights, alone.parameters(), strict=True)) and not alone.training


def test_a_teacher_adds_the_cross_entropy_of_its_answers(supernet):
    x, y = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 4])
    one = next(architectures(SPACE))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    logits, answer = supernet(x, one), teacher(x).softmax(1)
    by_hand = functional.cross_entropy(logits, y) - (answer * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(Paths(lambda: one, teacher)(supernet, x, y), by_hand)


def test_drawn_evenly():
    torch.manual_seed(0)
    drawn = [uniform(SPACE) for _ in range(2000)]
    for choice, values in SPACE.items():
        for value in values:
            share = sum(one[choice] == value for one in drawn) / 2000
            assert abs(share - 1 / len(values)) < 4 * (0.25 / 2000) ** 0.5


@pytest.mark.parametrize("sampler", ["uniform", "controller"])
def test_the_first_of_the_ranking_are_trained_for_what_is_left(table, sampler):
    search = OneShotSearch(epochs=4, sampler=sampler, steps=2)
    task = table.task(0)
    scores, every = search.scores(SMALL, task, 0), list(architectures(SMALL))
    order = sorted(range(len(every)), key=lambda at: -scores[at])
    best, history = search.search(SMALL, task, 4 + 25, 0)
    assert [one for one, _, _ in history] == [every[order[0]], every[order[0]], every[order[1]]]
    assert [spent for _, _, spent in history] == [4, 16, 28] and history[0][1] == scores[order[0]]
    assert best == max(history[1:], key=lambda entry: entry[1])[0]
    only, first = search.search(SMALL, task, 4, 0)
    assert only == every[order[0]] and len(first) == 1
    again = OneShotSearch(epochs=4, sampler=sampler, steps=2).scores(SMALL, table.task(3), 0)  # not from the cache?
    assert again == scores


def test_it_learns_and_ranks_better_than_it_did_untrained(table, data):
    narrow = {**SPACE, "first": ("identity",), "third": ("identity",), "second": ("identity", "convolution")}
    search, task = OneShotSearch(epochs=15), table.task(1)
    scores, every = search.scores(narrow, task, 1), list(architectures(narrow))
    assert max(scores) > 0.35 and every[scores.index(max(scores))]["second"] == "convolution"
    torch.manual_seed(1)
    assert max(scores) > max(inherited_scores(Supernet(narrow), data)) + 0.1


def test_inherited_is_the_network_that_was_ranked(table, data, monkeypatch):
    search = OneShotSearch(epochs=2)
    task = SimpleNamespace(data=data, recipe=table.task(0).recipe, workload=SimpleNamespace(space=SMALL))
    task = _Hashed(task)
    scores, every = search.scores(SMALL, task, 5), list(architectures(SMALL))
    for at in (0, 4):
        child = search.inherited(every[at], task, 5)
        assert datasets.workloads.accuracy(child, data.validation[:500]) == scores[at]
    assert any(isinstance(m, Residual) for m in Supernet(SPACE).child({**every[0], "first": "residual"}).modules())


class _Hashed:
    def __init__(self, task):
        self.data, self.recipe, self.workload = task.data, task.recipe, task.workload


def test_wrong_input_is_named(table):
    with pytest.raises(ValueError, match="sampler: expected one of uniform, controller"):
        OneShotSearch(sampler="fair")
    with pytest.raises(ValueError, match="epochs: expected a positive integer"):
        OneShotSearch(epochs=0)
    with pytest.raises(ValueError, match="budget: 59 epochs do not pay for the 60"):
        OneShotSearch().search(SPACE, table.task(0), 59, 0)
    with pytest.raises(ValueError, match="space: expected the choices first, second, third, width, norm"):
        Supernet({"x": (1, 2)})
