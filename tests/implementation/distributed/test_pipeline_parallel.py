"""Pipelines: the gradient of one process, bytes and waiting by closed form, and activations that do not pile up."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import datasets
from kernels.implementation.distributed.pipeline_parallel import (
    SCHEDULES,
    PipelineParallel,
    balance,
    bubble,
    orders,
    simulate,
)
from kernels.implementation.distributed.workers import WorkerFailed

RECIPE = datasets.Recipe(epochs=2, batch=24)


def network(depth=3, width=12, norm=False):
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(64, width)]
    for _ in range(depth - 2):
        layers += [*([nn.BatchNorm1d(width)] if norm else []), nn.Tanh(), nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.Sequential(nn.Tanh(), nn.Linear(width, 10)))


def batch(n):
    split = datasets.load("digits").train[:n]
    return torch.tensor(split.x), torch.tensor(split.y)


def plain(net, x, y):
    net.train()
    RECIPE.loss(net, x, y).backward()
    return torch.cat([p.grad.flatten().double() for p in net.parameters()])


def error(own, expected):
    return float((own - expected).norm() / expected.norm())


def look(system, net, x, y):
    with system.start(RECIPE, net, x, y) as stepping:
        return stepping.look()


# --- schedules ------------------------------------------------------------------------------------------------------

few = st.integers(1, 6)


@given(schedule=st.sampled_from(SCHEDULES), workers=few, micro=st.integers(1, 9))
def test_everything_is_done_once_forward_first(schedule, workers, micro):
    for order in orders(schedule, workers, micro):
        assert sorted(order) == sorted((kind, m) for kind in ("forward", "backward") for m in range(micro))
        assert all(order.index(("forward", m)) < order.index(("backward", m)) for m in range(micro))


@given(schedule=st.sampled_from(SCHEDULES), workers=few, micro=st.integers(1, 9), f=few, b=few)
def test_equal_stages_wait_as_long_as_the_closed_form_says(schedule, workers, micro, f, b):
    timeline = simulate(orders(schedule, workers, micro), [f] * workers, [b] * workers)
    assert timeline.busy == pytest.approx(1 - bubble(workers, micro))
    assert timeline.length == (micro + workers - 1) * (f + b)


@given(schedule=st.sampled_from(SCHEDULES), costs=st.lists(few, min_size=1, max_size=5), micro=st.integers(1, 6))
def test_nobody_does_two_things_at_once_or_one_before_its_time(schedule, costs, micro):
    timeline = simulate(orders(schedule, len(costs), micro), costs, [2 * c for c in costs])
    ends = {(k, kind, m): end for k, kind, m, _, end in timeline.slots}
    for k in range(len(costs)):
        own = sorted((start, end) for worker, _, _, start, end in timeline.slots if worker == k)
        assert all(a[1] <= b[0] for a, b in pairwise(own))
    for k, kind, m, start, _ in timeline.slots:
        if kind == "forward":
            assert k == 0 or ends[k - 1, kind, m] <= start
        else:
            assert ends[k, "forward", m] <= start
            assert k == len(costs) - 1 or ends[k + 1, kind, m] <= start
    assert timeline.length >= max(3 * c * micro for c in costs)


def test_one_forward_one_backward_keeps_no_more_than_there_are_workers_ahead():
    def kept(order):
        alive = most = 0
        for kind, _ in order:
            alive += 1 if kind == "forward" else -1
            most = max(most, alive)
        return most

    assert [kept(order) for order in orders("one-forward-one-backward", 4, 9)] == [4, 3, 2, 1]
    assert [kept(order) for order in orders("fill-drain", 4, 9)] == [9] * 4


def test_orders_that_wait_for_each_other_are_refused():
    with pytest.raises(ValueError, match="these wait for each other"):
        simulate([[("backward", 0), ("forward", 0)], [("forward", 0), ("backward", 0)]], [1, 1], [1, 1])


@given(costs=st.lists(st.integers(0, 9), min_size=1, max_size=8), parts=st.integers(1, 4))
def test_the_cut_is_the_best_of_all(costs, parts):
    found = balance(costs, parts)
    cuts = combinations(range(1, len(costs)), parts - 1)
    all_of_them = [max(sum(costs[a:b]) for a, b in pairwise([0, *cut, len(costs)])) for cut in cuts]
    if parts > len(costs):
        assert found == [] and not all_of_them
    else:
        assert max(sum(costs[a:b]) for a, b in pairwise(found)) == min(all_of_them)
        assert len(found) == parts + 1 and found[0] == 0 and found[-1] == len(costs)


# --- real processes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("workers", "micro"), [(1, 1), (1, 3), (2, 1), (2, 5), (3, 2), (3, 7)])
@pytest.mark.parametrize("items", [1, 13])
def test_the_gradient_is_that_of_one_process(schedule, workers, micro, items):
    x, y = batch(items)
    step = look(PipelineParallel(workers, micro, schedule), network(), x, y)
    assert error(step.gradient, plain(network(), x, y)) < 1e-6
    outer = 4 * items * 12  # one boundary's activations, or their gradients
    assert step.sent == {1: [0], 2: [outer] * 2, 3: [outer, 2 * outer, outer]}[workers]


def test_activations_pile_up_in_one_order_only():
    def most(schedule, micro):
        return max(look(PipelineParallel(2, micro, schedule), network(width=64), *batch(16 * micro)).peak_bytes)

    assert most("fill-drain", 16) > 1.7 * most("fill-drain", 8)
    assert most("one-forward-one-backward", 16) < 1.1 * most("one-forward-one-backward", 8)


def test_each_worker_holds_its_layers_only():
    net = network(depth=6, width=64)
    with PipelineParallel(3).start(RECIPE, net, *batch(8)) as stepping:
        stepping()
        held = stepping.resident_bytes()
    assert sum(held) == 4 * sum(p.nbytes for p in net.parameters()) and max(held) < 0.5 * sum(held)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_training_ends_where_one_process_ends(schedule):
    digits = datasets.load("digits")
    data, twin, start = replace(digits, train=digits.train[:109]), network(), network()
    expected = RECIPE.train(twin, data)
    trained, trace = PipelineParallel(2, 3, schedule).run(RECIPE, start, data)
    assert [row["loss"] for row in trace] == pytest.approx([row["loss"] for row in expected], rel=1e-4)
    assert trace[0]["bytes_sent"] == 24 * 12 * 4 and trace[4]["bytes_sent"] == 13 * 12 * 4
    for p, q in zip(trained.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
    assert all(torch.equal(p, q) for p, q in zip(start.parameters(), network().parameters(), strict=True))


def test_batch_norm_sees_a_small_batch():
    x, y = batch(24)
    expected = plain(network(norm=True), x, y)
    assert error(look(PipelineParallel(2, 1), network(norm=True), x, y).gradient, expected) < 1e-6
    assert error(look(PipelineParallel(2, 4), network(norm=True), x, y).gradient, expected) > 0.01
    trained, _ = PipelineParallel(2, 4).run(RECIPE, network(norm=True), datasets.load("digits"))
    assert int(trained[2].num_batches_tracked) > 4 * 2 * (1197 // 24)


def test_the_busy_share_is_that_of_counted_operations():
    system, net = PipelineParallel(2, 4), network(depth=2, width=10)
    x, _ = batch(32)
    assert system.cut(net, x).costs == [64 + 640 + 10, 10 + 100 + 10]  # made numbers and products
    timeline = system.timeline(net, x)
    assert (
        timeline.busy == system.core_utilization(net, x) == pytest.approx(4 * 3 * (714 + 120) / (2 * timeline.length))
    )
    assert system.core_utilization(net, x) < 1 - bubble(2, 4)
    assert net.training


def test_a_worker_killed_mid_run_ends_the_run():
    start = time.monotonic()
    with PipelineParallel(3, 4).start(RECIPE, network(), *batch(16)) as stepping:
        pids = stepping.team.pids
        killer = threading.Timer(0.3, os.kill, (pids[1], signal.SIGKILL))
        killer.start()
        with pytest.raises(WorkerFailed, match="worker 1 of 3 was killed by SIGKILL"):
            while time.monotonic() - start < 30:
                stepping()
    killer.join()
    assert time.monotonic() - start < 10
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_bad_input_is_named():
    for bad, text in (({"workers": 0}, "workers"), ({"micro": 0.5}, "micro"), ({"schedule": "zigzag"}, "schedule")):
        with pytest.raises(ValueError, match=f"{text}: expected"):
            PipelineParallel(**bad)
    x, _ = batch(2)
    with pytest.raises(ValueError, match="workers: expected at most the 3 layers of the chain that have parameters"):
        PipelineParallel(4).cut(network(), x)
    with pytest.raises(TypeError, match=r"expected an nn\.Sequential"):
        PipelineParallel(2).cut(nn.Linear(64, 10), x)
