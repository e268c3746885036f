"""SVD against scipy's, and against the theorem that no matrix of the rank is nearer."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kernels.counting import macs, parameters
from kernels.model.low_rank.svd_factorisation import SvdFactorisation


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 40), st.integers(8, 40), st.floats(0.1, 0.9), st.integers(0, 9))
def test_a_linear_layer_is_the_best_of_its_rank(rows, columns, energy, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(columns, rows).double()
    matrix = layer.weight.detach().numpy()
    singular = scipy.linalg.svdvals(matrix)
    kept = np.cumsum(singular**2) / np.sum(singular**2)
    rank = int(np.searchsorted(kept, energy) + 1)
    if rank * (rows + columns) >= rows * columns:
        with pytest.raises(ValueError, match="no layer"):
            SvdFactorisation(energy).apply(layer)
        return
    small = SvdFactorisation(energy).apply(layer)
    assert small[0].out_features == rank
    product = (small[1].weight @ small[0].weight).detach().double().numpy()
    assert np.linalg.norm(product - matrix) == pytest.approx(np.sqrt(np.sum(singular[rank:] ** 2)), rel=1e-4)
    assert kept[rank - 1] >= energy > (kept[rank - 2] if rank > 1 else 0)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"padding": "same", "dilation": 2}])
def test_a_convolution_of_low_rank_is_kept_exactly(options):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 12, 3, **options)
    with torch.no_grad():
        layer.weight.copy_((torch.randn(12, 4) @ torch.randn(4, 72)).reshape(12, 8, 3, 3))
    small = SvdFactorisation(energy=1.0).apply(layer)
    x = torch.randn(2, 8, 9, 9)
    assert small[0].out_channels == 4
    torch.testing.assert_close(small(x), layer(x), rtol=1e-4, atol=1e-4)
    assert parameters(small) == 4 * (12 + 72) + 12
    places = layer(x)[0, 0].numel()
    assert macs(small, x[:1]) == places * 4 * (12 + 72)


def test_the_factors_share_the_size_of_the_weight_evenly():
    torch.manual_seed(0)
    layer = nn.Linear(40, 40)
    small = SvdFactorisation(energy=0.5).apply(layer)
    left, right = small[1].weight, small[0].weight
    torch.testing.assert_close(left.T @ left, right @ right.T, rtol=1e-4, atol=1e-5)
