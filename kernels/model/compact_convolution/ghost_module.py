"""Ghost module: compute some of the maps, and derive the others from them cheaply."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil

import torch
from torch import Tensor, nn

from kernels.model.block import ConvSpec

__all__ = ["Ghost", "GhostModule"]


class Ghost(nn.Module):
    """Maps of a convolution, followed by maps that a cheap layer makes of them; the surplus is cut off."""

    def __init__(self, primary: nn.Module, cheap: nn.Module, outputs: int) -> None:
        super().__init__()
        self.primary, self.cheap, self.outputs = primary, cheap, outputs

    def forward(self, x: Tensor) -> Tensor:
        intrinsic = self.primary(x)
        return torch.cat([intrinsic, self.cheap(intrinsic)], dim=1)[:, : self.outputs]


@dataclass(frozen=True)
class GhostModule:
    r"""Of N maps compute N / s by the convolution, and from each of these s - 1 ghosts by a d x d filter.

    .. math:: y' = w' * x, \qquad y_{ij} = \Phi_{ij} * y'_i, \quad j = 1 \ldots s, \quad \Phi_{i1} = 1

    Products are k² M N / s + d² N (s - 1) / s a pixel: close to 1 / s of the standard convolution's, since d² is small
    beside k² M. The authors' code puts batch norm and ReLU behind both, and so does this.

    Parameters
    ----------
    ratio : int
        s
    cheap : int
        d, odd.
    norm : bool
        Batch norm and ReLU behind both; without them the module is linear, as the equation.

    Source
    ------
    Han et al., "GhostNet: More Features from Cheap Operations", CVPR 2020, section 3.1, equations 2 to 4.

    Examples
    --------
    >>> from kernels.counting import parameters
    >>> block = GhostModule(ratio=2, norm=False).build(ConvSpec(16, 32, 3, padding=1, bias=False))
    >>> parameters(block) == 9 * 16 * 16 + 9 * 16
    True
    """

    ratio: int = 2
    cheap: int = 3
    norm: bool = True

    def __post_init__(self) -> None:
        if self.ratio < 2:
            raise ValueError(f"ratio: expected an integer of at least 2, got {self.ratio}")
        if self.cheap < 1 or self.cheap % 2 == 0:
            raise ValueError(f"cheap: expected an odd kernel size, got {self.cheap}")

    @property
    def takes_over(self) -> tuple[type[nn.Module], ...]:
        """With norms of its own, norm and activation behind the convolution would be a second pair."""
        return (nn.BatchNorm2d, nn.ReLU) if self.norm else ()

    def build(self, spec: ConvSpec) -> Ghost:
        """An untrained module with the input and output shapes of a standard convolution.

        Parameters
        ----------
        spec : ConvSpec

        Returns
        -------
        Ghost
        """
        intrinsic = ceil(spec.out_channels / self.ratio)
        ghosts = intrinsic * (self.ratio - 1)
        primary = nn.Conv2d(**(asdict(spec) | {"out_channels": intrinsic}))
        cheap = nn.Conv2d(
            intrinsic, ghosts, self.cheap, padding=self.cheap // 2, groups=intrinsic, bias=spec.bias and not self.norm
        )
        return Ghost(self._ended(primary, intrinsic), self._ended(cheap, ghosts), spec.out_channels)

    def _ended(self, layer: nn.Module, channels: int) -> nn.Module:
        return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU()) if self.norm else layer
