"""A network in two processes answers as a whole one does, and the cut that is chosen is the fastest of all."""

from __future__ import annotations

from time import sleep

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import datasets
from datasets.workloads.efficientnet_lite0 import untrained
from kernels.implementation.distributed.split_inference import (
    Halves,
    Parts,
    SplitInference,
    layer_seconds,
    seconds_of_cuts,
)

NETWORKS = {
    "mnist-cnn": {"network": datasets.workload("mnist-cnn").network(), "items": (1, 28, 28)},
    "efficientnet-lite0": {"network": untrained(), "items": (3, 224, 224)},
}

times = st.floats(0, 10, allow_subnormal=False)


@given(st.lists(st.tuples(times, times, times), max_size=8), times, st.floats(0.1, 100))
def test_seconds_of_every_cut_are_the_sums_written_out(layers, last, bandwidth):
    device, server, sent = ([layer[i] for layer in layers] for i in range(3))
    sent = [*sent, last]
    found = seconds_of_cuts(device, server, sent, bandwidth)
    expected = [
        sum(device[:c]) + sent[c] / bandwidth + sum(server[c:]) for c in range(len(layers) + 1)
    ]  # fmt: skip
    assert np.allclose(found, expected)


@pytest.mark.parametrize("name", ["mnist-cnn", "efficientnet-lite0"])
@pytest.mark.parametrize("mbit", [0.1, 10, 30, 100, 1000])
def test_the_first_cut_tried_is_the_best_of_all(name, mbit):
    subject = SplitInference()
    problem = subject.problem({**NETWORKS[name], "mbit": mbit})
    found, history = subject.search(problem.space, problem.task(0), budget=1, seed=0)
    every = [problem.evaluate({"cut": cut}) for cut in problem.space["cut"]]
    assert found == problem.best == {"cut": int(np.argmax(every))} and problem.regret(found) == 0
    assert len(history) == 1 and min(problem.regret({"cut": cut}) for cut in problem.space["cut"]) == 0


def test_a_faster_link_moves_the_cut_towards_the_input():
    problems = [SplitInference().problem({**NETWORKS["efficientnet-lite0"], "mbit": mbit}) for mbit in (1, 100, 1e4)]
    cuts = [problem.best["cut"] for problem in problems]
    assert cuts == sorted(cuts, reverse=True) and len(set(cuts)) == 3


def test_work_and_bytes_of_layers_by_hand():
    chain = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 10))
    parts = Parts.of(chain, (1, 8, 8))
    assert parts.macs == (9 * 2 * 36, 0, 0, 720)
    assert parts.sent == (4 * (64 + 10), 4 * (72 + 10), 4 * (72 + 10), 4 * (72 + 10), 0)
    assert parts.moved == (4 * (64 + 72 + 18), 4 * 144, 4 * 144, 4 * (72 + 10 + 730))


class Wrong:
    """A prediction that is wrong about the best: measurements decide."""

    asked: list[int]

    def __init__(self):
        self.asked = []

    def predict(self):
        return np.array([3.0, 1.0, 2.0])

    def cost(self, candidate):
        return 1

    def evaluate(self, candidate):
        self.asked.append(candidate["cut"])
        return -[5.0, 4.0, 1.0][candidate["cut"]]


def test_cuts_are_tried_in_the_order_of_their_prediction_and_measured_times_decide():
    for budget, asked, best in ((1, [1], 1), (2, [1, 2], 2), (9, [1, 2, 0], 2)):
        task = Wrong()
        found, history = SplitInference().search({"cut": (0, 1, 2)}, task, budget, seed=0)
        assert task.asked == asked and found == {"cut": best} and history[-1][2] == len(asked)
    with pytest.raises(ValueError, match="budget"):
        SplitInference().search({"cut": (0, 1, 2)}, Wrong(), 0, seed=0)


class Nap(nn.Module):
    """A layer of known time: no less than it sleeps."""

    def forward(self, x):
        sleep(0.005)
        return x


def test_measured_layers_decide_where_the_slow_one_runs():
    chain = nn.Sequential(nn.Linear(8, 4), Nap(), nn.Linear(4, 3)).train()
    here = layer_seconds(chain, (8,), rounds=3)
    assert len(here) == 3 and here[1] >= 0.005 and chain.training
    sent = Parts.of(chain, (8,)).sent
    device_is_slow = seconds_of_cuts([100 * t for t in here], here, sent, bandwidth=1e6)
    server_is_slow = seconds_of_cuts(here, [100 * t for t in here], sent, bandwidth=1e6)
    assert device_is_slow.argmin() <= 1 < server_is_slow.argmin()
    with pytest.raises(ValueError, match="rounds: expected at least 1, got 0"):
        layer_seconds(chain, (8,), rounds=0)


@pytest.mark.parametrize("cut", [0, 7, 14])
def test_two_processes_answer_as_the_whole_network_does_and_send_what_is_counted(cut):
    workload = datasets.workload("mnist-cnn")
    network, x = workload.trained(), torch.tensor(workload.data().test.x[:9])
    parts = Parts.of(network, workload.input_shape)
    with torch.no_grad(), Halves(network, cut, workload.input_shape) as halves:
        assert torch.equal(halves(x), network(x))
        assert halves.sent == 9 * parts.sent[cut]
        assert torch.equal(halves(x[:1]), network(x[:1])) and halves(x[:0]).shape == (0, 10)
        assert halves.sent == 10 * parts.sent[cut]
        process = getattr(halves, "process", None)
    assert process is None or process.exitcode == 0


def test_a_narrow_link_takes_its_time():
    chain = nn.Sequential(nn.Identity(), nn.Linear(1000, 1))
    with Halves(chain, 1, (1000,), bandwidth=40_000) as halves:
        assert halves.seconds(torch.zeros(1, 1000), rounds=2) >= 4004 / 40_000


def test_bad_cuts_and_networks_are_named():
    with pytest.raises(ValueError, match="cut: expected 0 to 2, got 3"):
        Halves(nn.Sequential(nn.ReLU(), nn.ReLU()), 3, (1,))
    with pytest.raises(TypeError, match=r"expected an nn\.Sequential"):
        Halves(nn.ReLU(), 0, (1,))
