"""Divided states: the same weights as undivided, held and sent to the byte as the closed forms say."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import datasets
from kernels.implementation.distributed.data_parallel import ring_bytes
from kernels.implementation.distributed.sharded_optimizer import ShardedOptimizer, held_bytes
from kernels.implementation.distributed.workers import WorkerFailed

RECIPE = datasets.Recipe(epochs=2, batch=24)
STAGES = (1, 2)
MOMENTUM = partial(torch.optim.SGD, momentum=0.9)


def network(width=7):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))


def weights(net):
    return sum(p.numel() for p in net.parameters())


def batch(n):
    split = datasets.load("digits").train[:n]
    return torch.tensor(split.x), torch.tensor(split.y)


def plain(net, x, y):
    RECIPE.loss(net, x, y).backward()
    return torch.cat([p.grad.flatten().double() for p in net.parameters()])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("items", [1, 13])  # one: a worker has none, and must keep the others company
def test_the_parts_are_the_gradient_of_one_process(stage, workers, items):
    x, y = batch(items)
    with ShardedOptimizer(workers, stage).start(RECIPE, network(), x, y) as stepping:
        own = stepping.look().gradient
        stepping()
        again = stepping.look().gradient
    expected = plain(network(), x, y)
    assert float((own - expected).norm() / expected.norm()) < 1e-6
    assert not torch.equal(again, own)  # a look updates nothing, a call does


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_bytes_held_and_sent_are_those_of_the_closed_forms(stage, workers):
    net = network(width=10)  # 760 weights: divisible by 2 and 4, not by 3
    with ShardedOptimizer(workers, stage).start(RECIPE, net, *batch(12)) as stepping:
        sent = stepping.look().sent
        stepping()
        held = stepping.resident_bytes()
    assert max(held) == held_bytes(760, workers, stage)
    if 760 % workers == 0:
        assert sent == [ring_bytes(4 * 760, workers)] * workers and len(set(held)) == 1
    assert sum(sent) == workers * ring_bytes(4 * 760, workers)


def test_gradients_that_are_given_away_are_not_there_at_once():
    torch.manual_seed(0)
    deep = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), *(nn.Linear(64, 64) for _ in range(8)), nn.Linear(64, 10))
    held, peaks = {}, {}
    for stage in STAGES:
        with ShardedOptimizer(4, stage).start(RECIPE, deep, *batch(4)) as stepping:
            peaks[stage] = max(stepping.look().peak_bytes)
            stepping()
            held[stage] = max(stepping.resident_bytes())
    assert held[1] - held[2] == 4 * (weights(deep) - -(-weights(deep) // 4))
    # of the gradients under way, two layers' at most
    assert peaks[2] < peaks[1] + 2 * 4 * 65 * 64


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, MOMENTUM, torch.optim.RMSprop], ids=["adamw", "sgd", "rms"])
def test_training_ends_where_one_process_ends(stage, optimizer):
    digits = datasets.load("digits")
    data, twin, start = replace(digits, train=digits.train[:85]), network(), network()
    recipe = replace(RECIPE, optimizer=optimizer)
    expected = recipe.train(twin, data)
    trained, trace = ShardedOptimizer(2, stage).run(recipe, start, data)
    assert [row["loss"] for row in trace] == pytest.approx([row["loss"] for row in expected], rel=1e-4)
    for p, q in zip(trained.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
    assert all(torch.equal(p, q) for p, q in zip(start.parameters(), network().parameters(), strict=True))


@pytest.mark.parametrize("stage", STAGES)
def test_frozen_weights_stay(stage):
    net = network()
    net[1].weight.requires_grad_(False)
    digits = datasets.load("digits")
    trained, _ = ShardedOptimizer(2, stage).run(RECIPE, net, replace(digits, train=digits.train[:48]))
    assert torch.equal(trained[1].weight, net[1].weight) and not torch.equal(trained[3].weight, net[3].weight)


@pytest.mark.parametrize("stage", STAGES)
def test_a_worker_killed_mid_run_ends_the_run(stage):
    start = time.monotonic()
    with ShardedOptimizer(2, stage).start(RECIPE, network(), *batch(16)) as stepping:
        pids = stepping.team.pids
        killer = threading.Timer(0.3, os.kill, (pids[0], signal.SIGKILL))
        killer.start()
        with pytest.raises(WorkerFailed, match="worker 0 of 2 was killed by SIGKILL"):
            while time.monotonic() - start < 30:
                stepping()
    killer.join()
    assert time.monotonic() - start < 10
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_bad_input_is_named():
    for bad, text in (({"workers": 0}, "workers"), ({"stage": 0}, "stage"), ({"stage": 3}, "stage")):
        with pytest.raises(ValueError, match=f"{text}: expected"):
            ShardedOptimizer(**bad)
    mixed = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 10).double())
    with pytest.raises(WorkerFailed, match=r"network: expected parameters of one dtype, got .*float32.*float64"):
        ShardedOptimizer(1).start(RECIPE, mixed, *batch(2))
