"""The policy gradient by enumeration, one update by hand, and what a controller can and cannot learn."""

from __future__ import annotations

import itertools
from statistics import mean

import pytest
import torch

from kernels.model.architecture_search.random_search import RandomSearch
from kernels.model.architecture_search.reinforcement_search import (
    Factorised,
    Recurrent,
    ReinforcementSearch,
    policy_gradient,
)

SPACE = {"x": ("a", "b"), "y": (0, 1, 2)}
DRAWS = list(itertools.product(range(2), range(3)))


def reward(drawn):
    return 0.3 * drawn[0] + 0.1 * drawn[1] ** 2 - 0.2 * drawn[0] * drawn[1]


def taught(kind):
    """A controller that draws nothing evenly."""
    torch.manual_seed(1)
    controller = kind(SPACE).double()
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return controller


def gradient(controller, value):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(controller.parameters()))])


@pytest.mark.parametrize("kind", [Factorised, Recurrent])
def test_probabilities_of_all_architectures_sum_to_one(kind):
    controller = taught(kind)
    assert sum(controller(list(drawn))[1].exp() for drawn in DRAWS).item() == pytest.approx(1)


@pytest.mark.parametrize("kind", [Factorised, Recurrent])
@pytest.mark.parametrize("baseline", [0.0, 0.37])
def test_the_estimate_is_the_gradient_of_the_expected_reward_in_the_mean(kind, baseline):
    """Exactly, by enumerating what may be drawn: sum of p times the estimate, against autograd of the expectation."""
    controller = taught(kind)
    logps = [controller(list(drawn))[1] for drawn in DRAWS]
    expected = gradient(controller, sum(lp.exp() * reward(d) for lp, d in zip(logps, DRAWS, strict=True)))
    estimates = [
        controller(list(d))[1].exp().item()
        * gradient(controller, -policy_gradient([controller(list(d))[1]], [reward(d)], baseline))
        for d in DRAWS
    ]
    torch.testing.assert_close(sum(estimates), expected)


def test_a_baseline_lowers_the_variance():
    controller = taught(Factorised)
    spread = {}
    for baseline in (0.0, mean(reward(d) + 5 for d in DRAWS)):
        grads = [
            gradient(controller, -policy_gradient([controller(list(d))[1]], [reward(d) + 5], baseline)) for d in DRAWS
        ]
        p = [controller(list(d))[1].exp().item() for d in DRAWS]
        center = sum(w * g for w, g in zip(p, grads, strict=True))
        spread[baseline] = float(sum(w * ((g - center) ** 2).sum() for w, g in zip(p, grads, strict=True)))
    assert min(spread.values()) == spread[max(spread)] < spread[0.0] / 10


def test_one_update_worked_by_hand(monkeypatch):
    """Two values, drawn evenly; 'b' earns 1, the usual is 0.5 after 'a' earned 0.5: only Adam's step is left."""
    drawn = iter([[0], [1]])
    seen = {}

    class Watched(Factorised):
        def forward(self, given=None):
            seen["controller"] = self
            return super().forward(next(drawn, [0]))

    monkeypatch.setitem(ReinforcementSearch.search.__globals__["CONTROLLERS"], "factorised", Watched)

    class Task:
        cost = staticmethod(lambda candidate: 1)
        evaluate = staticmethod(lambda candidate: {"a": 0.5, "b": 1.0}[candidate["x"]])

    ReinforcementSearch(learning_rate=0.1, batch=1).search({"x": ("a", "b")}, Task(), budget=2, seed=0)
    # the first reward is its own baseline: no gradient, no step. The second: (1 - 0.5) * (onehot - p) = (-1/4, 1/4),
    # with Adam's m = 0.1 g / (1 - 0.9^2) and v = 0.001 g^2 / (1 - 0.999^2)
    step = 0.1 * (0.1 / 0.19) / (0.001 / (1 - 0.999**2)) ** 0.5
    (logits,) = seen["controller"].logits
    torch.testing.assert_close(logits.detach(), torch.tensor([-step, step]), rtol=1e-4, atol=0)


def test_only_a_recurrent_controller_can_hold_that_two_choices_go_together():
    """Trained on the exact gradient of a reward that is 1 where both are equal; of independent draws, half of them."""
    space, won = {"x": (0, 1), "y": (0, 1)}, {}
    for kind in (Factorised, Recurrent):
        torch.manual_seed(0)
        controller = kind(space)
        probabilities = {}
        optimizer = torch.optim.Adam(controller.parameters(), lr=0.05)
        for _ in range(60):
            probabilities = {d: controller(list(d))[1].exp() for d in itertools.product((0, 1), repeat=2)}
            optimizer.zero_grad()
            (-probabilities[0, 0] - probabilities[1, 1]).backward()
            optimizer.step()
        won[kind] = (probabilities[0, 0] + probabilities[1, 1]).item()
    assert won[Factorised] == pytest.approx(0.5) and won[Recurrent] > 0.95


class OneMax:
    cost = staticmethod(lambda candidate: 12)
    evaluate = staticmethod(lambda candidate: sum(candidate.values()) / 30)


@pytest.mark.parametrize(("controller", "rate"), [("factorised", 0.1), ("recurrent", 0.03)])
def test_it_beats_random_search_where_choices_add_up_and_repeats_itself(controller, rate):
    bits, tries = (30, 300) if controller == "factorised" else (8, 150)
    space = {f"bit {i}": (0, 1) for i in range(bits)}
    search = ReinforcementSearch(controller, learning_rate=rate)
    best, history = search.search(space, OneMax(), 12 * tries, 3)
    random, _ = RandomSearch().search(space, OneMax(), 12 * tries, 3)
    assert sum(best.values()) >= sum(random.values()) and len(history) == tries
    late, early = (mean(score for _, score, _ in part) for part in (history[-30:], history[:30]))
    assert late > early + 0.02
    assert search.search(space, OneMax(), 240, 3) == search.search(space, OneMax(), 240, 3)


def test_wrong_input_is_named():
    for wrong, what in (
        ({"controller": "lstm"}, "controller: expected one of factorised, recurrent"),
        ({"learning_rate": 0.0}, "learning_rate: expected a positive"),
        ({"batch": 0}, "batch: expected a positive integer"), ({"decay": 1.0}, "decay: expected a number from 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=what):
            ReinforcementSearch(**wrong)
    with pytest.raises(ValueError, match="budget: 11 epochs do not pay"):
        ReinforcementSearch().search({"x": (0, 1)}, OneMax(), 11, 0)
    with pytest.raises(ValueError, match="space: expected at least one choice"):
        ReinforcementSearch().search({}, OneMax(), 11, 0)
