"""Automated pruning: rounds worked by hand, the optimum of a small space, and a limit that nothing exceeds."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

import datasets
from datasets.workloads.noisy_digits_ratios import RatiosWorkload, narrowed
from kernels import counting
from kernels.model.architecture_search.random_search import RandomSearch
from kernels.model.pruning.automated_pruning import AutomatedPruning, bounded, energy, proposal
from kernels.model.pruning.channels import Channels
from taxonomy.measure.figures import traffic

RATIOS = datasets.workload("noisy-digits-ratios")


class Toy:
    """Two layers whose resources are products of widths, as those of convolutions are, and whose worth is a table's."""

    def __init__(self, limit, worth=None, steps=(1, 2, 3, 4)):
        self.space, self.limit, self.problem = {"a": steps, "b": steps}, limit, self
        self.worth = worth or (lambda one: one["a"] + 2 * one["b"])
        self.asked = []

    def parts(self, one):
        return {"a": one["a"], "b": one["a"] * one["b"]}

    def taken(self, one):
        return sum(self.parts(one).values())

    def fits(self, one, limit=None):
        return self.taken(one) <= (self.limit if limit is None else limit)

    def lowered(self, one, limit=None):
        found = dict(one)
        for layer in itertools.cycle(found):
            if self.fits(found, limit):
                return found
            found[layer] = max(1, found[layer] - 1)

    def cost(self, one):
        return 1.0

    def accuracy(self, one):
        self.asked.append(tuple(one.values()))
        return self.worth(one)

    def every(self):
        every = itertools.product(*self.space.values())
        return [one for values in every if self.fits(one := dict(zip("ab", values, strict=True)))]


def test_rounds_of_netadapt_worked_by_hand():
    """From (4, 4), which takes 4 + 16 = 20, to at most 8 in two rounds: first to 14, then to 8."""
    toy = Toy(limit=8)
    found, history = AutomatedPruning().search(toy.space, toy, budget=4, seed=0)
    # to 14: a = 2 gives 2 + 8 = 10, for a = 3 is 15; b = 2 gives 4 + 8 = 12. Worth 2 + 8 and 4 + 4: the first is kept.
    # to 8: a = 1 gives 1 + 4 = 5; b = 3 gives 2 + 6 = 8. Worth 1 + 8 and 2 + 6: the first again.
    assert toy.asked == [(2, 4), (4, 2), (1, 4), (2, 3)]
    assert found == {"a": 1, "b": 4} and [score for _, score, _ in history] == [10, 8, 9, 8]
    assert [spent for *_, spent in history] == [1, 2, 3, 4]


def test_netadapt_finds_the_optimum_of_the_toy_and_may_miss_one_that_greed_cannot_reach():
    toy = Toy(limit=8)
    best = max(map(toy.worth, toy.every()))
    found, _ = AutomatedPruning().search(toy.space, toy, budget=6, seed=0)
    assert toy.worth(found) == best
    trap = Toy(limit=8, worth=lambda one: 9 if tuple(one.values()) == (4, 1) else one["a"] + 2 * one["b"] - 10)
    found, _ = AutomatedPruning().search(trap.space, trap, budget=8, seed=0)
    assert trap.worth(found) < max(map(trap.worth, trap.every())) == 9


def test_where_no_layer_alone_saves_a_step_all_are_narrowed():
    toy = Toy(limit=2)  # only (1, 1); from (4, 4) no single layer saves 18
    found, history = AutomatedPruning().search(toy.space, toy, budget=2, seed=0)
    assert found == {"a": 1, "b": 1} and len(history) == 1
    assert proposal(toy, {"a": 4, "b": 4}, "a", toy.space["a"], 4) is None
    assert proposal(toy, {"a": 4, "b": 4}, "a", toy.space["a"], 5) == {"a": 1, "b": 4}


def test_what_fits_already_is_evaluated_once_and_kept():
    for strategy in ("netadapt", "costliest", "uniform"):
        toy = Toy(limit=20)
        found, history = AutomatedPruning(strategy).search(toy.space, toy, budget=4, seed=0)
        assert found == {"a": 4, "b": 4} and len(history) == 1


def test_the_costliest_layer_is_narrowed_first_as_long_as_accuracy_bears_it():
    toy = Toy(limit=10, worth=lambda one: one["b"] / 100 + one["a"])
    found, history = AutomatedPruning("costliest", tolerance=0.015).search(toy.space, toy, budget=20, seed=0)
    # b, with 16 of 20, goes to 3; 2 is too much, and so is a = 3; at 0.03, b goes to 2 and 1: 8 fit
    assert [tuple(one.values()) for one, *_ in history] == [(4, 4), (4, 3), (4, 2), (3, 3), (4, 2), (4, 1)]
    assert found == {"a": 4, "b": 1}
    short = Toy(limit=10, worth=toy.worth)
    found, history = AutomatedPruning("costliest").search(short.space, short, budget=3, seed=0)
    assert found == short.lowered({"a": 4, "b": 3}) and len(history) <= 3 and short.fits(found)


def test_draws_are_bounded_so_that_the_rest_can_keep_the_limit():
    toy = Toy(limit=8)
    assert bounded(toy, toy.space, {"a": 4, "b": 4}) == {"a": 4, "b": 1}
    assert bounded(toy, toy.space, {"a": 2, "b": 4}) == {"a": 2, "b": 3}
    assert bounded(toy, toy.space, {"a": 1, "b": 1}) == {"a": 1, "b": 1}
    for drawn in itertools.product(*toy.space.values()):
        one = dict(zip("ab", drawn, strict=True))
        assert toy.fits(bounded(toy, toy.space, one)) and bounded(toy, toy.space, one)["a"] <= one["a"]


def test_the_agent_learns_and_pays_for_each_candidate():
    toy = Toy(limit=8, worth=lambda one: (one["a"] + 2 * one["b"]) / 10)
    found, history = AutomatedPruning("agent").search(toy.space, toy, budget=60, seed=0)
    assert toy.worth(found) == max(map(toy.worth, toy.every())) and len(history) == 60
    assert all(toy.fits(one) for one, *_ in history)


@pytest.fixture(scope="module")
def few():
    """The workload with fewer items and choices, so that all candidates are evaluated in a moment."""
    source = RATIOS.workload
    whole = source.data()
    data = datasets.Data("few", whole.train, whole.validation[:200], whole.test[:40], whole.classes)
    less = SimpleNamespace(
        trained=source.trained, data=lambda: data, input_shape=(1, 8, 8), recipe=SimpleNamespace(finetune=_untrained)
    )
    return RatiosWorkload("few", less, RATIOS.times, (0.25, 0.5, 0.75, 1.0))


def _untrained(network, data, seed):
    network[-1].bias.data += seed


@pytest.mark.parametrize("resource, share", [("latency", 0.6), ("energy", 0.4), ("latency", 0.45)])
@pytest.mark.parametrize("strategy", ["netadapt", "agent", "costliest", "uniform"])
def test_the_limit_is_kept_and_searches_are_the_same_for_a_seed(few, strategy, resource, share):
    method = AutomatedPruning(strategy, resource, share)
    problem = method.restated(few)
    for budget in (3, 7, 20):
        first, again = (method.search(problem.space, problem.task(1), budget, seed=1) for _ in range(2))
        assert first == again and first[1][-1][2] <= budget
        found = first[0]
        assert problem.fits(found) and found in problem.every and found == problem.lowered(found)
        assert found in [one for one, *_ in first[1]]
        assert problem.regret(found, 1) >= 0
        whole = problem.taken(dict.fromkeys(problem.space, 1.0))
        assert problem.figures(found, 1)[resource] <= share * whole
    blind, _ = RandomSearch().search(problem.space, problem.task(1), 4, seed=1)
    assert problem.fits(problem.lowered(blind))


def test_the_optimum_is_that_of_the_whole_space(few):
    problem = few.under("latency", 0.6)
    every = [dict(zip(few.space, shares, strict=True)) for shares in itertools.product(few.choices, repeat=3)]
    assert problem.every == [one for one in every if sum(few.latency(one).values()) <= problem.limit]
    unseen = ~few.half(0)
    best = max(problem.every, key=lambda one: few.right(one)[unseen].mean())
    assert problem.regret(best, 0) == 0 and all(problem.regret(one, 0) >= 0 for one in problem.every)
    assert few.half(0).sum() == 100 and (few.half(0) != few.half(1)).any()
    narrow = few.under("latency", 0.4)
    assert len(narrow.every) < len(problem.every) and few.limit == few.under("latency", 0.6).limit
    everything = AutomatedPruning(share=1.0)
    assert everything.search(few.space, few.under("latency", 1.0).task(0), 3, 0)[0] == every[-1]


@pytest.mark.parametrize("shares", [(0.25, 0.5, 0.75), (1.0, 0.25, 1.0), (0.5, 1.0, 0.25)])
def test_narrowed_networks_are_those_that_lose_the_filters_of_smallest_norm(shares):
    one = dict(zip(RATIOS.space, shares, strict=True))
    whole = RATIOS.workload.trained()
    channels = Channels(whole, torch.zeros(1, 1, 8, 8))
    kept, removed = {}, []
    for group, (path, share) in zip(channels.groups, one.items(), strict=True):
        norms = whole.get_submodule(path).weight.detach().abs().sum((1, 2, 3))
        kept[path] = sorted(norms.topk(round(share * len(group))).indices.tolist())
        removed += [unit for i, unit in enumerate(group.units) if i not in kept[path]]
    smaller, found = channels.without(whole, removed), narrowed(whole, kept)
    x = torch.tensor(RATIOS.data.validation.x[:50])
    with torch.no_grad():
        assert torch.equal(smaller(x), found(x))
    network = RATIOS.network(one)
    layers = {name: p.shape for name, p in found.named_parameters()}
    assert {name: p.shape for name, p in network.named_parameters()} == layers
    assert torch.equal(network[0].weight, found[0].weight) and network[1].momentum == whole[1].momentum
    train = torch.tensor(RATIOS.data.train.x)
    with torch.no_grad():
        assert torch.allclose(network[1].running_mean, found[0](train).mean((0, 2, 3)), atol=1e-5)
        assert torch.allclose(network[1].running_var, found[0](train).var((0, 2, 3)), rtol=1e-4)
    parts = RATIOS.sizes(one)
    assert sum(part.macs for part in parts.values()) == counting.macs(found, x[:1])
    assert sum(part.parameters for part in parts.values()) == counting.parameters(found)
    modelled = sum(energy(RATIOS, one).values())
    assert modelled == pytest.approx(traffic(found, RATIOS.workload)["energy"], rel=1e-6)


def test_looked_up_times_predict_those_of_whole_networks():
    import csv

    rows = csv.DictReader((datasets.card.ROOT / "workloads" / "noisy_digits_ratios.csv").read_text().splitlines())
    whole = [row for row in rows if row["part"] == "all"]
    assert len(whole) == 8 and len(RATIOS.times) == 8 + 8 + 64 + 64
    for row in whole:
        measured = min(float(row[f"seconds_{i}"]) for i in range(5))
        predicted = sum(RATIOS.latency(dict.fromkeys(RATIOS.space, int(row["read"]) / 16)).values())
        assert predicted == pytest.approx(measured, rel=0.1)


def test_figures_are_of_the_network_before_and_after_training(few):
    one = {"0": 0.5, "3": 0.25, "7": 0.5}
    figures = few.figures(one, 0)
    network = few.network(one)
    assert figures["accuracy_before_finetuning"] == datasets.accuracy(network, few.data.test) == figures["accuracy"]
    assert figures["macs"] == counting.macs(network, torch.zeros(1, 1, 8, 8))
    assert figures["latency"] == sum(few.latency(one).values()) and "energy" not in figures


def test_bad_input_is_refused(few):
    for parameters in (
        {"strategy": "chance"}, {"resource": "bytes"}, {"share": 0.0}, {"share": 1.5}, {"share": float("nan")},
        {"tolerance": 0.0}, {"tolerance": float("nan")},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(parameters))}: expected"):
            AutomatedPruning(**parameters)
    toy = Toy(limit=8)
    with pytest.raises(ValueError, match="budget: 1 evaluations do not pay for one round of 2 layers"):
        AutomatedPruning().search(toy.space, toy, budget=1, seed=0)
    with pytest.raises(ValueError, match="budget: 1 evaluations do not pay for the whole network"):
        AutomatedPruning("costliest").search(toy.space, toy, budget=1, seed=0)
    for strategy in ("agent", "uniform"):
        with pytest.raises(ValueError, match="budget: 0"):
            AutomatedPruning(strategy).search(toy.space, toy, budget=0, seed=0)
    with pytest.raises(ValueError, match="space: expected at least one layer"):
        AutomatedPruning().search({}, toy, budget=9, seed=0)
    with pytest.raises(ValueError, match="space: expected a share that fits in all layers"):
        AutomatedPruning("uniform").search({"a": (3, 4), "b": (3, 4)}, toy, budget=9, seed=0)
    with pytest.raises(ValueError, match="resource: expected one of latency, got 'energy'"):
        few.under("energy", 0.5)
    with pytest.raises(ValueError, match="share: expected at least"):
        few.under("latency", 0.1)
    with pytest.raises(ValueError, match="candidate: expected one of"):
        few.lowered({"0": 0.3, "3": 1.0, "7": 1.0})
    with pytest.raises(ValueError, match="limit: expected one that the narrowest network fits"):
        few.lowered(dict.fromkeys(few.space, 1.0), limit=1e-9)
