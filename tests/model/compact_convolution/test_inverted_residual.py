"""The block's cost is the paper's; its branch is linear at the end, and the input is added where it fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torch import nn

from kernels.counting import macs, parameters
from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.geometry import Shortcut
from kernels.model.compact_convolution.inverted_residual import InvertedResidual


@pytest.mark.parametrize("t", [1, 2, 6])
@pytest.mark.parametrize(("m", "n"), [(8, 8), (8, 12)])
def test_products_and_parameters_are_the_papers(m, n, t):
    """Section 3.3, table 1: h w m t (m + k² + n), without the expansion where t = 1."""
    block = InvertedResidual(t).build(ConvSpec(m, n, 3, padding=1))
    products = m * t * (9 + n) + (m * m * t if t > 1 else 0)
    assert macs(block, torch.zeros(1, m, 5, 5)) == 25 * products
    assert parameters(block) == products + 2 * (m * t * (2 if t > 1 else 1) + n)


def test_the_equation_by_scipy():
    torch.manual_seed(0)
    block = InvertedResidual(3).build(ConvSpec(2, 2, 3, padding=1)).double().eval()
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eps = 0.0  # with mean 0 and variance 1 it is the identity
    p1, d, p2 = (m.weight.detach().numpy() for m in block.modules() if isinstance(m, nn.Conv2d))
    x = 5 * np.random.default_rng(0).normal(size=(2, 6, 6))
    wide = np.clip(np.einsum("nm,mij->nij", p1[:, :, 0, 0], x), 0, 6)
    filtered = np.clip([correlate2d(wide[c], d[c, 0], mode="same") for c in range(6)], 0, 6)
    expected = x + np.einsum("nm,mij->nij", p2[:, :, 0, 0], filtered)
    assert np.allclose(block(torch.tensor(x)[None]).detach().numpy()[0], expected)


def test_the_input_is_added_where_it_fits_and_nothing_is_cut_off_at_the_end():
    build = InvertedResidual().build
    assert type(build(ConvSpec(4, 4, 3, padding=1))) is Shortcut
    for spec in (ConvSpec(4, 8, 3, padding=1), ConvSpec(4, 4, 3, stride=2, padding=1), ConvSpec(4, 4, 3)):
        assert type(build(spec)) is nn.Sequential
    torch.manual_seed(0)
    x = torch.randn(4, 4, 5, 5)
    assert (build(ConvSpec(4, 8, 3, padding=1))(x) < 0).any()
    assert (InvertedResidual(linear=False).build(ConvSpec(4, 8, 3, padding=1))(x) >= 0).all()


def test_wrong_expansion_is_named():
    with pytest.raises(ValueError, match="expansion: expected a positive integer, got 0"):
        InvertedResidual(0)
