"""Tucker-2 against tensorly's partial Tucker decomposition, and against bases known beforehand."""

import numpy as np
import pytest
import torch
from tensorly.decomposition import partial_tucker
from tensorly.tenalg import multi_mode_dot
from torch import nn
from torch.nn import functional

from kernels.counting import parameters
from kernels.model.low_rank.tucker_decomposition import TuckerDecomposition, hooi, ranks_within


@pytest.mark.parametrize("p,q", [(2, 3), (6, 4), (12, 10)])
def test_the_error_is_that_of_tensorly(p, q):
    weight = torch.randn(12, 10, 3, 3, generator=torch.Generator().manual_seed(p), dtype=torch.float64)
    a, core, b = hooi(weight, p, q)
    ours = (torch.einsum("np,pqij,cq->ncij", a, core, b) - weight).norm() / weight.norm()
    (their_core, factors), _ = partial_tucker(weight.numpy(), rank=[p, q], modes=[0, 1], n_iter_max=200, tol=1e-8)
    theirs = np.linalg.norm(multi_mode_dot(their_core, factors, modes=[0, 1]) - weight.numpy()) / weight.norm().item()
    assert ours.item() == pytest.approx(theirs, abs=2e-3)
    for basis in (a, b):
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))


def test_the_core_holds_what_the_approximation_does_not_lose():
    weight = torch.randn(9, 8, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, core, b = hooi(weight, 4, 3)
    lost = (torch.einsum("np,pqij,cq->ncij", a, core, b) - weight).square().sum()
    torch.testing.assert_close(core.square().sum() + lost, weight.square().sum())  # Pythagoras


def test_a_kernel_within_two_bases_is_kept_exactly():
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 16, 3, stride=2, padding=1)
    with torch.no_grad():
        core, a, b = torch.randn(5, 4, 3, 3), torch.randn(16, 5), torch.randn(12, 4)
        layer.weight.copy_(torch.einsum("np,pqij,cq->ncij", a, core, b))
    small = TuckerDecomposition(share=0.5).apply(layer)
    x = torch.randn(2, 12, 9, 9)
    torch.testing.assert_close(small(x), layer(x), rtol=1e-3, atol=1e-3)


def test_three_convolutions_are_one_with_the_composed_kernel():
    torch.manual_seed(1)
    layer = nn.Conv2d(8, 12, 3, padding=2, dilation=2, bias=False)
    small, x = TuckerDecomposition(share=0.3).apply(layer), torch.randn(2, 8, 9, 9)
    into, core, out = (part.weight.detach() for part in small)
    kernel = torch.einsum("np,pqij,qc->ncij", out[:, :, 0, 0], core, into[:, :, 0, 0])
    torch.testing.assert_close(small(x), functional.conv2d(x, kernel, None, 1, 2, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("n,c", [(32, 16), (64, 64), (16, 48)])
def test_ranks_keep_within_the_share(share, n, c):
    p, q = ranks_within(share, n, c, 9)
    assert n * p + 9 * p * q + q * c <= share * n * c * 9
    assert p / n == pytest.approx(q / c, abs=max(1 / n, 1 / c))
    layer = nn.Conv2d(c, n, 3, bias=False)
    assert parameters(TuckerDecomposition(share).apply(layer)) == n * p + 9 * p * q + q * c
