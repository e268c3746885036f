"""A cascade against both of its networks computed for every item."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

from kernels.counting import macs, parameters
from kernels.model.dynamic_inference.big_little_cascade import BigLittleCascade, margin


@pytest.fixture(scope="module")
def cascade(noisy):
    return BigLittleCascade(steps=60).apply(noisy.trained(), noisy.data())


def test_it_is_a_deterministic_copy_whose_batches_answer_as_their_items(held, noisy, items):
    held(BigLittleCascade(steps=3), noisy, items)


def test_the_margin_is_that_of_the_two_largest_probabilities():
    logits = np.random.default_rng(0).normal(size=(20, 5)) * 3
    ordered = np.sort(softmax(logits, 1), 1)
    np.testing.assert_allclose(margin(torch.tensor(logits)).numpy(), ordered[:, -1] - ordered[:, -2], atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.9, 1.1])
def test_each_item_has_the_answer_of_the_network_that_should_give_it(cascade, noisy, items, threshold):
    cascade.threshold = threshold
    logits, cost = cascade(items)
    little, big = cascade.little(items), noisy.trained()(items)
    for item in range(len(items)):
        asked = margin(little[item]) < threshold
        torch.testing.assert_close(logits[item], big[item] if asked else little[item], rtol=1e-4, atol=1e-5)
        assert cost[item] == cascade.costs[int(asked)]
    answered = {0.0: {cascade.costs[0]}, 1.1: {cascade.costs[1]}}.get(threshold, set(cascade.costs))
    assert set(cost.tolist()) == answered


@torch.no_grad()
def test_the_big_network_sees_only_the_doubted(cascade, items):
    cascade.threshold, seen = 0.6, []
    handle = cascade.big.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    _, cost = cascade(items)
    handle.remove()
    assert seen == [int((cost == cascade.costs[1]).sum())] and 0 < seen[0] < len(items)
    assert macs(cascade, items) == pytest.approx(float(cost.double().sum()))


@torch.no_grad()
def test_both_answers_are_there_to_be_dealt_by_chance(cascade, noisy, items):
    every, margins = cascade.exits(items)
    torch.testing.assert_close(every[1], noisy.trained()(items))
    torch.testing.assert_close(margins[0], margin(cascade.little(items)))
    assert parameters(cascade) == parameters(cascade.little) + parameters(noisy.trained())


@torch.no_grad()
def test_what_is_not_a_number_is_doubted(cascade, items):
    x = items[:3].clone()
    x[1] = float("nan")
    cascade.threshold = 0.0
    assert cascade(x)[1].tolist() == [cascade.costs[0], cascade.costs[1], cascade.costs[0]]


def test_wrong_input_is_named(noisy):
    for threshold in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="threshold: expected a margin"):
            BigLittleCascade(threshold=threshold)
    for width in (0.0, 1.0):
        with pytest.raises(ValueError, match="width: expected 0 < width < 1"):
            BigLittleCascade(width=width)
    with pytest.raises(TypeError, match=r"network: expected an nn\.Sequential"):
        BigLittleCascade().apply(nn.Linear(2, 2), noisy.data())
