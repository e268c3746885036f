"""Expected times beside runs that are cut short at random, and the places of checkpoints beside all that there are."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, islice, pairwise, repeat
from math import exp, inf, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import lambertw

from kernels.implementation.dataflow.layer import Layer
from kernels.implementation.dataflow.output_stationary import OutputStationary
from kernels.implementation.memory.intermittent_computing import (
    PLACES,
    IntermittentComputing,
    Run,
    Segment,
    _Folds,
    best_interval,
    expected_cycles,
    exponential,
    survive,
)

LAYERS = [Layer(1, 16, 28, 28, kernel=3, padding=1), Layer(16, 32, 14, 14, kernel=3, padding=1), Layer.gemm(1, 10, 288)]
positive = st.floats(0.1, 5.0)


@settings(max_examples=40, deadline=None)
@given(positive, st.floats(0, 2), st.floats(0, 2), positive, st.floats(0, 5))
def test_the_closed_form_solves_the_renewal_equation(work, save, restore, mean, off):
    found = expected_cycles(Segment(work, save, restore), mean, off)
    recovery = (mean + off) * (exp(restore / mean) - 1)

    def renewed(length, after, again):
        integral = quad(lambda t: exp(-t / mean) / mean * (t + off + after + again), 0, length)[0]
        return exp(-length / mean) * length + integral

    assert renewed(restore, 0, recovery) == pytest.approx(recovery, rel=1e-6, abs=1e-9)
    assert renewed(work + save, recovery, found) == pytest.approx(found, rel=1e-6)
    assert found >= work + save


@pytest.mark.parametrize(
    "segments",
    [[Segment(3.0)], [Segment(2.0, 0.5, 1.0)], [Segment(1.0, 0.5), Segment(4.0, 0.2, 0.3), Segment(2.0, 1.0, 1.0)]],
)
def test_simulated_runs_take_as_long_as_expected(segments):
    mean, runs = 3.0, 4000
    supply = exponential(mean, seed=1)
    found = [survive(segments, supply) for _ in range(runs)]
    powered, failures = np.array([r.powered for r in found]), np.array([r.failures for r in found])
    expected = sum(expected_cycles(s, mean) for s in segments)
    assert abs(powered.mean() - expected) < 4 * powered.std() / sqrt(runs)
    # with an outage of D, the expected time grows by D for each failure: E(D) / E(0) = 1 + D / M
    assert abs(failures.mean() - expected / mean) < 4 * failures.std() / sqrt(runs)
    outage = sum(expected_cycles(s, mean, off=7.0) for s in segments)
    assert outage == pytest.approx(expected * (1 + 7.0 / mean))
    for run in found:  # nothing is gained or lost but what is said
        assert run.powered - run.lost == pytest.approx(sum(s.work + s.save for s in segments))


def test_where_nothing_fails_it_takes_what_it_takes():
    assert survive([Segment(3, 1, 5)] * 2, []) == Run(8, 0, 0)
    assert survive([], []) == Run(0, 0, 0)
    assert expected_cycles(Segment(3, 1, 5), 1e12) == pytest.approx(4)
    assert expected_cycles(Segment(0), 1.0) == 0
    assert expected_cycles(Segment(1e6), 1.0) == inf


def test_an_energy_buffer_by_hand():
    # ten cycles a charge: a segment of 7 fits, what is left is lost; the next charge restores first
    assert survive([Segment(6, 1, 2)] * 3, repeat(10.0)) == Run(29.0, 2, 3.0 + 2.0 + 1.0 + 2.0)
    assert survive([Segment(2, 1, 1)] * 4, repeat(10.0)) == Run(14.0, 1, 2.0)
    with pytest.raises(RuntimeError, match="given up after 50 failures in segment 1 of 13 cycles"):
        survive([Segment(5), Segment(11, 1, 1)], repeat(10.0), most=50)


@settings(max_examples=80, deadline=None)
@given(st.floats(1e-6, 1e3), st.floats(1e-2, 1e4))
def test_the_best_interval_is_lamberts_and_a_minimum(save, mean):
    found = best_interval(save, mean)
    assert found == pytest.approx(mean * (1 + lambertw(-exp(-1 - save / mean)).real), rel=1e-4, abs=1e-9 * mean)
    assert 0 < found <= min(mean, sqrt(2 * save * mean)) * (1 + 1e-12)
    if 1e-3 < save / mean < 20:
        least = minimize_scalar(
            lambda tau: np.expm1((tau + save) / mean) / tau, bounds=(1e-6 * mean, mean), method="bounded",
            options={"xatol": 1e-9 * mean},
        )  # fmt: skip
        assert found == pytest.approx(least.x, rel=1e-3)


def test_the_best_interval_at_its_ends():
    assert best_interval(0.0, 10.0) == 0
    assert best_interval(1e-8, 1.0) == pytest.approx(sqrt(2e-8), rel=1e-3)  # Young's
    assert best_interval(50.0, 1.0) == pytest.approx(1)
    for bad in ((-1.0, 1.0), (1.0, 0.0), (float("nan"), 1.0), (1.0, inf)):
        with pytest.raises(ValueError, match="save, mean: expected finite cycles"):
            best_interval(*bad)


def small(checkpoint="best", **more):
    return IntermittentComputing(checkpoint, rows=8, columns=8, **more)


@pytest.mark.parametrize("failures", [0.3, 3.0, 20.0])
@pytest.mark.parametrize("state", [0, 16, 400])
def test_the_best_places_are_the_best_of_all_subsets(failures, state):
    layers = [Layer(2, 8, 5, 5, kernel=3), Layer(8, 16, 3, 3, kernel=3, padding=1), Layer.gemm(1, 20, 144)]
    model = small(failures=failures, state=state)
    folds = _Folds(layers, model)
    last = len(folds.cycles) - 1
    assert last == 2 + 4 + 3
    costs = []
    for count in range(last):
        for inner in combinations(range(1, last), count):
            places = [0, *inner, last]
            costs.append(sum(expected_cycles(folds.segment(i, j), folds.mean) for i, j in pairwise(places)))
    assert model.cost(layers).cycles == pytest.approx(min(costs))


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 30), st.integers(0, 3000), st.integers(1, 64), st.floats(0, 1e4))
def test_nothing_beats_the_best_and_work_is_never_undercut(failures, state, bandwidth, off):
    costs = {c: IntermittentComputing(c, failures, state, bandwidth, off).cost(LAYERS) for c in PLACES}
    assert all(costs["best"].cycles <= cost.cycles * (1 + 1e-9) for cost in costs.values())
    work = OutputStationary(32, 32).cost(LAYERS)
    for checkpoint, cost in costs.items():
        model = IntermittentComputing(checkpoint, failures, state, bandwidth, off)
        segments = model.segments(LAYERS)
        assert len(segments) == cost.checkpoints and segments[0].restore == 0
        assert sum(s.work for s in segments) == pytest.approx(work.cycles)
        assert cost.cycles >= work.cycles and cost.dram.total >= work.dram.total - 3
        assert cost.macs == work.macs and 0 < cost.utilization <= work.utilization
        least = len(segments) * state + 10  # of results, the answers at least
        assert cost.nonvolatile_writes >= least * (1 - 1e-9)


def test_what_a_checkpoint_holds():
    layers = [Layer.gemm(16, 8, 4), Layer.gemm(16, 8, 8)]  # two folds each; 64 bytes of results a fold
    model = small("fold", state=8, bandwidth=1, failures=1.0)
    first, second, third, fourth = model.segments(layers)
    assert [s.save for s in (first, second, third, fourth)] == [8 + 64] * 4
    assert [s.restore for s in (first, second, third, fourth)] == [0, 8, 8, 8]
    # with none before, one within the second layer holds what that layer reads and has written; one at its end less
    folds = _Folds(layers, model)
    assert folds.segment(0, 3).save == 8 + 128 + 64 and folds.segment(0, 4).save == 8 + 128
    assert folds.segment(1, 3).save == 8 + 64 + 64
    assert [s.save for s in replace(model, checkpoint="never").segments(layers)] == [8 + 128]
    assert [s.save for s in replace(model, checkpoint="layer").segments(layers)] == [8 + 128] * 2


def test_writes_and_work_done_again_are_those_of_simulated_attempts():
    model = small("layer", failures=4.0, state=40, bandwidth=2)
    layers = [Layer(2, 8, 9, 9, kernel=3), Layer.gemm(1, 30, 392)]
    segments, work = model.segments(layers), model.array().cost(layers)
    mean, rng, runs = work.cycles / 4.0, np.random.default_rng(0), 20_000
    ran = saved = 0.0
    for s in segments:
        going = np.ones(runs, bool)
        while going.any():
            lasts = np.where(going, rng.exponential(mean, runs), 0)
            ran += np.minimum(lasts, s.work).sum() / runs
            saved += np.clip(lasts - s.work, 0, s.save).sum() / runs
            going &= lasts < s.work + s.save
    counts = model.cost(layers)
    assert counts.nonvolatile_writes == pytest.approx(2 * saved, rel=0.03)
    assert counts.dram.total == pytest.approx(work.dram.total * ran / work.cycles, rel=0.03)


def test_the_answer_is_the_same_however_often_power_fails():
    """A layer in folds of four rows: volatile memory is lost, and all the same every row is computed."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((20, 16)), [rng.standard_normal((16, 16)) for _ in range(3)]

    def fold(layer, rows):
        def step(memory):
            source = x if layer == 0 else memory["results"][layer - 1]
            memory["results"][layer][rows] = np.maximum(source[rows] @ w[layer], 0)
            memory["steps"] += 1

        return step

    steps = [fold(layer, slice(r, r + 4)) for layer in range(3) for r in range(0, 20, 4)]
    segments = [Segment(4.0, 1.0, 1.0)] * len(steps)
    expected = x
    for weights in w:
        expected = np.concatenate([np.maximum(expected[r : r + 4] @ weights, 0) for r in range(0, 20, 4)])
    for seed in range(5):
        memory = {"results": np.full((3, 20, 16), np.nan), "steps": 0}
        run = survive(segments, exponential(6.0, seed), steps, memory)
        assert run.failures > 0 and memory["steps"] == 15  # the steps that count are those that were saved
        assert np.array_equal(memory["results"][2], expected)


def test_the_contract_and_what_never_ends():
    model = IntermittentComputing()
    assert model.cost([]).figures()["checkpoints"] == 0 and model.segments([]) == []
    assert model.cost_of(LAYERS[0]) == model.cost(LAYERS[0]) == model.cost([LAYERS[0]])
    assert model.cost_gemm(3, 4, 5).macs == 60
    assert model.ideal().cost(LAYERS).energy > 0 and model.cost(LAYERS).energy is None
    endless = IntermittentComputing("never", failures=5000.0).cost(LAYERS).figures()
    assert endless["cycles"] is None and endless["core_utilization"] is None and endless["macs"] > 0
    assert {name for name, value in endless.items() if value is None} == set(IntermittentComputing.missing)
    supply = exponential(5.0, seed=3)
    assert list(islice(supply, 3)) == list(islice(exponential(5.0, seed=3), 3))


def test_bad_input_is_named():
    for options, message in (
        ({"checkpoint": "often"}, "checkpoint: expected one of best, interval, layer, fold, never, got 'often'"),
        ({"failures": 0}, "failures: expected a finite number above 0, got 0"),
        ({"failures": inf}, "failures: expected a finite number above 0, got inf"),
        ({"off": -1.0}, "off: expected a finite number of at least 0, got -1.0"),
        ({"state": -1}, "state: expected an integer of at least 0, got -1"),
        ({"bandwidth": 0}, "bandwidth: expected an integer of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            IntermittentComputing(**options)
    with pytest.raises(TypeError, match="layers: expected Layer objects, got int"):
        IntermittentComputing().cost([3])
    with pytest.raises(ValueError, match="steps: expected one for each of 2 segments, got 1"):
        survive([Segment(1)] * 2, [], [lambda memory: None])
