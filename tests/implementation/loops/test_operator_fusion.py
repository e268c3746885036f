"""A network with fused operations gives the same answers, and moves fewer bytes, counted operation by operation."""

import pytest
import torch
from torch import nn

import datasets
from kernels import counting
from kernels.implementation.loops.operator_fusion import OperatorFusion


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["mnist-cnn", "noisy-digits-cnn"])
@pytest.mark.parametrize("pool", [True, False])
def test_the_houses_networks_answer_alike(name, pool):
    workload = datasets.workload(name)
    network = workload.trained().eval()
    fused = OperatorFusion(pool).apply(network, workload.data())
    x = torch.tensor(workload.data().test.x[:128])
    with torch.no_grad():
        assert torch.allclose(fused(x), network(x), atol=1e-4, rtol=1e-4)
    assert fused.figures()["macs"] == counting.macs(network, x[:1])
    assert fused.figures()["memory_access"] < fused.apart / 1.5
    assert any("pool" in part for part in fused.describe()) == pool or not pool


def test_bytes_by_hand():
    chain = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2)).eval()
    fused = OperatorFusion().fuse(chain, (1, 6, 6))
    # apart: 36 and 18 weights to 32; 32 to 32; 32 to 8. Fused: 36 and 18 weights and 2 biases to 8
    assert fused.apart == 4 * ((36 + 18 + 32) + (32 + 32) + (32 + 8))
    assert fused.figures()["memory_access"] == 4 * (36 + 18 + 2 + 8)


def test_what_cannot_fuse_stays_and_the_input_is_untouched():
    chain = nn.Sequential(nn.Sigmoid(), nn.Conv2d(1, 2, 1), nn.Sigmoid(), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.ReLU())
    before = {name: p.clone() for name, p in chain.named_parameters()}
    fused = OperatorFusion().fuse(chain, (1, 4, 4))
    assert fused.describe() == ["Sigmoid", "Conv2d", "Sigmoid", "conv (2, 4, 4), relu", "ReLU"]
    x = torch.randn(3, 1, 4, 4)
    with torch.no_grad():
        assert torch.allclose(fused(x), chain(x), atol=1e-6)
    assert all(torch.equal(p, before[name]) for name, p in chain.named_parameters())


def test_what_is_no_chain_is_named():
    with pytest.raises(TypeError, match=r"network: expected an nn\.Sequential"):
        OperatorFusion().fuse(nn.Linear(2, 2), (2,))
