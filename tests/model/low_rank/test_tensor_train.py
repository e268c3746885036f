"""Tensor trains against tensorly's, and against the matrix that the cores stand for."""

import math

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorly.decomposition import tensor_train_matrix
from tensorly.tt_matrix import tt_matrix_to_matrix
from torch import nn

from kernels.counting import macs
from kernels.model.low_rank.tensor_train import TensorTrain, TensorTrainLinear, composed, modes, tt_svd


@given(st.integers(1, 500), st.integers(2, 4))
def test_modes_multiply_to_the_size(size, order):
    found = modes(size, order)
    assert len(found) == order and math.prod(found) == size and list(found) == sorted(found, reverse=True)


@pytest.mark.parametrize("rows,columns,rank", [((4, 3), (5, 2), 4), ((3, 2, 2), (2, 4, 3), 3)])
def test_the_error_is_that_of_tensorly(rows, columns, rank):
    random = torch.Generator().manual_seed(0)
    matrix = torch.randn(math.prod(rows), math.prod(columns), generator=random, dtype=torch.float64)
    cores = tt_svd(matrix, rows, columns, rank)
    tensor = tensorly.tensor(matrix.reshape(*rows, *columns).numpy())
    theirs = tensor_train_matrix(tensor, rank=(1, *[rank] * (len(rows) - 1), 1))
    error = np.linalg.norm(tt_matrix_to_matrix(theirs) - matrix.numpy())
    assert (composed(cores) - matrix).norm().item() == pytest.approx(error, rel=1e-6)


def test_a_train_of_full_rank_is_the_matrix():
    matrix = torch.randn(12, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(composed(tt_svd(matrix, (4, 3), (5, 4), 99)), matrix)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("shape", [(24, 30), (64, 64), (10, 48)])
def test_the_layer_computes_with_the_composed_matrix(shape, order):
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0])
    small = TensorTrain(share=0.5, order=order).apply(layer)
    x = torch.randn(2, 5, shape[1])
    torch.testing.assert_close(small(x), x @ small.weight.T + layer.bias, rtol=1e-4, atol=1e-5)
    assert sum(core.numel() for core in small.cores) <= 0.5 * layer.weight.numel()
    assert small(x[:0]).shape == (0, 5, shape[0])


def test_the_products_are_those_of_the_closed_form():
    small = TensorTrainLinear([torch.ones(1, 4, 3, 2), torch.ones(2, 5, 6, 1)], None)
    # the first digit changes for each of 6 inputs to come, the second for each of 4 outputs so far
    assert macs(small, torch.zeros(1, 18)) == (4 * 2) * 3 * 6 + (5 * 1) * (2 * 6) * 4


def test_the_share_is_used_up():
    layer = nn.Linear(64, 64)
    small = TensorTrain(share=0.5).apply(layer)
    (rank,) = (core.shape[3] for core in small.cores[:-1])
    assert rank * (64 + 64) <= 0.5 * 64 * 64 < (rank + 1) * (64 + 64)


def test_fewer_than_two_cores_are_refused():
    with pytest.raises(ValueError, match="order: expected at least 2 cores, got 1"):
        TensorTrain(order=1)
