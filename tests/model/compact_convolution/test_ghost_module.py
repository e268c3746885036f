"""Without norms a ghost module is one linear convolution, which scipy composes; its cost is the paper's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torch import nn

from kernels.counting import macs
from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.ghost_module import GhostModule


def test_the_equation_by_scipy():
    torch.manual_seed(0)
    block = GhostModule(ratio=2, norm=False).build(ConvSpec(2, 4, 3, padding=1, bias=False)).double()
    w, cheap = block.primary.weight.detach().numpy(), block.cheap.weight.detach().numpy()
    x = np.random.default_rng(0).normal(size=(2, 6, 6))
    intrinsic = [sum(correlate2d(x[m], w[n, m], mode="same") for m in range(2)) for n in range(2)]
    ghosts = [correlate2d(intrinsic[n], cheap[n, 0], mode="same") for n in range(2)]
    assert np.allclose(block(torch.tensor(x)[None]).detach().numpy()[0], np.stack(intrinsic + ghosts))


@pytest.mark.parametrize(("ratio", "cheap"), [(2, 3), (4, 3), (2, 5)])
def test_products_are_the_papers(ratio, cheap):
    """Equation 4: n/s products of the convolution and (s - 1) n/s of the cheap filters."""
    block = GhostModule(ratio, cheap).build(ConvSpec(16, 32, 3, padding=1, bias=False))
    each = 32 // ratio
    assert macs(block, torch.zeros(1, 16, 5, 5)) == 25 * (9 * 16 * each + cheap**2 * each * (ratio - 1))


def test_a_surplus_of_ghosts_is_cut_off():
    block = GhostModule(ratio=3).build(ConvSpec(4, 8, 3, padding=1))
    assert block.primary[0].out_channels == 3 and block.cheap[0].out_channels == 6
    assert block(torch.zeros(2, 4, 5, 5)).shape == (2, 8, 5, 5)


def test_norms_are_the_authors_and_can_be_left_out():
    assert [type(m) for m in GhostModule().build(ConvSpec(4, 4, 3)).cheap] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert GhostModule().takes_over == (nn.BatchNorm2d, nn.ReLU) and GhostModule(norm=False).takes_over == ()


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="ratio: expected an integer of at least 2, got 1"):
        GhostModule(1)
    with pytest.raises(ValueError, match="cheap: expected an odd kernel size, got 4"):
        GhostModule(cheap=4)
