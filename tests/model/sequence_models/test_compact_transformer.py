"""Losses and one update worked by hand in numpy; students by the closed form; a student of the teacher's own shape."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from datasets import Data, Recipe, Split
from datasets.workloads.transformer import NextCharacter, Transformer
from kernels import counting
from kernels.model.sequence_models.compact_transformer import (
    SHAPES,
    Bottleneck,
    CompactTransformer,
    attention_divergence,
    direction,
    inside,
    scores_and_states,
    weights_and_states,
)
from taxonomy.measure.protocols.training import _taught

CLASSES, STEPS, ITEMS = 7, 6, 10


def network(seed=0, layers=2, width=16, heads=2, hidden=32):
    torch.manual_seed(seed)
    return Transformer(CLASSES, width, layers, heads, hidden)


def text(seed=0, items=ITEMS):
    random = np.random.default_rng(seed)
    x = random.integers(0, CLASSES, (items, STEPS)).astype(np.float32)
    split = Split(x, random.integers(0, CLASSES, items))
    return Data("hand", split, split, split, CLASSES)


RECIPE = Recipe(epochs=2, batch=4, learning_rate=0.01, loss=NextCharacter())
METHODS = [
    CompactTransformer(),
    CompactTransformer(start="random"),
    CompactTransformer("thin", "random", 0.5),
    CompactTransformer("bottleneck", weight=0.5),
]


def numbers(seen):
    return seen.logits.detach().numpy(), *([t.detach().numpy() for t in some] for some in seen[1:])


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# --- the equations -----------------------------------------------------------------------------------------------


def looks(scores):
    """Weights of each query over the keys up to its own step, in loops."""
    out = np.zeros_like(scores)
    for b, h, t in np.ndindex(scores.shape[:3]):
        out[b, h, t, : t + 1] = softmax(scores[b, h, t, : t + 1])
    return out


def test_what_is_seen_is_what_the_network_computes():
    teacher, x = network(), torch.tensor(text().train.x)
    seen = inside(teacher, x)
    assert torch.allclose(seen.logits, teacher.every(x), atol=1e-6)
    assert torch.equal(seen.hidden[0], teacher.embedding(x.long()))
    assert torch.allclose(seen.hidden[-1], teacher.hidden(x), atol=1e-5)
    layer = teacher.layers[0]
    q, k, v = (t.detach().numpy() for t in layer.attention.project(layer.attention_norm(seen.hidden[0])))
    scores = np.einsum("bhid,bhjd->bhij", q, k) / np.sqrt(8)
    np.testing.assert_allclose(seen.scores[0].detach().numpy(), scores, atol=1e-5)
    mixed = np.einsum("bhij,bhjd->bihd", looks(scores), v).reshape(ITEMS, STEPS, 16)
    expected = layer.attention(layer.attention_norm(seen.hidden[0]))
    np.testing.assert_allclose(
        layer.attention.o(torch.tensor(mixed).float()).detach().numpy(), expected.detach().numpy(), atol=1e-5
    )
    assert "mix" not in vars(layer.attention), "attention is computed as before"


def direction_by_hand(own, other, maps):
    a, b = own[1][-1], other[1][-1]
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return (1 - cosine).mean() / 7


def scores_and_states_by_hand(own, other, maps):
    embedding, hidden = (m.weight.detach().numpy().T for m in maps)
    total = np.square(own[1][0] @ embedding - other[1][0]).mean()
    for a, b in zip(own[1][1:], other[1][1:], strict=True):
        total += np.square(a @ hidden - b).mean()
    for a, b in zip(own[2], other[2], strict=True):
        seen = [np.square(a[..., t, s] - b[..., t, s]).mean() for t in range(STEPS) for s in range(t + 1)]
        total += np.mean(seen)
    return total


def weights_and_states_by_hand(own, other, maps):
    total = sum(np.square(a - b).mean() for a, b in zip(own[1][1:], other[1][1:], strict=True))
    for a, b in zip(own[2], other[2], strict=True):
        p, q = looks(b), looks(a)
        seen = p > 0
        total += (p[seen] * np.log(p[seen] / q[seen])).sum() / np.prod(a.shape[:3])
    return total


BY_HAND = {
    "shallow": (direction, direction_by_hand, 2.0, 5 / 7),
    "thin": (scores_and_states, scores_and_states_by_hand, 1.0, 1.0),
    "bottleneck": (weights_and_states, weights_and_states_by_hand, 1.0, 0.5),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_compared_inside_is_the_equation(shape):
    teacher, x = network(1), torch.tensor(text().train.x)
    method = CompactTransformer(shape, "random")
    student = method.student(network(2))
    maps = nn.ModuleList([nn.Linear(8, 16, bias=False) for _ in range(2)])
    loss, by_hand, _, _ = BY_HAND[shape]
    own, other = inside(student, x), inside(teacher, x)
    expected = by_hand(numbers(own), numbers(other), maps)
    assert expected > 0.01
    assert loss(own, other, maps).item() == pytest.approx(expected, rel=1e-4)


def test_heads_that_look_alike_have_nothing_to_learn_and_all_gradients_are_finite():
    scores = torch.randn(2, 3, 5, 5, requires_grad=True)
    shifted = scores.detach() + 2.0  # softmax does not see a shift
    divergence = attention_divergence(scores, shifted)
    divergence.backward()
    assert abs(divergence.item()) < 1e-6 and torch.isfinite(scores.grad).all()
    assert (scores.grad.triu(1) == 0).all(), "what lies ahead is not looked at"


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_one_update_is_the_gradient_of_the_equation(method):
    data, teacher, given = text(), network(1), network(2)
    recipe = Recipe(
        epochs=1, batch=ITEMS, learning_rate=1e-3, weight_decay=0.0, schedule="constant", optimizer=torch.optim.SGD
    )
    trained, trace = method.train(given, data, recipe, teacher, seed=3)
    before = method.student(given, teacher, 3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        maps = nn.ModuleList([nn.Linear(8, 16, bias=False) for _ in range(2)])
    _, by_hand, temperature, share = BY_HAND[method.shape]
    x, y = torch.tensor(data.train.x), data.train.y
    follows = np.concatenate([data.train.x[:, 1:].astype(int), y[:, None]], 1)

    def value(student):
        with torch.no_grad():
            own, other = numbers(inside(student, x)), numbers(inside(teacher, x))
        p, q = softmax(other[0] / temperature), softmax(own[0] / temperature)
        soft = temperature**2 * (p * np.log(p / q)).sum(-1).mean()
        hard = -np.log(np.take_along_axis(softmax(own[0]), follows[..., None], -1)).mean()
        return (1 - share) * hard + share * soft + method.weight * by_hand(own, other, maps)

    assert trace[0]["loss"] == pytest.approx(value(before), rel=1e-4)
    # a step over its rate is the gradient; along one parameter that is the slope of the loss by hand
    for name, parameter in list(before.double().named_parameters())[::5]:
        place = tuple(int(i) for i in np.unravel_index(parameter.abs().argmax().item(), parameter.shape))
        step = (trained.get_parameter(name)[place] - parameter[place]).item() / -recipe.learning_rate
        values = []
        for sign in (1, -1):
            moved = copy.deepcopy(before)
            with torch.no_grad():
                moved.get_parameter(name)[place] += sign * 1e-5
            values.append(value(moved))
        slope = (values[0] - values[1]) / 2e-5
        assert step == pytest.approx(slope, rel=0.02, abs=2e-3), name


# --- the students ------------------------------------------------------------------------------------------------


def test_a_student_of_the_teachers_own_shape_is_the_teacher():
    teacher, x = network(1), torch.tensor(text().train.x)
    student = CompactTransformer(factor=1).student(network(2), teacher)
    assert torch.equal(student.every(x), teacher.every(x))
    still = replace(RECIPE, learning_rate=0.0)
    trained, _ = CompactTransformer(factor=1).train(network(2), text(), still, teacher)
    assert torch.equal(trained.every(x), teacher.every(x))


def test_every_second_layer_is_the_teachers():
    teacher, given = network(1, layers=5), network(2, layers=5)
    student = CompactTransformer().student(given, teacher)
    assert len(student.layers) == 3
    for own, other in zip(student.layers, (teacher.layers[0], teacher.layers[1], teacher.layers[3]), strict=True):
        assert all(map(torch.equal, own.parameters(), other.parameters()))
    assert torch.equal(student.head.weight, teacher.head.weight)
    random = CompactTransformer(start="random").student(given)
    assert torch.equal(random.layers[0].attention.q.weight, given.layers[0].attention.q.weight)


def test_students_have_the_sizes_of_the_closed_form():
    w, h, n = 16, 32, STEPS
    given, x = network(), torch.zeros(1, n)
    layer = 3 * w * w + w * w + w + 2 * 2 * w + w * h + h + h * w + w
    ends = CLASSES * w + 2 * w + CLASSES * w + CLASSES
    assert counting.parameters(given) == 2 * layer + ends
    assert counting.parameters(CompactTransformer(start="random").student(given)) == layer + ends
    w, h = 8, 16
    thin = 3 * w * w + w * w + w + 2 * 2 * w + w * h + h + h * w + w
    student = CompactTransformer("thin", "random").student(given)
    assert counting.parameters(student) == 2 * thin + CLASSES * w + 2 * w + CLASSES * w + CLASSES
    bottleneck = 2 * 16 + 16 * w + w + thin + 2 * w + w * h + h + h * w + w + w * 16 + 16
    student = CompactTransformer("bottleneck", "random").student(given)
    assert counting.parameters(student) == 2 * bottleneck + ends
    # products: linear layers for each step, attention two products of steps by steps, the classifier once
    macs = 2 * (n * (16 * w + 4 * w * w + 4 * w * h + w * 16) + 2 * n * n * w) + 16 * CLASSES
    assert counting.macs(student, x) == macs
    assert [block.layer.attention.heads for block in student.layers] == [2, 2]
    assert all(isinstance(block, Bottleneck) for block in student.layers)


# --- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_without_lessons_it_is_the_plain_recipe(shape):
    method = CompactTransformer(shape, "random").without()
    trained, trace = method.train(network(), text(), RECIPE, seed=4)
    plain = method.student(network(), seed=4)
    expected = RECIPE.train(plain, text(), seed=4)
    assert [update["loss"] for update in trace] == [update["loss"] for update in expected]
    assert all(map(torch.equal, trained.parameters(), plain.parameters()))


def test_smoothed_labels_are_the_recipes_own():
    method = CompactTransformer().smoothed()
    _, trace = method.train(network(), text(), RECIPE, seed=4)
    recipe = replace(RECIPE, loss=NextCharacter(smoothing=0.1))
    expected = recipe.train(method.student(network(), seed=4), text(), seed=4)
    assert [update["loss"] for update in trace] == [update["loss"] for update in expected]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_it_is_deterministic_and_leaves_network_and_teacher_alone(method):
    given, teacher = network(2), network(1).train()
    kept = [copy.deepcopy(n.state_dict()) for n in (given, teacher)]
    runs = [method.train(given, text(), RECIPE, teacher, seed=5) for _ in range(2)]
    assert runs[0][1] == runs[1][1] and not runs[0][0].training
    assert all(map(torch.equal, runs[0][0].parameters(), runs[1][0].parameters()))
    for before, after in zip(kept, (given, teacher), strict=True):
        assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.items())
        assert after.training and all(p.requires_grad and p.grad is None for p in after.parameters())
    assert runs[0][1][0]["loss"] != method.train(given, text(), RECIPE, teacher, seed=6)[1][0]["loss"]


def test_lessons_bring_the_student_nearer_to_the_teacher():
    data, teacher = text(items=40), network(1)
    x = torch.tensor(data.train.x)
    teacher.layers[0].attention.q.weight.data *= 5  # heads that look somewhere
    method = CompactTransformer("bottleneck", weight=1.0)
    far = inside(method.student(network(2), teacher), x)
    trained, _ = method.train(network(2), data, replace(RECIPE, epochs=15), teacher)
    near, other = inside(trained, x), inside(teacher, x)
    assert weights_and_states(near, other) < 0.7 * weights_and_states(far, other)


def test_the_trace_says_what_an_update_costs_teacher_and_maps_included():
    x, given, teacher = torch.zeros(1, STEPS), network(), network(1)
    for method in (*METHODS, METHODS[0].labels_alone(), METHODS[2].answers_alone()):
        _, trace = method.train(given, text(), RECIPE, teacher)
        macs = 3 * counting.macs(method.student(given, teacher), x)
        if method.lessons == "teacher":
            macs += counting.macs(teacher, x)
        if method.shape == "thin" and method.weight:
            macs += 3 * 3 * STEPS * 8 * 16  # the embedding and two layers, forward and twice backward
        assert [update["macs"] for update in trace] == [macs * items for items in (4, 4, 2)] * 2
        assert sum(update["macs"] for update in trace) == 2 * ITEMS * macs


class Workload:
    """What the protocol asks of one."""

    input_shape = (STEPS,)

    def network(self, seed):
        return network(seed)

    def trained(self):
        return network(9)

    def data(self):
        return text()


def test_the_protocol_counts_the_student_not_the_network_that_it_is_given():
    own, lessons = _taught(CompactTransformer("thin", "random"), Workload(), "network", 0, RECIPE)
    _, trace = CompactTransformer("thin", "random").train(network(0), text(), RECIPE, network(9), seed=0)
    assert own["training_macs"] == sum(update["macs"] for update in trace) and lessons
    assert not _taught(CompactTransformer().without(), Workload(), "network", 0, RECIPE)[1], "nobody asked the teacher"


# --- what does not fit -------------------------------------------------------------------------------------------


def test_what_is_no_parameter_is_named():
    for options, word in (
        ({"shape": "flat"}, "shape: expected one of shallow, thin, bottleneck, got 'flat'"),
        ({"start": "student"}, "start: expected one of teacher, random, got 'student'"),
        ({"lessons": "none"}, "lessons: expected one of teacher, labels, smoothed, got 'none'"),
        ({"shape": "thin"}, "start: expected random, for a thin student has no part"),
        ({"factor": 0}, "factor: expected a positive integer, got 0"),
        ({"weight": -1.0}, "weight: expected a finite number of at least 0, got -1.0"),
        ({"weight": float("nan")}, "weight: expected a finite number of at least 0, got nan"),
    ):
        with pytest.raises(ValueError, match=word):
            CompactTransformer(**options)


def test_a_network_without_transformer_layers_is_refused_by_name():
    random = CompactTransformer(start="random")
    with pytest.raises(ValueError, match=r"^network: expected one with causal attention; Sequential has none"):
        random.train(nn.Sequential(nn.Linear(2, 2)), text(), RECIPE)
    with pytest.raises(TypeError, match=r"^network: expected a torch.nn.Module, got str"):
        random.student("network")
    mixed = network()
    mixed.layers[1] = nn.Linear(16, 16)
    with pytest.raises(
        ValueError, match=r"^layers\.1: expected a transformer layer with .*; Linear has no attention_n"
    ):
        random.student(mixed)
    with pytest.raises(ValueError, match=r"^layers\.0\.attention: expected heads whose width 6 divides, got 8"):
        CompactTransformer("thin", "random", factor=3).student(network())
    with pytest.raises(ValueError, match=r"^layers\.0\.feedforward: expected a width that 2 divides, got 31"):
        CompactTransformer("bottleneck", "random").student(network(hidden=31))
    assert len(CompactTransformer(start="random", factor=3).student(network()).layers) == 1


def test_a_teacher_is_wanted_of_the_networks_shape():
    with pytest.raises(ValueError, match=r"^teacher: expected a trained torch.nn.Module"):
        CompactTransformer().train(network(), text(), RECIPE)
    with pytest.raises(ValueError, match=r"^teacher: .* whose layers\.2\.\S+ is None, got \(16,\)"):
        CompactTransformer(start="random").train(network(), text(), RECIPE, network(layers=3))
