"""Early exit against the network it was cut from, and against every exit computed for every item."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from torch import nn

import datasets
from kernels.counting import macs
from kernels.model.dynamic_inference.early_exit import EarlyExit, MultiExit, SideClassifier, entropy


@pytest.fixture(scope="module")
def workload():
    return datasets.workload("noisy-digits-cnn")


@pytest.fixture(scope="module")
def network(workload):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield EarlyExit(threshold=0.3).apply(workload.trained(), workload.data())
    torch.set_num_threads(before)


@pytest.fixture
def x(workload):
    return torch.tensor(workload.data().validation.x[:300])


def at(network, threshold):
    network = copy.deepcopy(network)
    network.threshold = threshold
    return network


@torch.no_grad()
def test_with_a_threshold_out_of_reach_it_is_the_network_to_the_bit(workload, network, x):
    logits, cost = at(network, 0.0)(x)
    assert torch.equal(logits, workload.trained()(x))
    heads = sum(head.linear.weight.numel() for head in network.heads)
    assert (cost == macs(workload.trained(), x[:1]) + heads).all()


@torch.no_grad()
def test_everybody_leaves_at_the_first_exit_when_anything_counts_as_sure(network, x):
    logits, cost = at(network, math.inf)(x)
    assert torch.equal(logits, network.heads[0](network.stages[0](x)))
    assert (cost == network.costs[0]).all()
    assert network.costs[0] == 8 * 8 * 16 * 9 + 16 * 4 * 4 * 10 and sorted(network.costs) == network.costs


@torch.no_grad()
@pytest.mark.parametrize("threshold", [0.01, 0.3, 1.0])
def test_each_item_gets_its_first_sure_exit(network, x, threshold):
    """The plain rule, item by item, over the logits of every exit."""
    logits, cost = at(network, threshold)(x)
    every, entropies = network.exits(x)
    for item in range(len(x)):
        exits = [n for n in range(len(every) - 1) if entropies[n, item] < threshold]
        expected = exits[0] if exits else len(every) - 1
        assert cost[item] == network.costs[expected]
        torch.testing.assert_close(logits[item], every[expected, item])
    assert len(cost.unique()) > 1


@torch.no_grad()
def test_a_batch_shrinks_as_its_items_leave(network, x):
    seen = []
    handles = [s.register_forward_pre_hook(lambda m, args: seen.append(len(args[0]))) for s in network.stages]
    _, cost = network(x)
    for handle in handles:
        handle.remove()
    assert seen == [len(x), int((cost > network.costs[0]).sum()), int((cost > network.costs[1]).sum())]
    assert seen[0] > seen[1] > seen[2] > 0
    assert macs(network, x) == pytest.approx(float(cost.double().sum()))  # what is reported is what is computed


@torch.no_grad()
def test_batches_of_none_and_of_one(network, x):
    logits, cost = network(x[:0])
    assert logits.shape == (0, 10) and cost.shape == (0,)
    together = network(x[:20])
    alone = [network(item[None]) for item in x[:20]]
    torch.testing.assert_close(torch.cat([logits for logits, _ in alone]), together[0])
    assert torch.equal(torch.cat([cost for _, cost in alone]), together[1])


@torch.no_grad()
def test_who_is_not_a_number_is_never_sure(network, x):
    x = x[:4].clone()
    x[1] = float("nan")
    logits, cost = at(network, math.inf)(x)
    assert cost[1] == network.costs[-1] and logits[1].isnan().all() and not logits[[0, 2, 3]].isnan().any()


@torch.no_grad()
def test_at_a_threshold_of_nought_not_even_the_certain_leave():
    logits = torch.tensor([[1000.0, 0.0]])
    assert entropy(logits) == 0
    chain = MultiExit([nn.Identity(), nn.Linear(2, 2)], [nn.Identity()], [1.0, 2.0], threshold=0.0)
    assert chain(logits)[1] == 2
    assert at(chain, 1e-9)(logits)[1] == 1


def test_apply_is_deterministic_and_leaves_the_network(workload):
    trained = workload.trained()
    before, state = copy.deepcopy(trained.state_dict()), torch.random.get_rng_state()
    first, second = (EarlyExit(exits=1).apply(trained, workload.data()) for _ in range(2))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert isinstance(first, MultiExit) and len(first.heads) == 1 and not first.training
    assert first.stages[0][0] is not trained[0] and all(p.grad is None for p in first.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


def test_entropy_is_scipys():
    logits = torch.randn(50, 10, dtype=torch.float64) * 5
    expected = stats.entropy(logits.softmax(-1).numpy(), axis=-1)
    np.testing.assert_allclose(entropy(logits), expected, atol=1e-12)


def test_side_classifier_is_scikit_learns_logistic_regression():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 8))
    y = (x @ generator.normal(size=(8, 3)) + generator.normal(size=(300, 3))).argmax(1)
    head = SideClassifier(torch.tensor(x).float(), 3, grid=4)
    head.fit(torch.tensor(x).float(), torch.tensor(y), penalty=1e-2)
    oracle = LogisticRegression(C=1 / (2 * 1e-2 * len(x)), tol=1e-8, max_iter=1000).fit(x, y)
    ours = head(torch.tensor(x).float()).detach().softmax(1).numpy()
    np.testing.assert_allclose(ours, oracle.predict_proba(x), atol=2e-3)


def test_maps_are_averaged_over_a_grid():
    features = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    assert SideClassifier(features, 3, grid=1).pool(features).tolist() == [[7.5, 23.5]]
    assert SideClassifier(features, 3, grid=9).pool(features).shape == (1, 32)
    assert SideClassifier(features.flatten(1), 3, grid=2).pool(features.flatten(1)).shape == (1, 32)


def test_wrong_input_is_named(workload):
    with pytest.raises(ValueError, match="network: expected at least three layers with weights, got 2"):
        EarlyExit().apply(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), workload.data())
    with pytest.raises(TypeError, match=r"network: expected an nn\.Sequential.*got Linear"):
        EarlyExit().apply(nn.Linear(2, 2), workload.data())
    for threshold in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="threshold: expected an entropy"):
            EarlyExit(threshold=threshold)
    with pytest.raises(ValueError, match="exits, grid: expected at least 1"):
        EarlyExit(exits=0)
