"""The protocol with formats whose figures are known beforehand."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import datasets
from kernels.arithmetic.alternative_numbers.posit import Posit
from kernels.arithmetic.block_formats.block_floating_point import BlockFloatingPoint
from kernels.arithmetic.block_formats.microscaling import Microscaling
from kernels.arithmetic.block_formats.normal_float import NormalFloat
from kernels.arithmetic.fixed_point.fixed_point import FixedPoint
from kernels.arithmetic.fixed_point.int8 import Int8
from kernels.arithmetic.floating_point.bfloat16 import BFloat16
from kernels.arithmetic.floating_point.fp8 import FP8
from kernels.arithmetic.floating_point.fp16 import FP16
from taxonomy.measure.figures import layer_inputs
from taxonomy.measure.peers import number_format as peers
from taxonomy.measure.protocol import Case, Missing
from taxonomy.measure.protocols import number_format as module
from taxonomy.measure.protocols.number_format import errors, protocol, round_network, traffic, weights_of
from taxonomy.measure.workloads import Operands

# torch.fx's folding imports torch.jit, which says that it is old
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

NODE = SimpleNamespace(id="a-format", peers=(), variants=({}, {"step": 2}))
WORKLOAD = datasets.workload("digits-mlp")
ARRAY = Operands("small", ({"elements": 1000},))


class Grid:
    """Multiples of a step, of eight bits, with one scale of 32; remembers what it was fitted to."""

    dtype = np.float32

    def __init__(self, step=1.0, fitted=None):
        self.step, self.fitted = step, [] if fitted is None else fitted

    def round(self, x, out=None):
        return (torch.round if isinstance(x, torch.Tensor) else np.rint)(x / self.step) * self.step

    def fit(self, x):
        self.fitted.append(tuple(x.shape))
        return Grid(self.step, self.fitted)

    def for_activations(self):
        return self

    def stored_bits(self, shape):
        return 8 * int(np.prod(shape)) + 32

    def values(self):
        return np.arange(-128, 128) * self.step


class Same(Grid):
    """Changes nothing."""

    def round(self, x, out=None):
        return x

    def fit(self, x):
        return self


def take(subject, on, node=NODE, workload=WORKLOAD):
    return protocol.quality(Case(node, {}, subject, workload, {"on": on}, 0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.LSTM(5, 6, batch_first=True)).eval()


def test_weights_are_those_of_layers():
    shapes = [tuple(w.shape) for w in weights_of(network())]
    assert shapes == [(4, 3, 1), (24, 5), (24, 6)]  # no bias, no batch norm
    shared = nn.Linear(3, 3)
    assert len(weights_of(nn.Sequential(shared, shared))) == 1


@pytest.mark.parametrize("on", module.ON)
def test_round_network(on):
    plain, x, form = network(), torch.randn(2, 3, 5), Grid(0.25)
    before = {name: p.clone() for name, p in plain.state_dict().items()}
    rounded, formats = round_network(plain, form, x, on)
    assert all(torch.equal(before[name], p) for name, p in plain.state_dict().items())
    assert formats.keys() == {"0", "2"} and (2, 3, 5) in form.fitted
    for w, v in zip(weights_of(plain), weights_of(rounded), strict=True):
        assert torch.equal(v, form.round(w) if on != "activations" else w)
    seen = layer_inputs(rounded, x)
    assert torch.equal(seen["0"], form.round(x) if on != "weights" else x)
    if on != "weights":
        assert torch.equal(seen["2"], form.round(seen["2"]))
    assert torch.equal(plain[0].bias, rounded[0].bias)
    linear = nn.Linear(3, 2)
    y = round_network(linear, form, x.mT, on)[0](x.mT)
    w, v = (form.round(t.detach()) for t in (linear.weight, x.mT))
    w, v = (w if on != "activations" else linear.weight), (v if on != "weights" else x.mT)
    assert torch.equal(y, nn.functional.linear(v, w, linear.bias))


def test_round_network_refuses_another_place():
    with pytest.raises(ValueError, match="on: expected weights, activations, both, got 'biases'"):
        round_network(network(), Grid(), torch.zeros(1, 3, 5), "biases")


def test_errors_by_hand():
    found = errors([(np.float32([1.0, 0.0, 3.25]), Grid()), (np.float32([4.5]), Grid())])
    assert found["max_error"] == pytest.approx(0.5 / 4.5)
    assert found["sqnr"] == pytest.approx(10 * np.log10((1 + 3.25**2 + 4.5**2) / (0.25**2 + 0.5**2)))


def test_traffic_by_hand():
    net, item = nn.Sequential(nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 10)
    weights, others, inputs = 48, 6, 14
    assert traffic(net, item) == (32 * 54, 4 * 68)
    for on, stored, moved in (
        ("weights", 8 * weights + 64 + 32 * others, (8 * weights + 64 + 32 * (others + inputs)) // 8),
        ("activations", 32 * 54, 4 * 54 + inputs + 8),
        ("both", 8 * weights + 64 + 32 * others, weights + 8 + 4 * others + inputs + 8),
    ):
        assert traffic(net, item, Grid(), on) == (stored, moved)


@pytest.mark.parametrize("on", module.ON)
def test_a_format_that_changes_nothing(on):
    values = take(Same(), on)
    assert values["self"]["accuracy"] == values["baseline"]["accuracy"] > 0.9
    assert isinstance(values["self"]["sqnr"], Missing) and values["self"]["max_error"] == 0


def test_a_format_that_leaves_nothing():
    values = take(Grid(1e6), "weights")
    assert values["self"]["accuracy"] < 0.3 and values["self"]["sqnr"] == 0 and values["self"]["max_error"] == 1


def test_figures_of_real_formats():
    wide, narrow = take(BFloat16(), "both"), take(Posit(8, 0), "both")
    for values in (wide, narrow):
        assert values["self"].keys() | {"throughput"} == {
            *protocol.metrics,
            "memory_footprint",
            "memory_access",
            "core_utilization",
            "energy",
        }
        assert abs(values["self"]["accuracy"] - values["baseline"]["accuracy"]) < 0.05
        assert isinstance(values["self"]["energy"], Missing) and "a-format" in values["self"]["energy"].reason
    assert wide["self"]["sqnr"] > narrow["self"]["sqnr"] + 6
    assert 0.5 < wide["self"]["stored_bits"] / wide["baseline"]["stored_bits"] < 0.52
    assert wide["self"]["density"] == 128  # bfloat16 has as many in every octave
    assert narrow["self"]["dynamic_range"] == pytest.approx(20 * np.log10(2.0**12))
    exact = take(Posit(32, 2), "weights")["self"]  # near one it has more fraction bits than float32
    assert "changes none" in exact["sqnr"].reason and "at most 16 bits" in exact["density"].reason
    again = take(Posit(8, 0), "both")
    assert again["self"] | {"energy": 0} == narrow["self"] | {"energy": 0}


def test_energy_where_the_table_knows_the_format():
    node = SimpleNamespace(id="fp16", peers=())
    values = take(BFloat16(), "both", node)
    assert 0 < values["self"]["energy"] < values["baseline"]["energy"]
    assert isinstance(take(BFloat16(), "weights", node)["self"]["energy"], Missing)


def test_numbers_and_answers_that_are_lost_have_no_ratio():
    class Overflowing(Same):
        def round(self, x, out=None):
            return x * np.float32(np.inf)

    values = take(Overflowing(), "both")["self"]
    for metric in ("sqnr", "max_error", "output_sqnr"):
        assert "infinite or NaN" in values[metric].reason
    assert 0 <= values["agreement"] <= values["accuracy"] + 1


def test_layer_inputs_are_rounded_by_what_stands_for_the_format_there():
    class Channels(Grid):
        """Scales of single channels for weights, one for inputs."""

        def for_activations(self):
            return Grid(2 * self.step, self.fitted)

        def stored_bits(self, shape):
            return 8 * int(np.prod(shape)) + 32 * shape[0]

    net, x = nn.Sequential(nn.Linear(10, 4)), 10 * torch.randn(1, 10)
    rounded, formats = round_network(net, Channels(0.25), x)
    assert formats["0"].step == 0.5 and torch.equal(layer_inputs(rounded, x)["0"], torch.round(2 * x) / 2)
    stored, moved = traffic(net, x, Channels())
    assert stored == 8 * 40 + 32 * 4 + 32 * 4 and moved == (stored + 80 + 32) // 8
    assert module.bits_per_number(net, x, Channels(), "both") == (320 + 128 + 80 + 32) / 50
    assert module.bits_per_number(net, x, Channels(), "activations") == (80 + 32) / 10


def test_a_workload_without_labels_is_compared_with_fp32_alone():
    items = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    torch.manual_seed(0)
    net = nn.Linear(64, 3).eval()
    own = SimpleNamespace(
        id="own", trained=lambda: net, calibration=items[:2], items=items, few=1, decide=lambda y: y > 0
    )
    assert [t.setting["on"] for t in protocol.trials(NODE, {}, own)] == list(module.ON)
    form = Grid(0.5)
    values = take(form, "activations", workload=own)
    assert form.fitted == [(2, 64)]  # the scales: from the calibration items
    assert "accuracy" not in values["self"] and "accuracy" not in values["baseline"]
    exact = net(torch.tensor(items)).detach().double()
    got = net(torch.round(torch.tensor(items) * 2) / 2).detach().double()
    assert values["self"]["agreement"] == ((exact > 0) == (got > 0)).double().mean()
    noise = ((exact - got) ** 2).sum() / (exact**2).sum()
    assert values["self"]["output_sqnr"] == pytest.approx(-10 * torch.log10(noise).item(), rel=1e-5)
    assert values["self"]["sqnr"] == errors([(items[:1], form)])["sqnr"]


def test_trials():
    assert [t.setting["on"] for t in protocol.trials(NODE, {}, WORKLOAD)] == list(module.ON)
    timings = protocol.trials(NODE, {"step": 2}, ARRAY)
    assert all(t.timing and t.setting == {"elements": 1000} for t in timings)
    assert [t.seed for t in timings] == [*range(5)]
    settings = [t.setting for t in protocol.trials(NODE, {}, ARRAY) if t.seed == 0]
    assert settings == [{"elements": 1000, **more} for more in ({}, {"threads": 2}, {"operation": "encode"})]


def contest(subject, *peers, size=1000, **setting):
    node = SimpleNamespace(id="x", peers=peers)
    return protocol.contest(Case(node, {}, subject, ARRAY, {"elements": size, **setting}, 0))


def test_contest():
    found = contest(BFloat16(), "torch", "ml_dtypes")
    assert found.contestants.keys() == {"self", "baseline", "torch", "ml_dtypes"} and not found.missing
    assert found.work == 1000 and found.unit == "elements" and not found.works
    results = {who: call() for who, call in found.contestants.items()}
    for who in ("torch", "ml_dtypes"):
        np.testing.assert_array_equal(np.asarray(results[who]), results["self"])
    other = contest(BFloat16("toward-zero"), "torch", "ml_dtypes")
    assert other.contestants.keys() == {"self", "baseline"}
    assert all("nearest even only" in reason for reason in other.missing.values())


def test_two_threads_beside_two_copies():
    found = contest(BFloat16(), "torch", size=3 * 4096, threads=2)
    assert found.contestants.keys() == {"self", "baseline"}
    x = np.random.default_rng(0).standard_normal(3 * 4096, np.float32).reshape(-1, 4096)
    np.testing.assert_array_equal(found.contestants["self"](), BFloat16().round(x))
    copied = np.zeros_like(x)
    module._copy(x, copied, 2)()
    np.testing.assert_array_equal(copied, x)


def test_encoding_beside_a_conversion():
    found = contest(BFloat16(), "torch", "ml_dtypes", operation="encode")
    codes = found.contestants["self"]().codes
    for who in ("torch", "ml_dtypes"):
        narrow = found.contestants[who]()
        theirs = narrow.view(torch.uint16).numpy() if who == "torch" else narrow.view(np.uint16)
        np.testing.assert_array_equal(theirs, codes)
    assert "not codes" in contest(Posit(8, 0), "softposit", operation="encode").missing["softposit"]


@pytest.mark.parametrize("operation", ["round", "encode"])
@pytest.mark.parametrize(
    ("subject", "names"), [(BFloat16(), ("torch", "ml_dtypes")), (FixedPoint(4, 4), ("numpy",))], ids=["float", "fixed"]
)
def test_all_write_to_memory_that_is_there(subject, names, operation):
    found = contest(subject, *names, operation=operation)
    assert {"self", "baseline", *names} == found.contestants.keys()
    for who, call in found.contestants.items():
        if who == "baseline":
            continue
        results = [getattr(result, "codes", result) for result in (call(), call())]
        first, second = (r.view(torch.uint8) if isinstance(r, torch.Tensor) else r for r in results)
        assert np.shares_memory(np.asarray(first), np.asarray(second)), who


@pytest.mark.parametrize("operation", ["round", "encode"])
def test_pytorch_is_given_memory_of_numpy_whose_pages_are_large(operation):
    x = np.zeros((256, 4096), np.float32)
    tracemalloc.start()  # sees what numpy allocates, and nothing of PyTorch's
    call = peers.PEERS["torch"](BFloat16(), x, operation)
    traced = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    call()
    assert traced >= x.nbytes * (1 / 2 if operation == "encode" else 3 / 2)


def test_a_library_that_compiles_itself_does_so_with_optimization(monkeypatch, tmp_path):
    from torch.utils import cpp_extension

    asked = []

    def load(name, **options):
        asked.append(options)

    monkeypatch.setattr(cpp_extension, "load", load)
    monkeypatch.setattr(peers, "HERE", tmp_path / "measurements")
    monkeypatch.setattr(peers, "import_module", lambda name: cpp_extension.load("quant_cpu"))  # as the libraries do
    for name in ("one", "two"):
        peers._compiled.__wrapped__(name)
    assert all(options["extra_cflags"] == ["-O3"] for options in asked)
    assert len({options["build_directory"] for options in asked}) == 2 and cpp_extension.load is load


def test_a_slow_peer_has_a_part_of_the_array(monkeypatch):
    sizes = {"fast": 2**22, "slow": 2**20, "crawling": 2**14}
    clock = iter(range(10**6))
    rates = {"fast": 1e9, "slow": 1e8, "crawling": 1e6}

    def peer(name):
        def build(form, x, operation):
            def call():
                now[0] += x.size / rates[name]

            return call

        return build

    now = [float(next(clock))]
    monkeypatch.setattr(peers, "perf_counter", lambda: now[0])
    for name in sizes:
        monkeypatch.setitem(peers.PEERS, name, peer(name))
    found = contest(BFloat16(), *sizes, size=2**22)
    assert found.works == {"self": 2**22, "baseline": 2**22} | sizes


def test_peers_round_as_we_do():
    x = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    pytest.importorskip("softposit")
    np.testing.assert_array_equal(peers.PEERS["softposit"](Posit(8, 0), x, "round")(), Posit(8, 0).round(x))


def test_a_peer_that_is_not_installed(monkeypatch):
    def absent(form, x, operation):
        raise ImportError

    monkeypatch.setitem(peers.PEERS, "softposit", absent)
    found = contest(Posit(), "softposit")
    assert found.missing == {"softposit": "not installed: pip install softposit"}
    assert found.contestants.keys() == {"self", "baseline"} and not found.values


X = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
FIXED = FixedPoint(3, 4)
PEER_FORMATS = [
    ("ml_dtypes", BFloat16(), 1), ("ml_dtypes", FP8(), 1), ("ml_dtypes", FP8("e5m2"), 1), ("ml_dtypes", FP16(), 1),
    ("torch", FP8(), 1), ("torch", FIXED, 1), ("torch", Int8().fit(X), 1), ("numpy", FIXED, 1),
    ("numpy", Int8().fit(X), 1), ("qtorch", FIXED, 0.98), ("qtorch", FP8("e5m2"), 1),
    ("qtorch", BlockFloatingPoint(), 1), ("qtorch_plus", Posit(8, 0), 1),
    ("qtorch_plus", Posit(16, 1), 0.99), ("torchao", Microscaling(), 1),
    ("torchao", Microscaling("fp4-e2m1"), 1), ("bitsandbytes", NormalFloat(double_quantization=False), 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "form", "share"), PEER_FORMATS, ids=lambda value: str(value))
@pytest.mark.filterwarnings("ignore")
def test_what_is_timed_rounds_to_the_same_numbers(name, form, share):
    """A peer that computes something else is none; where its ties go elsewhere a few numbers differ."""
    try:
        call = peers.PEERS[name](form, X, "round")
    except ImportError as error:
        pytest.skip(str(error))
    assert np.mean(np.asarray(call()).reshape(X.shape) == form.round(X)) >= share


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_says_which_formats_it_has(name):
    unknown = SimpleNamespace(rounding="nearest-even", dtype=np.float32)
    try:
        with pytest.raises(ValueError):
            peers.PEERS[name](unknown, X, "round")
    except ImportError as error:
        pytest.skip(str(error))
