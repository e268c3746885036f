"""Gated layers against both ways computed for every item."""

import pytest
import torch
from torch import nn

from kernels.counting import macs
from kernels.model.dynamic_inference.layer_skipping import Gate, GatedChain, LayerSkipping, skippable


@pytest.fixture(scope="module")
def gated(noisy):
    network = LayerSkipping(target=0.4, steps=60).apply(noisy.trained(), noisy.data())
    (gate,) = (gate for gate in network.gates if isinstance(gate, Gate))
    x = torch.tensor(noisy.data().validation.x[:64])
    with torch.no_grad():  # so that about half of these items go each way
        seen = []
        handle = gate.register_forward_hook(lambda module, args, odds: seen.append(odds))
        network(x)
        handle.remove()
        gate.second.bias -= seen[0].median() + 1e-4
    return network


def test_it_is_a_deterministic_copy_whose_batches_answer_as_their_items(held, noisy, items):
    held(LayerSkipping(steps=3), noisy, items)


@torch.no_grad()
def test_each_item_goes_the_way_of_its_gate(gated, items):
    logits, cost = gated(items)
    (closed, opened), _ = gated.exits(items)
    ran = cost == gated.costs[1]
    assert 10 < ran.sum() < 54 and ((cost == gated.costs[0]) | ran).all()
    torch.testing.assert_close(logits[ran], opened[ran], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits[~ran], closed[~ran], rtol=1e-4, atol=1e-5)
    assert macs(gated, items) == pytest.approx(float(cost.double().sum()))


@torch.no_grad()
def test_with_gates_that_never_close_it_is_the_network(noisy, items):
    network = LayerSkipping(steps=0).apply(noisy.trained(), noisy.data())
    torch.testing.assert_close(network(items)[0], noisy.trained()(items), rtol=1e-5, atol=1e-5)
    assert (network(items)[1] == network.costs[1]).all()


def test_a_drawn_decision_is_as_likely_as_the_gate_says_and_has_a_gradient():
    stage, gate = nn.Conv2d(1, 1, 1, bias=False), Gate(1)
    with torch.no_grad():
        stage.weight.fill_(2.0)
        gate.second.bias.fill_(0.7)
    chain = GatedChain([stage, nn.Flatten()], [gate, None], [(1.0, 1.0), (0.0, 0.0)])
    torch.manual_seed(0)
    y, share = chain.learned(torch.ones(20000, 1, 1, 1))
    assert share[0].item() == pytest.approx(torch.sigmoid(torch.tensor(0.7)).item(), abs=0.01)
    assert sorted(y.detach().flatten().unique().tolist()) == pytest.approx([1.0, 2.0])
    y.sum().backward()
    assert gate.second.bias.grad is not None and gate.second.bias.grad.abs() > 0


def test_the_penalty_brings_the_share_to_the_target(noisy):
    network = LayerSkipping(target=0.2, weight=50.0, steps=120).apply(noisy.trained(), noisy.data())
    with torch.no_grad():
        torch.manual_seed(0)
        _, share = network.learned(torch.tensor(noisy.data().validation.x))
    assert abs(share[0].item() - 0.2) < 0.12


def test_only_what_keeps_the_shape_may_go():
    chain = [
        nn.Conv2d(2, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Conv2d(2, 2, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    stages = skippable([layer.eval() for layer in chain], torch.zeros(1, 2, 6, 6))
    assert [(len(stage), may_go) for stage, may_go in stages] == [(3, True), (2, False), (1, False)]


def test_wrong_input_is_named(noisy):
    with pytest.raises(ValueError, match="target: expected a share from 0 to 1"):
        LayerSkipping(target=1.5)
    with pytest.raises(ValueError, match="weight, steps: expected at least 0"):
        LayerSkipping(steps=-1)
    with pytest.raises(
        ValueError, match="expected a layer with weights that gives maps as it takes them; there is none"
    ):
        LayerSkipping().apply(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10)), noisy.data())
