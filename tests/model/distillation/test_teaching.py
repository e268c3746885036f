"""What ways of distillation share: layers that stand for one another, and a teacher that is left alone."""

import copy

import pytest
import torch
from torch import nn

import datasets
from datasets import Recipe
from kernels.model.distillation.data_free_distillation import DataFreeDistillation
from kernels.model.distillation.feature_distillation import FeatureDistillation
from kernels.model.distillation.mutual_distillation import MutualDistillation
from kernels.model.distillation.quantized_distillation import QuantizedDistillation
from kernels.model.distillation.relational_distillation import RelationalDistillation
from kernels.model.distillation.teaching import activations, embedded, pairs, watched

METHODS = [
    FeatureDistillation(), FeatureDistillation(way="hint"), RelationalDistillation("distance"),
    RelationalDistillation("angle"), RelationalDistillation("contrast"), MutualDistillation(),
    MutualDistillation(way="born-again"), QuantizedDistillation(), DataFreeDistillation(),
    DataFreeDistillation().noise(),
]  # fmt: skip
workload = datasets.workload("noisy-digits-cnn")
RECIPE = Recipe(epochs=2, batch=200)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_student_and_teacher_are_left_alone_and_the_seed_decides(method):
    student, teacher = workload.student(), workload.trained().train()
    before = [copy.deepcopy(network.state_dict()) for network in (student, teacher)]
    trained, trace = method.train(student, workload.data(), RECIPE, teacher, seed=3)
    for network, state in zip((student, teacher), before, strict=True):
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert teacher.training and not trained.training and all(p.requires_grad for p in trained.parameters())
    again, same = method.train(student, workload.data(), RECIPE, teacher, seed=3)
    other, _ = method.train(student, workload.data(), RECIPE, teacher, seed=4)
    assert same == trace
    states = [network.state_dict() for network in (trained, again, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])
    steps = [update["step"] for update in trace]
    assert steps == list(range(len(steps)))


@pytest.mark.parametrize("method", [m for m in METHODS if not isinstance(m, MutualDistillation)], ids=repr)
def test_without_a_teacher_there_is_nothing_to_learn_from(method):
    with pytest.raises(ValueError, match=r"teacher: expected a trained torch\.nn\.Module.*got NoneType"):
        method.train(workload.student(), workload.data(), RECIPE)


def test_layers_stand_for_one_another_from_the_end():
    deep = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU())
    flat = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    assert activations(deep) == ["1", "3", "5"] and pairs(flat, deep) == [("1", "5")]
    assert pairs(deep, deep) == [("1", "1"), ("3", "3"), ("5", "5")]
    with pytest.raises(ValueError, match=r"teacher: expected a network with torch\.nn\.ReLU"):
        pairs(flat, nn.Linear(2, 2))


def test_what_is_watched_is_what_the_layer_gives_and_only_within():
    network, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)
    with watched(network, ["1"]) as seen, embedded(network) as items:
        network(x)
    assert torch.equal(seen["1"], network[:2](x)) and torch.equal(items[0], seen["1"])
    network(x + 1)
    assert len(items) == 1 and torch.equal(seen["1"], network[:2](x))
    with pytest.raises(ValueError, match=r"ends in a torch\.nn\.Linear"), embedded(nn.ReLU()):
        pass
