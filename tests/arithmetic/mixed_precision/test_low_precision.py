"""Training in low precision: without formats the plain recipe bit for bit; with them PyTorch's own narrow types."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from datasets import Data, Recipe, Split
from kernels.arithmetic.floating_point.bfloat16 import BFloat16
from kernels.arithmetic.mixed_precision.low_precision import (
    FORMATS,
    Precision,
    precision_of,
    rounded,
    train_in,
)


def blobs(n, seed, shape=(1, 4, 4)):
    random, y = np.random.default_rng(seed), np.arange(n) % 3
    x = random.normal(size=(n, *shape)) + 2 * np.eye(16)[y].reshape(n, *shape)
    return Split(x.astype(np.float32), y)


DATA = Data("blobs", blobs(70, 0), blobs(30, 1), blobs(60, 2), 3)


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
def test_without_formats_it_is_the_plain_recipe_bit_for_bit(schedule):
    recipe = Recipe(epochs=3, batch=16, learning_rate=0.01, schedule=schedule)
    plain, start = small(), small()
    before = copy.deepcopy(start)
    expected = recipe.train(plain, DATA, seed=7)
    own, trace = train_in(Precision(), start, DATA, recipe, seed=7)
    assert same(own, plain) and trace == expected and not own.training
    assert same(start, before), "the network given is left as it is"


def test_no_epochs_train_nothing():
    own, trace = train_in(precision_of("fp8", master=False), small(), DATA, Recipe(epochs=0))
    assert trace == [] and same(own, small())


# --- PyTorch's own narrow types --------------------


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("fp16", torch.float16)])
def test_passes_are_those_of_torchs_own_type(name, dtype):
    """Operands are small integers, so that FP32 sums are exact and every result is rounded once, there and here."""
    generator = torch.Generator().manual_seed(0)

    def integers(*shape, largest=40):
        return torch.randint(-largest, largest + 1, shape, generator=generator).float()

    class Integers(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(24, 16, bias=False), nn.Linear(16, 8, bias=False)
            self.a.weight.data, self.b.weight.data = integers(16, 24), integers(8, 16, largest=3) / 4096

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    network, x, cotangent = Integers(), integers(12, 24), integers(12, 8, largest=9) / 8
    theirs = copy.deepcopy(network).to(dtype)
    inside = x.to(dtype).requires_grad_()
    output = theirs(inside)
    output.backward(cotangent.to(dtype))

    seen = {}

    def loss(network, x, y):
        out = network(x)
        seen["output"] = out.detach().clone()
        return (out * cotangent).sum()

    def keep(parameters, **_):
        seen["parameters"] = parameters
        return torch.optim.SGD(parameters, lr=0.0)

    split = Split(x.numpy(), np.zeros(12, np.int64))
    recipe = Recipe(epochs=1, batch=12, learning_rate=0.0, loss=loss, optimizer=keep)
    order = {}

    def unshuffled(n):
        order["n"] = n
        return torch.arange(n)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", unshuffled)
        train_in(precision_of(name), network, Data("one", split, split, split, 2), recipe)
    assert order == {"n": 12}
    assert torch.equal(seen["output"], output.detach().float())
    (network(x) * cotangent).sum().backward()
    assert not torch.equal(seen["parameters"][0].grad, network.a.weight.grad), "rounding must have had work to do"
    for own, other in zip(seen["parameters"], theirs.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad.float())


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20), st.integers(0, 99))
def test_forward_and_backward_are_roundings(numbers, seed):
    x = torch.tensor(numbers, requires_grad=True)
    g = torch.randn(len(numbers), generator=torch.Generator().manual_seed(seed))
    y = rounded(x, BFloat16(), BFloat16("toward-zero"))
    y.backward(g)
    theirs = np.float32(numbers).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(y.detach().numpy(), theirs)
    truncated = (g.numpy().view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert np.array_equal(x.grad.numpy(), truncated)


def test_only_one_side_may_be_rounded():
    x = torch.tensor([1.001], requires_grad=True)
    rounded(x, None, BFloat16()).backward(torch.tensor([1.001]))
    assert x.grad.item() == 1.0
    x.grad = None
    y = rounded(x, BFloat16(), None)
    y.backward(torch.tensor([1.001]))
    assert y.item() == 1.0 and x.grad.item() == np.float32(1.001)
    assert rounded(x) is x


# --- one update worked by hand --------------------


def to_bfloat16(x: Fraction) -> Fraction:
    """Exact: to the nearest multiple of the spacing, ties to the even one."""
    if x == 0:
        return x
    exponent = 0
    while abs(x) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    spacing = Fraction(2) ** (exponent - 7)
    return round(x / spacing) * spacing  # Python rounds ties to even


@pytest.mark.parametrize("master", [True, False])
def test_one_update_is_the_one_worked_by_hand(master):
    """y = w·x of rounded operands, L = S Σ c y; δ = Q(S c), g = Q(Σ δ x̂)/S, w ← Q_s(w - η g); in exact rationals."""
    w = [Fraction(1003, 1000), Fraction(-7, 3), Fraction(1, 1024)]
    xs = [[Fraction(301, 100), Fraction(2, 7), Fraction(-5)], [Fraction(1, 3), Fraction(9, 10), Fraction(11, 13)]]
    cs, rate, scale = [Fraction(5, 7), Fraction(-1, 9)], Fraction(1, 2**11), 1024

    def single(x):
        return Fraction(float(np.float32(float(x))))

    w, xs, cs = [single(v) for v in w], [[single(v) for v in x] for x in xs], [single(c) for c in cs]
    stored = w if master else [to_bfloat16(v) for v in w]
    hat, inputs = [to_bfloat16(v) for v in stored], [[to_bfloat16(v) for v in x] for x in xs]
    outputs = [to_bfloat16(sum(a * b for a, b in zip(x, hat, strict=True))) for x in inputs]
    deltas = [to_bfloat16(c * scale) for c in cs]
    gradient = [to_bfloat16(sum(d * x[i] for d, x in zip(deltas, inputs, strict=True))) / scale for i in range(3)]
    expected = [a - rate * g for a, g in zip(stored, gradient, strict=True)]
    if not master:
        expected = [to_bfloat16(v) for v in expected]
        assert expected[1] == stored[1], "an update below half a step is lost"

    def weighted(network, x, y):
        return (network(x)[:, 0] * torch.tensor([float(c) for c in cs])[y]).sum()

    class Scale:
        factor = scale

        def update(self, overflow):
            assert not overflow

    network = nn.Linear(3, 1, bias=False)
    network.weight.data = torch.tensor([[float(v) for v in w]])
    split = Split(np.float32([[float(v) for v in x] for x in xs]), np.arange(2))
    kept = {}
    recipe = Recipe(1, 2, float(rate), 0.0, "constant", loss=weighted, optimizer=torch.optim.SGD)
    _, trace = train_in(
        precision_of("bfloat16", master), network, Data("hand", split, split, split, 2), recipe, scaler=Scale(),
        on_step=lambda step, network: kept.update(w=network.weight.detach().clone()),
    )  # fmt: skip
    loss = sum(c * y for c, y in zip(cs, outputs, strict=True))
    assert trace[0]["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert np.allclose(kept["w"][0].numpy(), [float(v) for v in expected], rtol=2**-23, atol=0)


def test_master_weights_are_kept_and_what_comes_back_is_rounded():
    kept = []
    recipe = Recipe(epochs=1, batch=16)
    own, _ = train_in(
        precision_of("bfloat16"), small(), DATA, recipe, on_step=lambda s, n: kept.append(n[6].weight.detach().clone())
    )
    on_grid = BFloat16().round(kept[-1])
    assert not torch.equal(kept[-1], on_grid) and torch.equal(own[6].weight, on_grid)
    kept.clear()
    train_in(
        precision_of("bfloat16", master=False), small(), DATA, recipe,
        on_step=lambda s, n: kept.append(n[6].weight.detach().clone()),
    )  # fmt: skip
    assert all(torch.equal(w, BFloat16().round(w)) for w in kept)


# --- what else it offers --------------------


def test_every_layer_that_computes_is_rounded_and_no_other_costs_a_pass():
    calls = []

    @dataclass(frozen=True)
    class Spy:
        kind: str

        def round(self, x):
            calls.append((self.kind, tuple(x.shape)))
            return x.clone()

    precision = Precision(activations=Spy("a"), gradients=Spy("g"))
    train_in(precision, small(), replace(DATA, train=DATA.train[:2]), Recipe(epochs=1, batch=2))
    outputs = [(2, 4, 4, 4), (2, 4, 4, 4), (2, 4, 4, 4), (2, 3)]  # convolution, batch norm, dropout, linear
    assert [shape for kind, shape in calls if kind == "a"] == [(2, 1, 4, 4), *outputs]
    weights = [tuple(p.shape) for p in small().parameters()]
    assert sorted(shape for kind, shape in calls if kind == "g") == sorted(outputs + weights)


def test_recurrent_layers_round_too():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.gru, self.out = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.out(self.gru(x[:, 0])[0][:, -1])

    recipe = Recipe(epochs=2, batch=16)
    plain = Last()
    expected = recipe.train(plain, DATA)
    own, trace = train_in(Precision(), Last(), DATA, recipe)
    assert same(own, plain) and trace == expected
    own, trace = train_in(precision_of("bfloat16"), Last(), DATA, recipe)
    assert torch.equal(own.gru.weight_hh_l0, BFloat16().round(own.gru.weight_hh_l0)) and trace != expected


@dataclass(frozen=True)
class Noisy:
    """A format that rounds at random, to see which bits it is given."""

    seed: int = 0
    rounding: str = "stochastic"

    def round(self, x):
        SEEDS.append(self.seed)
        return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(self.seed)) * 1e-3


SEEDS: list[int] = []


def test_random_roundings_differ_from_place_to_place_and_repeat_with_the_seed():
    precision, recipe = Precision(Noisy(), Noisy(), Noisy(), Noisy(1)), Recipe(epochs=1, batch=35)
    SEEDS.clear()
    first, _ = train_in(precision, small(), DATA, recipe, seed=3)
    assert len(set(SEEDS)) == len(SEEDS)
    again, _ = train_in(precision, small(), DATA, recipe, seed=3)
    other, _ = train_in(precision, small(), DATA, recipe, seed=4)
    assert same(first, again) and not same(first, other)


def test_formats_may_change_while_training_runs():
    seen = []

    def at(step, steps):
        seen.append((step, steps))
        return precision_of("bfloat16" if step >= 2 else "fp32")

    kept = []
    own, _ = train_in(at, small(), DATA, Recipe(epochs=1, batch=16), on_step=lambda s, n: kept.append(s))
    assert kept == [0, 1, 2, 3, 4] and {steps for _, steps in seen} == {5}
    assert torch.equal(own[6].weight, BFloat16().round(own[6].weight))


def test_a_recipe_with_loss_and_optimizer_of_its_own_is_heard():
    def halved(network, x, y):
        return functional.cross_entropy(network(x), y) / 2

    recipe, expected = Recipe(epochs=2, loss=halved, optimizer=torch.optim.SGD), small()
    plain = recipe.train(expected, DATA)
    own, trace = train_in(Precision(), small(), DATA, recipe)
    assert same(own, expected) and trace == plain and not same(own, train_in(Precision(), small(), DATA, Recipe(2))[0])


def test_formats_by_name():
    for name in FORMATS:
        assert precision_of(name).stored is None
    assert precision_of("fp8", master=False).bits() == {
        "weights": 8, "activations": 8, "gradients": 8, "stored": 8, "state": 32,
    }  # fmt: skip
    assert precision_of("fp16").bits()["stored"] == 32
    x = torch.tensor([1e6, 300.0, 1.06, 1e-4])
    assert precision_of("fp8").weights.round(x).tolist() == [448.0, 288.0, 1.0, 0.0]
    assert precision_of("fp8").gradients.round(x).tolist() == [float("inf"), 320.0, 1.0, 1.068115234375e-04]
    with pytest.raises(ValueError, match="format: expected one of fp32, bfloat16, fp16, fp8, got 'int4'"):
        precision_of("int4")


def test_threads_and_random_state_are_left_as_they_were():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    torch.manual_seed(5)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    train_in(Precision(), network, DATA, Recipe(epochs=1))
    assert torch.equal(state, torch.random.get_rng_state()) and threads == torch.get_num_threads()
