"""The block protocol on a small task: same budget, same draw of what both networks share."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from datasets import Data, Recipe, Split, Workload
from kernels.model.block import StandardConvolution
from kernels.model.compact_convolution.depthwise_separable import DepthwiseSeparable
from kernels.model.compact_convolution.re_parameterisation import ReParameterisation
from kernels.model.compact_convolution.width_multiplier import WidthMultiplier
from taxonomy.measure.protocol import Case
from taxonomy.measure.protocols.block import _drawn, _figures, protocol


def stripes(n, seed):
    """Horizontal or vertical stripes under noise."""
    random, y = np.random.default_rng(seed), np.arange(n) % 2
    wave = np.where(np.arange(6) % 2, 1.0, -1.0)
    clean = np.where(y[:, None, None] == 1, wave[None, :, None], wave[None, None, :])
    return Split((clean + 0.5 * random.normal(size=(n, 6, 6)))[:, None], y)


def network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )


WORKLOAD = Workload(
    "stripes", network, Data("stripes", stripes(128, 0), stripes(32, 1), stripes(64, 2), 2), Recipe(epochs=8)
)
NODE = SimpleNamespace(settings={})


def case(setting=None, seed=0, block=None):
    return Case(NODE, {}, block or DepthwiseSeparable(), WORKLOAD, setting or {}, seed)


def test_figures_are_those_counted_by_hand():
    values = protocol.quality(case())
    ours, standard = values["self"], values["baseline"]
    rest = 8 + 18  # the first and the last layer
    assert standard["parameters"] == rest + 4 * 8 * 9 + 8
    assert ours["parameters"] == rest + 4 * 9 + 2 * 4 + 4 * 8 + 8
    assert standard["macs"] == 4 * 36 + 4 * 8 * 9 * 16 + 16
    assert ours["macs"] == 4 * 36 + (4 * 9 + 4 * 8) * 16 + 16
    assert standard["stored_bits"] == 32 * standard["parameters"]
    assert standard["accuracy"] > 0.9 and ours["accuracy"] > 0.8
    assert set(protocol.metrics) - {"latency"} <= set(ours)
    torch.manual_seed(7)
    _figures.cache_clear()
    assert protocol.quality(case()) == values


def test_what_both_networks_share_starts_the_same():
    ours, standard = (_drawn(block, WORKLOAD, 3) for block in (DepthwiseSeparable(), StandardConvolution()))
    assert torch.equal(ours[0].weight, standard[0].weight) and torch.equal(ours[5].weight, standard[5].weight)
    again = _drawn(DepthwiseSeparable(), WORKLOAD, 3)
    assert torch.equal(ours[1].depthwise.weight, again[1].depthwise.weight)


def test_the_baseline_is_the_workloads_own_network_and_no_two_layers_start_alike():
    standard, plain = _drawn(StandardConvolution(), WORKLOAD, 3), WORKLOAD.network(3)
    assert all(torch.equal(p, q) for p, q in zip(standard.parameters(), plain.parameters(), strict=True))
    for seed in range(5):
        weights = [
            p.detach().flatten() for p in _drawn(DepthwiseSeparable(), WORKLOAD, seed).parameters() if p.ndim > 1
        ]
        shares = [(w[:4] / w.abs().max()) for w in weights]  # numbers drawn alike differ in scale only
        assert not any(torch.allclose(a / a[0], b / b[0]) for i, a in enumerate(shares) for b in shares[:i])


def test_trials_and_timing():
    trials = protocol.trials(NODE, {}, WORKLOAD)
    assert len([t for t in trials if not t.timing]) == 5 and len([t for t in trials if t.timing]) == 10
    contest = protocol.contest(case({"batch": 3}))
    assert {call().shape for call in contest.contestants.values()} == {(3, 2)} and contest.work == 3


def test_what_infers_in_another_form_is_measured_in_that():
    values = protocol.quality(case(block=ReParameterisation()))
    assert values["self"]["macs"] == values["baseline"]["macs"]
    assert values["self"]["parameters"] == values["baseline"]["parameters"]
    call = protocol.contest(case({"batch": 3}, block=ReParameterisation())).contestants["self"]
    assert call().shape == (3, 2)


def test_a_block_may_build_the_whole_network():
    def averaged():
        return nn.Sequential(*(nn.AdaptiveAvgPool2d(1) if type(m) is nn.AdaptiveMaxPool2d else m for m in network()))

    workload = Workload("stripes", averaged, WORKLOAD.data(), WORKLOAD.recipe)
    values = protocol.quality(Case(NODE, {}, WidthMultiplier(0.5), workload, {}, 0))
    assert values["self"]["parameters"] == (2 + 2) + (2 * 4 * 9 + 4) + (4 * 2 + 2)
    assert values["self"]["macs"] == 2 * 36 + 2 * 4 * 9 * 16 + 8


def test_a_workload_may_have_variants_of_its_own():
    node = SimpleNamespace(settings={"only": {"stripes": [{"multiplier": 1}]}})
    assert len(protocol.trials(node, {"multiplier": 1}, WORKLOAD)) == 15
    assert protocol.trials(node, {"multiplier": 2}, WORKLOAD) == []
    elsewhere = SimpleNamespace(id="other")
    assert len(protocol.trials(node, {"multiplier": 2}, elsewhere)) == 15
