"""The optimal schedule costs what Griewank and Walther prove, no schedule costs less, and it is what really runs."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import nn

from kernels.counting import training_peak_bytes
from kernels.implementation.training_memory.gradient_checkpointing import GradientCheckpointing
from kernels.implementation.training_memory.revolve import advances, fewest_advances


def test_it_is_the_closed_form():
    for n in range(1, 60):
        for slots in range(8):
            assert advances(n, slots) == fewest_advances(n, slots)


def fewest_by_search(n, slots):
    """Breadth first over all that a machine can do with layers 0..n and so many places: keep, advance, go back."""
    start = (0, frozenset(), n)  # where the state at hand is, which states are kept, layers still to go back through
    costs, frontier = {start: 0}, {0: [start]}
    cost = 0
    while True:
        while frontier.get(cost):
            at, kept, left = state = frontier[cost].pop()
            if costs[state] < cost:
                continue
            if left == 0:
                return cost
            moves = [(0, (origin, kept, left)) for origin in (0, *kept)]
            moves += [(0, (at, kept - {k}, left)) for k in kept]
            if at and at < left and len(kept) < slots:
                moves.append((0, (at, kept | {at}, left)))
            if at < left - 1:
                moves.append((1, (at + 1, kept, left)))
            if at == left - 1:
                moves.append((0, (0, kept, left - 1)))
            for price, reached in moves:
                if cost + price < costs.get(reached, 1 << 30):
                    costs[reached] = cost + price
                    frontier.setdefault(cost + price, []).append(reached)
        cost += 1


@pytest.mark.parametrize("n", range(1, 9))
@pytest.mark.parametrize("slots", [0, 1, 2, 3])
def test_no_schedule_is_cheaper(n, slots):
    """What a machine may keep is searched exhaustively; the state that is at hand needs no place."""
    assert fewest_by_search(n, slots) == advances(n, slots)


class Counted(nn.Module):
    runs = 0

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        Counted.runs += 1
        return torch.sigmoid(self.layer(x))


@pytest.mark.parametrize(("n", "slots"), [(1, 1), (2, 1), (7, 1), (12, 2), (20, 3), (20, 30)])
def test_layers_run_as_often_as_it_says_and_gradients_are_those_of_plain_training(n, slots):
    torch.manual_seed(0)
    chain, x = nn.Sequential(*(Counted(4) for _ in range(n))), torch.randn(3, 4)
    chain(x).sum().backward()
    expected = [p.grad.clone() for p in chain.parameters()]
    chain.zero_grad()
    Counted.runs = 0
    GradientCheckpointing(slots=slots).wrap(chain)(x).sum().backward()
    assert Counted.runs == n + advances(n, slots)
    assert all(torch.equal(p.grad, e) for p, e in zip(chain.parameters(), expected, strict=True))


def test_memory_is_that_of_the_states_kept_and_not_of_the_depth():
    width, batch = 32, 16

    @cache
    def peak(depth, slots):
        chain = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Sigmoid()) for _ in range(depth)))
        subject = chain if slots is None else GradientCheckpointing(slots=slots).wrap(chain)
        x = torch.randn(batch, width)
        return training_peak_bytes(chain, lambda: subject(x).sum().backward()) / (4 * width * batch)

    assert peak(64, None) > 60
    for slots in (1, 3, 6):
        assert peak(64, slots) <= slots + 7  # the states, and what one layer's backward pass needs
    assert all(peak(64, a) < peak(64, b) for a, b in pairwise((1, 3, 6)))
    assert peak(32, 3) == peak(64, 3)


def test_bad_slots_are_named():
    for bad in (0, -1, 1.5):
        with pytest.raises(ValueError, match="slots: expected None or a positive number of states"):
            GradientCheckpointing(slots=bad)
