"""Plans beside a search through every offset, and lives beside storages that torch makes and reads."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kernels.counting import peak_activation_bytes
from kernels.implementation.compilation.plan import Life, place
from kernels.implementation.dataflow.layer import Layer
from kernels.implementation.memory.memory_planning import (
    METHODS,
    MemoryPlanning,
    chain,
    lives_of,
    most_alive,
    patches,
    place_exactly,
)


def meet(a: Life, b: Life) -> bool:
    return a.first <= b.last and b.first <= a.last


def fits(lives: list[Life], size: int, put: tuple[int, ...] = ()) -> bool:
    """Whether some whole-numbered offsets will do: all of them are tried, buffer by buffer."""
    if len(put) == len(lives):
        return True
    one = lives[len(put)]
    return any(
        all(not meet(one, o) or at + one.size <= p or p + o.size <= at for o, p in zip(lives, put, strict=False))
        and fits(lives, size, (*put, at))
        for at in range(size - one.size + 1)
    )


def random_lives(most: int, sizes: int, span: int = 8):
    made = st.builds(
        lambda size, first, more: Life(size, first, first + more),
        st.integers(0, sizes), st.integers(0, span), st.integers(0, 4),
    )  # fmt: skip
    return st.lists(made, max_size=most).map(lambda found: dict(enumerate(found)))


@settings(max_examples=60, deadline=None)
@given(random_lives(7, 4))
def test_the_exact_plan_is_the_smallest_of_all(lives):
    plan = place_exactly(lives)
    assert plan.proved
    assert fits(list(lives.values()), plan.size)
    assert plan.size == most_alive(lives) or not fits(list(lives.values()), plan.size - 1)


@settings(max_examples=150, deadline=None)
@given(random_lives(12, 40), st.sampled_from(METHODS[:3]), st.sampled_from([1, 4, 16]))
def test_what_lives_at_one_time_never_overlaps_and_no_plan_beats_the_bound(lives, method, align):
    plan = MemoryPlanning(method, align=align).plan(lives)
    for a, b in combinations(lives, 2):
        if (meet(lives[a], lives[b]) or method == "separate") and lives[a].size and lives[b].size:
            low, high = sorted((a, b), key=lambda k: plan.offsets[k])
            assert plan.offsets[low] + lives[low].size <= plan.offsets[high]
    assert all(at % align == 0 for at in plan.offsets.values())
    sizes = {m: MemoryPlanning(m, align=align).plan(lives).size for m in METHODS}
    assert sizes["bound"] <= sizes["exact"] <= sizes["greedy"] <= sizes["separate"]
    alive = np.zeros(14, int)
    for life in lives.values():
        alive[life.first : life.last + 1] += -(-life.size // align) * align
    assert sizes["bound"] == alive.max()
    assert sizes["separate"] == sum(-(-life.size // align) * align for life in lives.values())


def test_greedy_can_be_beaten_and_the_bound_out_of_reach():
    # of four in a row the two largest lie at the bottom, and the last finds no room between them
    lives = {0: Life(4, 0, 1), 1: Life(3, 1, 2), 2: Life(2, 2, 3), 3: Life(5, 3, 4), 4: Life(1, 0, 4)}
    sizes = {m: MemoryPlanning(m, align=1).plan(lives).size for m in METHODS}
    assert sizes["exact"] == sizes["bound"] == 8 and sizes["greedy"] > 8
    # five are alive at every step, in parts that force each other apart: no five will hold them
    tight = [(2, 0, 0), (3, 0, 1), (1, 1, 2), (2, 2, 2), (1, 1, 3), (1, 2, 3), (3, 3, 4), (2, 4, 4)]
    lives = {k: Life(*part) for k, part in enumerate(tight)}
    plan = place_exactly(lives)
    assert (most_alive(lives), plan.size, plan.proved) == (5, 6, True)
    assert not fits(list(lives.values()), 5)


def test_a_search_that_is_cut_short_says_so():
    rng = np.random.default_rng(0)
    for _ in range(100):
        lives = {k: Life(int(rng.integers(1, 50)), k, k + int(rng.integers(1, 5))) for k in range(15)}
        cut = place_exactly(lives, steps=1)
        assert cut.size <= place(lives, align=1)[1]
        assert not cut.proved or cut.size == most_alive(lives)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.other(torch.relu(self.one(x))) + x)


networks = [
    (nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)), (7,)),
    (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10)), (1, 8, 8)),
    (nn.Sequential(nn.Conv2d(3, 4, 1), Residual(), nn.MaxPool2d(2), Residual()), (3, 9, 9)),
    (nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Sigmoid()), (2, 5, 5)),
]


@pytest.mark.parametrize(("network", "shape"), networks)
def test_lives_are_those_of_torchs_storages(network, shape):
    alive = most_alive(lives_of(network, shape, in_place=False))
    assert 4 * alive == peak_activation_bytes(network, torch.zeros(1, *shape))
    assert most_alive(lives_of(network, shape)) <= alive


def test_in_place_where_nothing_is_read_later():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Residual())
    # a copy of x, of the first convolution and of the second, whose sum with x is written over one of them
    assert sorted(life.size for life in lives_of(network, (3, 6, 6)).values()) == [108, 144, 144, 144]

    class Twice(nn.Module):
        def forward(self, x):
            return torch.relu(x) + x

    lives = lives_of(Twice(), (5,))
    assert len(lives) == 2  # x is read again, so that relu may not write over it; the sum may
    assert most_alive(lives) == 10


def test_a_depthwise_convolution_in_place_needs_one_channel_more():
    network = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8))
    assert most_alive(lives_of(network, (1, 6, 6))) == 9 * 36
    assert most_alive(lives_of(network, (1, 6, 6), in_place=False)) == 16 * 36
    strided = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, 2, padding=1, groups=8))
    assert most_alive(lives_of(strided, (1, 6, 6))) == 8 * (36 + 9)
    # done as the plan has it, channel by channel through that buffer, the result is the same
    x, layer = torch.randn(1, 8, 6, 6), network[1]
    whole, arena = layer(x).detach(), x.clone()
    with torch.no_grad():
        for c in range(8):
            spare = nn.functional.conv2d(arena[:, c : c + 1], layer.weight[c : c + 1], layer.bias[c : c + 1], padding=1)
            arena[:, c] = spare[:, 0]
    assert torch.allclose(arena, whole, atol=1e-6)


def test_a_plan_can_be_executed():
    """Every step reads its operands from an arena that later results overwrite; the answer is torch's."""
    network = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Conv2d(6, 3, 3), nn.Conv2d(3, 5, 3), nn.Conv2d(5, 1, 3))
    lives = lives_of(network, (2, 12, 12))
    plan = MemoryPlanning("exact", align=1).plan(lives)
    arena, x = torch.full((plan.size,), torch.nan), torch.randn(1, 2, 12, 12)
    steps, sizes = sorted(lives), [(2, 12), (6, 10), (3, 8), (5, 6), (1, 4)]
    views = [
        arena[plan.offsets[k] : plan.offsets[k] + lives[k].size].view(1, c, s, s)
        for k, (c, s) in zip(steps, sizes, strict=True)
    ]
    with torch.no_grad():
        views[0].copy_(x)
        for layer, source, target in zip(network, views, views[1:], strict=False):
            target.copy_(layer(source.clone()))
    assert torch.equal(views[-1], network(x)) and plan.size < sum(life.size for life in lives.values())


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_patches_are_as_many_as_torch_unfolds(groups, stride):
    layer = nn.Conv2d(8, 8, 3, stride, padding=1, groups=groups)
    image = torch.zeros(1, 8, 13, 10)
    shape = tuple(layer(image).shape[1:])
    unfolded = nn.functional.unfold(image, 3, padding=1, stride=stride).numel()
    assert patches(layer, shape) == unfolded // groups
    lives = lives_of(nn.Sequential(layer), image.shape[1:], in_place=False, workspace=patches)
    assert most_alive(lives) == image.numel() + int(np.prod(shape)) + unfolded // groups


def test_a_chain_of_layers_and_the_contract():
    layers = [Layer(1, 4, 8, 8, kernel=3), Layer.gemm(1, 10, 144)]
    counts = MemoryPlanning(align=1).cost(layers)
    assert counts.arena == 4 * (64 + 144) and counts.macs == sum(layer.macs for layer in layers)
    assert counts.parameter_bytes == 4 * (36 + 1440)
    assert MemoryPlanning(align=1).cost_gemm(2, 3, 5).arena == 4 * (10 + 6)
    assert [life.size for life in chain([Layer(1, 4, 8, 8, kernel=3), Layer(4, 2, 3, 3)]).values()] == [64, 144, 36, 18]
    assert MemoryPlanning().cost([]).arena == 0 and chain([]) == {}
    assert MemoryPlanning("exact", align=16).plan({0: Life(1, 0, 0)}).size == 16
    figures = counts.figures()
    assert {name for name, value in figures.items() if value is None} == set(MemoryPlanning.missing)
    assert figures["memory_footprint"] == counts.arena + counts.parameter_bytes


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="method: expected one of greedy, exact, separate, bound, got 'best'"):
        MemoryPlanning("best")
    with pytest.raises(ValueError, match="align: expected an integer of at least 1, got 0"):
        MemoryPlanning(align=0)
    with pytest.raises(ValueError, match="format: expected one of int8, int32, fp16, fp32, got 'fp8'"):
        MemoryPlanning(format="fp8")
    with pytest.raises(ValueError, match=r"a size of at least 0 and last >= first, got Life\(.*\) for 3"):
        MemoryPlanning().plan({3: Life(1, 2, 1)})
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn\.Module, got int"):
        lives_of(3, (1,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="layers: expected Layer objects, got int"):
        MemoryPlanning().cost([3])  # type: ignore[list-item]

    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"torch\.fx cannot trace Branching"):
        lives_of(Branching(), (3,))

    class Pair(nn.Module):
        def forward(self, x):
            return torch.split(x, 1, 1)[0]

    with pytest.raises(ValueError, match="expected split to be one tensor"):
        lives_of(Pair(), (3,))
