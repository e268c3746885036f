"""Group convolution: channels in groups that do not see each other."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from kernels.model.block import ConvSpec

__all__ = ["GroupConvolution", "composed_kernel"]


@dataclass(frozen=True)
class GroupConvolution:
    r"""Split input and output channels into g groups, and connect each output to the inputs of its group only.

    .. math:: y_n = \sum_{m \in G(n)} w_{nm} * x_m, \qquad |G(n)| = M / g

    Products and parameters are the share 1 / g of a standard convolution's. g = 1 is the standard convolution; with
    M groups and N = M it is the depthwise one.

    Parameters
    ----------
    groups : int
        g; it must divide the channels of both sides.

    Source
    ------
    Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017, section 3.3 and figure 3(c).

    Examples
    --------
    >>> standard = nn.Conv2d(32, 64, 3, bias=False)
    >>> standard.weight.numel() // GroupConvolution(groups=4).build(ConvSpec.of(standard)).weight.numel()
    4
    """

    groups: int = 4

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise ValueError(f"groups: expected a positive integer, got {self.groups}")

    def build(self, spec: ConvSpec) -> nn.Conv2d:
        """An untrained convolution in groups, otherwise as specified.

        Parameters
        ----------
        spec : ConvSpec

        Raises
        ------
        ValueError
            If the number of groups does not divide both numbers of channels.
        """
        for side in ("in_channels", "out_channels"):
            if getattr(spec, side) % self.groups:
                raise ValueError(f"{side}: expected a multiple of {self.groups} groups, got {getattr(spec, side)}")
        return nn.Conv2d(**asdict(spec), groups=self.groups)


def composed_kernel(weight: Tensor, groups: int) -> Tensor:
    """The kernel of the standard convolution that one in groups equals: zero from group to group.

    Parameters
    ----------
    weight : Tensor of shape (N, M / groups, k, k)

    Returns
    -------
    Tensor of shape (N, M, k, k)
    """
    blocks = weight.unflatten(0, (groups, -1))
    dense = torch.einsum("gnmij,gh->gnhmij", blocks, torch.eye(groups, dtype=weight.dtype))
    return dense.flatten(2, 3).flatten(0, 1)
