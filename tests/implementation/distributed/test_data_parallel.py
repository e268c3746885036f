"""Data parallelism on real processes: the gradient of one process, whoever computes which part of it."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

import datasets
from kernels.implementation.distributed.data_parallel import DataParallel, SynchronizedNorm, ring_bytes
from kernels.implementation.distributed.workers import Group, WorkerFailed

RECIPE = datasets.Recipe(epochs=2, batch=24)


def network(norm=None, width=7):
    torch.manual_seed(0)
    # a bias below batch norm has a gradient of zero, and AdamW makes steps of the rounding errors
    first = [
        nn.Conv2d(1, width, 3, bias=norm is None),
        *([norm(width)] if norm else []),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
    ]
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(4 * width, 10))


def batch(n):
    split = datasets.load("digits").train[:n]
    return torch.tensor(split.x), torch.tensor(split.y)


def few(n):
    digits = datasets.load("digits")
    return replace(digits, train=digits.train[:n])


def plain(net, x, y):
    net.train()
    RECIPE.loss(net, x, y).backward()
    return torch.cat([p.grad.flatten().double() for p in net.parameters()])


def error(own, expected):
    return float((own - expected).norm() / expected.norm())


def look(system, net, x, y):
    with system.start(RECIPE, net, x, y) as stepping:
        return stepping.look()


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("items", [1, 2, 13, 32])  # fewer than workers, odd shares, equal shares
def test_the_gradient_is_that_of_one_process(n, items):
    x, y = batch(items)
    step = look(DataParallel(n), network(), x, y)
    assert error(step.gradient, plain(network(), x, y)) < 1e-6


def test_bytes_are_those_of_the_closed_form():
    net = network(width=8)
    for n in (1, 2, 5):  # 410 weights: divisible by 2 and 5
        step = look(DataParallel(n), net, *batch(10))
        assert step.sent == [ring_bytes(4 * 410, n)] * n


def test_batch_norm_sees_a_share_unless_it_is_synchronized():
    x, y = batch(30)
    expected = plain(network(nn.BatchNorm2d), x, y)
    assert error(look(DataParallel(2), network(nn.BatchNorm2d), x, y).gradient, expected) > 0.01
    for n in (2, 3):
        own = look(DataParallel(n, synchronize=True), network(nn.BatchNorm2d), x, y)
        assert error(own.gradient, expected) < 2e-5  # a mean of nearly equal numbers stands between


def test_a_synchronized_worker_without_items_keeps_the_others_company():
    x, y = batch(2)
    expected = plain(network(nn.BatchNorm2d), x, y)
    own = look(DataParallel(3, synchronize=True), network(nn.BatchNorm2d), x, y)
    assert error(own.gradient, expected) < 2e-5


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm1d, (9, 5)), (nn.BatchNorm2d, (4, 5, 3, 2))])
def test_a_synchronized_norm_of_one_worker_is_torchs(norm, shape, options):
    torch.manual_seed(1)
    ours, theirs = SynchronizedNorm(norm(5, **options), Group()), norm(5, **options)
    for _ in range(3):
        x = (3 * torch.randn(shape) + 2).requires_grad_()
        twin = x.detach().clone().requires_grad_()
        torch.testing.assert_close(ours(x), theirs(twin), rtol=1e-5, atol=1e-5)
        ours(x).pow(3).sum().backward()
        theirs(twin).pow(3).sum().backward()
        torch.testing.assert_close(x.grad, twin.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.norm.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="expected"):
        ours.train()(torch.zeros(3, 5, 2, 2, 2, 2))


def test_training_ends_where_one_process_ends():
    twin, data = network(), few(109)  # 109 = 4 * 24 + 13: the last batch is split unevenly
    expected = RECIPE.train(twin, data)
    start = network()
    trained, trace = DataParallel(2).run(RECIPE, start, data)
    assert not trained.training and torch.equal(start[0].weight, network()[0].weight)
    assert [row["loss"] for row in trace] == pytest.approx([row["loss"] for row in expected], rel=1e-4)
    assert {row["bytes_sent"] for row in trace} == {4 * sum(p.numel() for p in twin.parameters())}
    for p, q in zip(trained.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)
    again, same = DataParallel(2).run(RECIPE, start, data)
    assert same == trace
    assert all(torch.equal(p, q) for p, q in zip(trained.parameters(), again.parameters(), strict=True))


def test_synchronized_training_keeps_the_running_statistics_of_one_process():
    twin, data = network(nn.BatchNorm2d), few(96)
    RECIPE.train(twin, data)
    trained, _ = DataParallel(2, synchronize=True).run(RECIPE, network(nn.BatchNorm2d), data)
    assert [type(m) for m in trained] == [type(m) for m in twin]
    for own, expected in zip(trained.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-4)


def test_dropout_draws_for_each_worker_and_leaves_the_order_of_items_alone():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    x = torch.ones(2, 1, 8, 8)  # equal items: their gradients differ by what was dropped
    step = look(DataParallel(2), net, x, torch.zeros(2, dtype=torch.int64))
    one = look(DataParallel(1), net, x[:1], torch.zeros(1, dtype=torch.int64))
    assert error(step.gradient, one.gradient) > 0.1
    _, trace = DataParallel(2).run(RECIPE, net, few(61))  # uneven shares draw unequally often
    assert len(trace) == 6 and all(row["loss"] > 0 for row in trace)


def test_every_worker_holds_what_one_process_would():
    with DataParallel(2).start(RECIPE, network(), *batch(8)) as stepping:
        step = stepping.look()
        stepping()
        assert stepping.resident_bytes() == [4 * 4 * sum(p.numel() for p in network().parameters())] * 2
    assert all(peak > 0 for peak in step.peak_bytes)


def test_a_worker_killed_while_it_trains_ends_the_run():
    start = time.monotonic()
    with DataParallel(2).start(RECIPE, network(), *batch(8)) as stepping:
        pids = stepping.team.pids
        killer = threading.Timer(0.3, os.kill, (pids[1], signal.SIGKILL))
        killer.start()
        with pytest.raises(WorkerFailed, match="worker 1 of 2 was killed by SIGKILL"):
            while time.monotonic() - start < 30:
                stepping()
    killer.join()
    assert time.monotonic() - start < 10
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_bad_numbers_and_bad_items_are_named():
    for bad in (0, -2, 1.5):
        with pytest.raises(ValueError, match="workers: expected a positive number of processes"):
            DataParallel(bad)
    with pytest.raises(WorkerFailed, match=r"worker 0 of 1 failed: RuntimeError"):
        look(DataParallel(1), network(), torch.zeros(3, 2, 8, 8), torch.zeros(3, dtype=torch.int64))
