"""What each phase trains, channels in another order that compute the same, and networks that are used as they are."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch

import datasets
from datasets.workloads.digits_search import SPACE
from kernels.model.architecture_search.once_for_all import OnceForAll, macs_of, phases
from kernels.model.architecture_search.supernet import Supernet, architectures

NARROW = {
    **SPACE,
    "first": ("identity", "convolution"),
    "second": ("convolution",),
    "third": ("identity",),
    "norm": (True,),
}


@pytest.fixture(scope="module")
def table():
    return datasets.workload("digits-search")


def test_phases_shrink_depth_then_width_and_keep_what_was():
    plan = phases(SPACE, progressive=True)
    assert sum(share for share, _ in plan) == pytest.approx(1)
    counts = [len(list(architectures(part))) for _, part in plan]
    assert counts == [27 * 2, 64 * 2, 64 * 2 * 2, 384]
    parts = [{tuple(one.values()) for one in architectures(part)} for _, part in plan]
    assert all(small < large for small, large in pairwise(parts))
    assert phases(SPACE, progressive=False) == [(1.0, SPACE)]
    assert phases(NARROW, True)[0][1]["third"] == ("identity",)  # a place that has nothing else


def test_in_another_order_the_widest_networks_compute_the_same():
    torch.manual_seed(0)
    supernet, x = Supernet(SPACE), torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.rand_like(parameter))
    before = copy.deepcopy(supernet)
    supernet.reorder()
    for one in architectures({**SPACE, "width": (16,)}):
        torch.testing.assert_close(supernet(x, one), before(x, one), rtol=1e-4, atol=1e-5)
    assert not torch.equal(supernet.stem.weight, before.stem.weight)


def test_the_channels_that_weigh_most_come_first():
    """All weights equal but those that read channels 5 and 2."""
    supernet = Supernet(SPACE)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.fill_(1e-3)
        supernet.stem.bias.copy_(torch.arange(16.0))
        supernet.operations("second")["convolution"].convolution.weight[:, 5] = -3.0
        supernet.classifier.weight[:, 4 * 2 : 4 * 3] = 2.0
    supernet.reorder()
    assert supernet.stem.bias[:2].tolist() == [5.0, 2.0] and sorted(supernet.stem.bias.tolist()) == list(range(16))


def test_the_largest_is_the_one_with_most_work():
    one = {"first": "convolution", "second": "residual", "third": "separable", "width": 8, "norm": True}
    assert macs_of(one) == datasets.workload("digits-search").entry(one).macs


@pytest.mark.parametrize("progressive", [True, False])
def test_the_best_that_is_fast_enough_is_taken_for_the_supernets_epochs(table, progressive):
    search, task = OnceForAll(epochs=5, progressive=progressive), table.task(0)
    scores, every = search.scores(NARROW, task, 0), list(architectures(NARROW))
    found, history = search.search(NARROW, task, 100, 0)
    assert found == every[scores.index(max(scores))] and history == [(found, max(scores), 5.0)]
    times = sorted(task.latency(one) for one in every)
    limited = OnceForAll(epochs=5, progressive=progressive, slowest=times[2])
    small, _ = limited.search(NARROW, task, 100, 0)
    fast = [at for at, one in enumerate(every) if task.latency(one) <= times[2]]
    assert small == every[max(fast, key=lambda at: scores[at])]
    assert OnceForAll(epochs=5, progressive=progressive).scores(NARROW, table.task(3), 0) == scores


def test_a_network_that_is_cut_out_works_without_training(table):
    """Above what any network of the space can do by guessing, at every width."""
    search, task = OnceForAll(epochs=25), table.task(0)
    scores = dict(
        zip([tuple(one.values()) for one in architectures(NARROW)], search.scores(NARROW, task, 0), strict=True)
    )
    for width, least in ((4, 0.2), (8, 0.25), (16, 0.4)):
        assert max(score for values, score in scores.items() if values[3] == width) > least


def test_wrong_input_is_named(table):
    with pytest.raises(ValueError, match="epochs: expected a positive integer"):
        OnceForAll(epochs=0)
    with pytest.raises(ValueError, match="slowest: expected seconds above 0"):
        OnceForAll(slowest=0.0)
    with pytest.raises(ValueError, match="budget: 100 epochs do not pay for the 180"):
        OnceForAll().search(SPACE, table.task(0), 100, 0)
    with pytest.raises(ValueError, match="slowest: no network of the space takes 1e-06 seconds"):
        OnceForAll(epochs=5, slowest=1e-6).search(NARROW, table.task(0), 100, 0)
