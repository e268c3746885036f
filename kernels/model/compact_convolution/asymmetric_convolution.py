"""Asymmetric convolution: k x 1 and 1 x k filters, in place of a k x k one or beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.branches import Branches
from kernels.model.compact_convolution.geometry import along, geometry

__all__ = ["AsymmetricConvolution", "composed_kernel"]

FORMS = ("factorised", "branches")


@dataclass(frozen=True)
class AsymmetricConvolution:
    r"""One axis at a time: in sequence, which is cheaper, or as branches, which costs nothing more once they are fused.

    .. math:: \text{factorised:}\quad y = h * (v * x), \qquad
              \text{branches:}\quad y = \mathrm{BN}(w * x) + \mathrm{BN}(v * x) + \mathrm{BN}(h * x)

    with v of k x 1 and h of 1 x k. In sequence a convolution of M into N channels takes k M N + k N² products a pixel
    instead of k² M N: two thirds for 3 x 3 and M = N, less for larger kernels. As branches beside the k x k kernel they
    strengthen its middle row and column, and are added to it when training is over (`fuse`).

    Parameters
    ----------
    form : {"factorised", "branches"}

    Source
    ------
    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 3.2; Ding et al.,
    "ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric Convolution Blocks", ICCV 2019,
    section 3.

    Examples
    --------
    >>> AsymmetricConvolution().build(ConvSpec(8, 16, 3, padding=1, bias=False))
    Sequential(
      (0): Conv2d(8, 16, kernel_size=(3, 1), stride=(1, 1), padding=(1, 0), bias=False)
      (1): Conv2d(16, 16, kernel_size=(1, 3), stride=(1, 1), padding=(0, 1), bias=False)
    )
    >>> AsymmetricConvolution("branches").build(ConvSpec(8, 16, 3)).fuse()
    Conv2d(8, 16, kernel_size=(3, 3), stride=(1, 1))
    """

    form: str = "factorised"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {self.form!r}")

    @property
    def takes_over(self) -> tuple[type[nn.Module], ...]:
        """Branches are normalized one by one, and not again together."""
        return (nn.BatchNorm2d,) if self.form == "branches" else ()

    def build(self, spec: ConvSpec) -> nn.Module:
        """An untrained block with the input and output shapes of a standard convolution.

        Parameters
        ----------
        spec : ConvSpec
            With an odd kernel, if it shall have branches.

        Returns
        -------
        nn.Sequential or Branches
        """
        if self.form == "branches":
            k, l = geometry(spec).kernel  # noqa: E741
            return Branches(spec, [(k, l), (k, 1), (1, l)], identity=False)
        options: list[dict[str, Any]] = [along(spec, axis) for axis in (0, 1)]
        return nn.Sequential(
            nn.Conv2d(spec.in_channels, spec.out_channels, **options[0], bias=False),
            nn.Conv2d(spec.out_channels, spec.out_channels, **options[1], bias=spec.bias),
        )


def composed_kernel(vertical: Tensor, horizontal: Tensor) -> Tensor:
    r"""The kernel of the standard convolution that two in sequence equal.

    .. math:: w_{nmij} = \sum_c h_{ncj} \, v_{cmi}

    Parameters
    ----------
    vertical : Tensor of shape (C, M, k, 1)
    horizontal : Tensor of shape (N, C, 1, k)

    Returns
    -------
    Tensor of shape (N, M, k, k)
    """
    return torch.einsum("ncj,cmi->nmij", horizontal[:, :, 0], vertical[..., 0])
