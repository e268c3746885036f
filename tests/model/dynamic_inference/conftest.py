"""What every network that adapts is asked."""

import copy

import pytest
import torch

import datasets


@pytest.fixture(scope="session")
def noisy():
    return datasets.workload("noisy-digits-cnn")


@pytest.fixture(scope="session")
def items(noisy):
    return torch.tensor(noisy.data().validation.x[:64])


@pytest.fixture(scope="session")
def held():
    """Held of every adaptive technique: a copy, the same each time, whose batches answer as their items do."""

    def check(technique, workload, x):
        network = workload.trained()
        before, state = copy.deepcopy(network.state_dict()), torch.random.get_rng_state()
        one, two = (technique.apply(network, workload.data()) for _ in range(2))
        assert torch.equal(state, torch.random.get_rng_state())
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        assert not one.training and all(p.grad is None for p in one.parameters())
        with torch.no_grad():
            (logits, cost), (same, as_much) = one(x), two(x)
            assert torch.equal(logits, same) and torch.equal(cost, as_much)
            alone = [one(item[None]) for item in x[:10]]
            torch.testing.assert_close(torch.cat([logits for logits, _ in alone]), logits[:10], rtol=1e-4, atol=1e-4)
            assert torch.equal(torch.cat([cost for _, cost in alone]), cost[:10])
            nothing, free = one(x[:0])
        assert nothing.shape == (0, logits.shape[1]) and free.shape == (0,)
        return one

    return check
