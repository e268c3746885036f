"""The committed networks are what their recipes make, and a reader's own network works in their place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import datasets
from datasets import Data, Recipe, Split, Workload, accuracy, card
from datasets.workloads import base


def flat(network):
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("digits-mlp", 0.95, 1),
        ("mnist-cnn", 0.965, 1),
        ("noisy-digits-cnn", 0.80, 0.92),
        ("vowels-gru", 0.95, 1),
        ("shakespeare-transformer", 0.44, 0.5),
    ],
)
def test_baseline_accuracy(name, low, high):
    workload = datasets.workload(name)
    network = workload.trained()
    assert low <= accuracy(network, workload.data().test) <= high
    assert not network.training and workload.input_shape == workload.data().train.x.shape[1:]
    torch.fx.symbolic_trace(network)
    student = workload.student()
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in network.parameters()) / 4


def test_three_speakers_are_new_to_the_network_that_adapts():
    workload = datasets.workload("new-speakers-gru")
    network, test = workload.network(), workload.data().test
    known = test.y < 6
    assert network.training and accuracy(network, test[known]) > 0.93 and accuracy(network, test[~known]) == 0
    assert workload.data() is datasets.workload("vowels-gru").data()
    again = workload.network(3)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_every_call_of_trained_is_a_fresh_copy():
    workload = datasets.workload("digits-mlp")
    spoilt = workload.trained()
    nn.init.zeros_(spoilt[1].weight)
    assert workload.trained()[1].weight.abs().sum() > 0


def test_retraining_gives_the_accuracy_of_the_committed_weights():
    workload = datasets.workload("digits-mlp")
    network = workload.network()
    trace = workload.recipe.train(network, workload.data())
    assert len(trace) == 40 * 38 and trace[-1].keys() == {"step", "epoch", "loss"} and trace[-1]["epoch"] == 39
    for split in (workload.data().validation, workload.data().test):
        assert accuracy(network, split) == pytest.approx(accuracy(workload.trained(), split), abs=0.01)


def test_training_is_the_same_to_the_last_bit_whatever_happened_before():
    workload = datasets.workload("noisy-digits-cnn")
    runs = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(threads)
        state = torch.random.get_rng_state()
        network = workload.network(seed=3)
        replace(workload.recipe, epochs=1).train(network, workload.data())
        assert torch.get_num_threads() == threads and torch.equal(torch.random.get_rng_state(), state)
        torch.set_num_threads(before)
        runs.append(flat(network))
    assert torch.equal(*runs)
    other = workload.network(seed=4)
    replace(workload.recipe, epochs=1).train(other, workload.data())
    assert not torch.equal(runs[0], flat(other))


def test_first_update_is_the_one_adamw_makes():
    """Against torch.optim.AdamW run by hand on the first batch, at the rate where one-cycle starts."""
    workload = datasets.workload("digits-mlp")
    recipe = Recipe(epochs=10, batch=100, learning_rate=0.1, weight_decay=0.2)
    network, hand = workload.network(), workload.network()
    states = []
    recipe.train(network, workload.data(), on_step=lambda step, n: states.append(flat(n)))
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        items = torch.randperm(1197)[:100].numpy()
    batch = workload.data().train[items]
    steps = 10 * 12
    optimizer = torch.optim.AdamW(hand.parameters(), lr=0.1 / (steps // 5), weight_decay=0.2)
    nn.functional.cross_entropy(hand(torch.tensor(batch.x)), torch.tensor(batch.y)).backward()
    optimizer.step()
    assert len(states) == steps and torch.allclose(states[0], flat(hand), atol=1e-7)


def test_schedules_start_and_end_where_they_should():
    cycle, cosine, constant = (Recipe(schedule=s) for s in ("one-cycle", "cosine", "constant"))
    shares = [cycle._share(step, 100) for step in range(100)]
    assert shares[19] == shares[20] == max(shares) == 1 and shares[0] == 0.05 and 0 < shares[-1] < 0.001
    assert cosine._share(0, 100) == 1 and cosine._share(50, 100) == pytest.approx(0.5)
    assert constant._share(99, 100) == 1
    assert all(recipe._share(0, 1) == 1 for recipe in (cycle, cosine, constant))


def test_finetuning_is_shorter_and_only_falls():
    recipe = Recipe(epochs=5, learning_rate=0.1)
    assert recipe.fine_tuning == Recipe(epochs=2, learning_rate=0.1, schedule="cosine")
    workload = datasets.workload("digits-mlp")
    trace = recipe.finetune(workload.trained(), workload.data())
    assert len(trace) == recipe.fine_tuning.steps(workload.data()) == 2 * 19


@pytest.mark.parametrize(
    ("wrong", "message"), [({"schedule": "step"}, "schedule: expected one of one-cycle"), ({"batch": 0}, "batch")]
)
def test_a_recipe_refuses_nonsense(wrong, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**wrong)


def test_accuracy_by_hand():
    class Echo(nn.Module):
        def forward(self, x):
            assert not self.training
            return x

    echo = Echo().train()
    split = Split(np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 3]], np.array([0, 1, 2, 0, 3]))
    assert accuracy(echo, split) == accuracy(echo, split, batch=2) == 0.8 and echo.training
    with pytest.raises(ValueError, match="empty split"):
        accuracy(echo, split[:0])


def test_a_readers_own_network_data_and_recipe():
    random = np.random.default_rng(0)

    def split(n):
        y = random.integers(0, 2, n)
        return Split(random.normal(size=(n, 3)) + 3 * y[:, None], y)

    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(3, 2))

    mine = Workload(
        "mine", network=Net, data=Data("blobs", split(200), split(50), split(50), 2), recipe=Recipe(learning_rate=0.1)
    )
    assert mine.student() is None and mine.input_shape == (3,) and len(mine.data().sha256) == 64
    assert accuracy(mine.trained(), mine.data().test) > 0.9
    assert mine.trained() is not mine.trained() and torch.equal(flat(mine.trained()), flat(mine.trained()))


def test_corrupted_weights_are_refused(tmp_path, monkeypatch):
    folder = tmp_path / "workloads"
    folder.mkdir()
    for file in ("card.yml", "digits_mlp.safetensors"):
        (folder / file).write_bytes((card.ROOT / "workloads" / file).read_bytes())
    with open(folder / "digits_mlp.safetensors", "ab") as file:
        file.write(b"\0")
    monkeypatch.setattr(card, "ROOT", tmp_path)
    monkeypatch.setattr(base, "ROOT", tmp_path)
    mlp = datasets.workload("digits-mlp")
    fresh = Workload("digits-mlp", mlp.network, mlp.data(), mlp.recipe, committed=True)
    with pytest.raises(ValueError, match=r"datasets\.make weights digits-mlp"):
        fresh.trained()
