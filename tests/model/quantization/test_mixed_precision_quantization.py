"""Mixed precision: traces against torch's whole Hessian, the optimum of a small space, and what a search spends."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

import datasets
from kernels.model.architecture_search.random_search import RandomSearch
from kernels.model.quantization.mixed_precision_quantization import MixedPrecisionQuantization, mean_traces
from kernels.model.quantization.uniform_grid import fit_grid

BITS = datasets.workload("digits-bits")


def test_traces_are_those_of_the_whole_hessian():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    x, y = torch.randn(20, 3), torch.randint(0, 3, (20,))
    weights = {"0": network[0].weight, "2": network[2].weight}
    found = mean_traces(network, weights, x, y, probes=2000, seed=0)
    for path, weight in weights.items():

        def loss(w, path=path):
            return functional.cross_entropy(torch.func.functional_call(network, {f"{path}.weight": w}, (x,)), y)

        hessian = torch.autograd.functional.hessian(loss, weight.detach()).reshape(weight.numel(), -1)
        assert found[path] * weight.numel() == pytest.approx(hessian.trace().item(), rel=0.1)
    again = mean_traces(network, weights, x, y, probes=3, seed=1)
    assert again == mean_traces(network, weights, x, y, probes=3, seed=1)
    assert again != mean_traces(network, weights, x, y, probes=3, seed=2)
    assert all(p.grad is None for p in network.parameters())


class Bowl:
    """A loss whose curvature is known: layer a is steep, layer b, of the same weights, nearly flat."""

    def __init__(self, budget_bits):
        torch.manual_seed(0)
        self.network = nn.ModuleDict({"a": nn.Linear(6, 2, bias=False), "b": nn.Linear(6, 2, bias=False)})
        self.network["b"].weight.data = self.network["a"].weight.data.clone()
        self.network.forward = lambda x: 30 * self.network["a"](x) + 0.1 * self.network["b"](x)
        self.workload, self.items, self.limit = self, 50, budget_bits
        self.asked = []

    def fits(self, one):
        return sum(one.values()) <= self.limit

    def sample(self, count):
        chance = torch.Generator().manual_seed(0)
        return 0.05 * torch.randn(count, 6, generator=chance), torch.arange(count) % 2

    def cost(self, one):
        return 1.0

    def evaluate(self, one):
        self.asked.append(dict(one))
        return 0.0


def test_the_steep_layer_gets_the_bits_and_the_distance_alone_cannot_know():
    task = Bowl(budget_bits=10)
    space = {"a": (2, 4, 6, 8), "b": (2, 4, 6, 8)}
    found, history = MixedPrecisionQuantization(items=40).search(space, task, budget=40, seed=0)
    assert found == task.asked[0] == {"a": 8, "b": 2}, "of equal scores the first in the ranking"
    assert len(history) == sum(task.fits({"a": a, "b": b}) for a, b in itertools.product((2, 4, 6, 8), repeat=2))
    blind = Bowl(budget_bits=10)
    MixedPrecisionQuantization("distance").search(space, blind, budget=1, seed=0)
    assert blind.asked[0]["a"] + blind.asked[0]["b"] == 10 and blind.asked[0] != {"a": 8, "b": 2}


def test_the_ranking_is_that_of_omega():
    space, task = {"a": (2, 3, 8), "b": (2, 3, 8)}, Bowl(budget_bits=100)
    weights = {path: task.network[path].weight for path in space}
    traces = mean_traces(task.network, weights, *task.sample(40), probes=4, seed=3)
    MixedPrecisionQuantization(items=40).search(space, task, budget=100, seed=3)

    def omega(one):
        total = 0.0
        for path, bits in one.items():
            w = weights[path].detach()
            total += traces[path] * ((fit_grid(w, bits, symmetric=True).round(w) - w) ** 2).sum().item()
        return total

    values = [omega(one) for one in task.asked]
    assert values == sorted(values) and len(values) == 9


def test_what_is_spent_is_counted_and_the_budget_is_kept():
    task = Bowl(budget_bits=100)
    space = {"a": (2, 4), "b": (2, 4)}
    _, history = MixedPrecisionQuantization(probes=2, items=10).search(space, task, budget=5, seed=0)
    assert [spent for _, _, spent in history] == pytest.approx([2 + n for n in (1, 2, 3)]), (
        "5 passes, 2 x 10 of 50 items"
    )
    with pytest.raises(ValueError, match="budget: 2 evaluations do not pay for the probes"):
        MixedPrecisionQuantization(probes=2, items=10).search(space, task, budget=2, seed=0)
    with pytest.raises(ValueError, match="space: expected at most 100000 assignments to rank"):
        MixedPrecisionQuantization().search({str(i): (2, 3, 4, 8) for i in range(12)}, task, budget=5, seed=0)
    for parameters in ({"guide": "chance"}, {"probes": 0}, {"items": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(parameters))}: expected"):
            MixedPrecisionQuantization(**parameters)


@pytest.fixture(scope="module")
def few():
    """The workload with fewer items, so that all assignments are evaluated in a moment."""
    from datasets.workloads.digits_bits import BitsWorkload

    whole = BITS.workload.data()
    data = datasets.Data("few", whole.train, whole.validation[:80], whole.test[:40], whole.classes)
    source = SimpleNamespace(trained=BITS.workload.trained, data=lambda: data)
    return BitsWorkload("few", source, (2, 3, 8), 3.0)


def test_the_workload_is_what_it_says(few):
    assert few.fits({"0": 8, "3": 3, "7": 2, "12": 8}) and not few.fits({"0": 2, "3": 2, "7": 8, "12": 2})
    lowered = few.lowered(dict.fromkeys(few.space, 8))
    assert few.fits(lowered) and lowered == few.lowered(lowered)
    assert all(few.fits(one) for one in few.every)
    seen = few.half(0)
    assert seen.sum() == 40 and (few.half(0) == seen).all() and (few.half(1) != seen).any()
    best = max(few.every, key=lambda one: few.right(one)[0][~seen].mean())
    assert few.regret(best, 0) == 0 and all(few.regret(one, 0) >= 0 for one in few.every)
    network = few.workload.trained()
    for path, bits in best.items():
        layer = network.get_submodule(path)
        matrix = layer.weight.detach().flatten(1)
        layer.weight.data = fit_grid(matrix, bits, symmetric=True).round(matrix).reshape(layer.weight.shape)
    assert few.figures(best, 0)["accuracy"] == datasets.accuracy(network, few.data.test)
    codes = sum(few.sizes[path] * bits for path, bits in best.items())
    assert few.figures(best, 0)["stored_bits"] == codes + 32 * (15418 - 15248 + 16 + 32 + 32 + 10)
    with pytest.raises(ValueError, match="assignment: expected one of"):
        few.lowered({"0": 5})


@pytest.mark.parametrize("guide", ["trace", "distance", "accuracy"])
def test_searches_keep_to_the_space_and_are_the_same_for_a_seed(few, guide):
    method = MixedPrecisionQuantization(guide)
    budget = 12 if guide != "trace" else 50
    first, again = (method.search(few.space, few.task(1), budget, seed=1) for _ in range(2))
    assert first == again and first[1][-1][2] <= budget
    blind, _ = RandomSearch().search(few.space, few.task(1), 6, seed=1)
    if guide != "accuracy":
        assert few.fits(first[0]) and few.task(1).evaluate(first[0]) >= few.task(1).evaluate(blind) - 0.05
