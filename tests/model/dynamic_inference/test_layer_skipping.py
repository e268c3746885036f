"""Gated layers against every way through computed for every item."""

import pytest
import torch
from torch import nn

from kernels.counting import macs
from kernels.model.dynamic_inference.layer_skipping import Gate, GatedChain, LayerSkipping, Switch, passed, skippable


@pytest.fixture(scope="module")
def gated(noisy):
    network = LayerSkipping(target=0.4, steps=60).apply(noisy.trained(), noisy.data())
    x = torch.tensor(noisy.data().validation.x[:64])
    with torch.no_grad():  # so that at each gate about half of these items go each way, each gate by its own mind
        torch.manual_seed(0)
        for gate in network.gates:
            if isinstance(gate, Gate):
                gate.first.weight.normal_()
                seen = []
                handle = gate.register_forward_hook(lambda module, args, odds, seen=seen: seen.append(odds))
                network(x)
                handle.remove()
                gate.second.bias -= seen[0].median() + 1e-4
    return network


def test_it_is_a_deterministic_copy_whose_batches_answer_as_their_items(held, noisy, items):
    held(LayerSkipping(steps=3), noisy, items)
    held(LayerSkipping(steps=3).fixed(), noisy, items)


@torch.no_grad()
def test_each_item_goes_the_way_of_its_gates(gated, items):
    logits, cost = gated(items)
    every, _ = gated.exits(items)
    ways = [gated.costs.index(spent) for spent in cost.tolist()]
    assert len(every) == 4 and len(set(ways)) >= 3
    for item, way in enumerate(ways):
        torch.testing.assert_close(logits[item], every[way, item], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 64])
def test_what_is_skipped_is_not_computed(gated, items, batch):
    for part in items.split(batch):
        _, cost = gated(part)
        assert macs(gated, part) == pytest.approx(float(cost.double().sum()))


@torch.no_grad()
def test_each_way_is_that_of_the_plain_formula(gated, items):
    (closed, second, first, both), _ = gated.exits(items)
    a, b, pool, c, *rest = gated.stages
    rest = nn.Sequential(*rest)
    x = a(items)
    wide = torch.cat([x, torch.zeros(len(x), 16, 8, 8)], 1)
    for got, y, last in ((closed, wide, False), (second, wide, True), (first, b(x), False), (both, b(x), True)):
        y = pool(y)
        torch.testing.assert_close(got, rest(c(y) if last else y))


@torch.no_grad()
def test_with_gates_that_never_close_it_is_the_network(noisy, items):
    network = LayerSkipping(steps=0).apply(noisy.trained(), noisy.data())
    for gate in network.gates:
        if isinstance(gate, Gate):
            gate.second.bias.fill_(100.0)
    torch.testing.assert_close(network(items)[0], noisy.trained()(items), rtol=1e-5, atol=1e-5)
    assert (network(items)[1] == network.costs[-1]).all()


def test_a_drawn_decision_is_as_likely_as_the_gate_says_and_has_a_gradient():
    stage, gate = nn.Conv2d(1, 1, 1, bias=False), Switch()
    with torch.no_grad():
        stage.weight.fill_(2.0)
        gate.odds.fill_(0.7)
    chain = GatedChain([stage, nn.Flatten()], [gate, None], [(1.0, 1.0), (0.0, 0.0)], [1, 1])
    torch.manual_seed(0)
    y, share = chain.learned(torch.ones(20000, 1, 1, 1))
    assert share[0].item() == pytest.approx(torch.sigmoid(torch.tensor(0.7)).item(), abs=0.01)
    assert sorted(y.detach().flatten().unique().tolist()) == pytest.approx([1.0, 2.0])
    y.sum().backward()
    assert gate.odds.grad is not None and gate.odds.grad.abs() > 0
    quiet, share = chain.learned(torch.ones(20, 1, 1, 1), noise=0.0)
    assert share[0] == 1 and (quiet == 2).all()


def test_a_heavy_penalty_brings_the_work_to_the_target_and_gates_tell_items_apart(noisy):
    network = LayerSkipping(target=0.5, weight=50.0, steps=150).apply(noisy.trained(), noisy.data())
    with torch.no_grad():
        _, cost = network(torch.tensor(noisy.data().validation.x))
    least, most = min(network.costs), max(network.costs)
    assert abs((cost.mean() - least) / (most - least) - 0.5) < 0.12 and len(cost.unique()) > 1
    blind = LayerSkipping(target=0.5, weight=50.0, steps=20).fixed().apply(noisy.trained(), noisy.data())
    with torch.no_grad():
        assert len(blind(torch.tensor(noisy.data().validation.x[:50]))[1].unique()) == 1


def test_seeds_differ(noisy, items):
    one, two = (LayerSkipping(steps=2, seed=seed).apply(noisy.trained(), noisy.data()) for seed in (0, 1))
    assert not torch.equal(one.stages[0][0].weight, two.stages[0][0].weight)
    assert not torch.equal(one.gates[1].first.weight, two.gates[1].first.weight)


def test_what_goes_past_keeps_its_values_and_adds_empty_channels():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(passed(x, 3), x) and torch.equal(passed(x, 5)[:, :3], x) and not passed(x, 5)[:, 3:].any()


def test_only_what_keeps_the_size_and_no_fewer_channels_may_go_but_not_the_first():
    chain = [
        nn.Conv2d(2, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Conv2d(4, 2, 3, padding=1),
        nn.Conv2d(2, 2, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    stages = skippable([layer.eval() for layer in chain], torch.zeros(1, 2, 6, 6))
    assert [(len(stage), may_go) for stage, may_go in stages] == [
        (3, False), (1, True), (1, False), (2, False), (1, False),
    ]  # fmt: skip


def test_where_ways_cost_alike_none_is_told_by_its_cost():
    stages = [nn.Conv2d(1, 1, 1) for _ in range(2)]
    chain = GatedChain(stages, [Switch(), Switch()], [(1.0, 0.0), (1.0, 0.0)], [1, 1])
    assert not hasattr(chain, "exits") and chain.costs == [0, 1, 1, 2]


def test_wrong_input_is_named(noisy):
    with pytest.raises(ValueError, match="target: expected a share from 0 to 1"):
        LayerSkipping(target=1.5)
    with pytest.raises(ValueError, match="weight, steps: expected at least 0"):
        LayerSkipping(steps=-1)
    with pytest.raises(ValueError, match="expected two layers with weights that give maps of the size they take"):
        LayerSkipping().apply(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10)), noisy.data())
