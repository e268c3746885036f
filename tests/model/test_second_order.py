"""Columns settled by a Cholesky factor, against the optimal brain surgeon with an inverse taken anew at every step."""

from __future__ import annotations

import pytest
import torch

from kernels.model.calibration import output_error
from kernels.model.second_order import inverse_factor, settle_columns


def problem(seed, groups=2, outputs=3, k=9):
    torch.manual_seed(seed)
    rows = torch.randn(groups, 40, k).double() @ torch.randn(groups, k, k).double()
    return torch.randn(groups, outputs, k).double(), rows.mT @ rows / 40


def surgeon(weight, moment, settle):
    """One row at a time, the free weights moved by the inverse of what is left of H: the definition."""
    settled = weight.clone()
    for g in range(weight.shape[0]):
        for row in range(weight.shape[1]):
            w = weight[g, row].clone()
            for j in range(len(w)):
                inverse = torch.linalg.inv(moment[g, j:, j:])
                settled[g, row, j] = settle(w[j])
                w[j:] -= (w[j] - settled[g, row, j]) / inverse[0, 0] * inverse[0]
    return settled


@pytest.mark.parametrize("block", [1, 2, 4, 9, 100])
def test_it_is_the_surgeon_whatever_the_block(block):
    weight, moment = problem(0)
    factor = inverse_factor(moment, damping=0.0)
    for settle in (torch.round, torch.zeros_like, lambda w: 0.5 * torch.round(2 * w)):
        ours = settle_columns(weight, factor, lambda j, values, settle=settle: settle(values), block)
        assert torch.allclose(ours, surgeon(weight, moment, settle), atol=1e-9)


def test_one_column_fixed_leaves_the_least_square_that_there_is():
    weight, moment = problem(1, groups=1, outputs=1)
    changed = settle_columns(weight, inverse_factor(moment, 0.0), lambda j, v: v * 0 if j == 0 else v)
    error = output_error(changed - weight, moment)
    # by linear least squares: the others' best answer to the first one's change
    best = torch.linalg.solve(moment[0, 1:, 1:], moment[0, 1:, 0] * weight[0, 0, 0])
    assert torch.allclose(changed[0, 0, 1:], weight[0, 0, 1:] + best)
    free = torch.cat([-weight[0, 0, :1], best])
    assert torch.allclose(error, free @ moment[0] @ free)


def test_the_factor_is_that_of_the_damped_inverse_and_dead_inputs_stand_apart():
    _, moment = problem(2)
    moment[0, 3] = moment[0, :, 3] = 0
    factor = inverse_factor(moment, damping=0.1)
    assert torch.equal(factor, factor.triu())
    mean = moment[1].diagonal().mean()
    assert torch.allclose(factor[1].T @ factor[1], torch.linalg.inv(moment[1] + 0.1 * mean * torch.eye(9)))
    assert not factor[0, 3, 4:].any() and not factor[0, :3, 3].any()
    weight = torch.ones(2, 1, 9)
    rounded = settle_columns(weight, factor, lambda j, v: v + (j == 3))
    assert torch.allclose(rounded[0, 0, 4:], torch.ones(5).double()), "its error is nobody's business"
    assert torch.isfinite(inverse_factor(torch.zeros(1, 3, 3).double())).all()


def test_too_few_rows_need_damping():
    row = torch.ones(1, 1, 4).double()
    moment = row.mT @ row - 1e-9 * torch.eye(4)
    with pytest.raises(ValueError, match="moment: expected positive definite second moments; raise the damping"):
        inverse_factor(moment, damping=0.0)
    assert torch.isfinite(inverse_factor(moment, damping=0.01)).all()


def test_blocks_are_shown_before_they_are_settled():
    weight, moment = problem(3)
    seen = []
    settle_columns(weight, inverse_factor(moment), lambda j, v: v.round(), 4,
                   begin=lambda a, b, v: seen.append((a, b, v.clone())))  # fmt: skip
    assert [(a, b) for a, b, _ in seen] == [(0, 4), (4, 8), (8, 9)]
    assert torch.equal(seen[0][2], weight[..., :4]) and not torch.equal(seen[1][2], weight[..., 4:8])
