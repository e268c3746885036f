"""Structural re-parameterisation: several branches while training, one convolution afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.branches import Branches, identity_fits
from kernels.model.compact_convolution.geometry import geometry

__all__ = ["ReParameterisation"]


@dataclass(frozen=True)
class ReParameterisation:
    r"""A k x k convolution, a 1 x 1 convolution and the identity side by side, each normalized, and added.

    .. math:: y = \mathrm{BN}_3(w_3 * x) + \mathrm{BN}_1(w_1 * x) + \mathrm{BN}_0(x)

    All three are linear in inference, so their sum is one convolution (`Branches`): `fuse` gives it, equal up to
    rounding. What trains as a network of branches infers as a plain stack of convolutions.

    The identity is a branch where it can be one: as many channels out as in, maps that keep their size.

    Parameters
    ----------
    pointwise, identity : bool
        Whether the branch is there.

    Source
    ------
    Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, sections 3.2 and 3.3.

    Examples
    --------
    >>> import torch
    >>> block = ReParameterisation().build(ConvSpec(8, 8, 3, padding=1)).eval()
    >>> x = torch.randn(2, 8, 6, 6)
    >>> block.fuse(), torch.allclose(block.fuse()(x), block(x), atol=1e-5)
    (Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)), True)
    """

    pointwise: bool = True
    identity: bool = True

    takes_over: ClassVar[tuple[type[nn.Module], ...]] = (nn.BatchNorm2d,)

    def build(self, spec: ConvSpec) -> Branches:
        """An untrained block; its ReLU is the one behind the convolution.

        Parameters
        ----------
        spec : ConvSpec
            With an odd kernel, if there is a 1 x 1 branch.

        Returns
        -------
        Branches
            Its `fuse()` is a `torch.nn.Conv2d`.
        """
        kernels = [geometry(spec).kernel, *([(1, 1)] if self.pointwise else [])]
        return Branches(spec, kernels, identity=self.identity and identity_fits(spec))
