"""The mixture at its corners, the gradient of two levels against autograd and a closed form, and what is paid."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

import datasets
from datasets.workloads.digits_search import SPACE
from kernels.model.architecture_search.differentiable_search import DifferentiableSearch, Mixed, alpha_gradient
from kernels.model.architecture_search.supernet import architectures

NARROW = {**SPACE, "first": ("identity",), "second": ("identity", "convolution"), "third": ("identity",)}


@pytest.fixture(scope="module")
def table():
    return datasets.workload("digits-search")


def batch(seed, count=8):
    torch.manual_seed(seed)
    return torch.randn(count, 1, 8, 8), torch.randint(10, (count,))


def test_with_all_of_every_proportion_on_one_value_it_is_that_network():
    torch.manual_seed(0)
    mixed, (x, _) = Mixed(SPACE), batch(1)
    for one in islice(architectures(SPACE), 0, None, 13):
        with torch.no_grad():
            for choice, values in SPACE.items():
                mixed.alpha[choice].copy_(torch.tensor([0.0 if v == one[choice] else -1e4 for v in values]))
        torch.testing.assert_close(mixed(x), mixed(x, one), rtol=1e-4, atol=1e-5)


def test_the_mixture_adds_operations_in_their_proportions():
    torch.manual_seed(0)
    mixed, (x, _) = (
        Mixed({**SPACE, "width": (16,), "norm": (False,), "second": ("identity",), "third": ("identity",)}),
        batch(1),
    )
    with torch.no_grad():
        mixed.alpha["first"].copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        h = mixed.enter(x, 16)
        share = torch.tensor([0.0, 1.0, 2.0, 3.0]).softmax(0)
        op = mixed.operations("first")
        by_hand = share[0] * h + sum(
            part * op[name](h, False) for part, name in zip(share[1:], SPACE["first"][1:], strict=True)
        )
        by_hand = mixed.leave(functional.max_pool2d(by_hand, 4))
    torch.testing.assert_close(mixed(x), by_hand)


class Line(nn.Module):
    """L = (w x - y)^2 and the like: one weight, one proportion, closed forms."""

    def __init__(self):
        super().__init__()
        self.w, self.a = nn.Parameter(torch.tensor(2.0, dtype=torch.float64)), nn.Parameter(torch.tensor(0.5).double())

    def weights(self):
        return [self.w]

    def alphas(self):
        return [self.a]

    def forward(self, x):
        return self.w * self.a * x


def square(out, y):
    return ((out - y) ** 2).mean()


def test_second_order_in_closed_form():
    """L_train = (w a - 1)^2, L_val = (w a - 3)^2 at w = 2, a = 1/2: a step of training is none, and moves with a."""
    line = Line()
    train, validation = ((torch.ones(1).double(), torch.tensor([y]).double()) for y in (1.0, 3.0))
    (first,) = alpha_gradient(line, train, validation, 0.0, square)
    assert float(first) == pytest.approx(2 * (1 - 3) * 2)  # 2 (w a - 3) w
    (second,) = alpha_gradient(line, train, validation, 0.1, square)
    # d w' / d a = -xi (2 w a + 2 (w a - 1)) = -0.2; by the chain another 2 (w a - 3) a times that
    assert float(second) == pytest.approx(-8 + 2 * (1 - 3) * 0.5 * -0.2, rel=1e-6)
    assert line.w.item() == 2.0 and line.a.item() == 0.5


def test_second_order_against_autograd_through_the_step():
    torch.manual_seed(0)
    mixed = Mixed({**NARROW, "norm": (False,)}).double()
    train, validation = ((x.double(), y) for x, y in (batch(1), batch(2)))
    rate, names = 0.05, [name for name, _ in mixed.named_parameters() if not name.startswith("alpha.")]
    weights = mixed.weights()
    inner = functional.cross_entropy(mixed(train[0]), train[1])
    steps = torch.autograd.grad(inner, weights, create_graph=True, allow_unused=True)
    moved = {n: w if g is None else w - rate * g for n, w, g in zip(names, weights, steps, strict=True)}
    outer = functional.cross_entropy(functional_call(mixed, moved, (validation[0],)), validation[1])
    exact = torch.autograd.grad(outer, mixed.alphas(), allow_unused=True)
    before = [w.detach().clone() for w in weights]
    found = alpha_gradient(mixed, train, validation, rate)
    plain = alpha_gradient(mixed, train, validation, 0.0)
    chosen = [at for at, choice in enumerate(mixed.alpha) if len(mixed.space[choice]) > 1]
    e, f, p = (torch.cat([grads[at] for at in chosen]) for grads in (exact, found, plain))
    # kinks of the rectifiers lie between the two ends of the difference, so not to many digits
    assert (f - e).norm() < (p - e).norm() / 3
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))


@pytest.mark.parametrize(("order", "cost"), [(1, 2 * 8), (2, 2 * 20)])
def test_ranked_by_the_product_of_proportions_and_paid_by_passes(table, order, cost):
    search, task = DifferentiableSearch(epochs=2, order=order, rate=0.1), table.task(0)
    share, every = search.proportions(NARROW, task, 0), list(architectures(NARROW))
    scores = search.scores(NARROW, task, 0)
    assert search.cost == cost and all(sum(values) == pytest.approx(1) for values in share.values())
    assert sum(2.718281828459045**s for s in scores) == pytest.approx(1)
    best, history = search.search(NARROW, task, cost + 12, 0)
    likeliest = {c: values[max(range(len(values)), key=share[c].__getitem__)] for c, values in NARROW.items()}
    assert best == history[0][0] == history[1][0] == likeliest == every[scores.index(max(scores))]
    assert [spent for _, _, spent in history] == [cost, cost + 12]
    assert replace(search).proportions(NARROW, table.task(3), 0) == share


def test_it_learns_that_a_convolution_is_worth_having_and_width_too(table):
    share = DifferentiableSearch(epochs=6, rate=0.1).proportions(NARROW, table.task(0), 0)
    assert share["second"][1] > 0.6 and share["width"][2] > max(share["width"][:2])


def test_wrong_input_is_named(table):
    for wrong, what in (
        ({"order": 3}, "order: expected 1 or 2"), ({"epochs": 0}, "epochs: expected a positive"),
        ({"rate": 0.0}, "rate: expected a positive number"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=what):
            DifferentiableSearch(**wrong)
    with pytest.raises(ValueError, match="budget: 100 epochs do not pay for the 160"):
        DifferentiableSearch().search(SPACE, table.task(0), 100, 0)
