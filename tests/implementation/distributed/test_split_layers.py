"""Layers divided among workers: the product of one process, and only two sums on the wire."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kernels.implementation.distributed.split_layers import SplitPair, passed
from kernels.implementation.distributed.workers import Group, Workers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("workers", "inner"), [(1, 7), (2, 8), (2, 7), (3, 2)]
)  # three workers, two neurons: one idles
def test_outputs_and_gradients_are_those_of_one_process(workers, inner, bias):
    torch.manual_seed(0)
    first, second = nn.Linear(6, inner, bias=bias), nn.Linear(inner, 4, bias=bias)
    x, gradient = torch.randn(12, 6, requires_grad=True), torch.randn(12, 4)
    y = second(nn.functional.gelu(first(x)))
    y.backward(gradient)
    with Workers(workers) as team:
        answers = team.call(passed, first, nn.GELU(), second, x.detach(), gradient)
    for answer in answers:
        own, own_x, _ = answer.value
        torch.testing.assert_close(own, y)
        torch.testing.assert_close(own_x, x.grad)
    parts = [answer.value[2] for answer in answers]
    torch.testing.assert_close(torch.cat([part["rows"] for part in parts]), first.weight.grad)
    torch.testing.assert_close(torch.cat([part["columns"] for part in parts], 1), second.weight.grad)
    if bias:
        torch.testing.assert_close(torch.cat([part["rows_bias"] for part in parts]), first.bias.grad)
        assert all(torch.allclose(part["bias"], second.bias.grad) for part in parts)
    total = 12 * (6 + 4) * 4  # the input's gradient and the result, each in a ring
    assert sum(answer.sent for answer in answers) == 2 * (workers - 1) * total


def test_layers_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="second: expected a layer of 3 inputs, as many as the first gives, got 4"):
        SplitPair(nn.Linear(2, 3), nn.ReLU(), nn.Linear(4, 2), Group())
