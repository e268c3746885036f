"""Each pattern against the masked matrix that it stands for, its products counted, and nobody sees ahead."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from datasets.workloads.transformer import Attention, Transformer
from kernels.counting import macs_by_layer
from kernels.model.sequence_models import efficient_attention as module
from kernels.model.sequence_models.attention import AttentionSpec, cache_numbers
from kernels.model.sequence_models.efficient_attention import (
    PATTERNS,
    EfficientAttention,
    causal_sums,
    elu_features,
    local_attention,
    numbers_moved,
    orthogonal_directions,
    plain_masked,
    positive_features,
    strided_attention,
    summed_attention,
)

SPEC = AttentionSpec(16, heads=2, head_width=8)


def operands(steps, heads=2, width=8):
    torch.manual_seed(steps)
    return torch.randn(3, 2, heads, steps, width, dtype=torch.float64)


def distance(steps):
    return torch.arange(steps)[:, None] - torch.arange(steps)


@pytest.mark.parametrize("steps", [1, 5, 16, 21])
@pytest.mark.parametrize("size", [1, 4, 7, 32])
def test_sparse_patterns_are_the_masked_matrix(steps, size):
    q, k, v = operands(steps)
    back = distance(steps)
    near = plain_masked(q, k, v, (back >= 0) & (back < size))
    assert torch.allclose(local_attention(q, k, v, size), near)
    thinned = plain_masked(q, k, v, (back >= 0) & (back % size == 0))
    assert torch.allclose(strided_attention(q, k, v, size), thinned)


def test_a_window_of_everything_and_a_stride_of_one_are_full_attention():
    q, k, v = operands(13)
    full = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(local_attention(q, k, v, 13), full)
    assert torch.allclose(strided_attention(q, k, v, 1), full)


@pytest.mark.parametrize("steps", [3, 8, 14])
def test_sums_that_keep_every_step_of_a_block_are_full_attention(steps):
    q, k, v = operands(steps)
    every = torch.eye(4, dtype=torch.float64)
    full = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(summed_attention(q, k, v, every, every), full)


def test_sums_by_hand():
    """Blocks of 2, one sum of each: step 3 sees E K of steps 0 and 1, then steps 2 and 3."""
    q, k, v = operands(4, heads=1)
    e, f = torch.tensor([[0.3, 0.7]], dtype=torch.float64), torch.tensor([[-1.0, 2.0]], dtype=torch.float64)
    out = summed_attention(q, k, v, e, f)
    keys = torch.cat([e @ k[:, :, :2], k[:, :, 2:]], 2)
    values = torch.cat([f @ v[:, :, :2], v[:, :, 2:]], 2)
    by_hand = (q[:, :, 3:] @ keys.mT / 8**0.5).softmax(-1) @ values
    assert torch.allclose(out[:, :, 3:], by_hand)


@pytest.mark.parametrize("steps", [1, 15, 16, 40])
def test_running_sums_are_the_recurrence_of_the_paper(steps):
    q, k, v = operands(steps)
    q, k = elu_features(q), elu_features(k)
    s, z = torch.zeros(2, 2, 8, 8, dtype=torch.float64), torch.zeros(2, 2, 8, dtype=torch.float64)
    outputs = []
    for i in range(steps):
        s = s + k[:, :, i, :, None] * v[:, :, i, None, :]
        z = z + k[:, :, i]
        outputs.append((q[:, :, i, None] @ s)[:, :, 0] / (q[:, :, i] * z).sum(-1, keepdim=True))
    assert torch.allclose(causal_sums(q, k, v), torch.stack(outputs, 2))
    weights = (q @ k.mT).tril()
    assert torch.allclose(causal_sums(q, k, v), weights / weights.sum(-1, keepdim=True) @ v)


def test_random_features_are_the_exponential_in_the_mean_and_their_directions_orthogonal():
    torch.manual_seed(0)
    x, y = torch.randn(2, 8, dtype=torch.float64) / 4
    products = []
    for seed in range(1000):
        directions = orthogonal_directions(16, 8, seed).double()
        products.append((positive_features(x, directions) * positive_features(y, directions)).sum())
    values = torch.stack(products)
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - (x * y).sum().exp()) < 4 * error and error < 0.05 and (values > 0).all()
    block = orthogonal_directions(8, 8, 1)
    gram = block @ block.T
    assert torch.allclose(gram, gram.diagonal().diag(), atol=1e-4)


def test_more_random_features_come_closer_to_softmax_attention():
    q, k, v = operands(12) / 2
    full = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    errors = []
    for count in (8, 64, 4096):
        directions = orthogonal_directions(count, 8, 0).double()
        a, b = (positive_features(t / 8**0.25, directions) for t in (q, k))
        errors.append(float((causal_sums(a, b, v) - full).abs().mean()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.05


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_comes_later_changes_nothing_before(pattern):
    torch.manual_seed(0)
    network = EfficientAttention(pattern, window=4, rank=2).within(Transformer(7, 16, 2, 2, 16))
    x = torch.randint(0, 7, (2, 22)).float()
    other = x.clone()
    other[:, 13:] = (other[:, 13:] + 1) % 7
    assert torch.allclose(network.every(x)[:, :13], network.every(other)[:, :13], atol=1e-5)
    assert not torch.allclose(network.every(x)[:, 13:], network.every(other)[:, 13:], atol=1e-5)


PRODUCTS = {
    "local": lambda n, w, r, d: 2 * n * 2 * w * d,
    "strided": lambda n, w, r, d: (2 * n * 2 * w * d + 2 * n * (n // w) * d) // 2,
    "low-rank": lambda n, w, r, d: 2 * n * r * d + 2 * n * (w + r * (n // w)) * d,
    "linear": lambda n, w, r, d: 2 * n * d * (d + 1) + n * 16 * (d + d + 1),
    "random-features": lambda n, w, r, d: 2 * n * 32 * (d + 1) + n * 16 * (32 + d + 1) + 2 * n * 32 * d,
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("steps", [64, 128])
def test_products_by_the_closed_form(pattern, steps):
    built = EfficientAttention(pattern, window=16, rank=4).build(SPEC)
    assert macs_by_layer(built, torch.zeros(1, steps, 16))[""] == 2 * PRODUCTS[pattern](steps, 16, 4, 8)


def test_what_is_kept():
    kept = lambda pattern, steps: cache_numbers(EfficientAttention(pattern).build(SPEC), steps)  # noqa: E731
    assert kept("local", 10) == 2 * 10 * 2 * 8 and kept("local", 1000) == 2 * 16 * 2 * 8
    assert kept("strided", 100) == (16 + 100) * 2 * 8
    assert kept("low-rank", 16) == 2 * 2 * 8 * 16 and kept("low-rank", 17) == 2 * 2 * 8 * (4 + 1)
    assert kept("linear", 1) == kept("linear", 10**6) == 2 * 8 * 9
    assert kept("random-features", 5) == 2 * 32 * 9


@pytest.mark.parametrize("pattern", ["local", "low-rank"])
def test_weights_that_move_are_those_that_the_softmax_makes(pattern):
    """The four passes over the weights in the closed form, against the sizes of what is really computed."""

    class Softmax(TorchDispatchMode):
        weights = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func.overloadpacket is torch.ops.aten._softmax:
                self.weights += out.numel()
            return out

    block = EfficientAttention(pattern, window=16, rank=4)
    with torch.no_grad(), Softmax() as seen:
        block.build(AttentionSpec(8, heads=1, head_width=8)).mix(*torch.randn(3, 1, 1, 64, 8))
    others = {"local": 12 * 64 * 8, "low-rank": 4 * 64 * 8 + 4 * 4 * 4 * 8}[pattern]
    assert numbers_moved(block, 64, 8) == others + 4 * seen.weights


def test_random_features_are_the_same_for_a_seed():
    draw = lambda seed: EfficientAttention("random-features", seed=seed).build(SPEC).directions  # noqa: E731
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert "directions" in EfficientAttention("random-features").build(SPEC).state_dict()


def test_the_network_that_comes_in_stays_as_it_was():
    network = Transformer(7, 16, 2, 2, 16)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    EfficientAttention("linear").within(network)
    assert type(network.layers[0].attention) is Attention
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert module.CHUNK == 16


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pattern": "global"}, "pattern: expected one of local, strided"),
        ({"window": 0}, "window: expected a positive integer, got 0"),
        ({"features": 0}, "features: expected a positive integer"),
        ({"window": 10, "rank": 4}, "rank: expected a divisor of the window, 10, got 4"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        EfficientAttention(**wrong)
