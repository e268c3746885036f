"""Workers in one process: their mean is the batch's gradient, and what is trained is what plain training trains."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import datasets
from kernels.implementation.distributed.exchange import Exchange, checked, in_step, mean


def network(norm=False):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()] if norm else [nn.Conv2d(1, 4, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 36, 10))


def gradient(subject, net, x, y):
    net.zero_grad()
    nn.functional.cross_entropy(subject(x), y).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("items", [1, 7, 16])
def test_the_mean_is_the_batch_s_gradient(workers, items):
    """Also where shares are uneven, or a worker has no items."""
    net, x, y = network(), torch.randn(items, 1, 8, 8), torch.arange(items) % 10
    plain = gradient(net, net, x, y)
    exchange = Exchange(workers=workers)
    shared = exchange.wrap(net.train())
    assert torch.allclose(gradient(shared, net, x, y), plain, atol=1e-6)
    count = sum(p.numel() for p in net.parameters())
    assert shared.bytes_sent == exchange.gathered_bytes(net) == 4 * count * (workers - 1)


def test_gradients_and_statistics_are_those_of_workers_that_are_really_apart():
    net, x, y = network(norm=True).train(), torch.randn(6, 1, 8, 8), torch.arange(6)
    apart = [copy.deepcopy(net) for _ in range(2)]
    parts = [gradient(one, one, x[i : i + 3], y[i : i + 3]) for one, i in zip(apart, (0, 3), strict=True)]
    found = gradient(Exchange(workers=2).wrap(net), net, x, y)
    assert torch.allclose(found, (parts[0] + parts[1]) / 2, atol=1e-6)
    for name, buffer in apart[0].named_buffers():  # the first worker's
        assert torch.equal(buffer, dict(net.named_buffers())[name])


def test_one_worker_trains_as_plain_training_does_to_the_last_bit():
    workload, recipe = datasets.workload("digits-mlp"), datasets.Recipe(epochs=2, batch=32)
    start = workload.network(3)
    before = copy.deepcopy(start.state_dict())
    trained, trace = Exchange(workers=1).run(recipe, start, workload.data())
    plain = workload.network(3)
    expected = recipe.train(plain, workload.data())
    assert [row["loss"] for row in trace] == [row["loss"] for row in expected] and not trained.training
    for a, b in zip(trained.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(before.values(), start.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert {row["bytes_sent"] for row in trace} == {0}


def test_evaluation_is_the_network_s_own():
    net, x = network(norm=True), torch.randn(5, 1, 8, 8)
    shared = Exchange(workers=2).wrap(net)
    assert torch.equal(shared.eval()(x), net.eval()(x))
    with torch.no_grad():
        shared.train()(x)
    assert shared.step == 0


def test_mean_and_steps():
    assert mean([np.float32([1, 2]), np.float32([3, 6])]).tolist() == [2, 4]

    def twice(x):
        first = yield bytes([x])
        second = yield b"".join(first)
        return second

    results, sent = in_step([twice(1), twice(2)])
    assert results == [[b"\x01\x02"] * 2] * 2 and sent == [3, 3]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="workers: expected a positive integer, got 0"):
        Exchange(workers=0)
    with pytest.raises(TypeError, match="gradient: expected floats, got shape \\(2,\\) of dtype int64"):
        checked(np.array([1, 2]))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="gradient: expected finite numbers"):
            checked(np.array([bad, 1.0]))
