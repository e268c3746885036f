"""The protocol with operators whose error and bytes are known beforehand, and against counts made another way."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import datasets
from kernels import counting
from kernels.energy import DRAM_ENERGY, mac_energy
from kernels.implementation.loops.loop_tiling import LoopTiling
from taxonomy.measure.protocol import REPETITIONS, Case, Missing
from taxonomy.measure.protocols.operator import EMULATED, _error, protocol, stored_bytes
from taxonomy.measure.stack import fold, operate
from taxonomy.measure.tasks import task_of

PRODUCT = {"m": 6, "n": 40, "k": 20}
SPARSE = {"m": 30, "n": 8, "k": 20, "density": 0.25}
ONE_COLUMN = {**SPARSE, "n": 1}
CONVOLUTION = {
    "in_channels": 6, "out_channels": 4, "size": 9, "kernel": 3, "stride": 2, "padding": 1, "groups": 2,
}  # fmt: skip
SHAPES = pytest.mark.parametrize(
    "shape", [PRODUCT, SPARSE, ONE_COLUMN, CONVOLUTION], ids=["product", "sparse", "one column", "convolution"]
)


class Plain:
    """The operator by einsum, all results too large by a share of the largest one."""

    def __init__(self, share: float = 0.0):
        self.share = share

    def prepare(self, w, groups=1):
        return w

    def _off(self, y):
        return y + self.share * np.abs(y).max()

    def matmul(self, a, b):
        return self._off(np.einsum("ip,pj->ij", a.astype(float), b.astype(float)))

    def conv2d(self, x, w, stride, padding, groups):
        x = np.pad(x.astype(float), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
        each = w.shape[1]
        parts = [
            np.einsum("ncyxij,ocij->noyx", windows[:, g * each : (g + 1) * each], filters)
            for g, filters in enumerate(np.split(w.astype(float), groups))
        ]
        return self._off(np.concatenate(parts, axis=1))


def node(**fields):
    first = {"variants": ({},), "peers": (), "baseline": "torch", "settings": {}, "runs": "native"}
    return SimpleNamespace(id="an-operator", **{**first, **fields})


def case(subject, shape, variant=(), seed=0, **fields):
    return Case(node(**fields), dict(variant), subject, None, shape, seed)


@pytest.mark.parametrize(
    "result, exact, error",
    [
        ([1, 4], [1, 5], 0.2),
        ([1, np.inf, -np.inf, np.nan], [2, np.inf, -np.inf, np.nan], 0.5),  # equal ones are no error
        ([np.inf, np.nan], [np.inf, np.nan], 0.0),
        ([1, np.inf], [1, -np.inf], np.inf),
        ([1, np.inf], [1, 2], np.inf),
        ([1, 2], [1, np.inf], np.inf),
        ([1, np.nan], [1, 2], np.inf),
        ([1, 2], [1, np.nan], np.inf),
        ([1, np.nan], [1, np.inf], np.inf),
        ([0, 0], [0, 0], 0.0),
        ([0, 1], [0, 0], np.inf),
    ],
)
def test_an_infinity_or_nan_is_no_error_or_an_infinite_one(result, exact, error):
    assert _error(np.array(result, np.float32), np.array(exact, np.float64)) == error


@SHAPES
@pytest.mark.parametrize("share", [0.0, 0.01])
def test_error_is_relative_to_the_largest_result(shape, share):
    values = protocol.quality(case(Plain(share), shape))
    assert values["self"]["max_error"] == pytest.approx(share, abs=1e-12)
    assert 0 < values["baseline"]["max_error"] < 1e-5


@SHAPES
def test_bytes_and_energy_are_compulsory_without_a_model(shape):
    values, task = protocol.quality(case(Plain(), shape)), task_of(shape, 0)
    bytes_ = task.constant.nbytes + task.varying.nbytes + 4 * task.exact().size
    assert values["self"]["memory_access"] == values["baseline"]["memory_access"] == bytes_
    energy = values["self"]["effective_macs"] * mac_energy("fp32") + bytes_ * DRAM_ENERGY
    assert values["self"]["energy"] == pytest.approx(energy)


def test_bytes_follow_the_model_where_there_is_one():
    shape = {**PRODUCT, "cache_bytes": 4096}
    values = protocol.quality(case(LoopTiling(rung="tiled"), shape, baseline="naive"))
    assert values["self"]["memory_access"] == LoopTiling(rung="tiled").memory_access(6, 40, 20, 4096)
    assert values["baseline"]["memory_access"] == LoopTiling(rung="naive").memory_access(6, 40, 20, 4096)


def test_footprint_counts_what_a_call_allocates():
    class Wasteful(Plain):
        def matmul(self, a, b):
            scratch = np.zeros(2**20, np.uint8)
            return super().matmul(a, b) + scratch[0]

    plain, wasteful = (protocol.quality(case(op, PRODUCT))["self"]["memory_footprint"] for op in (Plain(), Wasteful()))
    assert 2**20 <= wasteful - plain + 6 * 40 * 8 * 4 <= 2**20 + 2**16


def test_products_are_counted_as_torch_layers_count_them():
    layer = torch.nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2, bias=False)
    assert task_of(CONVOLUTION, 0).macs()[0] == counting.macs(layer, torch.zeros(1, 6, 9, 9))
    linear = torch.nn.Linear(20, 40, bias=False)
    assert task_of(PRODUCT, 0).macs()[0] == counting.macs(linear, torch.zeros(6, 20))


def test_a_sparse_operand_has_the_density_asked_for():
    task = task_of(SPARSE, 3)
    assert np.count_nonzero(task.constant) == 150
    assert task.macs() == (30 * 20 * 8, 150 * 8)
    assert not np.array_equal(task.constant, task_of(SPARSE, 4).constant)


@SHAPES
def test_all_contestants_compute_the_same(shape):
    names = tuple(task_of(shape, 0).peers)
    contest = protocol.contest(case(Plain(), shape, peers=(*names, "elsewhere")))
    assert contest.unit == "flop" and contest.work == 2 * task_of(shape, 0).macs()[1]
    exact = task_of(shape, 0).exact()
    for name, call in contest.contestants.items():
        bytewise = name in {"torch-int8", "onnxruntime"}  # they round both operands to 8 bits
        np.testing.assert_allclose(
            np.asarray(call()), exact, rtol=1e-3, atol=0.02 * np.abs(exact).max() if bytewise else 1e-4
        )
    assert contest.missing["elsewhere"].startswith("it offers no")
    assert {"self", "baseline", *names, "elsewhere"} <= {*contest.contestants, *contest.missing}


def test_a_library_that_is_not_there_is_missing_with_its_reason(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    contest = protocol.contest(case(Plain(), SPARSE, baseline="dense", peers=("mkl", "scipy")))
    assert contest.missing == {"mkl": "not installed: pip install mkl"}
    assert {"self", "baseline", "scipy"} == set(contest.contestants)


def test_the_first_variant_is_also_timed_unprepared():
    variants = ({"rung": "packed"}, {"rung": "tiled"})
    first, second = (
        protocol.contest(case(LoopTiling(**v), PRODUCT, v, variants=variants, baseline="naive")) for v in variants
    )
    assert set(first.contestants) == {"self", "unprepared", "baseline"}
    assert set(second.contestants) == {"self", "baseline"}


def test_another_arithmetic_has_no_share_of_the_peak_of_multiply_adds():
    from taxonomy.measurements import _values

    class Lookups(Plain):
        arithmetic = "a lookup"

    for subject, expected in ((Plain(), True), (Lookups(), False)):
        contest = protocol.contest(case(subject, PRODUCT, peers=("openblas",)))
        missing = {w: {m: v.reason for m, v in figures.items()} for w, figures in contest.values.items()}
        record = {
            "times": {who: [1.0] for who in contest.contestants}, "work": contest.work, "unit": contest.unit,
            "provenance": {"peak_flops": 1e9}, "missing": missing,
        }  # fmt: skip
        shares = {who for who, metric, _ in _values(record) if metric == "core_utilization"}
        assert {"baseline", "openblas"} <= shares and ({"self", "unprepared"} <= shares) is expected


def test_slow_loops_stay_out_of_large_shapes():
    settings = {"up_to": {"naive": {"k": 16}}, "cache_bytes": 4096}
    technique, shapes = node(settings=settings, baseline="naive"), [{"m": 1, "n": 1, "k": k} for k in (16, 17)]
    workload = SimpleNamespace(settings=shapes)
    for variant, sizes in (({"rung": "naive"}, {16}), ({"rung": "packed"}, {16, 17})):
        trials = protocol.trials(technique, variant, workload)
        assert {trial.setting["k"] for trial in trials} == sizes
        assert len(trials) == 2 * REPETITIONS * len(sizes)
        assert all(("cache_bytes" in trial.setting) != trial.timing for trial in trials)
    contest = protocol.contest(case(LoopTiling(), shapes[1], settings=settings, baseline="naive"))
    assert "baseline" in contest.missing and "baseline" not in contest.contestants


@SHAPES
def test_no_base_metric_is_left_out(shape):
    values = protocol.quality(case(Plain(), shape))["self"]
    assert set(protocol.metrics) <= {"latency", "throughput", "core_utilization", *values}
    assert not any(isinstance(value, Missing) for value in values.values())


def test_stored_bytes():
    @dataclass
    class Rows:
        values: np.ndarray
        begin: np.ndarray
        shape: tuple[int, int]

    assert stored_bytes(Rows(np.zeros(5, np.float32), np.zeros(3, np.int32), (2, 9))) == 32
    assert stored_bytes(np.zeros((4, 4), np.float32)) == 64


def test_a_setting_goes_to_the_task_with_the_most_of_its_keys():
    shapes = (PRODUCT, {**PRODUCT, "mean": 2.0}, SPARSE, {**SPARSE, "count": 3}, CONVOLUTION)
    expected = ["product", "product", "sparse product", "sparse product", "convolution"]
    assert [task_of(shape, 0).name for shape in shapes] == expected
    assert task_of(shapes[1], 0).varying.mean() == pytest.approx(2.0, abs=0.5)
    with pytest.raises(LookupError, match="no task has the keys length"):
        task_of({"length": 3}, 0)
    with pytest.raises(LookupError, match="nothing: no baseline of a product"):
        task_of(PRODUCT, 0).baseline("nothing")


def test_emulated_arithmetic_is_not_timed():
    workload = SimpleNamespace(settings=[PRODUCT])
    for fields in ({"runs": "emulated"}, {"settings": {"untimed": ["bfloat16"]}}):
        variant = {"format": "bfloat16"}
        assert not any(trial.timing for trial in protocol.trials(node(**fields), variant, workload))
        values = protocol.quality(case(Plain(), PRODUCT, variant, **fields))["self"]
        assert all(values[name] == Missing(EMULATED) for name in ("latency", "throughput", "core_utilization"))
    assert any(trial.timing for trial in protocol.trials(node(**fields), {"format": "fp32"}, workload))


def test_an_operator_says_what_its_operands_cost():
    class Bytes(Plain):
        operand_bits, operand_format = 8, "int8"

        def prepare(self, w, groups=1):
            return w.astype(np.int8)

    class Own(Plain):
        def energy(self, macs, moved):
            return macs * 1e-15

    class Unknown(Plain):
        operand_format = "posit"

    values = protocol.quality(case(Bytes(), PRODUCT))["self"]
    assert values["memory_access"] == 20 * 40 + 6 * 20 + 4 * 6 * 40
    assert values["energy"] == pytest.approx(4800 * mac_energy("int8") + values["memory_access"] * DRAM_ENERGY)
    assert protocol.quality(case(Own(), PRODUCT))["self"]["energy"] == pytest.approx(4.8e-12)
    assert "no cited energy" in protocol.quality(case(Unknown(), PRODUCT))["self"]["energy"].reason


class Products(Plain):
    """Only the product, as most operators of arithmetic have it."""

    conv2d = property()  # hidden: asking for it raises AttributeError

    def matmul(self, a, b):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        assert a.flags.c_contiguous
        return a @ b


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.Conv2d(4, 6, 3, padding=1, bias=False),
        torch.nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2),
        torch.nn.Conv2d(4, 6, (5, 3), padding="same"),
        torch.nn.Conv2d(4, 4, 3, padding="valid", groups=4),
        torch.nn.Linear(11, 3),
    ],
    ids=str,
)
def test_any_layer_is_computed_by_products(layer):
    network = torch.nn.Sequential(layer)
    x = torch.randn(3, 4, 9, 11)
    with torch.no_grad():
        torch.testing.assert_close(operate(network, Products(), x)(x), network(x), rtol=1e-4, atol=1e-5)


def test_an_operator_is_fitted_to_each_layer():
    seen = []

    class Fitted(Products):
        def fit(self, weight, inputs):
            seen.append((weight.shape, inputs.shape[1], len(inputs)))
            return self

    workload = datasets.workload("mnist-cnn")
    network, items = fold(workload.trained()), torch.tensor(workload.data().train.x[:64])
    operate(network, Fitted(), items)
    assert [shapes[:2] for shapes in seen] == [((9, 16), 9), ((144, 32), 144), ((288, 32), 288), ((288, 10), 288)]
    assert all(0 < rows <= 4096 for _, _, rows in seen)


def test_a_network_is_as_good_as_the_operator():
    workload = datasets.workload("digits-mlp")
    technique = node(baseline="fp32", settings={"items": 100, "seeds": 3})
    trials = protocol.trials(technique, {}, workload)
    assert [(dict(t.setting), t.seed, t.timing) for t in trials] == [({"items": 100}, s, False) for s in range(3)]

    def taken(operator):
        return protocol.quality(Case(technique, {}, operator, workload, {"items": 100}, 0))

    class Noise(Products):
        def matmul(self, a, b):
            return np.random.default_rng(0).standard_normal((len(a), np.shape(b)[1]))

    values = taken(Products())
    assert values["self"]["accuracy"] == values["baseline"]["accuracy"] > 0.9
    assert values["self"]["sqnr"] > 100 and values["self"]["max_error"] < 1e-5
    assert values["self"]["macs"] == 6464 and values["self"]["energy"] == values["baseline"]["energy"]
    assert taken(Noise())["self"]["accuracy"] < 0.4


def test_a_circuit_is_measured_once_on_all_its_operands():
    circuit = SimpleNamespace(errors=lambda: {"error_rate": 0.5, "error_bias": -1.0})
    technique, workload = node(runs="emulated", baseline="fp32"), SimpleNamespace(settings=[{"circuit_bits": 8}])
    (trial,) = protocol.trials(technique, {}, workload)
    assert not trial.timing and trial.setting == {"circuit_bits": 8}
    values = protocol.quality(case(circuit, {"circuit_bits": 8}, runs="emulated", baseline="fp32"))
    assert values["baseline"] == {"error_rate": 0, "error_bias": 0}
    assert values["self"]["error_rate"] == 0.5 and isinstance(values["self"]["latency"], Missing)


def test_an_operator_that_learns_is_timed_prepared_only():
    class Learning(Plain):
        def fit(self, w, x):
            return self

    for subject, expected in ((Plain(), True), (Learning(), False)):
        assert ("unprepared" in protocol.contest(case(subject, PRODUCT)).contestants) is expected
