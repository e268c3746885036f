"""Clients and a server: one step of all is a step on all data, weights are by items, updates are right on average."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import datasets
from kernels.implementation.distributed.federated_averaging import FederatedAveraging, shares
from kernels.implementation.distributed.workers import Workers


def drawn(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small(items=200):
    data = datasets.load("digits")
    return replace(data, train=data.train[:items])


def sgd(**changes):
    return datasets.Recipe(
        epochs=1,
        batch=10**6,
        learning_rate=0.1,
        weight_decay=0.0,
        schedule="constant",
        optimizer=torch.optim.SGD,
        **changes,
    )


@pytest.mark.parametrize("concentration", [None, 0.3])
def test_one_step_of_all_clients_is_a_step_on_all_data(concentration):
    """Whoever holds what: the weighted mean of the clients' gradients is the gradient of all items."""
    data, start = small(), datasets.workload("digits-mlp").network(0)
    federated = FederatedAveraging(clients=7, concentration=concentration)
    trained, (row,) = federated.run(sgd(), start, data)
    plain = copy.deepcopy(start)
    sgd().train(plain, data)
    assert row["steps"] == 1
    for a, b, before in zip(trained.parameters(), plain.parameters(), start.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6) and not torch.allclose(a, before, atol=1e-6)


def test_one_client_is_plain_training_and_the_input_is_untouched():
    data, start = small(), datasets.workload("digits-mlp").network(0)
    before = copy.deepcopy(start.state_dict())
    recipe = replace(sgd(), batch=32, epochs=2)
    trained, trace = FederatedAveraging(clients=1, local_epochs=2).run(recipe, start, data)
    plain = copy.deepcopy(start)
    recipe.train(plain, data, seed=0)
    for a, b in zip(trained.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert len(trace) == 1 and trace[0]["steps"] == 14
    assert all(torch.equal(a, b) for a, b in zip(before.values(), start.state_dict().values(), strict=True))


def test_weights_are_by_items():
    """Two clients, one with all but one of the items: the mean of their updates, weighted."""
    data, start = small(21), datasets.workload("digits-mlp").network(0)
    parts = [np.arange(20), np.array([20])]
    ends = []
    for part in parts:
        own = copy.deepcopy(start)
        sgd().train(own, replace(data, train=data.train[part]))
        ends.append([p.detach() for p in own.parameters()])
    together, _ = next(iter(FederatedAveraging(clients=2).rounds(sgd(), copy.deepcopy(start), data, parts)))
    for found, a, b in zip(together.parameters(), *ends, strict=True):
        assert torch.allclose(found, (20 * a + b) / 21, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.one_of(st.none(), st.floats(0.05, 100)), st.integers(0, 99), st.integers(0, 300))
def test_every_item_has_one_owner(clients, concentration, seed, items):
    labels = np.random.default_rng(seed).integers(0, 10, items)
    parts = shares(labels, clients, concentration, seed)
    assert len(parts) == clients and sorted(np.concatenate(parts).tolist()) == list(range(items))
    again = shares(labels, clients, concentration, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_a_small_concentration_gives_a_client_few_classes():
    labels = np.repeat(np.arange(10), 100)

    def largest_share(concentration):
        counts = [np.bincount(labels[part], minlength=10) for part in shares(labels, 10, concentration) if len(part)]
        return np.mean([count.max() / count.sum() for count in counts])

    assert largest_share(0.05) > 0.6 > largest_share(1.0) > largest_share(100.0) > largest_share(None) - 0.05


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 6), max_size=3).map(tuple), st.sampled_from([2, 3, 4, 8, 13, 16, 32]), st.integers(0, 2**31)
)
def test_an_update_comes_back_within_a_step(shape, bits, key):
    subject, update = FederatedAveraging(bits=bits), drawn(shape, key) * np.float32(1e-3)
    message = subject.encode(update, key)
    found = subject.decode(message, update.shape)
    assert len(message) == subject.message_bytes(update.size) and found.shape == update.shape
    assert found.dtype == np.float32
    step = 2 * np.abs(update).max(initial=0) / (2 ** (bits - 1) - 1)  # the point is at a power of two
    assert (np.abs(found - update) <= (0 if bits == 32 else step)).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_an_update_is_right_on_average(bits):
    subject, update, draws = FederatedAveraging(bits=bits), drawn(50), 3000
    found = np.stack([subject.decode(subject.encode(update, key), update.shape) for key in range(draws)])
    error = found.std(0, dtype=np.float64) / draws**0.5
    assert (np.abs(found.mean(0, dtype=np.float64) - update) <= 5 * error + 1e-6).all()


def client(group, federated, recipe, network, data, parts):
    """One round of one client in a process of its own: it sends its update to everybody, and averages all."""
    own = copy.deepcopy(network)
    replace(recipe, seed=group.rank).train(own, replace(data, train=data.train[parts[group.rank]]))
    total = sum(map(len, parts))
    averaged = []
    for place, (a, b) in enumerate(zip(own.parameters(), network.parameters(), strict=True)):
        update = (a - b).detach().numpy()
        message = federated.encode(update, group.rank * len(list(network.parameters())) + place)
        received = group.exchange(torch.from_numpy(np.frombuffer(message, np.uint8).copy()))
        after = b.detach().numpy().astype(np.float64)
        for part, one in zip(parts, received, strict=True):
            after += len(part) / total * federated.decode(one.numpy().tobytes(), update.shape)
        averaged.append(after.astype(np.float32))
    return averaged


def test_two_processes_agree_on_what_one_process_computes_and_send_what_is_counted():
    data, network = small(60), datasets.workload("digits-mlp").network(0)
    parts, recipe = shares(data.train.y, 2, 1.0), replace(sgd(), batch=16)
    with Workers(2) as team:
        for bits in (32, 4):
            federated = FederatedAveraging(clients=2, bits=bits)
            expected, row = next(iter(federated.rounds(recipe, copy.deepcopy(network), data, parts)))
            for answer in team.call(client, federated, recipe, network, data, parts):
                assert answer.sent == row["bytes_sent"]
                for a, b in zip(answer.value, expected.parameters(), strict=True):
                    assert a.tobytes() == b.detach().numpy().tobytes()


def test_batch_norm_s_statistics_are_averaged_too_and_a_training_learns():
    workload, recipe = datasets.workload("noisy-digits-cnn"), datasets.Recipe(epochs=4, batch=32)
    start = workload.network(0)
    network, trace = FederatedAveraging(clients=3, bits=8).run(recipe, start, workload.data())
    again, _ = FederatedAveraging(clients=3, bits=8).run(recipe, start, workload.data())
    assert datasets.accuracy(network, workload.data().validation) > 0.4 and not network.training and len(trace) == 4
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )
    sizes = [p.numel() for p in start.parameters()]
    floats = sum(b.numel() for b in start.buffers() if b.is_floating_point())
    assert trace[0]["bytes_sent"] == sum(sizes) + len(sizes) + 4 * floats


def test_bad_input_is_named():
    for name, bad in {"clients": 0, "local_epochs": 0, "concentration": 0.0, "bits": 1}.items():
        with pytest.raises(ValueError, match=f"{name}: expected"):
            FederatedAveraging(**{name: bad})
    with pytest.raises(ValueError, match="expected finite numbers"):
        FederatedAveraging(bits=4).encode(np.array([np.nan]))
    with pytest.raises(ValueError, match="message: expected 2 bytes for \\(2,\\), got 0"):
        FederatedAveraging(bits=4).decode(b"", (2,))
