"""A slimmable network against the thin networks cut out of it, and one update of all widths worked by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from kernels.counting import macs
from kernels.model.dynamic_inference.slicing import thinned
from kernels.model.dynamic_inference.slimmable_network import WIDTHS, SlimmableChain, SlimmableNetwork


def test_it_is_a_deterministic_copy_whose_batches_answer_as_their_items(held, noisy, items):
    held(SlimmableNetwork(width=0.25, steps=3), noisy, items)


def test_untaught_at_full_width_it_is_the_network(noisy, items):
    slim = SlimmableNetwork(width=1.0, steps=0).apply(noisy.trained(), noisy.data())
    with torch.no_grad():
        assert torch.equal(slim(items)[0], noisy.trained()(items))


@pytest.mark.parametrize("width", WIDTHS)
def test_each_width_computes_as_the_thin_network_with_its_norms_and_costs_as_much(noisy, items, width):
    slim = SlimmableNetwork(steps=3).apply(noisy.trained(), noisy.data())
    slim.width = width
    thin = thinned(slim.shared, width)
    for place in range(len(thin)):
        if isinstance(thin[place], nn.BatchNorm2d):
            thin[place] = slim.own[width, place]
    with torch.no_grad():
        logits, cost = slim(items)
        torch.testing.assert_close(logits, thin.eval()(items), rtol=1e-5, atol=1e-5)
    assert (cost == macs(thin, items[:1])).all()


def test_widths_share_all_weights_but_the_norms(noisy):
    slim = SlimmableNetwork(steps=0).apply(noisy.trained(), noisy.data())
    ids = {id(p) for p in slim.parameters()}
    weights = sum(p.numel() for p in slim.shared.parameters() if p.ndim > 1)
    assert len(ids) == len(list(slim.parameters()))
    assert sum(p.numel() for p in slim.parameters() if p.ndim > 1) == weights


def test_each_width_has_norms_that_know_its_own_sums(noisy, items):
    slim = SlimmableNetwork(steps=3).apply(noisy.trained(), noisy.data()).train()
    norms = [slim.own[width, 4] for width in WIDTHS]
    assert len({id(p) for norm in norms for p in norm.parameters()}) == 2 * len(WIDTHS)
    sums = []
    for width, norm in zip(WIDTHS, norms, strict=True):
        norm.momentum = 1.0  # remember the last batch alone
        norm.register_forward_pre_hook(lambda norm, args: sums.append(args[0].detach().mean((0, 2, 3))))
        slim.at(items, width)
    for norm, mean in zip(norms, sums, strict=True):
        torch.testing.assert_close(norm.running_mean, mean)
        assert norm is norms[0] or not torch.allclose(mean, sums[0][: len(mean)], atol=1e-3)


def test_one_update_is_that_of_the_sum_of_all_widths():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])

    class Data:
        class train:
            pass

    Data.train.x, Data.train.y = x.numpy(), y.numpy()
    slim = SlimmableNetwork(steps=1).apply(network, Data)
    by_hand = copy.deepcopy(network)
    plain = SlimmableChain(by_hand, WIDTHS, 1.0, x[:1])
    widest = plain.at(x, 1.0)
    loss = functional.cross_entropy(widest, y)
    p = widest.detach().softmax(1)
    for width in WIDTHS[1:]:
        loss = loss + (p * (p.log() - plain.at(x, width).log_softmax(1))).sum(1).mean()
    loss.backward()
    torch.optim.AdamW(plain.parameters(), lr=0.005).step()
    for a, b in zip(slim.shared.parameters(), plain.shared.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_wrong_input_is_named(noisy):
    with pytest.raises(ValueError, match=r"width: expected one of 1.0, 0.75, 0.5, 0.25, got 0.6"):
        SlimmableNetwork(width=0.6)
    with pytest.raises(ValueError, match="steps: expected at least 0"):
        SlimmableNetwork(steps=-1)
    with pytest.raises(TypeError, match=r"network: expected an nn\.Sequential"):
        SlimmableNetwork().apply(nn.Linear(2, 2), noisy.data())
