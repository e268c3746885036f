"""CP decomposition against tensorly's, and against tensors whose rank is known."""

import numpy as np
import pytest
import tensorly
import torch
from tensorly.decomposition import parafac
from torch import nn
from torch.nn import functional

from kernels.counting import macs, parameters
from kernels.model.low_rank.cp_decomposition import CpDecomposition, als, composed


@pytest.mark.parametrize("shape,rank", [((6, 5, 4), 3), ((8, 6, 3, 3), 4), ((5, 7), 2)])
def test_a_tensor_of_the_rank_is_found_again(shape, rank):
    random = torch.Generator().manual_seed(0)
    factors = [torch.randn(size, rank, generator=random, dtype=torch.float64) for size in shape]
    tensor = composed(factors)
    assert (composed(als(tensor, rank)) - tensor).norm() < 0.02 * tensor.norm()


@pytest.mark.filterwarnings("ignore:Trying to compute SVD")  # of three columns, as it says
@pytest.mark.parametrize("rank", [2, 6, 12])
def test_the_error_is_that_of_tensorly(rank):
    weight = torch.randn(12, 10, 3, 3, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    ours = (composed(als(weight, rank)) - weight).norm() / weight.norm()
    theirs = parafac(weight.numpy(), rank, init="svd", n_iter_max=200, tol=1e-6, random_state=0)
    error = np.linalg.norm(tensorly.cp_to_tensor(theirs) - weight.numpy()) / weight.norm().item()
    assert ours < 1.03 * error


def test_one_step_solves_the_least_squares_problem_of_its_factor():
    tensor = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    factors = als(tensor, 2)
    a, b, c = factors
    design = torch.einsum("jr,kr->jkr", b, c).reshape(-1, 2)
    best = torch.linalg.lstsq(design, tensor.reshape(5, -1).T).solution.T
    here = (tensor.reshape(5, -1) - a @ design.T).norm()
    assert here <= 1.001 * (tensor.reshape(5, -1) - best @ design.T).norm()


def test_four_convolutions_are_one_with_the_composed_kernel():
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, 3, stride=2, padding=1)
    small = CpDecomposition(share=0.3).apply(layer)
    mix, down, across, out = (part.weight.detach() for part in small)
    kernel = composed([out[:, :, 0, 0], mix[:, :, 0, 0].T, down[:, 0, :, 0].T, across[:, 0, 0].T])
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(small(x), functional.conv2d(x, kernel, layer.bias, 2, 1), rtol=1e-4, atol=1e-4)
    rank = len(down)
    assert parameters(small) == rank * (12 + 8 + 3 + 3) + 12
    assert macs(CpDecomposition(0.3).apply(nn.Conv2d(8, 12, 3, padding=1)), x[:1]) == 81 * rank * (12 + 8 + 3 + 3)


def test_factors_are_of_equal_size():
    factors = als(torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(4)), 4)
    sizes = torch.stack([factor.norm(dim=0) for factor in factors])
    torch.testing.assert_close(sizes, sizes[:1].expand(4, -1))
