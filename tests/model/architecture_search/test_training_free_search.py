"""Each score against its definition worked by hand or by another way, and what is trained because of it."""

from __future__ import annotations

import copy
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import datasets
from datasets.workloads.digits_search import network
from kernels.model.architecture_search.training_free_search import (
    PROXIES,
    TrainingFreeSearch,
    gradient_norm,
    jacobian_covariance,
    naswot,
    synaptic_flow,
)

ONE = {"first": "residual", "second": "separable", "third": "convolution", "width": 4, "norm": False}


@pytest.fixture(scope="module")
def table():
    return datasets.workload("digits-search")


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    train = datasets.load("noisy-digits").train
    return torch.tensor(train.x[:16]), torch.tensor(train.y[:16])


@pytest.fixture(scope="module")
def drawn():
    torch.manual_seed(0)
    return network(ONE)


def test_the_kernel_of_codes_by_scipys_hamming_distance(batch):
    from scipy.spatial.distance import pdist, squareform

    torch.manual_seed(0)
    chain = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
    with torch.no_grad():
        first = chain[:3](batch[0])
        codes = np.concatenate([(first > 0).numpy(), (chain[3:5](first) > 0).numpy()], 1)
    kernel = 50 - 50 * squareform(pdist(codes, "hamming"))
    assert naswot(chain, *batch) == pytest.approx(math.log(abs(np.linalg.det(kernel))))
    twice = torch.cat([batch[0][:1]] * 2)
    assert naswot(chain, twice) == float("-inf")
    with pytest.raises(ValueError, match="network: expected rectifiers"):
        naswot(nn.Flatten(), twice)


def test_gradient_norm_by_differences(batch):
    """The loss's derivative by each weight, from central differences in float64."""
    torch.manual_seed(0)
    chain, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Tanh(), nn.Linear(2, 10)).double(), batch
    total = 0.0
    for weight in (chain[1].weight, chain[3].weight):
        flat, gradient = weight.data.view(-1), []
        for i in range(len(flat)):
            ends = []
            for step in (1e-5, -2e-5, 1e-5):
                flat[i] += step
                ends.append(functional.cross_entropy(chain(x.double()), y).item())
            gradient.append((ends[0] - ends[1]) / 2e-5)
        total += float(np.linalg.norm(gradient))
    assert gradient_norm(chain, x.double(), y) == pytest.approx(total, rel=1e-5)


def test_synaptic_flow_of_a_chain_is_conserved():
    """Every layer carries the same flow, the sum of all paths: as many layers, as many times the sum of outputs."""
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 3))
    paths = torch.ones(5).double()
    for layer in (chain[0], chain[2], chain[4]):
        paths = layer.weight.detach().double().abs() @ paths
    assert synaptic_flow(chain, torch.zeros(1, 5)) == pytest.approx(math.log(3 * float(paths.sum())))
    normed = nn.Sequential(chain[0], nn.BatchNorm1d(7), chain[1:])
    assert synaptic_flow(normed, torch.zeros(1, 5)) == pytest.approx(synaptic_flow(chain, torch.zeros(1, 5)))


def test_jacobian_covariance_of_numpy(batch):
    torch.manual_seed(0)
    chain, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)), batch[0]
    rows = [torch.autograd.functional.jacobian(lambda one: chain(one[None]).sum(), one).flatten().numpy() for one in x]
    values = np.clip(np.linalg.eigvalsh(np.corrcoef(np.array(rows, np.float64))), 0, None) + 1e-5
    assert jacobian_covariance(chain, x) == pytest.approx(-np.sum(np.log(values) + 1 / values), rel=0.02)
    apart = -len(x) * (math.log(1 + 1e-5) + 1 / (1 + 1e-5))
    assert jacobian_covariance(chain, x) < apart  # of derivatives that are uncorrelated, the most there is


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_score_leaves_the_network_as_it_was_and_repeats_itself(proxy, drawn, batch):
    normed = network({**ONE, "norm": True})
    for subject in (drawn, normed):
        before = copy.deepcopy(subject.state_dict())
        first = PROXIES[proxy](subject, *batch)
        assert math.isfinite(first) and PROXIES[proxy](subject, *batch) == first
        assert all(torch.equal(value, before[name]) for name, value in subject.state_dict().items())
        assert all(p.grad is None for p in subject.parameters()) and not subject[1]._forward_hooks


def test_the_best_scored_are_trained_in_order(table, monkeypatch):
    scores = {4: 1.0, 8: 3.0, 16: 2.0}
    monkeypatch.setitem(PROXIES, "parameters", lambda net, x, y: scores[net[0].out_channels])
    space = {choice: (ONE[choice],) for choice in table.space} | {"width": (4, 8, 16)}
    search = TrainingFreeSearch("parameters", batch=3)
    found, history = search.search(space, table.task(0), budget=30, seed=7)
    assert [a["width"] for a, _, _ in history] == [8, 16] and history[-1][2] == 24
    assert found == max(history, key=lambda entry: entry[1])[0]
    assert search.scores(space, table.task(0), 7) == [1.0, 3.0, 2.0]
    with pytest.raises(ValueError, match="budget: 11 epochs do not pay"):
        search.search(space, table.task(0), budget=11, seed=7)


def test_scores_see_training_items_only(table):
    train = table.task(0).data.train
    hidden = SimpleNamespace(train=train)  # whoever asked for validation or test would fail
    task = SimpleNamespace(data=hidden, network=table.task(0).network)
    space = {choice: (ONE[choice],) for choice in table.space}
    assert len(TrainingFreeSearch("naswot", 8).scores(space, _Hashed(task), 0)) == 1


class _Hashed:
    def __init__(self, task):
        self.data, self.network = task.data, task.network


def test_all_of_the_space_is_scored_in_the_tables_order(table):
    scores = TrainingFreeSearch("parameters").scores(table.space, table.task(0), 0)
    held = [entry.parameters for entry in table.entries.values()]
    assert scores == held and list(table.entries) == list(itertools.product(*table.space.values()))


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="proxy: expected one of naswot, gradient-norm"):
        TrainingFreeSearch("snip")
    with pytest.raises(ValueError, match="batch: expected at least 2 items"):
        TrainingFreeSearch(batch=1)
