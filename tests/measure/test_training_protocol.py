"""The training protocol on a small task: equal starts, equal updates, and every pass metered."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import datasets
import taxonomy
from datasets import Data, Recipe, Split, Workload
from kernels.arithmetic.mixed_precision.mixed_precision_training import MixedPrecisionTraining
from kernels.arithmetic.mixed_precision.precision_scheduling import PrecisionScheduling
from kernels.model.distillation.soft_label_distillation import SoftLabelDistillation
from kernels.model.quantization.binary_weights import SignWeights
from kernels.model.quantization.dorefa import UnitInputs
from kernels.model.quantization.quantizers import RoundedAfterwards, quantize_network
from kernels.model.transform import constrain
from taxonomy.measure.protocol import Case, Missing
from taxonomy.measure.protocols.training import _learnt, _plain, protocol, recipe_of


def blobs(n, seed):
    random, y = np.random.default_rng(seed), np.arange(n) % 3
    return Split(random.normal(size=(n, 5)) + 2 * np.eye(5)[y], y)


WORKLOAD = Workload(
    "blobs",
    lambda: nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 3)),
    Data("blobs", blobs(90, 0), blobs(30, 1), blobs(300, 2), 3),
    Recipe(epochs=3, batch=32, learning_rate=0.05),
    student=lambda: nn.Sequential(nn.Linear(5, 2), nn.ReLU(), nn.Linear(2, 3)),
)
STUDENT, TEACHER = 5 * 2 + 2 * 3, 5 * 20 + 20 * 3


def node(peers=(), **settings):
    return SimpleNamespace(settings=settings, peers=peers)


def quality(subject, network="student", seed=0):
    peers = ("label-smoothing", "teacher")
    return protocol.quality(Case(node(peers, network=network), {}, subject, WORKLOAD, {}, seed))


@pytest.fixture(scope="module")
def values():
    return quality(SoftLabelDistillation())


def test_every_pass_is_metered(values):
    """3 epochs of 90 items: a training pass three times the student's products, and the teacher's answers once."""
    items = 3 * 90
    assert values["self"]["training_macs"] == items * (3 * STUDENT + TEACHER)
    for who in ("baseline", "label-smoothing"):
        assert values[who]["training_macs"] == items * 3 * STUDENT
    assert {values[who]["steps"] for who in ("self", "baseline", "label-smoothing")} == {9}


def test_who_is_compared(values):
    assert set(values) == {"self", "baseline", "label-smoothing", "teacher"}
    assert values["self"]["macs"] == values["baseline"]["macs"] == STUDENT and values["teacher"]["macs"] == TEACHER
    assert values["self"]["parameters"] == STUDENT + 5 and values["teacher"]["parameters"] == TEACHER + 23
    assert set(protocol.metrics) <= set(values["self"])
    assert values["teacher"]["accuracy"] > 0.6


def test_deterministic_for_a_seed(values):
    torch.manual_seed(5)
    _plain.cache_clear()
    assert quality(SoftLabelDistillation()) == values
    assert quality(SoftLabelDistillation(), seed=1)["baseline"] != values["baseline"]


class Plain:
    """The recipe itself, as a technique: it must come out as its own baseline."""

    def train(self, network, data, recipe, teacher=None, *, seed=None):
        return network, recipe.train(network, data, seed=seed)


def test_the_plain_recipe_equals_its_baseline():
    for which in ("student", "network"):
        values = quality(Plain(), which)
        assert values["self"] == values["baseline"] and "teacher" not in values


def test_label_smoothing_is_the_known_loss(values):
    network = WORKLOAD.student(0)

    def loss(network, x, y):
        q = functional.log_softmax(network(x), 1)
        return -(0.9 * q[torch.arange(len(y)), y] + 0.1 * q.mean(1)).mean()

    replace(WORKLOAD.recipe, loss=loss).train(network, WORKLOAD.data(), seed=0)
    x = torch.tensor(WORKLOAD.data().test.x)
    right = (network(x).argmax(1).numpy() == WORKLOAD.data().test.y).mean()
    assert values["label-smoothing"]["accuracy"] == pytest.approx(right, abs=0.005)


def test_trials_are_five_seeds():
    assert [t.seed for t in protocol.trials(None, {}, WORKLOAD)] == [0, 1, 2, 3, 4]


SETTINGS = {
    "epochs": {"blobs": 2},
    "recipes": {"plain": {}, "hard": {"rate": 0.5, "loss": 0.25, "schedule": "constant"}},
}


def low(subject, recipe="plain", settings=SETTINGS):
    return protocol.quality(Case(node(("without",), **settings), {}, subject, WORKLOAD, {"recipe": recipe}, 0))


def test_recipes_are_settings_and_change_what_they_name():
    trials = protocol.trials(node(**SETTINGS), {}, WORKLOAD)
    assert [t.setting["recipe"] for t in trials] == ["plain"] * 5 + ["hard"] * 5
    case = Case(node(**SETTINGS), {}, None, WORKLOAD, {"recipe": "hard"}, 0)
    hard = recipe_of(case)
    assert (hard.epochs, hard.batch, hard.learning_rate, hard.schedule) == (2, 32, 0.025, "constant")
    network, x, y = WORKLOAD.network(), torch.tensor(blobs(6, 0).x), torch.tensor(blobs(6, 0).y)
    assert hard.loss(network, x, y).item() == functional.cross_entropy(network(x), y).item() / 4
    bare = Case(node(), {}, None, WORKLOAD, {}, 0)
    assert recipe_of(bare) is WORKLOAD.recipe


@pytest.mark.parametrize("recipe", ["plain", "hard"])
def test_in_fp32_technique_contestant_and_baseline_are_one(recipe):
    values = low(MixedPrecisionTraining("fp32"), recipe)
    assert set(values) == {"self", "baseline", "without"}
    assert values["self"] == values["baseline"] == values["without"]
    assert values["self"]["steps"] == 6


def test_bytes_and_joules_of_training_are_counted_by_hand():
    values = low(MixedPrecisionTraining("fp16"))
    parameters, batch = 5 * 20 + 20 + 20 * 3 + 3, 32
    into, out, macs = batch * (5 + 20), batch * (20 + 3), 5 * 20 + 20 * 3
    moved = into * (2 * 2 + 2) + out * (2 + 2) + parameters * (2 * 2 + 2 * 2 + 2 * 4 + 4 * 4 + 2)
    assert values["self"]["memory_access"] == moved
    assert values["self"]["energy"] == pytest.approx(3 * macs * (1.1e-12 + 0.9e-12) + moved / batch * 1.3e-9 / 8)
    plain = into * 12 + out * 8 + parameters * (8 + 8 + 8 + 16)
    assert values["baseline"]["memory_access"] == plain
    step = values["baseline"]["memory_footprint"] - parameters * 16
    assert values["self"]["memory_footprint"] == parameters * (2 + 4 + 2 + 8) + step / 2
    assert values["without"]["memory_footprint"] == parameters * (2 + 2 + 8) + step / 2
    assert isinstance(values["self"]["core_utilization"], Missing)
    assert "bfloat16" in low(MixedPrecisionTraining("bfloat16"))["self"]["energy"].reason


class OneBit(nn.Module):
    """Each weight is one of two values, so it keeps a bit, and the tensor a scale."""

    def forward(self, weight):
        return weight.abs().mean() * torch.where(weight.detach() < 0, -1.0, 1.0)

    def stored_bits(self, weight):
        return weight.numel() + 32


class Signs:
    """A method that trains as the recipe says, and leaves its constraint on the first layer."""

    def train(self, network, data, recipe, teacher=None, seed=None):
        constrain(network[0], "weight", OneBit())
        return network, recipe.train(network, data, seed=seed)


def test_a_network_that_keeps_codes_has_the_bytes_and_joules_of_running_it():
    values = protocol.quality(Case(node(), {}, Signs(), WORKLOAD, {}, 0))
    stored = 5 * 20 * 1 + 32 + 32 * (20 + 20 * 3 + 3)
    inputs, macs = 5 + 20, 5 * 20 + 20 * 3
    own, plain = values["self"], values["baseline"]
    assert own["stored_bits"] == stored and own["parameters"] == plain["parameters"] == 183
    assert own["memory_access"] == -(-stored // 8) + 4 * inputs
    assert plain["memory_access"] == 4 * (183 + inputs)
    assert plain["energy"] - own["energy"] == pytest.approx(
        (plain["memory_access"] - own["memory_access"]) * 1.3e-9 / 8
    )
    assert plain["energy"] == pytest.approx(macs * (3.7e-12 + 0.9e-12) + plain["memory_access"] * 1.3e-9 / 8)
    assert own["memory_footprint"] - -(-stored // 8) == plain["memory_footprint"] - 4 * 183  # activations


def test_bit_operations_of_a_schedule_are_the_mean_over_its_updates():
    method = PrecisionScheduling("progressive", low=4, high=8, gradient_low=6, stages=2)
    case = Case(node(("without", "lowest"), epochs={"blobs": 2}), {}, method, WORKLOAD, {}, 0)
    values = protocol.quality(case)
    macs = 5 * 20 + 20 * 3
    few, all_bits = 4 * 4 + 2 * 4 * 6, 3 * 8 * 8
    assert values["self"]["bit_operations"] == macs * (few + all_bits) / 2
    assert values["without"]["bit_operations"] == macs * all_bits
    assert values["lowest"]["bit_operations"] == macs * few
    assert values["baseline"]["bit_operations"] == macs * 3 * 32 * 32
    assert isinstance(values["self"]["energy"], Missing)


TRAINERS = [(node, variant) for node in taxonomy.load().find(kind="training") for variant in node.variants]


@pytest.mark.parametrize("node, variant", TRAINERS, ids=lambda part: getattr(part, "id", None) or str(part))
def test_repetitions_share_no_random_numbers(node, variant, monkeypatch):
    """Seeds that follow each other, s + 1 and its first draw, s and its second, are one seed: no two repetitions have
    one in common. Of a seed torch's generator on the CPU takes the lower 32 bits only."""
    seeds = []

    class Watched(torch.Generator):
        def manual_seed(self, seed):
            seeds.append(seed % 2**32)
            return super().manual_seed(seed)

    monkeypatch.setattr(torch, "Generator", Watched)
    offered = node.workloads or ("noisy-digits-cnn",)
    workload, drawn = datasets.workload("noisy-digits-cnn" if "noisy-digits-cnn" in offered else offered[0]), []
    recipe = replace(workload.recipe, epochs=4, batch=64)  # as many as trainings of a lottery ticket
    few = replace(workload.data(), train=workload.data().train[:64])
    for seed in range(3):
        seeds.clear()
        node.reference(**variant).train(workload.network(seed), few, recipe, workload.trained(), seed=seed)
        drawn.append(set(seeds))
        assert len(drawn[-1]) == len(seeds), "no seed is used twice in one training"
    assert not any(one & other for one, other in combinations(drawn, 2))


class FewBits:
    """A method whose network computes with codes of one bit on both sides of its first layer, afterwards as well."""

    def constrain(self, network):
        return quantize_network(network, lambda layer: SignWeights(), lambda layer: UnitInputs(1))

    def train(self, network, data, recipe, teacher=None, seed=None):
        network = self.constrain(network)
        return network, recipe.train(network, data, seed=seed)

    def afterwards(self):
        return RoundedAfterwards(self)


def test_a_network_of_narrow_operands_counts_them_as_narrow():
    case = Case(
        SimpleNamespace(settings={}, peers=("afterwards",), improves=("core_utilization",)),
        {},
        FewBits(),
        WORKLOAD,
        {},
        0,
    )
    values = protocol.quality(case)
    own, plain, after = values["self"], values["baseline"], values["afterwards"]
    stored, inputs, macs = 160 + 2 * 32 + 32 * 23, 5 + 20, 160
    for who in (own, after):
        assert who["stored_bits"] == stored and who["bit_operations"] == macs
        assert who["memory_access"] == -(-(stored + inputs) // 8)
        assert who["energy"] == pytest.approx(macs * (0.2e-12 + 0.1e-12) + who["memory_access"] * 1.3e-9 / 8)
    assert plain["bit_operations"] == 32 * 32 * macs and isinstance(own["core_utilization"], Missing)
    assert after["steps"] == plain["steps"] and after["training_macs"] == plain["training_macs"]


def test_the_baselines_network_is_finished_and_left_as_it_was():
    network, cost = _learnt(WORKLOAD, "network", 3, 0.0, WORKLOAD.recipe)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    values = protocol.quality(Case(node(("afterwards",)), {}, FewBits(), WORKLOAD, {}, 3))
    again, _ = FewBits().afterwards().train(WORKLOAD.network(3), WORKLOAD.data(), WORKLOAD.recipe, seed=3)
    assert values["afterwards"]["accuracy"] == datasets.accuracy(again, WORKLOAD.data().test)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert values["baseline"]["training_macs"] == cost["training_macs"]


class Watching:
    """The recipe on a copy, with a loss that needs what a hidden layer gave in this very pass."""

    def train(self, network, data, recipe, teacher=None, *, seed=None):
        network, seen = deepcopy(network), []
        network[0].register_forward_hook(lambda layer, inputs, output: seen.append(output))

        def loss(network, x, y):
            seen.clear()
            answers = network(x)
            (hidden,) = seen
            return functional.cross_entropy(answers, y) + hidden.square().mean()

        return network, replace(recipe, loss=loss).train(network, data, seed=seed)


def test_the_meter_disturbs_nothing_that_watches_a_layer():
    alone, _ = Watching().train(WORKLOAD.network(0), WORKLOAD.data(), WORKLOAD.recipe, seed=0)
    values = quality(Watching(), "network")["self"]
    assert values["accuracy"] == datasets.accuracy(alone, WORKLOAD.data().test)
    assert values["training_macs"] == 3 * 90 * 3 * TEACHER


class InFloat64(Watching):
    """Looks at a copy in another precision before it trains, as a score of an untrained network may."""

    def train(self, network, data, recipe, teacher=None, *, seed=None):
        exact = deepcopy(network).double()
        exact(torch.tensor(data.train.x[:4]).double()).sum().backward()
        return super().train(network, data, recipe, teacher, seed=seed)


def test_the_meter_counts_a_copy_in_another_precision():
    looked, alone = (quality(subject, "network")["self"]["training_macs"] for subject in (InFloat64(), Watching()))
    assert looked - alone == 4 * 3 * TEACHER


def test_slow_workloads_may_take_the_first_variant_only():
    technique = SimpleNamespace(settings={"first_only": ["blobs"]}, variants=({"bits": 2}, {"bits": 3}))
    assert [len(protocol.trials(technique, variant, WORKLOAD)) for variant in technique.variants] == [5, 0]
    other = SimpleNamespace(settings={"first_only": ["elsewhere"]}, variants=technique.variants)
    assert len(protocol.trials(other, {"bits": 3}, WORKLOAD)) == 5


def test_a_workload_may_be_given_some_variants_only():
    technique = SimpleNamespace(settings={"only": {"blobs": [{"bits": 3}]}}, variants=({"bits": 2}, {"bits": 3}))
    assert [len(protocol.trials(technique, variant, WORKLOAD)) for variant in technique.variants] == [0, 5]
    other = SimpleNamespace(settings={"only": {"elsewhere": [{"bits": 3}]}}, variants=technique.variants)
    assert len(protocol.trials(other, {"bits": 2}, WORKLOAD)) == 5
