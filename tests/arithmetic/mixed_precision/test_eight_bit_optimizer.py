"""8-bit AdamW against torch's, the table against its bit patterns in exact rationals, fast against plain."""

from __future__ import annotations

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import datasets
from kernels.arithmetic.mixed_precision.eight_bit_optimizer import (
    AdamW8bit,
    EightBitOptimizer,
    _encode,
    _scale,
    _tables,
    adamw_update,
    code,
    dequantize,
    quantize,
)

OPTIONS = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.02}
TABLES = [(name, signed, zero) for name in ("dynamic", "linear") for signed, zero in ((1, 1), (0, 1), (0, 0))]


def tree(bits, signed):
    """The value of a pattern of dynamic tree quantization: [sign,] zeros that say a power of ten, a one, a fraction."""
    sign = -1 if signed and bits >> 7 else 1
    rest, width = (bits & 0x7F, 7) if signed else (bits, 8)
    if signed and bits == 0x80:  # minus zero would be a second zero: it is one
        return Fraction(1)
    if rest == 0:
        return Fraction(0)
    if not signed and rest == 1:  # eight zeros would leave a decade of a single number: it is one
        return Fraction(1)
    places = rest.bit_length() - 1  # of the fraction
    zeros = width - 1 - places
    step = Fraction(9, 10) / 2**places
    return sign * (Fraction(1, 10) + step * (rest - 2**places) + step / 2) / 10**zeros


@pytest.mark.parametrize("signed", [True, False])
def test_all_256_codes_are_the_papers_construction(signed):
    expected = sorted(tree(bits, signed) for bits in range(256))
    table = code("dynamic", signed)
    assert table.dtype == np.float32 and np.all(np.diff(table) > 0)
    np.testing.assert_allclose(table.astype(np.float64), [float(v) for v in expected], rtol=1e-7, atol=0)


@pytest.mark.parametrize("signed", [True, False])
def test_bitsandbytes_has_the_same_table(signed):
    functional = pytest.importorskip("bitsandbytes.functional")
    other = functional.create_dynamic_map(signed=signed).numpy()
    np.testing.assert_allclose(code("dynamic", signed), other, rtol=1e-6)


def test_other_tables():
    np.testing.assert_array_equal(code("linear", False) * np.float32(255), np.float32(np.arange(256)))
    signed = code("linear", True)
    assert signed[0] == -1 and signed[127] == 0 and signed[254] == signed[255] == 1
    without = code("dynamic", False, zero=False)
    assert len(without) == 256 and without.min() == code("dynamic", False)[1] > 0
    assert set(without) == set(code("dynamic", False)) - {np.float32(0)}


@pytest.mark.parametrize("key", TABLES)
def test_the_nearest_code_is_found(key):
    """Against the smallest of all 256 distances."""
    table = code(*key)
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(4000) * 10.0 ** rng.uniform(-9, 0, 4000)).astype(np.float32)
    x = x if key[1] else np.abs(x)
    codes, scales = quantize(x, table, 0)
    shares = (x / scales[0]).astype(np.float64)
    best = np.abs(shares[:, None] - table.astype(np.float64)).min(1)
    np.testing.assert_allclose(np.abs(shares - table[codes]), best, rtol=0, atol=1e-8)


@pytest.mark.parametrize("key", TABLES)
def test_the_kernel_encodes_as_the_plain_statement_does(key):
    table, middles, below = _tables(*key)
    rng = np.random.default_rng(1)
    cut = middles[:-1]
    around = [np.nextafter(cut, np.float32(2)), np.nextafter(cut, np.float32(-2)), cut, table]
    wide = (rng.standard_normal(20000) * 10.0 ** rng.uniform(-45, 0, 20000)).astype(np.float32)
    x = np.concatenate([*around, wide, np.float32([0.0, -0.0, 1, -1, 1e-45, -1e-45, 2.0**-126])])
    x = x if key[1] else np.abs(x)
    for scale in (1, 2.0**-130, 2.0**100):
        numbers = (x / np.abs(x).max() * np.float32(scale)).astype(np.float32)
        codes, scales = quantize(numbers, table, 0)
        own = np.empty(numbers.size, np.uint8)
        assert _scale(numbers) == scales[0]
        _encode(numbers, own, scales[0], middles, below, np.empty_like(numbers))
        np.testing.assert_array_equal(own, codes)


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), max_size=40), st.integers(0, 9))
def test_blocks_do_not_touch_each_other(numbers, block):
    table = code("dynamic", True)
    codes, scales = quantize(np.float32(numbers), table, block)
    assert codes.shape == (len(numbers),)
    back = dequantize(codes, scales, table, block)
    size = block or max(1, len(numbers))
    for start in range(0, len(numbers), size):
        part, own = np.float32(numbers[start : start + size]), back[start : start + size]
        largest = np.abs(part).max()
        assert np.all(np.abs(own - part) <= largest * 0.0071)  # half the widest gap, that below one
        if len(part) and largest == part.max():
            assert own.max() == largest  # the largest is exact


def test_zeros_nan_infinities_and_nothing():
    table, middles, below = _tables("dynamic", True)
    codes, scales = quantize(np.zeros(5), table, 2)
    assert list(scales) == [0, 0, 0] and list(dequantize(codes, scales, table, 2)) == [0] * 5
    codes, scales = quantize(np.zeros(0), table)
    assert codes.size == scales.size == 0
    assert quantize(np.float32(3), table)[0].tolist() == [255]
    for bad in (np.nan, np.inf):
        x = np.float32([1, bad, 2])
        scale = _scale(x)
        assert np.array_equal(scale, quantize(x, table, 0)[1][0], equal_nan=True)
        own = np.empty(3, np.uint8)
        _encode(x, own, scale, middles, below, np.empty(3, np.float32))  # reads no place outside the tables


def gradients(shapes, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield [torch.randn(shape, generator=generator) for shape in shapes]


SHAPES = [(64, 64), (3000,), (2, 3, 5), (1,)]


def parameters():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def test_with_quantization_off_it_is_torchs_adamw_bit_for_bit():
    own, other = parameters(), parameters()
    optimizer = EightBitOptimizer(minimum=10**9).optimizer(own, **OPTIONS)
    reference = torch.optim.AdamW(other, **OPTIONS)
    for step in gradients(SHAPES, 20):
        for p, q, g in zip(own, other, step, strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        optimizer.step()
        reference.step()
    for p, q in zip(own, other, strict=True):
        assert torch.equal(p, q)
    assert torch.equal(optimizer.state[own[0]]["v"], reference.state[other[0]]["exp_avg_sq"])


@pytest.mark.parametrize("block", [0, 256, 2048])
def test_every_update_is_the_plain_one_between_two_roundings(block):
    own = parameters()
    optimizer = EightBitOptimizer(block).optimizer(own, **OPTIONS)
    plain = [
        (p.detach().clone(), *(quantize(np.zeros(p.numel()), code("dynamic", s), block) for s in (True, False)))
        for p in own
    ]
    for number, step in enumerate(gradients(SHAPES, 3), 1):
        for p, g in zip(own, step, strict=True):
            p.grad = g.clone()
        optimizer.step()
        for index, (p, g) in enumerate(zip(own, step, strict=True)):
            weights, m8, v8 = plain[index]
            m, v = (
                torch.from_numpy(dequantize(*pair, code("dynamic", s), block)).view(g.shape)
                for pair, s in ((m8, True), (v8, False))
            )
            adamw_update(weights, g, m, v, step=number, **OPTIONS)
            torch.testing.assert_close(p.detach(), weights, rtol=1e-6, atol=1e-7)
            state = optimizer.state[p]
            new = quantize(m, code("dynamic", True), block), quantize(v, code("dynamic", False), block)
            for name, (codes, scales) in zip("mv", new, strict=True):
                assert np.abs(state[name].numpy().astype(int) - codes).max() <= 1  # a last bit may tip it over
                assert np.mean(state[name].numpy() != codes) < 0.01
                np.testing.assert_allclose(state[f"{name}_scales"].numpy(), scales, rtol=1e-6)
            weights.copy_(p.detach())
            own_codes = [(state[n].numpy().copy(), state[f"{n}_scales"].numpy().copy()) for n in "mv"]
            plain[index] = (weights, *own_codes)


def test_one_update_by_hand():
    """First step from zero moments: m = 0.1 g and v = 0.001 g², so the step is the rate times the sign."""
    p = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
    optimizer = AdamW8bit([p], lr=0.5, weight_decay=0.1)
    p.grad = torch.tensor([4.0, -4.0, 0.0])
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.95 - 0.5, 0.95 + 0.5, 0.95]))
    state = optimizer.state[p]
    np.testing.assert_allclose(state["m_scales"].numpy(), [0.4], rtol=1e-6)
    np.testing.assert_allclose(state["v_scales"].numpy(), [0.016], rtol=1e-6)
    assert state["m"].tolist() == [255, 0, 127] and state["v"].tolist() == [255, 255, 0]


def test_a_second_moment_of_zero_makes_a_weight_jump():
    """A gradient that comes once, small in its block; in the next step the first moment is there, the second is not."""

    def change(zero):
        p = nn.Parameter(torch.zeros(2))
        optimizer = EightBitOptimizer(zero=zero).optimizer([p], lr=0.01, weight_decay=0.0)
        for second in (1e-4, 0.0):
            p.grad = torch.tensor([1.0, second])
            optimizer.step()
        return float(p.detach()[1].abs())

    assert change(zero=True) > 1 > 0.02 > change(zero=False)


def test_state_is_in_bytes_and_counted():
    network = nn.Sequential(nn.Linear(100, 50), nn.Linear(50, 10))
    for system in (
        EightBitOptimizer(),
        EightBitOptimizer(block=256),
        EightBitOptimizer(0),
        EightBitOptimizer(minimum=4096),
    ):
        optimizer = system.optimizer(network.parameters(), lr=0.01)
        network(torch.ones(1, 100)).sum().backward()
        optimizer.step()
        state = sum(
            t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)
        )
        weights = sum(4 * p.numel() for p in network.parameters())
        assert system.resident_bytes(network) == 2 * weights + state
    assert EightBitOptimizer(minimum=10**6).resident_bytes(network) == 4 * weights


def test_run_trains_a_copy_by_the_recipe_with_another_optimizer():
    workload = datasets.workload("digits-mlp")
    network, recipe = workload.network(), datasets.Recipe(epochs=2)
    before = copy.deepcopy(network.state_dict())
    own, trace = EightBitOptimizer().run(recipe, network, workload.data())
    again, same = EightBitOptimizer().run(recipe, network, workload.data())
    assert trace == same and trace[-1]["loss"] < trace[0]["loss"]
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), again.state_dict().values(), strict=True))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    off, plain_trace = EightBitOptimizer(minimum=10**9).run(recipe, network, workload.data())
    assert recipe.train(network, workload.data()) == plain_trace != trace
    assert all(torch.equal(a, b) for a, b in zip(off.parameters(), network.parameters(), strict=True))


def test_layouts_and_parameters_without_gradient():
    base = torch.randn(6, 8)
    straight, strided = nn.Parameter(base.clone()), nn.Parameter(base.t().contiguous().t())
    idle = nn.Parameter(torch.ones(3))
    for p in (straight, strided):
        optimizer = AdamW8bit([p, idle], lr=0.1)
        p.grad = torch.arange(48.0).view(6, 8)
        assert optimizer.step(lambda: 7) == 7
    assert not strided.is_contiguous() and torch.equal(straight, strided) and torch.equal(idle, torch.ones(3))
    empty = nn.Parameter(torch.zeros(0))
    empty.grad = torch.zeros(0)
    AdamW8bit([empty], block=0).step()


def test_bad_input():
    for bad in (-1, 1.5, "many"):
        with pytest.raises(ValueError, match="block: expected 0 or a positive integer"):
            EightBitOptimizer(block=bad)
        with pytest.raises(ValueError, match="minimum: expected 0 or a positive integer"):
            EightBitOptimizer(minimum=bad)
    with pytest.raises(ValueError, match="code: expected dynamic or linear, got 'tree'"):
        EightBitOptimizer(code="tree")
    with pytest.raises(ValueError, match="block: expected 0 or a positive integer, got -2"):
        quantize([1.0], code("linear", True), -2)
    with pytest.raises(TypeError, match="x: expected real numbers"):
        quantize(["a"], code("linear", True))
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    p.grad = torch.ones(3, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"parameters: expected float32 on the CPU, got torch\.float64"):
        AdamW8bit([p]).step()
