"""The transform protocol on a small task: its figures are counted by hand."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import datasets
import taxonomy
from datasets import Data, Recipe, Split, Workload
from kernels.counting import macs_by_layer
from kernels.energy import DRAM_ENERGY, mac_energy
from kernels.model.low_rank.svd_factorisation import SvdFactorisation
from kernels.model.pruning.magnitude_pruning import MagnitudePruning
from kernels.model.quantization.post_training_quantization import PostTrainingQuantization
from kernels.model.transform import bake
from taxonomy import store as stores
from taxonomy.measure.figures import costs, layer_errors, middle_and_worst, one_item, stored_bits, traffic
from taxonomy.measure.protocol import Case, Missing
from taxonomy.measure.protocols.transform import protocol
from taxonomy.store import key


def blobs(n, seed):
    random = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return Split(random.normal(size=(n, 1, 4, 4)) + 2 * y[:, None, None, None] - 1, y)


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2, bias=False))


WORKLOAD = Workload(
    "blobs", network, Data("blobs", blobs(200, 0), blobs(40, 1), blobs(100, 2), 2), Recipe(epochs=4, learning_rate=0.02)
)


@dataclass
class Node:
    settings: dict = field(default_factory=dict)


def case(subject, variant=None, setting=None, seed=0, **settings):
    return Case(Node(settings=settings), variant or {"density": 0.25}, subject, WORKLOAD, setting or {}, seed)


@pytest.fixture(scope="module")
def values():
    return protocol.quality(case(MagnitudePruning(0.25)))


def test_figures_are_those_counted_by_hand(values):
    """36 + 4 + 128 parameters; 36 * 16 + 128 multiply-accumulates; 164 weights of layers, of which 41 remain."""
    ours, untouched = values["self"], values["baseline"]
    assert untouched["parameters"] == ours["parameters"] == 168
    assert untouched["nonzero_parameters"] == 168 and ours["nonzero_parameters"] == 4 + 41
    assert untouched["macs"] == untouched["effective_macs"] == ours["macs"] == 36 * 16 + 128
    assert untouched["stored_bits"] == 32 * 168 and ours["stored_bits"] == 164 + 32 * 41 + 32 * 4
    assert ours["peak_activation_bytes"] == untouched["peak_activation_bytes"] > 0
    in_convolution, rest = divmod(ours["effective_macs"] - 41, 15)  # one of its weights works 16 times, others once
    assert 0 < in_convolution < 36 and rest == 0


def test_magnitude_beats_chance_and_fine_tuning_helps(values):
    assert set(values) == {"self", "baseline", "fine-tuned", "random"}
    assert values["self"]["accuracy"] >= values["self"]["accuracy_before_finetuning"]
    assert values["self"]["accuracy"] > 0.9 and values["baseline"]["accuracy"] > 0.95
    assert values["random"]["nonzero_parameters"] == values["self"]["nonzero_parameters"]


def test_quality_is_deterministic_for_a_seed_and_leaves_the_trained_network_alone(values):
    torch.manual_seed(99)
    assert protocol.quality(case(MagnitudePruning(0.25))) == values
    other = protocol.quality(case(MagnitudePruning(0.25), seed=1))
    assert other["baseline"] == values["baseline"] and other["random"] != values["random"]


def test_every_metric_has_a_value_or_a_reason():
    trials = protocol.trials(Node(), {"density": 0.25}, WORKLOAD)
    assert [t.seed for t in trials if not t.timing] == [0, 1, 2, 3, 4]
    assert {(t.setting["batch"], t.seed) for t in trials if t.timing} == {(b, s) for b in (1, 64) for s in range(5)}
    untimed = {"timed": [{"density": 0.1}], "untimed": "the same"}
    assert not any(t.timing for t in protocol.trials(Node(settings=untimed), {"density": 0.25}, WORKLOAD))
    assert any(t.timing for t in protocol.trials(Node(settings=untimed), {"density": 0.1}, WORKLOAD))
    figures = protocol.quality(case(MagnitudePruning(0.25), **untimed))["self"]
    assert set(protocol.metrics) == set(protocol.metrics) & set(figures) and figures["latency"] == Missing("the same")


def test_contestants_of_the_timing_do_the_same_work():
    contest = protocol.contest(case(MagnitudePruning(0.25), setting={"batch": 7}))
    assert set(contest.contestants) == {"self", "baseline"} and (contest.work, contest.unit) == (7, "items")
    results = {who: call() for who, call in contest.contestants.items()}
    assert all(result.shape == (7, 2) for result in results.values())
    assert not torch.equal(results["self"], results["baseline"])


def test_a_transform_without_a_blind_rival_has_none():
    class Identity:
        def apply(self, network, data):
            return network

    values = protocol.quality(case(Identity()))
    assert set(values) == {"self", "baseline", "fine-tuned"}
    assert values["self"]["accuracy_before_finetuning"] == values["baseline"]["accuracy"]
    assert values["self"].items() >= values["fine-tuned"].items(), "what does nothing is the network trained as long"


def test_stored_bits_chooses_the_smaller_form_for_each_tensor():
    layer = nn.Linear(8, 4)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0] = 1
        layer.bias.fill_(1)
    assert stored_bits(layer) == (32 + 32) + 4 * 32


def test_memory_footprint_is_parameters_and_activations():
    figures = costs(WORKLOAD.network(), WORKLOAD)
    assert figures["memory_footprint"] == 4 * 168 + figures["peak_activation_bytes"]


class Rounded:
    """Weights to so many decimals, and what it was given to look at."""

    def __init__(self, decimals=1):
        self.decimals, self.seen = decimals, []

    def apply(self, network, data):
        self.seen.append(data.train.x[:4])
        with torch.no_grad():
            for p in network.parameters():
                p.copy_(p.round(decimals=self.decimals))
        return network

    def rivals(self, seed):
        return {"coarser": Rounded(0)}


def test_what_works_after_training_is_not_fine_tuned_and_sees_a_sample_drawn_by_the_seed():
    subject = Rounded()
    first, again, other = (protocol.quality(case(subject, seed=seed, fine_tuned=False)) for seed in (0, 0, 1))
    assert set(first) == {"self", "baseline", "coarser"} and first == again
    assert isinstance(first["self"]["accuracy_before_finetuning"], Missing)
    by_hand = Rounded().apply(WORKLOAD.trained(), WORKLOAD.data())
    assert first["self"]["accuracy"] == datasets.accuracy(by_hand, WORKLOAD.data().test)
    assert other["baseline"] == first["baseline"]
    assert np.array_equal(subject.seen[0], subject.seen[1]) and not np.array_equal(subject.seen[0], subject.seen[2])
    assert first["self"]["memory_access"] == -(-first["self"]["stored_bits"] // 8) + 4 * (16 + 64)


def test_metrics_may_be_left_unmeasured_with_a_reason():
    values = protocol.quality(case(Rounded(), fine_tuned=False, unmeasured={"core_utilization": "of operators"}))
    assert values["self"]["core_utilization"] == Missing("of operators")


SPEECH = datasets.workload("silero-vad")


def test_a_network_trained_elsewhere_is_compared_with_itself():
    pruning = MagnitudePruning(0.5, scope="layer")
    node = Node()
    node.peers = ["random"]
    assert [t.seed for t in protocol.trials(node, {}, SPEECH)] == [0, 1, 2, 3, 4]
    assert len(protocol.trials(node, {}, SimpleNamespace(id="efficientnet-lite0"))) == 1
    node.peers = []
    assert len(protocol.trials(node, {}, SPEECH)) == 1
    values = protocol.quality(Case(node, {"density": 0.5}, pruning, SPEECH, {}, 0))
    assert set(values) == {"self", "baseline", "random"}
    ours, blind = values["self"], values["random"]
    assert "accuracy" not in ours and 0 < blind["agreement"] <= ours["agreement"] <= 1
    for metric in ("output_sqnr", "layer_sqnr", "worst_layer_sqnr"):
        assert ours[metric] > blind[metric]
    assert ours["worst_layer_sqnr"] < ours["layer_sqnr"] and ours["stored_bits"] < values["baseline"]["stored_bits"]
    assert ours["bytes_on_disk"] < 0.7 * values["baseline"]["bytes_on_disk"]
    assert ours["latency"] == Missing("networks trained elsewhere are not timed")


def test_what_changes_nothing_agrees_everywhere():
    class Identity:
        def apply(self, network, data):
            assert data.train.x.shape == SPEECH.calibration.shape
            return network

    node = Node()
    node.peers = []
    ours = protocol.quality(Case(node, {}, Identity(), SPEECH, {}, 0))["self"]
    assert ours["agreement"] == 1
    assert all("infinite" in ours[m].reason for m in ("output_sqnr", "layer_sqnr", "worst_layer_sqnr"))


def test_layer_errors_are_those_of_each_layer_alone():
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False), nn.GRU(6, 3))
    changed = copy.deepcopy(exact)
    with torch.no_grad():
        changed[0].weight.mul_(0.9)
    errors = layer_errors(exact, changed, torch.randn(5, 6))
    assert errors["0"] == pytest.approx(20) and all("infinite" in errors[name].reason for name in ("2", "3"))
    assert middle_and_worst(errors)["worst_layer_sqnr"] == pytest.approx(20)
    changed[2] = nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 6))
    assert layer_errors(exact, changed, torch.randn(5, 6))["2"] < 20, "two layers in the place of one"
    changed[2] = nn.Linear(6, 5)
    assert "another number" in layer_errors(exact, changed, torch.randn(5, 6))["2"].reason
    changed[2] = nn.Linear(5, 6)
    none = middle_and_worst(layer_errors(exact, changed, torch.randn(5, 6)))
    assert all("takes these inputs" in missing.reason for missing in none.values())


def test_layer_errors_of_chains_before_batch_norm():
    """Folding traces the network, and of a chain in a layer's place only the layers are left."""
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
    changed = SvdFactorisation(energy=0.5).apply(exact)
    assert isinstance(changed[0], nn.Sequential)
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        signal, noise = exact[:2](x).square().sum(), (exact[:2](x) - changed[:2](x)).square().sum()
    assert layer_errors(exact, changed, x)["0"] == pytest.approx(10 * float(torch.log10(signal / noise)), abs=1e-3)


def test_products_of_two_bytes_count_as_int8_but_not_those_of_recurrent_layers():
    """Of the transform of the signal and of the LSTM's products one operand is FP32; all else is bytes by bytes."""
    data = SimpleNamespace(train=SimpleNamespace(x=SPEECH.calibration))
    network = PostTrainingQuantization().apply(SPEECH.trained(), data)
    figures = traffic(network, SPEECH)
    macs = macs_by_layer(bake(network), one_item(SPEECH))
    whole = sum(count for path, count in macs.items() if path.startswith(("encoder", "decoder")))
    rest = sum(macs.values()) - whole
    assert 0 < whole < sum(macs.values()) and {"", "memory"} < set(macs)
    products = whole * mac_energy("int8") + rest * mac_energy("fp32")
    assert figures["energy"] == pytest.approx(products + figures["memory_access"] * DRAM_ENERGY)


AFTER_TRAINING = (
    "post-training-quantization", "gptq", "activation-aware-quantization", "activation-aware-pruning",
    "magnitude-pruning", "block-pruning", "weight-clustering", "svd-factorisation",
)  # fmt: skip


@pytest.mark.parametrize("technique", AFTER_TRAINING)
def test_networks_trained_elsewhere_have_what_is_asked_of_them(technique):
    """The error of the layers, the size of the file and the agreement, of every variant, for all to be compared."""
    tx = taxonomy.load()
    node = tx[technique]
    for workload in {"efficientnet-lite0", "silero-vad"} - set(node.unfit):
        records = [r for r in stores.reference.records(node.address) if r["workload"] == workload]
        assert len({key(record) for record in records}) >= 2
        for record in records:
            own = {*record["values"]["self"], *record.get("missing", {}).get("self", {})}
            assert {"agreement", "output_sqnr", "layer_sqnr", "worst_layer_sqnr", "bytes_on_disk"} <= own


def test_layers_say_how_wide_their_inputs_are():
    network = WORKLOAD.network()
    before = traffic(network, WORKLOAD)["memory_access"]
    network[0].input_bits = network[3].input_bits = 8
    assert before - traffic(network, WORKLOAD)["memory_access"] == 3 * (16 + 64)
