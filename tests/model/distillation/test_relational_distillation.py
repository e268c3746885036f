"""Relations against scipy's distances and numpy's angles, and what must not change them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from scipy.special import huber, logsumexp
from scipy.stats import ortho_group

from kernels.model.distillation.relational_distillation import (
    TEMPERATURE,
    RelationalDistillation,
    angles,
    contrastive_loss,
    distances,
    relation_loss,
)

ITEMS = np.random.default_rng(0).normal(size=(7, 5))


def test_distances_are_those_of_scipy_over_their_mean():
    theirs = squareform(pdist(ITEMS) / pdist(ITEMS).mean())
    np.testing.assert_allclose(distances(torch.tensor(ITEMS)).numpy(), theirs, atol=1e-6)


def test_angles_are_cosines_seen_from_the_middle_item():
    found = angles(torch.tensor(ITEMS)).numpy()
    for j, i, k in [(0, 1, 2), (3, 6, 1), (2, 4, 4)]:
        a, b = ITEMS[i] - ITEMS[j], ITEMS[k] - ITEMS[j]
        assert found[j, i, k] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert found[1, 1, 3] == 0  # an item sees itself nowhere


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 10), st.integers(0, 99))
def test_turning_moving_and_scaling_a_space_changes_no_relation(scale, seed):
    turn = ortho_group.rvs(5, random_state=seed)
    moved = torch.tensor(scale * ITEMS @ turn + seed)
    for relation in (distances, angles):
        torch.testing.assert_close(relation(moved), relation(torch.tensor(ITEMS)), rtol=1e-5, atol=1e-5)
        assert relation_loss(moved, torch.tensor(ITEMS), relation) < 1e-9


def test_the_loss_is_that_of_huber():
    other = np.random.default_rng(1).normal(size=(7, 3))
    own, theirs = (distances(torch.tensor(a)) for a in (ITEMS, other))
    expected = huber(1.0, (own - theirs).numpy()).mean()
    assert relation_loss(torch.tensor(ITEMS), torch.tensor(other), distances).item() == pytest.approx(expected)


def test_the_contrast_is_the_equation():
    random = np.random.default_rng(2)
    s, t = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in random.normal(size=(2, 6, 4)))
    similar = s @ t.T / TEMPERATURE
    both = (logsumexp(similar, 1) - similar.diagonal()) + (logsumexp(similar, 0) - similar.diagonal())
    assert contrastive_loss(torch.tensor(s), torch.tensor(t)).item() == pytest.approx(both.mean() / 2)
    assert contrastive_loss(torch.tensor(s), torch.tensor(s)) < contrastive_loss(torch.tensor(s), torch.tensor(t))


@pytest.mark.parametrize("relation", [distances, angles])
def test_items_that_coincide_have_a_gradient(relation):
    items = torch.zeros(4, 3, requires_grad=True)
    relation_loss(items, torch.randn(4, 2), relation).backward()
    assert torch.isfinite(items.grad).all()


def test_wrong_parameters_are_named():
    with pytest.raises(ValueError, match="relation: expected one of distance, angle, contrast, got 'size'"):
        RelationalDistillation(relation="size")
    with pytest.raises(ValueError, match="weight: expected a positive number"):
        RelationalDistillation(weight=-1.0)
